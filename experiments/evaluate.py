"""Measures a run on a whole split, from its checkpoint alone.

python -m experiments.evaluate --workdir=runs/digits_lenet5
"""

import json

from absl import flags

from cnn_research import analysis
from experiments import command_line

_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing, such as train[:10%]; the run's test split unless given")


def main() -> None:
    """Evaluates and prints the metrics as one JSON object."""
    command_line.require("workdir")
    run = analysis.load_run(_WORKDIR.value, _STEP.value)
    split = _SPLIT.value or run.config.data.test
    metrics = {f"{split}/{name}": value for name, value in run.evaluate(split).items()}
    print(json.dumps({"step": run.step, **metrics}))


if __name__ == "__main__":
    command_line.run(main)
