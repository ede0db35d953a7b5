"""Batches on the devices: gathered there from a resident split, or streamed from the host."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from cnn_research.data import batches
from cnn_research.data.order import Order
from cnn_research.data.sources import Source
from cnn_research.errors import UserError
from cnn_research.training.parallel import Jit

RESIDENT_BYTES = 2**30  # what `data.resident=auto` keeps on each device


def image_spec(data: ConfigDict) -> batches.ImageSpec:
    """Returns the shape that `config.data` brings images to."""
    return batches.ImageSpec(tuple(data.image_size), data.channels, data.resize)


@dataclasses.dataclass(frozen=True)
class Feed:
    """A split in some order, as the arguments of compiled steps.

    A step takes `(state, batch, data)`. For a resident split `data` is all of it and a batch only holds the examples'
    indices; otherwise `data` is empty.

    Attributes:
      source: the split.
      order: which examples a step sees.
      spec: the images' shape.
      parallel: how batches lie on the devices.
      data: the resident split, or {}.
      workers: processes that decode a streamed split.
    """

    source: Source
    order: Order
    spec: batches.ImageSpec
    parallel: Jit
    data: dict[str, jax.Array]
    workers: int = 0

    def batch(self, step: int) -> batches.Batch:
        """Returns the whole global batch of a step as it is before augmentation, on the host."""
        return batches.load(self.source, *self.order(step), self.spec)

    def __call__(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Yields the batches of the steps from `start` to before `stop`, on the devices."""
        block = self.parallel.block(len(self.order(0)[0]))
        if self.data:
            for step in range(start, stop):
                indices, mask = self.order(step)
                yield self.parallel.place({"index": indices[block].astype(np.int32), "example_mask": mask[block]})
        else:
            for batch in batches.stream(self.source, self.order, self.spec, range(start, stop), block, self.workers):
                yield self.parallel.place(batch)


def make_feed(source: Source, order: Order, data: ConfigDict, parallel: Jit) -> Feed:
    """Returns the feed that `config.data` asks for.

    Args:
      source: the split.
      order: which examples a step sees.
      data: `config.data`.
      parallel: how batches lie on the devices.

    Raises:
      UserError: the examples are not those that the task needs.
    """
    spec = image_spec(data)
    for key in ("image", "label"):
        if key not in source.features:
            raise UserError(f"data set {source.name!r} has no feature {key!r}; it has {', '.join(source.features)}")
    resident = data.resident == "on" or (data.resident == "auto" and batches.nbytes(source, spec) <= RESIDENT_BYTES)
    content: dict[str, Any] = {}
    if resident:
        content = batches.load_all(source, spec)
        del content["example_mask"]  # a batch brings its own
        content = parallel.spread(parallel.replicate(content))
    return Feed(source, order, spec, parallel, content, data.workers)
