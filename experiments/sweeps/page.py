"""The report of a sweep: its arms, their curves, and how they differ, seed by seed."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from etils import epath

from cnn_research.analysis.report import tables
from cnn_research.analysis.report.charts import Line, chart
from cnn_research.analysis.report.markup import Markup, element
from cnn_research.analysis.report.numbers import duration, is_share, magnitude, number
from cnn_research.analysis.report.page import Section, page
from cnn_research.analysis.report.picker import Panel, picker
from cnn_research.training.writers import write_text
from experiments.sweeps.arms import short_names
from experiments.sweeps.report import SETTLED, read_sweep
from experiments.sweeps.results import NOTHING, Difference, Group, best, difference, group

REFERENCES = 12  # settings at most that the others may be compared with
DIGITS = 2  # of per cent, after the point


def write(workdir: epath.PathLike, folder: epath.PathLike, metric: str = "") -> epath.Path:
    """Writes `index.html` from what there is of a sweep.

    Args:
      workdir: of the sweep; holds `sweep.json`.
      folder: for the page.
      metric: of `result.json`; the sweep's own unless given.

    Returns:
      The path of the page.

    Raises:
      UserError: there is no sweep, or no result holds the metric.
    """
    workdir, folder = epath.Path(workdir), epath.Path(folder)
    sweep, runs, metric = read_sweep(workdir, metric)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "index.html", sweep_page(workdir.resolve().name, sweep, group(runs, metric), metric))
    return folder / "index.html"


def sweep_page(name: str, sweep: dict[str, Any], groups: Sequence[Group], metric: str) -> str:
    """Returns the page of a sweep.

    Args:
      name: of the sweep.
      sweep: what `sweep.json` says.
      groups: of its arms.
      metric: that they are compared by.
    """
    sections = [Section("Settings", _settings(groups, metric))]
    if lines := _lines(groups):
        title = f"{metric}, thin lines for each seed" if any(line.faint for line in lines) else metric
        curves = chart(title, lines, percent=is_share(metric), settled=SETTLED)
        sections.append(Section("Curves", curves))
    if panels := [*_differences(groups, metric)]:
        note = "The mean difference over the seeds that both have, with its 95% confidence interval (Student's t)."
        note += " A full dot: the interval leaves out 0."
        note += " Of percentages, in points." if is_share(metric) else ""
        body = picker(panels, "Compared with") + element("p", note, class_="note")
        sections.append(Section("Differences", body))
    subtitle = f"{sweep.get('sweep', '')} of {sweep.get('config', '')}"
    return page("sweep", name, subtitle, sections, "Written by cnn_research.")


def _settings(groups: Sequence[Group], metric: str) -> Markup:
    """Returns what there is to see first, and a table: a row for all arms that differ in nothing but their seed."""
    runs = [run for each in groups for run in each.runs]
    missing = [f"{run.name} ({run.status})" for run in runs if run.status != "done"]
    top = best(groups, metric)
    tops = [] if top is None else [each.label for each in groups if each.mean == top]
    tiles = [(f"best {metric}: {label}", number(top, metric, DIGITS)) for label in tops[:1]]
    tiles += [("settings", str(len(groups))), ("arms done", f"{len(runs) - len(missing)} of {len(runs)}")]
    names = short_names(groups[0].fields)
    every = [value for each in groups for value in each.values if math.isfinite(value)]
    heading = [*(names.values() or ["arms"]), "n", metric, "± sd", "each seed", "time", "parameters"]
    rows = [_row(each, metric, every, each.label in tops) for each in groups]
    body = tables.tiles(tiles) + tables.table(heading, rows, left=max(1, len(names)), class_="arms")
    return body + element("p", f"Missing: {'; '.join(missing)}.", class_="note") if missing else body


def _row(each: Group, metric: str, every: Sequence[float], is_best: bool) -> list[str]:
    """Returns a row of the table of settings; `every` are the values of all."""
    done, count, cells = len(each.values), len(each.runs), [*each.fields.values()] or ["all"]
    mean = _text(each.mean, lambda value: number(value, metric, DIGITS))
    return [
        *cells,
        str(done) if done == count else f"{done} of {count}",
        element("td", mean, class_="number best" if is_best else "number"),
        _text(each.deviation, lambda value: number(value, metric, DIGITS)),
        _strip(each.values, every),
        _text(each.average("seconds"), duration),
        _text(each.average("params"), lambda count: magnitude(round(count))),
    ]


def _text(value: float | None, write: Callable[[float], str]) -> str:
    return NOTHING if value is None else write(value)


def _strip(values: Sequence[float], every: Sequence[float]) -> Markup:
    """Returns a cell with a dot a value, between the lowest and the highest of all."""
    low, reach = min(every, default=0.0), max(every, default=0.0) - min(every, default=0.0)
    places = [(value - low) / reach if reach else 0.5 for value in values if math.isfinite(value)]
    return element("td", *(element("i", style=f"--at: {place:.3f}") for place in places), class_="strip")


def _lines(groups: Sequence[Group]) -> list[Line]:
    """Returns the mean of each group over the steps that all of its runs have, and behind it each seed."""
    lines = []
    for index, each in enumerate(groups):
        curves = [run.curve for run in each.runs if run.curve]
        complete = [run.curve for run in each.runs if run.curve and run.result] or curves
        if not complete:
            continue
        shared = sorted(set.intersection(*map(set, complete)))
        mean = [(step, float(np.mean([curve[step] for curve in complete]))) for step in shared]
        lines.append(Line(each.label, mean, index))
        if len(curves) > 1:
            lines += [Line(each.label, sorted(curve.items()), index, faint=True) for curve in curves]
    return lines


def _differences(groups: Sequence[Group], metric: str) -> Iterator[Panel]:
    """Yields for each group a table of what the others have more."""
    for reference in groups[:REFERENCES] if len(groups) > 1 else []:
        others = [(each, difference(each, reference, metric)) for each in groups if each is not reference]
        known = [(each, found) for each, found in others if found is not None]
        if known:
            reach = max(abs(found.mean) + found.margin for _, found in known) or 1.0
            rows = [
                [
                    each.label,
                    _signed(found.mean, metric),
                    f"± {number(found.margin, metric, DIGITS)}",
                    _interval(found, reach),
                ]
                for each, found in known
            ]
            heading = ["setting", "difference", "interval", ""]
            yield Panel("Settings", reference.label, "", tables.table(heading, rows, class_="compared"))


def _signed(value: float, metric: str) -> str:
    return ("+" if value >= 0 else "-") + number(abs(value), metric, DIGITS)


def _interval(found: Difference, reach: float) -> Markup:
    """Returns a cell with an interval around a dot, and a line at 0; from -reach to reach."""

    def place(value: float) -> str:
        return f"{50 + 46 * value / reach:.2f}%"

    style = f"--mean: {place(found.mean)}; --from: {place(found.mean - found.margin)};"
    style += f" --span: {92 * found.margin / reach:.2f}%"
    sure = " sure" if abs(found.mean) > found.margin else ""
    return element("td", element("span"), element("i"), class_=f"interval{sure}", style=style)
