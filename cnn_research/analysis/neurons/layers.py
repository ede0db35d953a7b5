"""Which layers of a network there are to look at, and their filters as pictures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.analysis.attribution.cams import rows_of
from cnn_research.errors import UserError, nearest


def map_layers(model: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """Returns the layers that end each run of maps of one size: what a network says at every scale.

    Args:
      model: the network.
      input_shape: height, width and channels of the images.

    Raises:
      UserError: no layer gives maps of more than a pixel.
    """
    maps = [(row.name, row.output_shape or ()) for row in rows_of(model, input_shape)]
    maps = [(name, shape) for name, shape in maps if len(shape) == 3]
    sizes = [shape[:2] for _, shape in maps] + [(1, 1)]
    ends = [
        name for (name, _), size, after in zip(maps, sizes, sizes[1:], strict=False) if size != after and max(size) > 1
    ]
    if not ends:
        raise UserError(f"no layer of {type(model).__name__} gives maps")
    return ends


def kernel_layers(variables: Mapping[str, Any], model: nn.Module, input_shape: tuple[int, ...]) -> list[str]:
    """Returns the layers that have kernels, in the order in which they run.

    Args:
      variables: of the network.
      model: the network.
      input_shape: height, width and channels of the images.
    """
    names = [row.name for row in rows_of(model, input_shape)]
    return [name for name in names if _params(variables, name).get("kernel") is not None]


def _params(variables: Mapping[str, Any], layer: str) -> Mapping[str, Any]:
    params: Any = variables["params"]
    for part in layer.split("/"):
        params = params.get(part, {}) if isinstance(params, Mapping) else {}
    return params


def filters(
    variables: Mapping[str, Any], layer: str, input_shape: Sequence[int]
) -> Float[Array, "features inputs height width"]:
    """Returns a layer's kernels as pictures: for each feature one of each channel of its input.

    Args:
      variables: of the network.
      layer: a convolution, or a dense layer that takes the images' pixels.
      input_shape: height, width and channels of the images.

    Raises:
      UserError: the layer has no kernels that are pictures.
    """
    kernel = _params(variables, layer).get("kernel")
    if kernel is None:
        known = [name for name, value in variables["params"].items() if "kernel" in value]
        raise UserError(f"layer {layer!r} has no kernel; {nearest(layer, known)}")
    kernel = jnp.asarray(kernel, jnp.float32)
    if kernel.ndim == 2 and len(kernel) == math.prod(input_shape):
        kernel = kernel.reshape(*input_shape, -1)
    if kernel.ndim == 3:  # one input map for each connection: C3 of LeNet-5
        kernel = kernel[:, :, None]
    if kernel.ndim != 4:
        raise UserError(f"the kernel of {layer} has the shape {kernel.shape} and is no picture; take a convolution")
    return kernel.transpose(3, 2, 0, 1)
