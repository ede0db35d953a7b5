"""Attribution by occlusion: what the score loses where a patch covers the image. Zeiler & Fergus 2014, section 4.2."""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.analysis.attribution.targets import Target, evaluate
from cnn_research.errors import UserError
from cnn_research.ops.geometry import pair


def occlusion(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Float[Array, "batch height width channels"],
    target: Target,
    window: int | tuple[int, int] = 8,
    strides: int | tuple[int, int] = 4,
    fill: float = 0.0,
    at_a_time: int = 8,
) -> Float[Array, "batch height width"]:
    """Returns for each pixel the mean loss of score over all patches that cover it.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
      window: size of the patch, one number or (height, width).
      strides: steps between patches, one number or (vertical, horizontal); the last ones end with the image.
      fill: the patch's value, as the network takes it: 0 is the data's mean.
      at_a_time: patches in one evaluation.

    Raises:
      UserError: the patch is larger than the images.
    """
    size, window = images.shape[1:3], pair(window)
    if any(extent > side for extent, side in zip(window, size, strict=True)):
        raise UserError(f"a window of {window} does not fit into images of {size}; take a smaller one")
    starts = [
        [*range(0, side - extent, stride), side - extent]
        for side, extent, stride in zip(size, window, pair(strides), strict=True)
    ]
    covers = np.zeros((len(starts[0]) * len(starts[1]), *size), np.float32)
    for cover, (top, left) in zip(covers, itertools.product(*starts), strict=True):
        cover[top : top + window[0], left : left + window[1]] = 1
    whole = evaluate(model, variables, images, target)

    def lost(cover: Array) -> Array:
        return whole - evaluate(model, variables, jnp.where(cover[..., None] > 0, fill, images), target)

    # One evaluation at a time, of a few patches: a batch of all of them may not fit into memory.
    losses = jax.lax.map(lost, jnp.asarray(covers), batch_size=min(at_a_time, len(covers)))
    sums = jnp.einsum("pb,phw->bhw", losses, covers, precision=jax.lax.Precision.HIGHEST)
    return sums / np.maximum(covers.sum(0), 1)
