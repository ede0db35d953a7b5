"""The blocks of a network's picture: how large each tensor is drawn, and what stands below it. Lengths are inches."""

import dataclasses
import functools
import math

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from cnn_research.analysis.graph import CUT, PART, Node
from cnn_research.analysis.table import Row, times

TIMES = "\N{MULTIPLICATION SIGN}"
FONT_SIZE = 7.5  # points
LINE = 0.135  # between the base lines of a label
SHEAR = 0.16  # of a block's depth, to each side
TALLEST_VECTOR = 1.5  # maps that are as tall have vectors beside them at full size
ASIDE = 0.06  # from the middle of a merge to its label
MERGE = 0.22  # diameter of the sign for a merge

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Block:
    """A tensor in the picture.

    Attributes:
      node: that it stands for.
      center: of its front face and its back face.
      width: of the front face: by the number of channels.
      height: by the height of the maps, or of a vector by its length.
      shift: of the front face to the lower left and of the back face to the upper right: by the width of the maps.
      label: lines below it.
      upright: whether these are horizontal.
      drop: how much lower the label stands than right below the block.
    """

    node: Node
    center: Point
    width: float
    height: float
    shift: float
    label: tuple[str, ...]
    upright: bool
    drop: float = 0.0

    @property
    def half(self) -> float:
        """From the center to its left and right end."""
        return self.width / 2 + self.shift

    @property
    def weights(self) -> tuple[str, ...]:
        """The fonts' weight of the label's lines: horizontal names are bold."""
        first = "bold" if self.upright and not self.node.merges else "normal"
        return (first, *["normal"] * (len(self.label) - 1))

    @property
    def reach(self) -> float:
        """From the center to where arrows leave and arrive at its height."""
        return self.width / 2 + min(self.shift, self.height / 2)

    @property
    def label_size(self) -> Point:
        """Width and height of the label; that of a merge stands to the right of what comes from below."""
        long = max(text_width(line, weight=weight) for line, weight in zip(self.label, self.weights, strict=True))
        across = LINE * len(self.label)
        width, height = (long, across) if self.upright else (across, long)
        return (2 * (width + ASIDE) if self.node.merges else width), height

    @property
    def above(self) -> float:
        """From the center to its upper end."""
        return self.height / 2 + self.shift

    @property
    def below(self) -> float:
        """From the center to the lower end of its label."""
        return self.above + self.drop + 0.05 + self.label_size[1]


@functools.cache
def text_width(text: str, size: float = FONT_SIZE, weight: str = "normal") -> float:
    """Returns the width of a line in inches.

    Args:
      text: of the line.
      size: of the font, in points.
      weight: of the font, normal or bold.
    """
    path = TextPath((0, 0), text or " ", size=size, prop=FontProperties(weight=weight))
    return float(path.get_extents().width) / 72


def maps(node: Node) -> tuple[int, int, int] | None:
    """Returns (height, width, channels) of a node's maps; None where it is a vector."""
    if len(node.shape) < 3 or max(node.shape[-3:-1]) == 1:
        return None
    height, width, channels = node.shape[-3:]
    return height, width, channels


def make_block(node: Node, tallest: float, largest: int, upright: bool) -> Block:
    """Returns a tensor's block, which is to be placed.

    Args:
      node: the tensor.
      tallest: height of the largest maps' block.
      largest: height or width of these maps, in values.
      upright: whether labels are horizontal.
    """
    size, width, shift = maps(node), MERGE, 0.0
    if node.merges:
        height = MERGE
    elif size:
        tall, wide = (tallest * max(0.02, side / largest) ** 0.6 for side in size[:2])
        height, width, shift = tall, 0.05 + 0.033 * math.log2(1 + size[2]), SHEAR * wide
    else:
        length = math.log2(1 + node.shape[-1])
        height, width, shift = 0.15 + 0.1 * length * tallest / TALLEST_VECTOR, 0.12, 0.03
    return Block(node, (0.0, 0.0), width, height, shift, label(node, upright), upright)


def label(node: Node, upright: bool) -> tuple[str, ...]:
    """Returns the lines below a tensor: its layer's name, what that does, and the tensor's size.

    Args:
      node: the tensor.
      upright: whether they are horizontal; vertical ones are fewer and longer.
    """
    name = node.name.rpartition("/")[2] + (f" and {node.count - 1} more" if node.count > 1 else "")
    size = times(node.shape).replace("x", TIMES)
    what = operation(node)
    if node.merges:
        named = not name.startswith(node.kind) or node.kind == CUT
        lines = [what if node.kind == CUT else name] * named + [size]
    elif upright or node.kind == PART:
        lines = [name, *filter(None, what.split("\n")), size]
    else:
        lines = [f"{name}  {what}".rstrip(), size]
    return tuple(lines)


def operation(node: Node) -> str:
    """Returns what makes a tensor, as a figure says it: `3×3 conv`; for a part a line a layer."""
    if node.kind == PART:
        lines = [f"{operation(each)}, {each.shape[-1]}" for each in node.inside if each.row and each.row.weights]
        return "\n".join(lines if len(lines) <= 4 else [*lines[:3], f"… {len(lines)} layers"])
    if node.kind == CUT:
        return "regions"
    if node.row is None or node.merges:
        return ""
    return _operation(node.row)


def _operation(row: Row) -> str:
    kind, _, rest = row.kind.partition(" ")
    window = times(row.kernel).replace("x", TIMES)
    stride = f" /{times(row.stride, square=True).replace('x', TIMES)}" if row.stride and max(row.stride) > 1 else ""
    if "Pool" in kind:
        return f"{window} {rest or 'avg'} pool{stride}".strip() if window else "avg pool"
    if kind == "ConvTranspose":
        return f"{window} up-conv{stride.replace('/', TIMES)}"
    if kind in ("Upsample", "Unpool"):
        return {"Upsample": f"{rest} up", "Unpool": "unpool"}[kind]
    if kind in ("Dense", "SlidingDense"):
        return f"{window} fc".strip()
    if kind == "LocalResponseNorm":
        return "LRN"
    return f"{window} conv{stride}" if window else kind
