"""Evaluation over a whole split: every example counts once, whatever the batch size and the number of devices."""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cnn_research.data.images import decode_mask, restore_boxes
from cnn_research.data.objects import read_objects
from cnn_research.data.order import Sequential
from cnn_research.data.sources import Source, open_source
from cnn_research.errors import UserError
from cnn_research.metrics import records
from cnn_research.metrics.detection import encode_masks
from cnn_research.metrics.records import Record
from cnn_research.tasks import RecordTask, Task
from cnn_research.training.feed import Feed, eval_spec, make_feed
from cnn_research.training.parallel import Jit
from cnn_research.training.step import Preprocessing, gather, make_eval_step


class Evaluator:
    """A split and the compiled step that measures a network on it.

    Attributes:
      skipped: how many examples could not be decoded when it was last measured.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        preprocessing: Preprocessing,
        source: Source,
        config: ConfigDict,
        parallel: Jit,
    ):
        """Loads the split and prepares the step.

        Args:
          model: the network.
          task: its predictions and what is measured of them.
          preprocessing: of the images.
          source: the split.
          config: of the run.
          parallel: how the step runs; always `jit`, whatever trains.
        """
        check_classes(source, config)
        # Padding makes any batch size divide among the devices.
        batch_size = -(-min(config.eval_batch_size, len(source)) // parallel.devices) * parallel.devices
        self._order = Sequential(len(source), batch_size)
        self._feed: Feed = make_feed(source, self._order, config.data, parallel, eval_spec(config))
        self._task = task
        self._truths: dict[int, Record] = {}  # by example: the same at each evaluation
        self.skipped = 0
        step = make_eval_step(model, task, preprocessing)

        def step_and_facts(variables: Any, batch: Any, data: Any) -> Any:
            examples = gather(batch, data)
            return step(variables, batch, data), examples["example_mask"], examples["original_size"]

        self._step = jax.jit(step_and_facts, out_shardings=parallel.replicated)

    def __call__(self, variables: dict[str, Any]) -> dict[str, float]:
        """Returns the metrics of the split, see `summarize`.

        Args:
          variables: the network's, replicated over the mesh.
        """
        return self.summarize(self.measure(variables))

    def summarize(self, measured: Any) -> dict[str, float]:
        """Returns the metrics under the task's names and, where examples may be skipped, how many were.

        Args:
          measured: what `measure` gave.
        """
        skipped = {"skipped": self.skipped} if self._feed.spec.skip_corrupt else {}
        return self._task.summarize(measured) | skipped

    def measure(self, variables: dict[str, Any]) -> Any:
        """Returns what the task makes metrics of: sums over the split, or records of its examples with their `index`.

        Args:
          variables: the network's, replicated over the mesh.
        """
        if isinstance(self._task, RecordTask):
            return self._records(self._task, variables)
        return functools.reduce(_added, (_wide(sums) for sums, _, _ in self._outputs(variables)))

    def _outputs(self, variables: dict[str, Any]) -> Iterator[Any]:
        """Yields what the step gives for each batch; the devices work at the next one meanwhile."""
        self.skipped = len(self._feed.source)
        outputs = (self._step(variables, batch, self._feed.data) for batch in self._feed(0, len(self._order)))
        for last, _next in itertools.pairwise(itertools.chain(outputs, [None])):
            output, mask, sizes = jax.device_get(last)
            self.skipped -= int(mask.sum())
            yield output, mask, sizes

    def _records(self, task: RecordTask, variables: dict[str, Any]) -> list[Record]:
        """Each process makes those of every n-th example of a batch."""
        made: list[Record] = []
        places: list[int] = []
        for step, (arrays, mask, sizes) in enumerate(self._outputs(variables)):
            indices, _ = self._order(step)
            mine = mask & (np.arange(len(mask)) % jax.process_count() == jax.process_index())
            found = records.unpad({name: x for name, x in arrays.items() if name != "valid"}, arrays["valid"], mine)
            for index, size, objects in zip(
                indices[mine].tolist(), map(tuple, sizes[mine].tolist()), found, strict=True
            ):
                boxes = restore_boxes(objects["boxes"], size, self._feed.spec) * np.tile(np.array(size, np.float32), 2)
                record = task.record(objects | {"boxes": boxes}, self._truth(index, size))
                made.append(record | {"index": np.array(index)})
                places.append(index)
        return records.gather(made, np.array(places))

    def _truth(self, index: int, size: tuple[int, int]) -> Record:
        """Returns all objects of an example."""
        if index not in self._truths:
            masks = self._feed.spec.masks
            [example] = self._feed.source.read([index], masks.feature if masks else "", objects=True)
            objects = read_objects(example["objects"])
            self._truths[index] = objects.truth(size)
            if masks:
                seen = decode_mask(example[masks.feature], masks)[..., 0] == objects.numbers[:, None, None]
                self._truths[index] |= {"masks": encode_masks(seen), "size": np.array(size)}
        return self._truths[index]


def _added(sums: Any, new: Any) -> Any:
    return jax.tree.map(np.add, sums, new)


def _wide(sums: Any) -> Any:
    """Returns sums in 64 bits: Cityscapes' training split has three times the pixels that 32 count."""
    return jax.tree.map(lambda x: x.astype(np.int64 if np.issubdtype(x.dtype, np.integer) else np.float64), sums)


def check_classes(source: Source, config: ConfigDict) -> None:
    """Refuses a data set with more classes than the network has outputs, where those are of classes.

    Raises:
      UserError: naming both numbers.
    """
    names = class_names(source, config)
    if len(names) > config.model.get("num_classes", len(names)):
        raise UserError(
            f"data set {source.name!r} has {len(names)} classes, model.num_classes is {config.model.num_classes}"
        )


def class_names(source: Source, config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the classes: the data set's, or where pixels have classes the recipe's."""
    if config.data.max_objects:
        return source.object_names
    return tuple(config.data.class_names) if config.data.mask else source.class_names


def open_split(config: ConfigDict, split: str) -> Source:
    """Opens a split of the config's data set."""
    return open_source(config.data.name, split, config.data.data_dir, config.data.image)
