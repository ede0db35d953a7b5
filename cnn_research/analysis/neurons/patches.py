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


def cut(
    image: Float[np.ndarray, "height width channels"], row: Row | None, position: tuple[int, int], fill: float = 1.0
) -> Float[np.ndarray, "patch_height patch_width channels"]:
    """Returns the part of an image that a value sees; along an axis on which that is as large as the image, all of it.

    Args:
      image: any.
      row: of the layer, whose receptive field and jump say it; without these it is the whole image.
      position: (row, column) in the layer's maps.
      fill: what lies beyond the image's border.
    """
    if not (row and row.receptive_field and row.first_pixel and row.jump):
        return image
    for axis, side in enumerate(image.shape[:2]):
        extent = row.receptive_field[axis]
        if extent < side:
            widths = [(extent, extent) if each == axis else (0, 0) for each in range(3)]
            start = extent + row.first_pixel[axis] + int(row.jump[axis] * position[axis])
            image = np.pad(image, widths, constant_values=fill).take(range(start, start + extent), axis)
    return image
