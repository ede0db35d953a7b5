"""Curves that answer: a figure holds its numbers, and the page's script draws them."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cnn_research.analysis.report.markup import Markup, element
from cnn_research.analysis.report.numbers import is_share

LONGEST = 1000  # points of a line; a screen has not many more
FIRST = ("loss", "learning_rate")  # quantities that every run has; the task's primary metric comes between

Points = Sequence[tuple[int | float, float]]


class Line(NamedTuple):
    """A line of a chart.

    Attributes:
      name: in the legend and beside the values.
      points: (x, y) with x ascending.
      group: lines of one group share colour and legend.
      faint: whether it stands behind the others and has no values beside the pointer, as a seed behind its mean.
    """

    name: str
    points: Points
    group: int = 0
    faint: bool = False


def chart(
    title: str,
    lines: Sequence[Line],
    x: str = "step",
    percent: bool = False,
    log: bool = False,
    settled: float = 0.0,
) -> Markup:
    """Returns a figure with lines over a common axis.

    Args:
      title: what its values are.
      lines: at least one.
      x: what they stand over; `recall`, a share, or `step`.
      percent: whether values are shares of 1.
      log: whether the axis of the values is logarithmic.
      settled: share of x after which the lines must be seen in full height; what comes before may leave the picture.
    """
    data = {
        "title": title,
        "x": x,
        "percent": percent,
        "log": log,
        "settled": settled,
        "lines": [{**line._asdict(), "points": _thinned(line.points)} for line in lines],
    }
    return element("figure", element("figcaption", title), class_="chart", data_chart=json.dumps(data, allow_nan=False))


def _thinned(points: Points) -> list[tuple[int | float, float]]:
    """Returns points that JSON can say, the last among them, in as many digits as a screen shows."""
    finite = [(x, float(f"{y:.6g}")) for x, y in points if math.isfinite(y)]
    stride = math.ceil(len(finite) / LONGEST)
    return finite[::-1][::stride][::-1] if stride else []


def curves(records: Iterable[Mapping[str, Any]]) -> dict[str, list[Line]]:
    """Returns what training logged, by quantity: a line for each split, that of training last.

    Args:
      records: lines of `metrics.jsonl`. What is no number there, as NaN, has no point; counts have no line.
    """
    lines: dict[str, dict[str, list[tuple[int | float, float]]]] = {}
    for record in records:
        for key, value in record.items():
            split, slash, quantity = key.rpartition("/")
            if slash and isinstance(value, float):
                lines.setdefault(quantity, {}).setdefault(split, []).append((record["step"], value))
    return {quantity: _by_split(of_split) for quantity, of_split in lines.items()}


def _by_split(lines: Mapping[str, list[tuple[int | float, float]]]) -> list[Line]:
    """Returns a line for each split; training has the second colour, alone too."""
    splits = sorted(lines, key=lambda split: split == "train")
    groups = iter([0, *range(2, len(splits) + 2)])
    return [Line(split, sorted(lines[split]), 1 if split == "train" else next(groups)) for split in splits]


def learning_curves(records: Iterable[Mapping[str, Any]], primary: str) -> tuple[list[Markup], list[Markup]]:
    """Returns the charts of the loss, the primary metric and the learning rate, and those of all else.

    Args:
      records: lines of `metrics.jsonl`.
      primary: the task's primary metric, without the split's name.
    """
    lines = curves(records)
    order = [name for name in (FIRST[0], primary, *FIRST[1:]) if name in lines]
    charts = {name: _curve(name, lines[name]) for name in [*order, *sorted(lines.keys() - set(order))]}
    return [charts[name] for name in order], [charts[name] for name in charts if name not in order]


def _curve(name: str, lines: Sequence[Line]) -> Markup:
    values = [value for line in lines for _, value in line.points]
    positive = name.endswith("loss") and min(values) > 0
    return chart(name.replace("_", " "), lines, percent=is_share(name), log=positive and max(values) > 4 * min(values))
