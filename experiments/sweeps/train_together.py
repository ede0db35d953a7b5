"""Trains several runs that differ in seeds or scalars as one compiled program, each as `experiments.train` would.

python -m experiments.sweeps.train_together --runs=FILE

FILE holds a list in JSON, `{"config": "RECIPE.py:argument", "overrides": {field: text}, "workdir": …}` for each run;
`experiments.sweep --executor=vmap` writes it. The last line of stdout is one JSON object: the result by directory, or
what went wrong.
"""

import json
import os
import sys
from pathlib import Path

from absl import flags

from cnn_research import training
from cnn_research.errors import UserError
from experiments import command_line
from experiments.sweeps.arms import resolve

_RUNS = flags.DEFINE_string("runs", "", "a file of runs, in JSON")


def main() -> None:
    """Trains the runs and prints their results; exit code 2 where all of them failed, 1 where some did."""
    command_line.require("runs")
    try:
        runs = json.loads(Path(_RUNS.value).read_text())
        configs = [resolve(run["config"], run["overrides"]) for run in runs]
        workdirs = [os.fspath(run["workdir"]) for run in runs]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{_RUNS.value} is no list of runs: {error}") from error
    if not configs:
        raise UserError(f"{_RUNS.value} is a list of no runs; give one at least")
    outcomes = training.train_together(configs, workdirs)
    faults = {Path(workdir).name: x for workdir, x in zip(workdirs, outcomes, strict=True) if isinstance(x, UserError)}
    for name, fault in faults.items():
        print(f"{name}: error: {fault}", file=sys.stderr)
    told = {workdir: str(x) if isinstance(x, UserError) else x for workdir, x in zip(workdirs, outcomes, strict=True)}
    print(json.dumps(told), flush=True)
    if faults:
        sys.exit(2 if len(faults) == len(runs) else 1)


if __name__ == "__main__":
    command_line.run(main)
