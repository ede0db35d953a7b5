"""Trains a network.

python -m experiments.train --config=experiments/configs/digits.py:lenet5 --workdir=runs/digits_lenet5

The run goes on by itself if the directory holds a checkpoint of the same config. Every field of the config is a flag:
`--config.model.activation=relu --config.optimizer.learning_rate=0.05`. The last line of stdout is the result, one JSON
object.
"""

import json
import os
import sys

import jax
from absl import flags
from etils import epath
from ml_collections import config_flags

from cnn_research import tasks, training
from experiments import command_line, processes

_CONFIG = config_flags.DEFINE_config_file("config", help_string="a recipe, FILE.py or FILE.py:argument")
_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")


def main() -> None:
    """Trains, prints the result, and says what can be done with it."""
    command_line.require("config", "workdir")
    processes.join()
    workdir = epath.Path(_WORKDIR.value)
    done_before = (workdir / "result.json").exists()
    result = training.train(_CONFIG.value, workdir)
    if jax.process_index():
        return
    print(json.dumps(result), flush=True)
    metric = tasks.create(_CONFIG.value.task).primary_metric
    score = ", ".join(f"{name} {value:.4f}" for name, value in result.items() if name.endswith(f"/{metric}"))
    state = "was complete before" if done_before else "is complete"
    python = os.path.relpath(sys.executable) if sys.executable.startswith(os.getcwd()) else "python"
    recipe = next(argument for argument in sys.argv if argument.startswith(("--config=", "-config=")))
    print(
        f"The run in {workdir} {state}: {score} after {result['step']} steps. Next, try\n"
        f"  {python} -m experiments.evaluate --workdir={workdir} --step=best\n"
        f"  {python} -m experiments.predict --workdir={workdir} --out={workdir / 'report'}\n"
        f"  {python} -m experiments.sweep {recipe} --sweep='model.width=0.5,1,2; seed=0,1,2' --workdir={workdir}_width",
        file=sys.stderr,
    )


if __name__ == "__main__":
    command_line.run(main)
