"""Trains a network.

python -m experiments.train --config=experiments/configs/digits.py:lenet5 --workdir=runs/digits_lenet5

The run goes on by itself if the directory holds a checkpoint of the same config. Every field of the config is a flag:
`--config.model.activation=relu --config.optimizer.learning_rate=0.05`.
"""

import json

from absl import flags
from ml_collections import config_flags

from cnn_research import training
from experiments import command_line

_CONFIG = config_flags.DEFINE_config_file("config", help_string="a recipe, FILE.py or FILE.py:argument")
_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")


def main() -> None:
    """Trains and prints the result as one JSON object."""
    command_line.require("workdir")
    print(json.dumps(training.train(_CONFIG.value, _WORKDIR.value)))


if __name__ == "__main__":
    command_line.run(main)
