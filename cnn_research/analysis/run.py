"""A run restored from its directory alone: no config file, any number of devices."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from flax.traverse_util import flatten_dict
from jaxtyping import Float32, UInt8
from ml_collections import ConfigDict

from cnn_research.analysis.table import times
from cnn_research.analysis.tiles import predict_tiles
from cnn_research.data.batches import Batch, load_step, write_proposals
from cnn_research.data.corruption import Corruption, corrupted
from cnn_research.data.images import resize, restore
from cnn_research.data.order import Shuffled
from cnn_research.data.sources import Source
from cnn_research.errors import UserError
from cnn_research.interop import safetensors
from cnn_research.interop.fit import differences
from cnn_research.tasks import Task
from cnn_research.training.evaluation import Evaluator, open_split
from cnn_research.training.feed import image_spec, train_spec
from cnn_research.training.initialize import restore_run
from cnn_research.training.parallel import make_parallel
from cnn_research.training.program import Program, make_program
from cnn_research.training.step import step_rngs
from cnn_research.training.writers import read_records, read_result


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained network with all that belongs to it.

    Attributes:
      workdir: the run's directory.
      program: what follows from its config.
      step: of the checkpoint.
      variables: of the network, as the run evaluates them (averaged, if it averages).
      corruption: of the images that it is evaluated on; None leaves them as they are.
    """

    workdir: epath.Path
    program: Program
    step: int
    variables: dict[str, Any]
    corruption: Corruption | None = None

    @property
    def config(self) -> ConfigDict:
        """The run's config."""
        return self.program.config

    @property
    def model(self) -> nn.Module:
        """The network."""
        return self.program.model

    @property
    def task(self) -> Task:
        """The task."""
        return self.program.task

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.config.data.class_names or tuple(map(str, range(self.config.model.num_classes)))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`."""
        return read_records(self.workdir / "metrics.jsonl")

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json`; {} while the run is unfinished."""
        path = self.workdir / "result.json"
        return read_result(path, "step", "seconds", "images_per_second") if path.exists() else {}

    @functools.cached_property
    def _predict(self) -> Any:
        def predict(variables: Any, batch: Any) -> Any:
            return self.task.predict(self.model, variables, self.program.preprocessing.test(batch))

        return jax.jit(predict)

    def predict(
        self, images: Iterable[UInt8[np.ndarray, "_height _width channels"]], batch_size: int = 256
    ) -> dict[str, np.ndarray]:
        """Returns the task's predictions for images of any size, which are brought to the network's.

        Args:
          images: with the channels that the network takes.
          batch_size: images at a time; one program is compiled, whatever their number.

        Returns:
          For classification `logits` and `probabilities` [images, classes], `label` [images]; for localization also
          `box` [images, 4] in 0..1 of what the network sees; for segmentation the first three for each pixel of the
          network's output; for detection `boxes` [images, found, 4], likewise in 0..1, and their `classes`, `scores`
          and `valid`, which there are.

        Raises:
          UserError: there are no images, or they have other channels.
        """
        parts = list(self._batches([*images], batch_size))
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _batches(self, images: Sequence[np.ndarray], batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yields the predictions for so many images at a time."""
        spec = image_spec(self.config.data)
        if not images:
            raise UserError("there are no images; give one at least")
        if others := {image.shape[-1] for image in images} - {spec.channels}:
            raise UserError(f"the images have {min(others)} channels; the network takes {spec.channels}")
        size = min(batch_size, len(images))
        for begin in range(0, len(images), size):
            part = np.stack([resize(image, spec) for image in images[begin : begin + size]])
            batch = {"image": part}
            if spec.proposals:
                batch["proposals"] = np.zeros((len(part), spec.proposals.count, 4), np.float32)
                for image, row in zip(images[begin : begin + size], batch["proposals"], strict=True):
                    write_proposals(spec.proposals.search(image), image.shape[:2], spec, row)
            filled = {
                key: np.concatenate([x, np.zeros((size - len(x), *x.shape[1:]), x.dtype)]) for key, x in batch.items()
            }
            predictions = jax.device_get(self._predict(self.variables, filled))
            yield {key: value[: len(part)] for key, value in predictions.items()}

    def segment(
        self, images: Sequence[UInt8[np.ndarray, "_height _width channels"]], batch_size: int = 16
    ) -> Iterator[Float32[np.ndarray, "_height _width classes"]]:
        """Yields the probabilities of the pixels of images, at their own size.

        Args:
          images: with the channels that the network takes; they are brought to its size, and what it says is back.
          batch_size: images at a time; one program is compiled, whatever their number.
        """
        spec = image_spec(self.config.data)
        maps = itertools.chain.from_iterable(part["probabilities"] for part in self._batches(images, batch_size))
        for image, probabilities in zip(images, maps, strict=True):
            yield restore(probabilities, spec, image.shape[:2])

    def segment_tiles(
        self,
        image: UInt8[np.ndarray, "height width channels"],
        tile: tuple[int, int],
        margin: int,
        multiple: int = 32,
        batch_size: int = 4,
    ) -> Float32[np.ndarray, "height width classes"]:
        """Returns the probabilities of an image's pixels without resizing it; see `analysis.tiles`.

        Args:
          image: with the channels that the network takes, of any size.
          tile: height and width of what the network sees at a time.
          margin: pixels of context on each side of it.
          multiple: the network's stride.
          batch_size: tiles at a time.
        """

        def predict(tiles: np.ndarray) -> np.ndarray:
            return jax.device_get(self._predict_tiles(self.variables, {"image": tiles})["probabilities"])

        return predict_tiles(predict, image, tile, margin, multiple, batch_size)

    @functools.cached_property
    def _predict_tiles(self) -> Any:
        preprocessing = dataclasses.replace(self.program.preprocessing, mirror=0)  # the tiles have real context
        return jax.jit(lambda variables, batch: self.task.predict(self.model, variables, preprocessing.test(batch)))

    def with_data(self, **fields: Any) -> "Run":
        """Returns the run as it evaluates other data: another set, or images of another size.

        Args:
          **fields: of `config.data` that differ, such as `name`, `data_dir` or `image_size`.

        Raises:
          UserError: a field is not right, or the network's weights are for images of the run's own size alone.
        """
        config = self.config.copy_and_resolve_references()
        config.data.update(fields)
        program = make_program(config)
        if faults := differences(
            *(flatten_dict(each, sep="/") for each in (program.abstract_variables, self.variables))
        ):
            raise UserError(f"the network's weights are not for images of {times(program.image_shape)}: {faults}")
        return dataclasses.replace(self, program=program)

    def with_weights(self, path: epath.PathLike) -> "Run":
        """Returns the run with the variables of a `.safetensors` file, such as an average of its checkpoints.

        Args:
          path: of the file.

        Raises:
          UserError: the file cannot be read, or its variables are not the network's.
        """
        given = safetensors.load(path)
        if faults := differences(*(flatten_dict(each, sep="/") for each in (self.variables, given))):
            raise UserError(f"{path} does not fit the run's network: {faults}")
        variables = jax.tree.map(lambda ours, theirs: jnp.asarray(theirs, ours.dtype), self.variables, given)
        return dataclasses.replace(self, variables=variables)

    def open_split(self, split: str = "") -> Source:
        """Opens a split of the run's data, with its images corrupted where the run says so.

        Args:
          split: with TFDS's slicing; the config's test split unless given.
        """
        source = open_split(self.config, split or self.config.data.test)
        return corrupted(source, self.corruption) if self.corruption else source

    def evaluate(self, split: str = "") -> dict[str, float]:
        """Returns the metrics of a whole split.

        Args:
          split: with TFDS's slicing; the config's test split unless given.
        """
        evaluator = self.evaluator(split)
        return evaluator.summarize(self.measure(split, evaluator))

    def evaluator(self, split: str = "") -> Evaluator:
        """Returns what measures the network on a whole split, on all devices.

        Args:
          split: with TFDS's slicing; the config's test split unless given.
        """
        parallel = make_parallel("jit")
        source = self.open_split(split)
        return Evaluator(self.model, self.task, self.program.preprocessing, source, self.config, parallel)

    def measure(self, split: str = "", evaluator: Evaluator | None = None) -> Any:
        """Returns what the task's metrics are made of: sums over a whole split, or records of its examples.

        Args:
          split: with TFDS's slicing; the config's test split unless given.
          evaluator: of the split, where there is one.
        """
        return (evaluator or self.evaluator(split)).measure(make_parallel("jit").replicate(self.variables))

    def batch(self, step: int, augmented: bool = False) -> Batch:
        """Returns the exact batch that a step of training saw.

        Args:
          step: updates done before it.
          augmented: as the network sees it, augmented and normalised; else as the host gives it, uint8.
        """
        source = open_split(self.config, self.config.data.train)
        order = Shuffled(len(source), self.config.batch_size, self.config.seed)
        batch = load_step(source, order, train_spec(self.config), slice(None), step)
        if not augmented:
            return batch
        augment_rng, _ = step_rngs(jax.random.key(self.config.seed), jnp.int32(step))
        return jax.device_get(jax.jit(self.program.preprocessing.train)(batch, augment_rng))

    def export(self, path: epath.PathLike) -> None:
        """Writes the variables as a `.safetensors` file, which `init_from` takes.

        Args:
          path: of the file.
        """
        safetensors.save(self.variables, path)


def load_run(workdir: epath.PathLike, step: int | str | None = None) -> Run:
    """Restores a run on the first device here, whatever devices trained it.

    Args:
      workdir: the run's directory, local or in a bucket.
      step: a step that has a checkpoint, `latest` (or None) or `best`.

    Raises:
      UserError: the directory holds no run, or no such checkpoint.
    """
    workdir = epath.Path(workdir).expanduser()
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    program, found, variables = restore_run(workdir, step, sharding)
    return Run(workdir, program, found, variables)
