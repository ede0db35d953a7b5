"""Networks beside each other: accuracy against what it costs, as Canziani, Paszke & Culurciello 2016 draw it.

"An analysis of deep neural network models for practical applications", arXiv:1605.07678.
"""

import csv
import dataclasses
import io
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from cnn_research.analysis.figures import DPI, INK, LINES
from cnn_research.analysis.table import Table

LARGEST_AREA = 2400  # of a circle, in square points
SECONDS = 1.0  # that a speed is measured for at least, unless it takes fewer repeats


@dataclasses.dataclass(frozen=True)
class Entry:
    """A network or a run, and what is compared of it.

    Attributes:
      name: of the network or the run.
      table: of its layers.
      accuracy: the task's primary metric; None where it is not known.
      source: what the accuracy is, and of what.
      published: whether others measured it.
      latency: seconds of a forward pass by the number of images in it.
      train_seconds: that training took; None where it is not known.
    """

    name: str
    table: Table
    accuracy: float | None = None
    source: str = ""
    published: bool = False
    latency: Mapping[int, float] = dataclasses.field(default_factory=dict)
    train_seconds: float | None = None

    @property
    def density(self) -> float | None:
        """Information density: percent of accuracy per million parameters (section 3.5 of the paper)."""
        return None if self.accuracy is None else 100 * self.accuracy / (self.table.params / 1e6)

    def record(self) -> dict[str, Any]:
        """Returns all of it under flat names."""
        speeds = {f"latency_ms_batch{size}": round(1e3 * seconds, 4) for size, seconds in self.latency.items()}
        speeds |= {f"images_per_second_batch{size}": round(size / seconds, 2) for size, seconds in self.latency.items()}
        return {
            "name": self.name,
            "accuracy": self.accuracy,
            "source": self.source,
            "published": self.published,
            "params": self.table.params,
            "macs": self.table.macs,
            "activation_bytes": self.table.activation_bytes,
            "percent_per_million_params": self.density and round(self.density, 4),
            **speeds,
            "train_seconds": self.train_seconds,
        }


def measure_latency(
    forward: Callable[[Any, Any], Any], variables: Any, input_shape: Sequence[int], batch_size: int, repeats: int = 10
) -> float:
    """Returns the seconds of a forward pass, compiled, on one device: the median of so many, or of a second's worth.

    Args:
      forward: of (variables, images).
      variables: of the network.
      input_shape: (height, width, channels) of the images.
      batch_size: how many there are.
      repeats: at most.
    """
    images = jax.device_put(np.zeros((batch_size, *input_shape), np.float32))
    compiled = jax.jit(forward).lower(variables, images).compile()
    jax.block_until_ready(compiled(variables, images))
    times: list[float] = []
    while len(times) < 3 or (len(times) < repeats and sum(times) < SECONDS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(variables, images))
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def to_csv(entries: Sequence[Entry]) -> str:
    """Returns the entries as CSV, with a header."""
    text = io.StringIO()
    records = [entry.record() for entry in entries]
    writer = csv.DictWriter(text, list(dict.fromkeys(name for each in records for name in each)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def charts(entries: Sequence[Entry]) -> Figure:
    """Draws accuracy against multiply-adds, the circles' areas the parameters; information density; and throughput.

    What others have published has a dashed circle. A panel without data is left out.

    Args:
      entries: with names of their own.
    """
    known = [entry for entry in entries if entry.accuracy is not None]
    timed = [entry for entry in entries if entry.latency]
    panels: list[Callable[[Axes], None]] = []
    if known:
        panels += [lambda axes: _draw_accuracy(axes, known), lambda axes: _draw_density(axes, known)]
    if timed:
        panels.append(lambda axes: _draw_throughput(axes, timed))
    panels = panels or [lambda axes: _draw_costs(axes, entries)]
    figure = Figure(figsize=(5.6 * len(panels), 4.4), dpi=DPI, layout="constrained")
    for axes, panel in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels, strict=True):
        panel(axes)
        axes.grid(color="#e4e8ec", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=8.5)
    return figure


def _circles(axes: Axes, entries: Sequence[Entry], heights: Sequence[float]) -> None:
    """Draws a circle for each entry at its multiply-adds, with the parameters as area, and its name beside it."""
    largest = max(entry.table.params for entry in entries)
    for index, (entry, height) in enumerate(zip(entries, heights, strict=True)):
        x, colour = entry.table.macs / 1e9, LINES[index % len(LINES)]
        area = max(16.0, LARGEST_AREA * entry.table.params / largest)
        style = "--" if entry.published else "-"
        axes.scatter(x, height, area, facecolor=colour, edgecolor="none", alpha=0.35)
        axes.scatter(x, height, area, facecolor="none", edgecolor=colour, linestyle=style)
        side = -1 if index % 2 else 1
        offset = (0, side * (area**0.5 / 2 + 6))
        axes.annotate(entry.name, (x, height), offset, textcoords="offset points", size=7.5, color=INK,
                      ha="center", va="center")  # fmt: skip
    axes.set_xscale("log")
    axes.margins(0.18)
    _plain_numbers(axes.xaxis)
    axes.set_xlabel("G multiply-adds, an image", color=INK)


def _plain_numbers(axis: Axis) -> None:
    """Gives a logarithmic axis numbers as people write them."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _draw_accuracy(axes: Axes, entries: Sequence[Entry]) -> None:
    _circles(axes, entries, [entry.accuracy or 0.0 for entry in entries])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    largest = max(entry.table.params for entry in entries)
    title = f"accuracy (largest circle: {largest / 1e6:,.3g} M parameters)"
    axes.set_title(title, loc="left", size=10, weight="bold", color=INK)


def _draw_costs(axes: Axes, entries: Sequence[Entry]) -> None:
    _circles(axes, entries, [entry.table.activation_bytes / 2**20 for entry in entries])
    axes.set_yscale("log")
    _plain_numbers(axes.yaxis)
    axes.set_title("MiB of outputs (circles: parameters)", loc="left", size=10, weight="bold", color=INK)


def _draw_density(axes: Axes, entries: Sequence[Entry]) -> None:
    ranked = sorted(entries, key=lambda entry: entry.density or 0.0)
    axes.barh([entry.name for entry in ranked], [entry.density or 0.0 for entry in ranked], color=LINES[0])
    axes.set_title("percent of accuracy per M parameters", loc="left", size=10, weight="bold", color=INK)


def _draw_throughput(axes: Axes, entries: Sequence[Entry]) -> None:
    for index, entry in enumerate(entries):
        sizes = sorted(entry.latency)
        speeds = [size / entry.latency[size] for size in sizes]
        axes.plot(sizes, speeds, marker="o", color=LINES[index % len(LINES)], label=entry.name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted({size for entry in entries for size in entry.latency}))
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    _plain_numbers(axes.yaxis)
    axes.set_xlabel("images in a batch", color=INK)
    axes.set_title("images a second", loc="left", size=10, weight="bold", color=INK)
    axes.legend(frameon=False, fontsize=8)
