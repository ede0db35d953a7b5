"""What a sweep found: a table of mean ± standard deviation over seeds, as markdown and CSV, and learning curves."""

import csv
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from cnn_research.analysis.figures import DPI, LINES, dress_curves
from cnn_research.errors import UserError, nearest
from cnn_research.training.writers import read_json, write_text
from experiments.markdown import markdown_table
from experiments.sweeps.arms import short_names
from experiments.sweeps.results import NOTHING, Group, Run, best, difference, group, pick, read_run

SETTLED = 0.2  # share of the training after which curves are shown in full height

ARM = {"name", "fields", "status"}  # what `sweep.json` says of each arm


def write(workdir: epath.PathLike, metric: str = "") -> tuple[str, dict[str, Any]]:
    """Writes `table.md`, `table.csv` and `curves.png` from what there is.

    Args:
      workdir: of the sweep; holds `sweep.json`.
      metric: of `result.json`; the sweep's own unless given.

    Returns:
      The table as text; and a summary, `{"arms": 6, "done": 5, "failed": [name], "table": path}`.

    Raises:
      UserError: there is no sweep, or no result holds the metric.
    """
    workdir = epath.Path(workdir)
    _, runs, metric = read_sweep(workdir, metric)
    groups = group(runs, metric)
    text = table_text(groups, metric)
    drawn = any(run.curve for run in runs)
    if drawn:
        picture = io.BytesIO()
        draw_curves(groups, metric).savefig(picture, format="png", bbox_inches="tight")
        (workdir / "curves.png").write_bytes(picture.getvalue())
    write_text(workdir / "table.md", text + ("\n![curves](curves.png)\n" if drawn else ""))
    write_text(workdir / "table.csv", table_csv(groups, metric))
    return text, {
        "arms": len(runs),
        "done": sum(run.status == "done" for run in runs),
        "failed": [run.name for run in runs if run.status == "failed"],
        "table": str(workdir / "table.md"),
    }


def read_sweep(workdir: epath.Path, metric: str = "") -> tuple[dict[str, Any], list[Run], str]:
    """Returns what `sweep.json` says, its arms as far as they have come, and the metric.

    Args:
      workdir: of the sweep.
      metric: of `result.json`; the sweep's own unless given.

    Raises:
      UserError: there is no sweep, or no result holds the metric.
    """
    if not (workdir / "sweep.json").exists():
        raise UserError(f"{workdir} holds no sweep: there is no sweep.json in it")
    sweep = read_json(workdir / "sweep.json", "metric", "arms")
    arms = sweep["arms"]
    if not isinstance(arms, list) or not all(isinstance(arm, dict) and arm.keys() >= ARM for arm in arms):
        raise UserError(f"{workdir / 'sweep.json'} is damaged: an arm has not all of {', '.join(sorted(ARM))}")
    metric = metric or sweep["metric"]
    runs = [read_run(workdir, arm, metric) for arm in sweep["arms"]]
    results = [run.result for run in runs if run.result]
    if results and all(pick(result, metric) is None for result in results):
        known = {key for result in results for key in result if "/" in key}
        raise UserError(f"no result holds {metric!r}; {nearest(metric, known)}")
    return sweep, runs, metric


def table_text(groups: Sequence[Group], metric: str) -> str:
    """Returns the table as markdown, its columns aligned, the best in bold, and below it what is missing.

    Args:
      groups: the rows.
      metric: heading of the column of means.
    """
    fields = list(groups[0].fields)
    names = short_names(fields)
    top = best(groups, metric)
    differences = [difference(each, groups[0], metric) for each in groups[1:]]
    paired = ["difference"] if any(differences) else []
    rows = [[*(names[field] for field in fields), "n", metric, *paired, "seconds", "params"]]
    for each, other in zip(groups, [None, *differences], strict=True):
        done, all_arms, mean = len(each.values), len(each.runs), _plus_minus(each)
        rows.append([
            *each.fields.values(),
            str(done) if done == all_arms else f"{done} of {all_arms}",
            f"**{mean}**" if top is not None and each.mean == top else mean,
            *(NOTHING if other is None else f"{other.mean:+.4f} ± {_number(other.margin)}" for _ in paired),
            *(NOTHING if number is None else f"{number:,.0f}" for number in map(each.average, ("seconds", "params"))),
        ])  # fmt: skip
    lines = markdown_table([[cell.replace("|", "\\|") for cell in row] for row in rows], left=len(fields))
    lines += ["", "Mean ± sample standard deviation over seeds; seconds of training, their mean."]
    if paired:
        lines += ["", "Difference from the first row, paired by seed, with its 95% confidence interval (Student's t)."]
    missing = [f"{run.name} ({run.status})" for each in groups for run in each.runs if run.status != "done"]
    if missing:
        lines += ["", f"Missing: {'; '.join(missing)}."]
    return "\n".join(lines) + "\n"


def _plus_minus(each: Group) -> str:
    if each.mean is None:
        return NOTHING
    return _number(each.mean) + ("" if each.deviation is None else f" ± {_number(each.deviation)}")


def _number(value: float) -> str:
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def table_csv(groups: Sequence[Group], metric: str) -> str:
    """Returns the table with every digit, for other programs.

    Args:
      groups: the rows.
      metric: that the means are of.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*groups[0].fields, "arms", "n", f"{metric} mean", f"{metric} sd", "seconds", "params"])
    for each in groups:
        numbers = [each.mean, each.deviation, each.average("seconds"), each.average("params")]
        writer.writerow([*each.fields.values(), len(each.runs), len(each.values), *numbers])
    return text.getvalue()


def draw_curves(groups: Sequence[Group], metric: str) -> Figure:
    """Draws the metric over the steps: a colour a group, a thin line a seed, a thick one their mean.

    Args:
      groups: of the sweep; those without a curve are left out.
      metric: that the curves are of.
    """
    drawn = [each for each in groups if any(run.curve for run in each.runs)]
    colors = LINES if len(drawn) <= len(LINES) else matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(drawn)))
    figure = Figure(figsize=(5.6, max(3.8, 0.5 + 0.22 * len(drawn))), dpi=DPI)  # inches; 0.22 is a row of the legend
    axes = figure.subplots()
    settled = []  # the values that the picture must show: what comes before them would flatten their differences
    for each, color in zip(drawn, colors, strict=False):
        curves = [run.curve for run in each.runs if run.curve]
        complete = [run.curve for run in each.runs if run.curve and run.result] or curves
        for curve in curves:
            settled += [value for step, value in curve.items() if step >= SETTLED * max(curve)]
            if len(curves) > 1:
                axes.plot(list(curve), list(curve.values()), color=color, linewidth=0.8, alpha=0.5, gid="seed")
        shared = sorted(set.intersection(*map(set, complete)))
        means = [np.mean([curve[step] for curve in complete]) for step in shared]
        label = f"{each.label}   {_plus_minus(each)}".replace("$", r"\$")  # regexes are no mathematics
        axes.plot(shared, means, color=color, linewidth=2, marker="o" if len(shared) <= 12 else "", markersize=4,
                  label=label, gid="mean")  # fmt: skip
    finite = [value for value in settled if math.isfinite(value)]
    if finite and max(finite) > min(finite):
        margin = 0.08 * (max(finite) - min(finite))
        axes.set_ylim(min(finite) - margin, max(finite) + margin)
    dress_curves(axes, metric, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
