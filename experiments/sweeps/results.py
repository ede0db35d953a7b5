"""What the arms of a sweep have reached, grouped over their seeds."""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.stats
from etils import epath

from cnn_research.training.writers import read_records, read_result
from experiments.sweeps.arms import short_names

SEED = "seed"
NOTHING = "-"


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm, as far as it has come.

    Attributes:
      name: of its directory.
      fields: what the sweep sets in it.
      status: done, waiting, failed or interrupted.
      result: of a finished run; else None.
      curve: the metric by step.
    """

    name: str
    fields: dict[str, Any]
    status: str
    result: dict[str, Any] | None
    curve: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Group:
    """The arms that differ in nothing but their seed.

    Attributes:
      fields: what they have in common and tells them from other groups, as text.
      runs: the arms.
      values: the metric of those that are done.
    """

    fields: dict[str, str]
    runs: tuple[Run, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Of the metric; None where nothing is done."""
        return float(np.mean(self.values)) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample standard deviation, with n − 1; None below two runs."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def label(self) -> str:
        """Fields and values, for a legend."""
        names = short_names(self.fields)
        return ", ".join(f"{names[field]}={value}" for field, value in self.fields.items()) or "all"

    def average(self, key: str) -> float | None:
        """Returns the mean of another number of the results."""
        numbers = [run.result[key] for run in self.runs if run.result and key in run.result]
        return float(np.mean(numbers)) if numbers else None


class Difference(NamedTuple):
    """What a group has more than another.

    Attributes:
      mean: over the seeds that are done in both.
      margin: of the 95% confidence interval, on both sides (Student's t of the differences seed by seed).
    """

    mean: float
    margin: float


def difference(group: Group, reference: Group, metric: str) -> Difference | None:
    """Compares two groups seed by seed; None below two seeds that are done in both.

    What a seed does to all arms alike, such as the order of the examples, cancels out.

    Args:
      group: to compare.
      reference: with what.
      metric: by what.
    """
    ours, theirs = (_by_seed(each, metric) for each in (group, reference))
    differences = [ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()]
    if len(differences) < 2:
        return None
    error = np.std(differences, ddof=1) / math.sqrt(len(differences))
    return Difference(float(np.mean(differences)), float(scipy.stats.t.ppf(0.975, len(differences) - 1) * error))


def _by_seed(group: Group, metric: str) -> dict[Any, float]:
    return {
        run.fields[SEED]: value
        for run in group.runs
        if run.result and SEED in run.fields and (value := pick(run.result, metric)) is not None
    }


def read_run(workdir: epath.Path, arm: Mapping[str, Any], metric: str) -> Run:
    """Returns an arm as its directory shows it.

    Args:
      workdir: of the sweep.
      arm: its entry in `sweep.json`.
      metric: of the curve.
    """
    path = workdir / arm["name"] / "result.json"
    result = read_result(path) if path.exists() else None
    status = "done" if result else arm["status"]
    records = read_records(workdir / arm["name"] / "metrics.jsonl")
    curve = {record["step"]: value for record in records if (value := pick(record, metric)) is not None}
    return Run(arm["name"], arm["fields"], status, result, curve)


def pick(values: Mapping[str, Any], metric: str) -> float | None:
    """Returns the metric, or the one of the same kind where a run's test split has another name, or None.

    Args:
      values: under flat names, `test/accuracy`.
      metric: one such name.
    """
    if metric in values:
        return float(values[metric])
    kind = metric.rpartition("/")[2]
    # `train/accuracy` is of the batches as they were trained on.
    alike = [name for name in values if name.rpartition("/")[2] == kind and not name.startswith("train/")]
    return float(values[alike[0]]) if len(alike) == 1 else None


def group(runs: Iterable[Run], metric: str) -> list[Group]:
    """Returns the runs by all their fields but the seed and those in which no two runs differ.

    Args:
      runs: of one sweep.
      metric: that the groups are compared by.
    """
    runs = list(runs)
    columns = list(dict.fromkeys(field for run in runs for field in run.fields if field != SEED))
    texts = {
        run.name: {field: _text(run.fields[field]) if field in run.fields else NOTHING for field in columns}
        for run in runs
    }
    differing = [field for field in columns if len({text[field] for text in texts.values()}) > 1]
    members: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        members.setdefault(tuple(texts[run.name][field] for field in differing), []).append(run)
    groups = []
    for key, those in members.items():
        values = [pick(run.result, metric) for run in those if run.result]
        groups.append(
            Group(
                fields=dict(zip(differing, key, strict=True)),
                runs=tuple(those),
                values=tuple(value for value in values if value is not None),
            )
        )
    return groups


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    return f"{value:.10g}" if isinstance(value, float) else str(value)  # 0.30000000000000004 is 0.3


def is_better_low(metric: str) -> bool:
    """Tells whether less of a metric is better: losses and errors."""
    return metric.endswith(("loss", "error"))


def best(groups: Iterable[Group], metric: str) -> float | None:
    """Returns the best mean, None where there is none."""
    means = [each.mean for each in groups if each.mean is not None and math.isfinite(each.mean)]
    if not means:
        return None
    return min(means) if is_better_low(metric) else max(means)
