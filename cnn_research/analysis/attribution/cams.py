"""Class activation maps: the channels of a layer, added up by what they are worth to the score."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from cnn_research.analysis.attribution.targets import Labels, Target, layer_output, outputs
from cnn_research.analysis.table import Row, Table
from cnn_research.analysis.tabulate import tabulate
from cnn_research.errors import UserError

Variables = Mapping[str, Any]
Images = Float[Array, "batch height width channels"]
Maps = Float[Array, "batch map_height map_width"]

GLOBAL_POOL = "head_pool"  # what families with global average pooling call it
HEAD = "head"
ENLARGING = ("ConvTranspose", "Unpool", "Upsample")  # kinds of layers that make maps finer


def cam(model: nn.Module, variables: Variables, images: Images, target: Target | Labels, layer: str = "") -> Maps:
    """Returns the maps before global average pooling, weighted as the class weighs their means. Zhou et al. 2015.

    arXiv:1512.04150, equation 2. Where the pooled maps are the logits, as in Network in Network, it is the class's map.

    Args:
      model: the network: nothing but a dense `head` may follow its average `head_pool`.
      variables: its variables.
      images: as the network takes them.
      target: the class, one for all images or one for each.
      layer: only the one before the pooling.

    Raises:
      UserError: the network has no such pooling, the target is no class, or the layer is another.
    """
    if callable(target):
        raise UserError("cam explains the score of a class; for other targets take grad_cam")
    last = before_global_pool(model, images.shape[1:])
    if layer not in ("", last):
        raise UserError(f"cam is of the layer before the pooling, {last}, not of {layer}; take grad_cam for others")
    maps = outputs(model, variables, images)[1][last]
    params = variables["params"]
    weights = params[HEAD]["kernel"] if HEAD in params else jnp.eye(maps.shape[-1])
    of_class = jnp.broadcast_to(weights.T[jnp.asarray(target)], (len(images), maps.shape[-1]))
    return jnp.einsum("bhwc,bc->bhw", maps, of_class, precision=lax.Precision.HIGHEST)


def grad_cam(model: nn.Module, variables: Variables, images: Images, target: Target, layer: str = "") -> Maps:
    """Returns what raises the score in a layer's maps, each weighted by its mean gradient. Selvaraju et al. 2016.

    arXiv:1610.02391, equations 1 and 2. Before global average pooling over P pixels it is relu(CAM) / P.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
      layer: whose maps; see `default_layer` for which unless given.

    Raises:
      UserError: the layer is not known or has no maps.
    """
    maps, gradients = maps_and_gradients(model, variables, images, target, layer)
    weights = gradients.mean((1, 2), keepdims=True)
    return jax.nn.relu((weights * maps).sum(-1))


def grad_cam_pp(model: nn.Module, variables: Variables, images: Images, target: Target, layer: str = "") -> Maps:
    """Returns what Grad-CAM does, but for weights to which each place adds by itself. Chattopadhyay et al. 2017.

    arXiv:1710.11063, equations 10 and 19: the derivatives of the exponential of the score, a factor of all weights that
    is left out here, since it is the same for all.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
      layer: whose maps; see `default_layer` for which unless given.

    Raises:
      UserError: the layer is not known or has no maps.
    """
    maps, gradients = maps_and_gradients(model, variables, images, target, layer)
    square, cube = gradients**2, gradients**3
    below = 2 * square + maps.sum((1, 2), keepdims=True) * cube
    shares = square / jnp.where(below == 0, 1, below)
    weights = (shares * jax.nn.relu(gradients)).sum((1, 2), keepdims=True)
    return jax.nn.relu((weights * maps).sum(-1))


def maps_and_gradients(
    model: nn.Module, variables: Variables, images: Images, target: Target, layer: str = ""
) -> tuple[Array, Array]:
    """Returns a layer's maps and the gradient of each image's score by them.

    Args:
      model: the network.
      variables: its variables.
      images: as the network takes them.
      target: gives the scores.
      layer: whose maps; see `default_layer` for which unless given.

    Raises:
      UserError: the layer is not known or has no maps.
    """
    layer = layer or default_layer(model, images.shape[1:])
    shape = layer_output(jax.eval_shape(lambda: outputs(model, variables, images)[1]), layer)
    if len(shape.shape) != 4:
        raise UserError(f"layer {layer} gives one vector an image and no maps; take a layer before it")

    def total(zeros: Array) -> tuple[Array, Array]:
        result, layers = outputs(model, variables, images, {layer: zeros})
        return target(result, layers).sum(), layers[layer]

    gradients, maps = jax.grad(total, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
    return maps, gradients


@functools.lru_cache
def layers_of(model: nn.Module, input_shape: tuple[int, ...]) -> Table:
    """Returns the table of a network's layers, made once."""
    return tabulate(model, input_shape)


def rows_of(model: nn.Module, input_shape: tuple[int, ...]) -> list[Row]:
    """Returns the rows of the layers that do something when the network evaluates images: not those of dropout.

    Args:
      model: the network.
      input_shape: height, width and channels of the images.
    """
    return [row for row in layers_of(model, input_shape).rows if row.output_shape and row.kind != "Dropout"]


def default_layer(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Returns the layer whose maps say most about the whole image and still say where.

    Where images have one label it is the last of the coarsest maps of more than a pixel: before the global pooling of a
    ResNet or the dense layers of a VGG. Where pixels have, it is the last before the scores whose maps are at most a
    quarter as high and wide as these: what is coarser in a U-Net says little, since its skips go past that.

    Args:
      model: the network.
      input_shape: height, width and channels of the images.

    Raises:
      UserError: the network has no maps.
    """
    shapes = {row.name: row.output_shape or () for row in rows_of(model, input_shape)}
    result = [*shapes.values()][-1]
    pixels = {name: shape[0] * shape[1] for name, shape in shapes.items() if len(shape) == 3 and max(shape[:2]) > 1}
    if not pixels:
        raise UserError(f"no layer of {type(model).__name__} gives maps, as class activation maps need them")
    most = min(pixels.values())
    if len(result) == 3 and max(result[:2]) > 1:
        most = max(most, result[0] * result[1] // 16)
        pixels = {name: count for name, count in pixels.items() if shapes[name][-1] != result[-1]}
    return [name for name, count in pixels.items() if count <= most][-1]


def before_global_pool(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Returns the layer that global average pooling takes.

    Args:
      model: the network.
      input_shape: height, width and channels of the images.

    Raises:
      UserError: the network does not end with such a pooling.
    """
    rows = rows_of(model, input_shape)
    pools = [index for index, row in enumerate(rows) if (row.name, row.kind) == (GLOBAL_POOL, "Pool avg")]
    if not pools:
        raise UserError(
            f"cam needs a network that ends with global average pooling, {GLOBAL_POOL}, as ResNet, Network in Network "
            "and GoogLeNet do; take grad_cam"
        )
    return rows[pools[0] - 1].name


def row_of(table: Table, layer: str) -> Row | None:
    """Returns the row of a layer; of a block that only hands on what a layer in it gave, that layer's."""
    rows = [row for row in table.rows if row.name == layer or row.name.startswith(f"{layer}/")]
    named = [row for row in rows if row.name == layer]
    return next(iter(named or rows[::-1]), None)


def place_of(model: nn.Module, input_shape: tuple[int, ...], layer: str) -> Row | None:
    """Returns the row that says where a layer's values look; None where they lie evenly over the image.

    They do so where maps that were made finer again cover it: their receptive fields are not even about their middles.

    Args:
      model: the network.
      input_shape: height, width and channels of the images.
      layer: its name.
    """
    table = layers_of(model, input_shape)
    row = row_of(table, layer)
    if not (row and row.jump and row.output_shape):
        return None
    before = table.rows[: table.rows.index(row) + 1]
    finer = any(each.kind.startswith(ENLARGING) for each in before)
    covers = all(row.jump[axis] * row.output_shape[axis] == input_shape[axis] for axis in range(2))
    return None if finer and covers else row


def spread(maps: Maps, row: Row | None, height: int, width: int) -> Float[Array, "batch height width"]:
    """Returns maps at the size of the image, each value where its receptive field has its middle.

    Between these places values are interpolated, beyond the outermost they stay the same.

    Args:
      maps: of a layer.
      row: of the layer, which says where its values look; without that they are spread evenly.
      height: of the image.
      width: of the image.
    """
    grids = []
    for axis, side in enumerate((height, width)):
        count = maps.shape[1 + axis]
        jump, first = side / count, (side / count - 1) / 2
        if row and row.jump and row.first_pixel and row.receptive_field:
            jump, first = row.jump[axis], row.first_pixel[axis] + (row.receptive_field[axis] - 1) / 2
        places = np.clip((np.arange(side) - first) / jump, 0, count - 1)
        grids.append(np.maximum(1 - np.abs(places[:, None] - np.arange(count)), 0).astype(np.float32))
    return jnp.einsum("yi,bij,xj->byx", grids[0], maps, grids[1], precision=lax.Precision.HIGHEST)
