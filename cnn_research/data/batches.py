"""Examples become batches: decoded, brought to one size, stacked; streamed by Grain, or the whole split at once."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

import cv2
import grain
import numpy as np
from absl import flags
from jaxtyping import Bool, Int, UInt8

from cnn_research.data.order import Order
from cnn_research.data.sources import Source
from cnn_research.errors import UserError, nearest

Batch = dict[str, np.ndarray]

RESIZE = ("stretch", "pad", "crop")


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The one shape that every image is brought to.

    Attributes:
      size: height and width.
      channels: 1 for grey, 3 for colour.
      resize: `stretch` each side by itself; `pad`: centred on black, made smaller only if it does not fit; `crop`: the
        shorter side is made to fit and the middle is kept.
    """

    size: tuple[int, ...]
    channels: int = 3
    resize: str = "stretch"

    def __post_init__(self):
        if self.resize not in RESIZE:
            raise UserError(f"data.resize={self.resize!r} is unknown; {nearest(self.resize, RESIZE)}")
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: images have 1 channel (grey) or 3 (colour)")
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"data.image_size={self.size}: give a height and a width in pixels, such as 32,32")


def decode(encoded: bytes, channels: int) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes a PNG or JPEG file, whatever its own number of channels, as it is stored (without turning it by EXIF).

    Args:
      encoded: the file's bytes.
      channels: 1 for grey, 3 for RGB.

    Raises:
      UserError: the bytes are no image.
    """
    mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        image = None
    if image is None:
        raise UserError("an image cannot be decoded; PNG and JPEG files can")
    return image.reshape(*image.shape[:2], channels)


def resize(
    image: UInt8[np.ndarray, "height width channels"], spec: ImageSpec
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Brings an image to `spec.size`, as `spec.resize` says."""
    target = np.array(spec.size)
    size = np.array(image.shape[:2])
    if spec.resize != "stretch":
        scale = max(target / size) if spec.resize == "crop" else min(1.0, *(target / size))
        target = np.maximum(1, np.round(size * scale)).astype(int)
    if tuple(target) != tuple(size):
        shrinks = target.prod() < size.prod()
        image = cv2.resize(
            image, tuple(target.tolist()[::-1]), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        )
        image = image.reshape(*target, spec.channels)
    if tuple(target) == tuple(spec.size):
        return image
    begin = (target - spec.size) // 2
    if spec.resize == "crop":
        return image[begin[0] : begin[0] + spec.size[0], begin[1] : begin[1] + spec.size[1]]
    canvas = np.zeros((*spec.size, spec.channels), np.uint8)
    canvas[-begin[0] : -begin[0] + target[0], -begin[1] : -begin[1] + target[1]] = image
    return canvas


def load(source: Source, indices: Int[np.ndarray, "batch"], mask: Bool[np.ndarray, "batch"], spec: ImageSpec) -> Batch:
    """Reads examples into one batch.

    Args:
      source: the split.
      indices: of the examples.
      mask: False where an example only fills the batch up.
      spec: the images' shape.

    Raises:
      UserError: an image cannot be decoded or an example has no label; the message names it.
    """
    images = np.empty((len(indices), *spec.size, spec.channels), np.uint8)
    labels = np.empty(len(indices), np.int32)
    sizes = np.empty((len(indices), 2), np.int32)
    # One call for all: ArrayRecord reads a list of records several times as fast as one by one.
    for row, example in enumerate(source.examples.__getitems__(indices.tolist())):
        try:
            image = decode(example["image"], spec.channels)
        except UserError as error:
            raise UserError(f"example {indices[row]} of {source.name}, split {source.split}: {error}") from error
        images[row], sizes[row], labels[row] = resize(image, spec), image.shape[:2], example["label"]
    if labels.min() < 0:
        raise UserError(f"split {source.split!r} of data set {source.name!r} has examples without a label")
    return {"image": images, "label": labels, "example_mask": mask, "original_size": sizes}


def load_all(source: Source, spec: ImageSpec, workers: int = 8) -> Batch:
    """Reads a whole split into memory, in its stored order.

    Args:
      source: the split.
      spec: the images' shape.
      workers: threads; decoding releases Python's lock.
    """
    chunks = [np.arange(len(source))[begin : begin + 1024] for begin in range(0, len(source), 1024)]
    dataset = grain.MapDataset.source(chunks).map(lambda chunk: load(source, chunk, np.ones(len(chunk), bool), spec))
    parts = list(dataset.to_iter_dataset(grain.ReadOptions(num_threads=workers, prefetch_buffer_size=workers)))
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def nbytes(source: Source, spec: ImageSpec) -> int:
    """Returns the bytes that a split's images take in memory."""
    return len(source) * spec.size[0] * spec.size[1] * spec.channels


def stream(
    source: Source,
    order: Order,
    spec: ImageSpec,
    steps: range,
    block: slice,
    workers: int = 0,
    threads: int = 8,
    ahead: int = 4,
) -> Iterator[Batch]:
    """Yields one process's block of the global batch of each step, read ahead by Grain.

    An element of the Grain pipeline is a whole batch: the position in the data is then the step, and a list of records
    is read at once.

    Args:
      source: the split.
      order: which examples a step sees.
      spec: the images' shape.
      steps: to yield, in order; a run that resumes begins in the middle.
      block: this process's part of the global batch.
      workers: processes that decode; 0 decodes in threads of this one.
      threads: batches that are read at a time, in each process.
      ahead: batches that are kept ready.
    """
    read = functools.partial(_load_step, source, order, spec, block)
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
    """Prepares a process that decodes: it ends with the main one, and not before.

    Ctrl-C and Slurm signal every process of a run, but the main one needs batches until it has saved; and where it is
    killed, nobody else tells the others.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

    def follow() -> None:
        multiprocessing.parent_process().join()  # type: ignore[union-attr]
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _load_step(source: Source, order: Order, spec: ImageSpec, block: slice, step: int) -> Batch:
    """Reads a step's batch; a function of the module, since Grain sends it to its processes by name."""
    indices, mask = order(step)
    return load(source, indices[block], mask[block], spec)
