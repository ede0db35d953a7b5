"""Functions of a batch, for any number of images."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def in_batches(function: Callable[[Any], Any], images: np.ndarray, batch_size: int) -> Any:
    """Returns what a function says of images, of which it is given so many at a time, on the host.

    Args:
      function: of a batch; what it returns has an axis for the batch first.
      images: any number; the last batch is filled up, so that one program serves all.
      batch_size: images at a time.
    """
    size = min(batch_size, len(images))
    starts = range(0, len(images), size)
    filled = np.concatenate([images, images[: -len(images) % size]])
    parts = [jax.device_get(function(filled[begin : begin + size])) for begin in starts]
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(images)], *parts)
