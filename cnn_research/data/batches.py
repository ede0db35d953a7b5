"""Examples become batches: decoded, brought to one size, stacked; streamed by Grain, or the whole split at once."""

import contextlib
import functools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Float32, Float64, Int, UInt8

from cnn_research.data.borders import border_distance
from cnn_research.data.images import (
    IGNORE,
    CorruptImageError,
    ImageSpec,
    decode,
    decode_mask,
    place_boxes,
    write,
    write_mask,
)
from cnn_research.data.objects import empty_objects, read_objects, write_objects
from cnn_research.data.order import Order
from cnn_research.data.proposals import Proposals
from cnn_research.data.selective_search import Corners, as_boxes
from cnn_research.data.sources import Source
from cnn_research.errors import UserError

Batch = dict[str, np.ndarray]

LOGGER = logging.getLogger(__name__)  # not Abseil's, whose warnings scripts keep out of what they print

# What stands in the place of an example that is skipped, where that is not 0.
SKIPPED = {"segmentation_mask": IGNORE, "border_distance": np.inf}


def load(
    source: Source,
    indices: Int[np.ndarray, "batch"],
    mask: Bool[np.ndarray, "batch"],
    spec: ImageSpec,
    draws: Float64[np.ndarray, "batch draws"] | None = None,
) -> Batch:
    """Reads examples into one batch.

    Where `spec.skip_corrupt` is set, one that cannot be decoded becomes a black image without targets, whose
    `example_mask` is False.

    Args:
      source: the split.
      indices: of the examples.
      mask: False where an example only fills the batch up.
      spec: what images are brought to.
      draws: of the examples, for `spec.windows`; without them images are seen as `spec.resize` says.

    Raises:
      UserError: an image or a mask cannot be decoded, or an example has no label or no proposals; the message names
        it.
    """
    batch = empty(len(indices), spec) | {"example_mask": mask.copy()}
    images, sizes = batch["image"], batch["original_size"]
    numbers = [()] * len(indices) if draws is None else draws.tolist()
    dropped: dict[int, int] = {}
    mask_feature = spec.masks.feature if spec.masks else ""
    for row, example in enumerate(source.read(indices.tolist(), mask_feature, spec.max_objects > 0)):
        try:
            size = sizes[row] = write(example["image"], spec, images[row], numbers[row])
            if spec.masks:
                write_mask(example[spec.masks.feature], size, spec, batch["segmentation_mask"][row], numbers[row])
                if spec.masks.borders:
                    batch["border_distance"][row] = border_distance(batch["segmentation_mask"][row])
            if spec.max_objects:
                objects = read_objects(example["objects"])
                write_objects(objects, size, spec, batch, row, numbers[row])
                dropped[int(indices[row])] = objects.dropped
            if spec.proposals:
                corners = spec.proposals.find(example["image"])
                if corners is None:
                    raise UserError(_unsearched(source, spec.proposals))
                write_proposals(corners, size, spec, batch["proposals"][row], numbers[row])
            if "label" in batch:
                batch["label"][row] = example["label"]
        except CorruptImageError as error:
            if not spec.skip_corrupt:
                raise corrupt(source, indices[row], error) from error
            for name, values in batch.items():
                values[row] = SKIPPED.get(name, 0)
        except UserError as error:
            raise UserError(f"{describe(source, indices[row])}: {error}") from error
    _tell_dropped(source, dropped)
    if "label" in batch and batch["label"].min() < 0:
        raise UserError(f"split {source.split!r} of data set {source.name!r} has examples without a label")
    return batch


# Examples whose boxes were told of, by data set and split: a split is read again in each epoch.
_TOLD: dict[tuple[str, str], set[int]] = {}


def _tell_dropped(source: Source, dropped: Mapping[int, int]) -> None:
    """Tells how many boxes of examples have no area, once for each example."""
    told = _TOLD.setdefault((source.name, source.split), set())
    if count := sum(boxes for index, boxes in dropped.items() if index not in told):
        LOGGER.warning("split %s of %s: %d boxes without area dropped", source.split, source.name, count)
        told.update(index for index, boxes in dropped.items() if boxes)


def describe(source: Source, index: int | np.integer) -> str:
    """Returns the words that name an example."""
    return f"example {index} of {source.name}, split {source.split}"


def corrupt(source: Source, index: int | np.integer, error: CorruptImageError) -> UserError:
    """Returns what to say of an example that cannot be decoded, where such ones are not skipped."""
    return UserError(f"{describe(source, index)}: {error}; --config.data.skip_corrupt leaves such examples out")


def decoded(
    source: Source, indices: Iterable[int], spec: ImageSpec
) -> Iterator[tuple[int, UInt8[np.ndarray, "height width channels"], dict[str, Any]]]:
    """Yields examples at their own size: index, image and what `Source.read` gives, with the mask as its classes.

    Args:
      source: the split.
      indices: of the examples.
      spec: which targets there are, the images' channels, and whether what cannot be decoded is left out.

    Raises:
      UserError: an image or a mask cannot be decoded; the message names it.
    """
    indices = [*indices]
    feature = spec.masks.feature if spec.masks else ""
    for index, example in zip(indices, source.read(indices, feature, spec.max_objects > 0), strict=True):
        try:
            image = decode(example["image"], spec.channels)
            if spec.masks:
                example = example | {feature: decode_mask(example[feature], spec.masks)}
        except CorruptImageError as error:
            if not spec.skip_corrupt:
                raise corrupt(source, index, error) from error
            continue
        yield index, image, example


def present(batch: Batch) -> Batch:
    """Returns a batch without what only pads it."""
    return {name: values[batch["example_mask"]] for name, values in batch.items()}


def write_proposals(
    corners: Corners,
    size: tuple[int, int],
    spec: ImageSpec,
    out: Float32[np.ndarray, "room 4"],
    draws: Sequence[float] = (),
) -> None:
    """Writes an image's proposals into its row of a batch, as they lie in what is seen of the image.

    Args:
      corners: what was found in the image.
      size: its height and width.
      spec: what it is brought to.
      out: of zeros, which stay where there are no more proposals.
      draws: of the example, for `spec.windows`.
    """
    boxes = as_boxes(corners[: len(out)])
    out[: len(boxes)] = place_boxes(boxes, size, spec, draws)


def _unsearched(source: Source, missing: Proposals) -> str:
    search = missing.search
    return (
        f"no proposals of it are in {missing.folder}; make them: python -m experiments.propose --dataset={source.name}"
        f" --split={source.split} --mode={search.mode} --width={search.width} --out={missing.base}"
    )


def empty(count: int, spec: ImageSpec) -> Batch:
    """Returns a batch without content: the names, shapes and types of what `load` reads.

    Args:
      count: examples.
      spec: what images are brought to.
    """
    batch = {
        "image": np.empty((count, *spec.size, spec.channels), np.uint8),
        "example_mask": np.empty(count, bool),
        "original_size": np.empty((count, 2), np.int32),
    }
    if spec.masks:
        batch["segmentation_mask"] = np.empty((count, *spec.size, 1), np.uint8)
        if spec.masks.borders:
            batch["border_distance"] = np.empty((count, *spec.size, 1), np.float16)
    if spec.max_objects:
        batch |= empty_objects(count, spec.max_objects)
    if spec.proposals:
        batch["proposals"] = np.zeros((count, spec.proposals.count, 4), np.float32)
    if not spec.masks and not spec.max_objects:
        batch["label"] = np.empty(count, np.int32)
    return batch


def load_step(source: Source, order: Order, spec: ImageSpec, block: slice, step: int) -> Batch:
    """Reads a step's batch: a pure function of the order, the seed in `spec.windows` and the step.

    Args:
      source: the split.
      order: which examples a step sees.
      spec: what images are brought to.
      block: the part of the global batch that is read, which then is as it is in the whole.
      step: counted from 0.
    """
    indices, mask = order(step)
    draws = spec.windows.draws(step, len(indices))[block] if spec.windows else None
    return load(source, indices[block], mask[block], spec, draws)


def load_all(source: Source, spec: ImageSpec, workers: int = 8) -> Batch:
    """Reads a whole split into memory, in its stored order.

    Args:
      source: the split.
      spec: what images are brought to.
      workers: threads; decoding releases Python's lock.
    """
    chunks = [np.arange(len(source))[begin : begin + 1024] for begin in range(0, len(source), 1024)]
    dataset = grain.MapDataset.source(chunks).map(lambda chunk: load(source, chunk, np.ones(len(chunk), bool), spec))
    parts = list(dataset.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers)))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def nbytes(source: Sized, spec: ImageSpec) -> int:
    """Returns the bytes that a split's images, masks and proposals take in memory.

    Args:
      source: the split; only its length counts.
      spec: what images are brought to.
    """
    masks = (1 + 2 * spec.masks.borders) if spec.masks else 0
    boxes = 4 * 4 * spec.proposals.count if spec.proposals else 0
    return len(source) * (spec.size[0] * spec.size[1] * (spec.channels + masks) + boxes)


def stream(
    source: Source,
    order: Order,
    spec: ImageSpec,
    steps: range,
    block: slice,
    workers: int = 0,
    threads: int = 8,
    ahead: int = 4,
) -> Generator[Batch, None, None]:
    """Yields one process's block of the global batch of each step, read ahead by Grain.

    An element of the Grain pipeline is a whole batch: the position in the data is then the step, and a list of records
    is read at once.

    Args:
      source: the split.
      order: which examples a step sees.
      spec: what images are brought to.
      steps: to yield, in order; a run that resumes begins in the middle.
      block: this process's part of the global batch.
      workers: processes that decode; 0 decodes in threads of this one.
      threads: batches that are read at a time, in each process.
      ahead: batches that are kept ready.
    """
    read = functools.partial(load_step, source, order, spec, block)  # which Grain sends to its processes by name
    dataset = grain.MapDataset.range(steps.start, steps.stop, steps.step).map(read)
    batches = dataset.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, ahead)))
    if workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which a notebook, say, never parses
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead)
        batches = batches.mp_prefetch(options, worker_init_fn=_serve_main_process)
    with contextlib.closing(iter(batches)) as iterator:
        yield from iterator


def _serve_main_process(*_: int) -> None:
    """Prepares a process that decodes: it takes one core, and ends with the main one, not before.

    Ctrl-C and Slurm signal every process of a run, but the main one needs batches until it has saved; and where it is
    killed, nobody else tells the others.
    """
    cv2.setNumThreads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
