"""Effective receptive fields: how much each pixel matters to a unit, beside those that it sees at all.

Luo, Li, Urtasun & Zemel 2016, "Understanding the effective receptive field in deep convolutional neural networks",
arXiv:1701.04128.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Key
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cnn_research.analysis.figures import DPI, INK
from cnn_research.analysis.table import Row, Table
from cnn_research.layers import taps

# Of the largest value, from which on a pixel is in the field: what lies two deviations from a Gaussian's middle has
# less (section 3 of the paper).
SHARE = 1 - 0.9545


class Field(NamedTuple):
    """What the unit in the middle of a layer sees.

    Attributes:
      row: of the layer.
      influence: of each pixel, at most 1.
      theoretical: top, left, height and width in pixels of what it sees at all, beyond the borders, too.
    """

    row: Row
    influence: Float[np.ndarray, "height width"]
    theoretical: tuple[float, float, float, float]

    @property
    def size(self) -> float:
        """Side in pixels of a square as large as the effective field."""
        return float(np.sqrt((self.influence >= SHARE).sum()))


def influence(
    model: nn.Module, layers: Sequence[str], variables: Any, images: Float[Array, "batch height width channels"]
) -> list[Float[Array, "height width"]]:
    """Returns how much each pixel matters to the unit in the middle of each layer.

    It is the root of the mean square, over images and channels, of the gradient at the pixel. The unit is the sum over
    the layer's channels, as a gradient of 1 in each of them makes it.

    Args:
      model: the network.
      layers: names of layers that give maps.
      variables: of the network.
      images: as the network takes them.
    """

    def unit(layer: str, images: Any) -> Float[Array, ""]:
        _, outputs = taps.record(lambda: model.apply(variables, images, train=False))
        maps = outputs[layer]
        return maps[:, maps.shape[1] // 2, maps.shape[2] // 2].sum()

    gradients = [jax.grad(functools.partial(unit, layer))(images) for layer in layers]
    return [jnp.sqrt((gradient**2).mean((0, 3))) for gradient in gradients]


def shown_rows(table: Table, count: int = 4) -> list[Row]:
    """Returns layers to show: the last one of each size of maps, and of those some, spread over the network.

    Args:
      table: of the network.
      count: how many at most.
    """
    rows = [row for row in table.rows if len(row.output_shape or ()) == 3 and row.jump and row.receptive_field]
    rows = [row for row in rows if row.output_shape and max(row.output_shape[:2]) > 1]
    last = {row.jump: index for index, row in enumerate(rows)}
    chosen = [rows[index] for index in sorted(last.values())]
    places = np.linspace(0, len(chosen) - 1, min(count, len(chosen))).round().astype(int)
    return [chosen[place] for place in places]


def fields(
    model: nn.Module, table: Table, weights: Iterable[Mapping[str, Any]], rng: Key[Array, ""], images: int = 4
) -> list[Field]:
    """Returns the fields of some layers, averaged over random images and over the weights that are given.

    Args:
      model: the network.
      table: of it; its input shape is that of the images.
      weights: variables of the network, one or more times.
      rng: draws the images, of a normal distribution.
      images: how many for each of the weights.
    """
    rows = shown_rows(table)
    compute = jax.jit(functools.partial(influence, model, [row.name for row in rows]))
    squares = [np.zeros(table.input_shape[:2]) for _ in rows]
    for index, variables in enumerate(weights):
        drawn = jax.random.normal(jax.random.fold_in(rng, index), (images, *table.input_shape))
        squares = [
            total + np.square(new, dtype=np.float64)
            for total, new in zip(squares, compute(variables, drawn), strict=True)
        ]
    return [Field(row, np.sqrt(square / square.max()), _window(row)) for row, square in zip(rows, squares, strict=True)]


def _window(row: Row) -> tuple[float, float, float, float]:
    """Returns top, left, height and width of what the unit in the middle of a layer sees."""
    assert row.output_shape
    assert row.jump
    assert row.first_pixel
    assert row.receptive_field
    top, left = (
        first + jump * (size // 2)
        for first, jump, size in zip(row.first_pixel, row.jump, row.output_shape[:2], strict=True)
    )
    return float(top), float(left), float(row.receptive_field[0]), float(row.receptive_field[1])


def draw(found: Mapping[str, Sequence[Field]]) -> Figure:
    """Draws fields, a row of panels a network: bright is what matters, framed what is seen at all if that is smaller.

    Args:
      found: fields of layers by the networks' names.
    """
    columns = max(len(each) for each in found.values())
    figure = Figure(figsize=(2.7 * columns, 3.0 * len(found)), dpi=DPI, layout="constrained")
    panels = figure.subplots(len(found), columns, squeeze=False)
    for (name, each), row in zip(found.items(), panels, strict=True):
        for axes in row[len(each) :]:
            axes.set_axis_off()
        for axes, field in zip(row, each, strict=False):
            height, width = field.influence.shape
            axes.imshow(field.influence, cmap="inferno", vmin=0, vmax=1, extent=(0, width, height, 0))
            top, left, tall, wide = field.theoretical
            axes.add_patch(Rectangle((left, top), wide, tall, fill=False, edgecolor="#56b4e9", linewidth=1.2))
            axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
            title = f"{field.row.name}\neffective {field.size:.0f}, theoretical {max(tall, wide):.0f}"
            axes.set_title(title, size=8, color=INK)
        row[0].set_ylabel(name, size=9, weight="bold", color=INK)
    return figure
