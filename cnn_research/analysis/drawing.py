"""A network as a course draws it: tensors as blocks with their sizes, branches and skips as arrows."""

import itertools
from collections.abc import Collection, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, Polygon

from cnn_research.analysis.blocks import ASIDE, FONT_SIZE, LINE, Block, Point, text_width
from cnn_research.analysis.figures import DPI, INK
from cnn_research.analysis.graph import ADD, CONCAT, CUT, IMAGES, MULTIPLY, PART, Graph, Node, fitted, folded
from cnn_research.analysis.layout import Layout, lay_out

COLUMNS, LANES = 45, 7  # what fits on a page
MARGIN = 0.2

# Colours of what layers do, and these layers' kinds.
COLOURS = {
    "input": ("#c9ced6", (IMAGES,)),
    "convolution": ("#f6c667", ("Conv", "PartialConv", "LocalConv", "DenseConv")),
    "pooling": ("#d96459", ("Pool", "TrainablePool", "AdaptiveAvgPool")),
    "normalization": ("#b39ddb", ("LocalResponseNorm", "Norm")),
    "made larger": ("#6fb1e0", ("ConvTranspose", "Upsample", "Unpool")),
    "fully connected": ("#86b98a", ("Dense", "SlidingDense")),
    "module": ("#e9dcc3", (PART,)),
    "other": ("#9aa5b1", ()),
}
BAND = "#e08e2b"  # the end of a block that an activation writes over
MEANINGS = {ADD: "sum", CONCAT: "concatenation", MULTIPLY: "product", CUT: "maps of regions"}


def draw(graph: Graph, depth: int = 0) -> Figure:
    """Draws a network.

    Args:
      graph: of the network, or of a module of it.
      depth: names that a layer's path keeps, see `graph.folded`; 0: as many as fit on a page.
    """
    shown = folded(graph, depth) if depth else fitted(graph, COLUMNS, LANES)
    return paint(shown, lay_out(shown))


def paint(graph: Graph, layout: Layout) -> Figure:
    """Draws a layout.

    Args:
      graph: that is laid out.
      layout: of its blocks.
    """
    table = graph.table
    title, subtitle = table.name, f"{_short(table.params)} parameters, {_short(table.macs)} multiply-adds"
    legend = _legend(graph.nodes.values())
    legend_width = sum(0.32 + text_width(text) for text, _, _ in legend)
    left, bottom, right, top = layout.bounds
    bottom -= 0.3 if layout.brackets else 0.0
    title_width = text_width(title, 12.0, "bold") + text_width(subtitle, 9.0) + 0.3
    width = max(right - left, legend_width, title_width) + 2 * MARGIN
    height = top - bottom + 0.75 + 2 * MARGIN
    figure = Figure(figsize=(width, height), dpi=DPI)
    axes = figure.add_axes((0, 0, 1, 1))
    middle = (left + right) / 2
    origin = middle - width / 2 + MARGIN
    axes.set(xlim=(middle - width / 2, middle + width / 2), ylim=(bottom - MARGIN, bottom - MARGIN + height))
    axes.set_axis_off()
    ceiling = bottom - MARGIN + height
    axes.text(origin, ceiling - 0.3, title, size=12, weight="bold", color=INK)
    axes.text(origin + text_width(title, 12.0, "bold") + 0.15, ceiling - 0.3, subtitle, size=9, color=INK)
    x = origin
    for text, colour, kind in legend:
        _draw_key(axes, (x, ceiling - 0.58), colour, kind)
        axes.text(x + 0.17, ceiling - 0.58, text, size=FONT_SIZE, va="center", color=INK)
        x += 0.32 + text_width(text)
    for wire in layout.wires:
        _draw_wire(axes, wire)
    for block in layout.blocks.values():
        _draw_block(axes, block)
    for name, start, end in layout.brackets:
        y = bottom + 0.18
        axes.plot([start, start, end, end], [y + 0.06, y, y, y + 0.06], color="#9aa5b1", linewidth=0.8)
        size = min(FONT_SIZE, FONT_SIZE * (end - start) / text_width(name))
        axes.text((start + end) / 2, y - 0.03, name, size=size, ha="center", va="top", color=INK)
    return figure


def _short(count: int) -> str:
    """Returns 25.6 M for 25,557,032."""
    for unit, name in ((10**9, " G"), (10**6, " M"), (10**3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _group(node: Node) -> str:
    kind = node.kind.partition(" ")[0]
    return next((group for group, (_, kinds) in COLOURS.items() if kind in kinds), "other")


def _legend(nodes: Collection[Node]) -> list[tuple[str, str, str]]:
    """Returns what the picture's colours and signs mean: text, colour, kind of merge."""
    groups = {_group(node) for node in nodes if not node.merges}
    entries = [(group, colour, "") for group, (colour, _) in COLOURS.items() if group in groups]
    if any(node.activated for node in nodes):
        entries.append(("activation", BAND, ""))
    kinds = {node.kind for node in nodes}
    return entries + [(MEANINGS[kind], "", kind) for kind in MEANINGS if kind in kinds]


def _draw_key(axes: Axes, place: Point, colour: str, kind: str) -> None:
    x, y = place
    if kind:
        _draw_sign(axes, (x + 0.06, y), kind, 0.07)
    else:
        corners = [(x, y - 0.06), (x + 0.12, y - 0.06), (x + 0.12, y + 0.06), (x, y + 0.06)]
        axes.add_patch(Polygon(corners, facecolor=colour, edgecolor=INK, linewidth=0.5))


def _draw_sign(axes: Axes, center: Point, kind: str, radius: float) -> None:
    axes.add_patch(Circle(center, radius, facecolor="white", edgecolor=INK, linewidth=0.9, zorder=3))
    (x, y), reach = center, 0.55 * radius
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1), (-1, -1)]
    lines: dict[str, list[tuple[Point, ...]]] = {  # in reaches from the middle
        ADD: [((-1, 0), (1, 0)), ((0, -1), (0, 1))],
        MULTIPLY: [((-1, -1), (1, 1)), ((-1, 1), (1, -1))],
        CONCAT: [((-0.5, -1), (-0.5, 1)), ((0.5, -1), (0.5, 1))],
        CUT: [*itertools.pairwise(corners)],
    }
    for line in lines[kind]:
        axes.plot(
            *zip(*((x + reach * dx, y + reach * dy) for dx, dy in line), strict=True),
            color=INK,
            linewidth=1.0,
            zorder=4,
        )


def _shade(colour: str, factor: float) -> tuple[float, ...]:
    """Returns a colour made darker, or above 1 lighter."""
    if factor > 1:
        return tuple(1 - (1 - part) * (2 - factor) for part in to_rgb(colour))
    return tuple(part * factor for part in to_rgb(colour))


def _draw_block(axes: Axes, block: Block) -> None:
    (x, y), node, shift = block.center, block.node, block.shift
    if node.merges:
        _draw_sign(axes, block.center, node.kind, block.width / 2)
    else:
        colour, _ = COLOURS[_group(node)]
        if sum(each.kind == ADD for each in node.inside) == 1:
            _draw_skip(axes, block)
        left, right = x - block.width / 2, x + block.width / 2
        low, high = y - block.height / 2, y + block.height / 2
        _draw_cuboid(axes, left, right, low, high, shift, colour)
        if node.activated:
            _draw_cuboid(axes, right - min(0.05, block.width / 3), right, low, high, shift, BAND)
    bottom = y - block.above - block.drop - 0.05
    aside = ASIDE if node.merges else 0.0
    for index, (line, weight) in enumerate(zip(block.label, block.weights, strict=True)):
        style: dict[str, Any] = {"size": FONT_SIZE, "color": INK, "va": "top", "weight": weight}
        if block.upright:
            axes.text(x - shift + aside, bottom - LINE * index, line, ha="left" if aside else "center", **style)
        else:
            middle = x + aside + LINE * len(block.label) / 2 if aside else x - shift
            place = middle + LINE * (index - (len(block.label) - 1) / 2)
            axes.text(place, bottom, line, rotation=90, ha="center", **style)


def _draw_cuboid(axes: Axes, left: float, right: float, low: float, high: float, shift: float, colour: str) -> None:
    near, far = -shift, shift
    front = [
        (left + near, low + near),
        (right + near, low + near),
        (right + near, high + near),
        (left + near, high + near),
    ]
    side = [
        (right + near, low + near),
        (right + far, low + far),
        (right + far, high + far),
        (right + near, high + near),
    ]
    roof = [
        (left + near, high + near),
        (right + near, high + near),
        (right + far, high + far),
        (left + far, high + far),
    ]
    for corners, factor in ((side, 0.8), (roof, 1.5), (front, 1.0)):
        patch = Polygon(
            corners, facecolor=_shade(colour, factor), edgecolor=INK, linewidth=0.5, joinstyle="round", zorder=2
        )
        axes.add_patch(patch)


def _draw_skip(axes: Axes, block: Block) -> None:
    """Draws the way around a module that has one sum: it adds what it takes to what it makes of it."""
    (x, y), reach = block.center, block.half + 0.05
    height = y + block.above + 0.1
    corners = [(x - reach, y), (x - reach, height), (x + reach, height), (x + reach, y)]
    axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.8, zorder=1)


def _draw_wire(axes: Axes, corners: Sequence[Point]) -> None:
    axes.plot(*zip(*corners, strict=True), color=INK, linewidth=0.9, zorder=1, solid_joinstyle="round")
    (x, y), (to_x, to_y) = corners[-2:]
    along = (to_x > x) - (to_x < x), (to_y > y) - (to_y < y)
    long, wide = 0.07, 0.03
    base = to_x - long * along[0], to_y - long * along[1]
    sides = [(base[0] + sign * wide * along[1], base[1] + sign * wide * along[0]) for sign in (-1, 1)]
    axes.add_patch(Polygon([(to_x, to_y), *sides], facecolor=INK, edgecolor="none", zorder=5))
