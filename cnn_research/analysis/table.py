"""The table of a network's layers, and how it is written: aligned text, markdown, JSON."""

import dataclasses
import json
from collections.abc import Callable, Sequence

from cnn_research.ops.geometry import Pair

NOTHING = "-"
JOIN = "join"


@dataclasses.dataclass(frozen=True)
class Row:
    """One call of a layer, or a place where branches meet again. What a row does not have is None.

    Attributes:
      name: path of the layer; its second call is `name#2`.
      kind: its class, and the kind of a pooling or a norm; `join` where a module puts together what its layers gave.
      kernel: (height, width) of a convolution or a pooling.
      stride: its (vertical, horizontal) step.
      padding: its ((top, bottom), (left, right)) border.
      dilation: (vertical, horizontal) distance of its taps.
      groups: groups of channels that it convolves on their own.
      input_shape: of one example, (height, width, channels) for maps; None where the evaluation pass leaves the layer
        out, as it does auxiliary classifiers.
      output_shape: of one example.
      weights: parameters but biases; counted at the layer's first call.
      biases: parameters that are named bias.
      macs: multiply-adds for one example, see `ops.geometry.multiply_accumulates`.
      activation_bytes: memory of the output for one example; 0 where a layer writes over its input.
      receptive_field: (height, width) in pixels of what one value of the output sees, borders included.
      jump: (vertical, horizontal) distance in pixels between what neighbours in an output map see.
      first_pixel: (row, column) where what the first value sees begins, negative beyond the border.
    """

    name: str
    kind: str
    kernel: Pair | None = None
    stride: Pair | None = None
    padding: tuple[Pair, Pair] | None = None
    dilation: Pair | None = None
    groups: int = 1
    input_shape: tuple[int, ...] | None = None
    output_shape: tuple[int, ...] | None = None
    weights: int = 0
    biases: int = 0
    macs: int = 0
    activation_bytes: int = 0
    receptive_field: Pair | None = None
    jump: tuple[int | float, int | float] | None = None
    first_pixel: Pair | None = None

    @property
    def params(self) -> int:
        """Weights and biases."""
        return self.weights + self.biases


@dataclasses.dataclass(frozen=True)
class Table:
    """A network's layers in the order in which evaluation runs them, and what they add up to.

    Attributes:
      name: of the network.
      input_shape: (height, width, channels) of the images.
      rows: every call of a layer; at the end the layers that training alone runs.
    """

    name: str
    input_shape: tuple[int, int, int]
    rows: tuple[Row, ...]

    @property
    def weights(self) -> int:
        """Parameters but biases."""
        return sum(row.weights for row in self.rows)

    @property
    def biases(self) -> int:
        """Parameters that are named bias."""
        return sum(row.biases for row in self.rows)

    @property
    def params(self) -> int:
        """Trainable parameters, those that training alone uses included."""
        return self.weights + self.biases

    @property
    def macs(self) -> int:
        """Multiply-adds of the convolutions and fully connected layers for one example; FLOPs are twice as many."""
        return sum(row.macs for row in self.rows)

    @property
    def activation_bytes(self) -> int:
        """Memory of all outputs for one example, except what is written over its input: activations, norms, sums."""
        return sum(row.activation_bytes for row in self.rows)

    @property
    def largest_activation_bytes(self) -> int:
        """Memory of the largest output for one example."""
        return max((row.activation_bytes for row in self.rows), default=0)

    def shown(self, every: bool = False) -> tuple[Row, ...]:
        """Returns the rows that text and markdown have; what they add up to is the same.

        Args:
          every: whether layers with neither parameters nor an output of their own are among them: activations, dropout.
        """
        return tuple(row for row in self.rows if every or row.params or row.activation_bytes or row.kind == JOIN)

    def text(self, every: bool = False) -> str:
        """Returns the table with aligned columns.

        Args:
          every: whether every layer has a row, see `shown`.
        """
        cells = self._cells(every)
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, _sides(), widths, strict=True)).rstrip()
            for row in cells
        ]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1], "", *self.notes(every)]) + "\n"

    def markdown(self, every: bool = False) -> str:
        """Returns the table as GitHub's markdown.

        Args:
          every: whether every layer has a row, see `shown`.
        """
        cells = self._cells(every)
        rule = [":--" if side == "<" else "--:" for side in _sides()]
        lines = [f"| {' | '.join(row)} |" for row in (cells[0], rule, *cells[1:])]
        return "\n".join([*lines, *(f"\n{note}" for note in self.notes(every))]) + "\n"

    def json(self) -> str:
        """Returns all rows with all their fields, and the totals, as one JSON object with a line for each row."""
        names = ("name", "input_shape", "params", "weights", "biases", "macs", "activation_bytes")
        head = json.dumps({name: getattr(self, name) for name in (*names, "largest_activation_bytes")})
        rows = [json.dumps({**dataclasses.asdict(row), "params": row.params}) for row in self.rows]
        return f'{head[:-1]}, "rows": [\n' + ",\n".join(rows) + "\n]}\n"

    def _cells(self, every: bool) -> list[list[str]]:
        total = Row("total", "", weights=self.weights, biases=self.biases, macs=self.macs,
                    activation_bytes=self.activation_bytes)  # fmt: skip
        rows = [[cell(row) or NOTHING for cell in COLUMNS.values()] for row in self.shown(every)]
        return [[*COLUMNS], *rows, [cell(total) for cell in COLUMNS.values()]]

    def notes(self, every: bool = False) -> list[str]:
        """Returns the lines below the table.

        Args:
          every: whether every layer has a row, see `shown`.
        """
        notes = [
            f"{self.name} on one image of {times(self.input_shape)}: {self.params:,} parameters, {self.macs:,} "
            f"multiply-adds, {memory(self.activation_bytes)} of outputs, the largest "
            f"{memory(self.largest_activation_bytes)}.",
            "Multiply-adds are those of convolutions and fully connected layers; each is two FLOPs.",
        ]
        if any(row.output_shape is None for row in self.shown(every)):
            notes.append("Layers without shapes run in training alone; of them only the parameters are counted.")
        return notes


def memory(size: int) -> str:
    """Returns a number of bytes in KiB, or in MiB from 1 MiB on."""
    return f"{size / 2**20:,.2f} MiB" if size >= 2**20 else f"{size / 2**10:,.2f} KiB"


def times(sizes: Sequence[int | float] | None, square: bool = False) -> str:
    """Returns sizes as text, 224x224x3.

    Args:
      sizes: along each axis, or None.
      square: whether one number stands for equal ones.
    """
    if sizes is None:
        return ""
    return "x".join(str(size) for size in (sizes[:1] if square and len({*sizes}) == 1 else sizes))


def _padding(row: Row) -> str:
    if row.padding is None:
        return ""
    # 1 at every border; 0+1 after the end alone; 0+1 x 1+1 differently above and beside.
    ends = [str(low) if low == high else f"{low}+{high}" for low, high in row.padding]
    return ends[0] if ends[0] == ends[1] else " x ".join(ends)


def _kernel(row: Row) -> str:
    dilated = row.dilation not in (None, (1, 1))
    return times(row.kernel) + (f" by {times(row.dilation, square=True)}" if dilated else "")


def _count(number: int) -> str:
    return f"{number:,}" if number else ""


# Heading: what a row has there.
COLUMNS: dict[str, Callable[[Row], str]] = {
    "layer": lambda row: row.name,
    "kind": lambda row: row.kind + (f", {row.groups} groups" if row.groups > 1 else ""),
    "kernel": _kernel,
    "stride": lambda row: times(row.stride, square=True),
    "padding": _padding,
    "input": lambda row: times(row.input_shape),
    "output": lambda row: times(row.output_shape),
    "weights": lambda row: _count(row.weights),
    "biases": lambda row: _count(row.biases),
    "MMACs": lambda row: f"{row.macs / 1e6:,.3f}" if row.macs else "",
    "memory": lambda row: memory(row.activation_bytes) if row.activation_bytes else "",
    "field": lambda row: times(row.receptive_field, square=True),
    "jump": lambda row: times(row.jump, square=True),
}
LEFT = ("layer", "kind")


def _sides() -> list[str]:
    return ["<" if heading in LEFT else ">" for heading in COLUMNS]
