"""Top patches: the places in a data set that excite a channel most. Zeiler & Fergus 2014, arXiv:1311.2901, figure 2."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Shaped

from cnn_research.analysis.attribution.targets import layer_output, outputs
from cnn_research.analysis.neurons.batches import in_batches
from cnn_research.analysis.table import Row
from cnn_research.errors import UserError


class Strongest(NamedTuple):
    """For each channel of a layer the images that excite it most, the strongest first.

    Attributes:
      values: the largest value of the channel in the image.
      examples: index of the image.
      positions: (row, column) of the value in the layer's maps.
    """

    values: Float[np.ndarray, "channels k"]
    examples: Int[np.ndarray, "channels k"]
    positions: Int[np.ndarray, "channels k 2"]


def peaks(
    model: nn.Module, variables: Mapping[str, Any], images: Float[Array, "batch height width channels"], layer: str
) -> tuple[Float[Array, "batch map_channels"], Int[Array, "batch map_channels 2"]]:
    """Returns the largest value of each channel of a layer, and the (row, column) where it is.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      layer: name of a layer with maps.

    Raises:
      UserError: the layer is not known or has no maps.
    """
    maps = layer_output(outputs(model, variables, images)[1], layer)
    if maps.ndim != 4:
        raise UserError(f"layer {layer} gives one vector an image and no maps; take a layer before it")
    flat = maps.reshape(len(maps), -1, maps.shape[-1])
    return flat.max(1), jnp.stack(jnp.unravel_index(flat.argmax(1), maps.shape[1:3]), axis=-1)


def strongest(
    model: nn.Module,
    variables: Mapping[str, Any],
    images: Shaped[np.ndarray, "examples height width channels"],
    layer: str,
    k: int = 9,
    batch_size: int = 100,
    prepare: Callable[[Array], Array] = lambda images: images,
) -> Strongest:
    """Returns what excites each channel of a layer most, one place an image.

    Args:
      model: the network.
      variables: its variables.
      images: to look through.
      layer: name of a layer with maps.
      k: images for each channel, at most as many as there are.
      batch_size: images at a time.
      prepare: makes of images what the network takes, on the device.

    Raises:
      UserError: the layer is not known or has no maps.
    """
    found = jax.jit(lambda variables, images: peaks(model, variables, prepare(images), layer))
    values, places = in_batches(lambda part: found(variables, part), images, batch_size)
    order = np.argsort(-values, axis=0, kind="stable")[:k].T  # [channel, rank]
    channels = np.arange(values.shape[1])[:, None]
    return Strongest(values[order, channels], order, places[order, channels])


def window(row: Row | None, position: tuple[int, int], size: tuple[int, int]) -> tuple[slice, slice]:
    """Returns the part of the image that a value sees, as far as it lies within the image.

    Args:
      row: of the layer, whose receptive field and jump say it; without these it is the whole image.
      position: (row, column) in the layer's maps.
      size: height and width of the image.
    """
    if not (row and row.receptive_field and row.first_pixel and row.jump):
        return slice(0, size[0]), slice(0, size[1])
    starts = [first + jump * index for first, jump, index in zip(row.first_pixel, row.jump, position, strict=True)]
    vertical, horizontal = (
        slice(max(0, int(start)), min(side, int(start) + extent))
        for start, extent, side in zip(starts, row.receptive_field, size, strict=True)
    )
    return vertical, horizontal
