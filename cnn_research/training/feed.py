"""Batches on the devices: gathered there from a resident split, or streamed from the host."""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Sized
from typing import Any

import filelock
import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding
from jaxtyping import Int
from ml_collections import ConfigDict
from tqdm import tqdm

from cnn_research.data import batches, embedded
from cnn_research.data.images import UNKNOWN, ImageSpec, MaskSpec
from cnn_research.data.order import Order
from cnn_research.data.proposals import Proposals, open_proposals
from cnn_research.data.propose import is_searched, search_split
from cnn_research.data.selective_search import SelectiveSearch
from cnn_research.data.sources import Source
from cnn_research.data.windows import RandomWindows
from cnn_research.errors import UserError
from cnn_research.training.parallel import Jit
from cnn_research.training.progress import Progress

RESIDENT_BYTES = 2**30  # what `data.resident=auto` keeps on each device


def image_spec(data: ConfigDict) -> ImageSpec:
    """Returns what `config.data` brings images to, where nothing is drawn; their masks are left out."""
    return ImageSpec(
        tuple(data.image_size),
        data.channels,
        data.resize,
        max_objects=data.max_objects,
        skip_corrupt=data.skip_corrupt,
        proposals=proposals_of(data),
    )


def proposals_of(data: ConfigDict) -> Proposals | None:
    """Returns the proposals that `config.data` asks for, or None where the network is given none."""
    if not data.max_proposals:
        return None
    search = SelectiveSearch(data.proposals, data.proposal_width)
    return open_proposals(data.name, search, data.max_proposals, data.proposal_dir, data.data_dir)


def mask_spec(config: ConfigDict, borders: bool = False) -> MaskSpec | None:
    """Returns what is read of masks, or None where images have labels.

    Args:
      config: of the run.
      borders: whether the distances between objects are wanted.
    """
    data = config.data
    if not data.mask:
        return None
    if data.max_objects:
        return MaskSpec(data.mask, UNKNOWN - 1)  # of as many instances as there can be classes
    return MaskSpec(data.mask, config.model.num_classes, tuple(data.mask_values), borders)


def eval_spec(config: ConfigDict) -> ImageSpec:
    """Returns what evaluation's images are brought to."""
    return dataclasses.replace(image_spec(config.data), masks=mask_spec(config))


def train_spec(config: ConfigDict) -> ImageSpec:
    """Returns what the host brings training's images to: the network's windows, where it draws them."""
    data, augmentation = config.data, config.augmentation
    borders = config.loss.get("border_weight", 0) > 0
    spec = dataclasses.replace(image_spec(data), masks=mask_spec(config, borders))
    if data.crop_on != "host":
        return spec
    area = tuple(augmentation.random_resized_crop)
    windows = RandomWindows(
        seed=config.seed,
        area=() if area == (1.0, 1.0) else area,
        aspect_ratio=tuple(augmentation.aspect_ratio),
        short_side=tuple(data.short_side) or (min(spec.size),) * 2,
    )
    return dataclasses.replace(spec, size=tuple(data.crop_size) or spec.size, windows=windows)


@dataclasses.dataclass(frozen=True)
class Feed:
    """A split in some order, as the arguments of compiled steps.

    A step takes `(state, batch, data)`. For a resident split `data` is all of it and a batch only holds the examples'
    indices; otherwise `data` is empty.

    Attributes:
      source: the split.
      order: which examples a step sees.
      spec: what images are brought to.
      parallel: how batches lie on the devices.
      data: the resident split, or {}.
      workers: processes that decode a streamed split.
      skipped: indices of the examples that this process could not decode so far.
    """

    source: Source
    order: Order
    spec: ImageSpec
    parallel: Jit
    data: dict[str, jax.Array]
    workers: int = 0
    skipped: set[int] = dataclasses.field(default_factory=set)

    def batch(self, step: int) -> batches.Batch:
        """Returns the whole global batch of a step as it is before augmentation, on the host."""
        return batches.load_step(self.source, self.order, self.spec, slice(None), step)

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yields the batches of the steps from `start` to before `stop`, on the devices."""
        return map(self.parallel.place, self.blocks(start, stop))

    def blocks(self, start: int, stop: int) -> Iterator[batches.Batch]:
        """Yields this process's blocks of these batches, on the host."""
        block = self.parallel.block(len(self.order(0)[0]))
        if self.data:
            for step in range(start, stop):
                indices, mask = self.order(step)
                yield {"index": indices[block].astype(np.int32), "example_mask": mask[block]}
        else:
            steps = range(start, stop)
            streamed = batches.stream(self.source, self.order, self.spec, steps, block, self.workers)
            with contextlib.closing(streamed):
                for step, batch in zip(steps, streamed, strict=True):
                    if self.spec.skip_corrupt:
                        indices, mask = self.order(step)
                        self.tell(indices[block][mask[block] & ~batch["example_mask"]])
                    yield batch

    def tell(self, skipped: Int[np.ndarray, " examples"]) -> None:
        """Names examples that were skipped, each once."""
        for index in sorted({*skipped.tolist()} - self.skipped):
            tqdm.write(f"skips {batches.describe(self.source, index)}: it cannot be decoded", file=sys.stderr)
        self.skipped.update(skipped.tolist())


def make_feed(
    source: Source,
    order: Order,
    data: ConfigDict,
    parallel: Jit,
    spec: ImageSpec | None = None,
    resident: dict[str, jax.Array] | None = None,
    skipped: set[int] | None = None,
) -> Feed:
    """Returns the feed that `config.data` asks for.

    A split is resident where `data.resident` says so and its images are the same at every step. Random windows that the
    host cuts out of the files are new ones each time: such a split is streamed, whatever its size.

    Proposals of an embedded set are made here, as the set itself is where it is first asked for.

    Args:
      source: the split.
      order: which examples a step sees.
      data: `config.data`.
      parallel: how batches lie on the devices.
      spec: what images are brought to: `train_spec`, `eval_spec`, or `image_spec` unless given.
      resident: the `data` of another feed of the same split and spec, to be shared.
      skipped: that of another feed of the same split, so that none is named again.

    Raises:
      UserError: the examples are not those that the task needs.
    """
    spec = spec or image_spec(data)
    target = spec.masks.feature if spec.masks else "objects" if spec.max_objects else "label"
    for key in (source.image, target):
        if key not in source.features:
            raise UserError(f"data set {source.name!r} has no feature {key!r}; it has {', '.join(source.features)}")
    if spec.proposals and source.name.split("/")[0] in embedded.NAMES:
        _search(source, spec.proposals)
    feed = Feed(source, order, spec, parallel, resident or {}, data.workers, set() if skipped is None else skipped)
    if resident or not _is_resident(source, data, spec):
        return feed
    content: dict[str, Any] = batches.load_all(source, spec)
    if spec.skip_corrupt and jax.process_index() == 0:
        feed.tell(np.flatnonzero(~content["example_mask"]))
    if not spec.skip_corrupt:
        del content["example_mask"]  # a batch brings its own
    return dataclasses.replace(feed, data=parallel.spread(parallel.replicate(content)))


def _search(source: Source, wanted: Proposals) -> None:
    """Searches what was not searched before; processes of one file system wait for the one that does."""
    folder = epath.Path(wanted.folder)
    with contextlib.ExitStack() as held:
        if "://" not in wanted.folder:  # buckets have no locks
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(filelock.FileLock(folder / ".lock"))
        if not is_searched(source, wanted):
            watch_search(source, wanted)


def watch_search(
    source: Source, wanted: Proposals, workers: int = 0, shard: tuple[int, int] = (0, 1), skip_corrupt: bool = False
) -> None:
    """Does what `search_split` does, and shows how far it is."""
    progress = Progress(0, len(range(shard[0], len(source), shard[1])), f"{source.split}: image")
    with contextlib.closing(progress):
        for done in search_split(source, wanted, workers, shard, skip_corrupt):
            progress.update(done, {})


def _is_resident(source: Sized, data: ConfigDict, spec: ImageSpec) -> bool:
    small = batches.nbytes(source, spec) <= RESIDENT_BYTES
    return not spec.windows and (data.resident == "on" or (data.resident == "auto" and small))


def abstract_feed(config: ConfigDict, parallel: Jit) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the shapes, types and shardings of the `batch` and the `data` that training's steps take.

    Args:
      config: of the run; `data.num_examples` must be known.
      parallel: how batches lie on the devices.
    """
    spec = train_spec(config)
    whole = batches.empty(1, spec)
    examples = {name: x for name, x in whole.items() if name != "example_mask"}
    rows = {"example_mask": whole["example_mask"]}
    resident = _is_resident(range(config.data.num_examples), config.data, spec)
    rows |= {"index": np.empty(1, np.int32)} if resident else examples

    def abstract(arrays: dict[str, np.ndarray], count: int, sharding: Sharding) -> dict[str, Any]:
        return {
            name: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=sharding) for name, x in arrays.items()
        }

    kept = whole if spec.skip_corrupt else examples
    data = abstract(kept, config.data.num_examples, parallel.replicated) if resident else {}
    return abstract(rows, config.batch_size, parallel.batch_sharding), data
