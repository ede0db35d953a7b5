"""Writes a network as a table of its layers: sizes, parameters, multiply-adds, memory, receptive fields.

python -m experiments.tabulate --model=vgg16
python -m experiments.tabulate --model=resnet50 --fields="width=0.5,stage_sizes=(2,2,2,2)" --input_shape=160,160,3
python -m experiments.tabulate --config=experiments/configs/digits.py:lenet5 --config.model.c3=dense --format=markdown

Nothing is computed, and no data is needed. The last line says which strides leave a remainder, and where none does.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from absl import flags

from cnn_research import analysis
from cnn_research.analysis.table import times
from cnn_research.ops.geometry import remainder
from experiments import command_line, networks

FORMATS = ("text", "markdown", "json")

_FORMAT = flags.DEFINE_enum("format", "text", FORMATS, "what to write; json always has every layer")
_ALL = flags.DEFINE_boolean("all", False, "give layers without parameters or an output of their own rows too")


flags.adopt_module_key_flags(networks)


def make_table() -> analysis.Table:
    """Returns the table that the flags ask for."""
    network = networks.chosen()
    return analysis.tabulate(network.model, network.input_shape, network.name)


class _Stride(NamedTuple):
    """A window's steps over a layer's input, along one axis.

    Attributes:
      layer: its name.
      rest: values that are left when no further step fits, padding among them.
      unseen: those of them that are neither padding nor a gap as between any two windows.
      jump: a step in pixels of the image.
      span: pixels of the image for which there would be one window and nothing left.
    """

    layer: str
    rest: int
    unseen: int
    jump: int | float
    span: int

    def fits(self, size: int) -> bool:
        """Returns whether nothing is left of images of a size, if opposite borders are padded alike."""
        return size >= self.span and (size - self.span) % self.jump == 0


def _strides(table: analysis.Table, axis: int) -> Iterator[_Stride]:
    for row in table.rows:
        if not (row.kernel and row.stride and row.padding and row.dilation and row.input_shape and row.output_shape):
            continue
        size, stride, (before, after) = row.input_shape[axis], row.stride[axis], row.padding[axis]
        transposed = row.output_shape[axis] > size
        if stride > 1 and not transposed and row.jump and row.receptive_field and row.first_pixel:
            extent = row.dilation[axis] * (row.kernel[axis] - 1) + 1
            rest = remainder(size, extent, stride, (before, after))
            unseen = max(0, rest - after - max(0, stride - extent))
            span = row.receptive_field[axis] + 2 * row.first_pixel[axis]
            yield _Stride(row.name, rest, unseen, row.jump[axis], span)


def remainders(table: analysis.Table) -> str:
    """Returns a line on windows whose last step does not end with their input, and the nearest sizes where all do.

    It is empty where there are no strides. Where opposite borders are padded differently it names no sizes, since such
    padding may depend on the size.
    """
    axes = [[*_strides(table, axis)] for axis in (0, 1)]
    strides = [*itertools.chain(*axes)]
    if not strides:
        return ""
    sizes = table.input_shape[:2]
    unseen = any(stride.unseen for stride in strides)
    layers = [*dict.fromkeys(stride.layer for stride in strides if (stride.unseen if unseen else stride.rest))]
    if not layers:
        return f"At {times(sizes)} strides leave no remainder.\n"
    rest = "pixels at the end that no window sees" if unseen else "a remainder, but no pixel at the end unseen"
    line = f"At {times(sizes)} strides leave {rest}: {', '.join(layers[:4])}"
    if len(layers) > 4:
        line += f" and {len(layers) - 4} more"
    if not any(low != high for row in table.rows for low, high in row.padding or ()):
        pairs = zip(*(_fitting(size, along) for size, along in zip(sizes, axes, strict=True)), strict=True)
        if fitting := [times(pair) for pair in pairs if all(pair)]:
            line += f"; nothing at {' or '.join(fitting)}"
    return f"{line}.\n"


def _fitting(size: int, strides: Sequence[_Stride]) -> tuple[int, int]:
    """Returns the nearest sizes that fit, one that is not above a size and one that is not below it; 0 for none."""
    period = math.ceil(max((stride.jump for stride in strides), default=1))

    def first(sizes: Iterable[int]) -> int:
        return next((size for size in sizes if all(stride.fits(size) for stride in strides)), 0)

    return first(range(size, max(0, size - period), -1)), first(range(size, size + period))


def main() -> None:
    """Writes the table to stdout."""
    table = make_table()
    if _FORMAT.value == "json":
        print(table.json(), end="")
    elif _FORMAT.value == "markdown":
        print(table.markdown(_ALL.value), remainders(table), sep="\n", end="")
    else:
        print(table.text(_ALL.value), remainders(table), sep="", end="")


if __name__ == "__main__":
    command_line.run(main)
