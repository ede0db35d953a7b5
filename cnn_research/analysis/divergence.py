"""Where two runs first part: in their configs, the examples they see, what they log, and their parameters."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cnn_research.analysis.run import Run, load_run
from cnn_research.analysis.weights import layer_distances
from cnn_research.data.order import Shuffled
from cnn_research.errors import UserError
from cnn_research.training import config as configs
from cnn_research.training.checkpoints import Checkpoints

# What a record holds that depends on the machine and the hour.
OF_THE_CLOCK = ("seconds", "time", "images_per_second")

# What of a config says which examples a step sees.
EXAMPLES = ("data.name", "data.train")


class Logged(NamedTuple):
    """A value that two runs logged at the same step, and that differs.

    Attributes:
      step: of both.
      name: of the value.
      first: of the first run.
      second: of the second run.
    """

    step: int
    name: str
    first: Any
    second: Any


def first_logged(first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]) -> Logged | None:
    """Returns the first value that differs; None where all are the same that both have.

    Args:
      first: records of a run's `metrics.jsonl`.
      second: those of another.
    """
    theirs: dict[tuple[int, str], Any] = {
        (record["step"], name): value for record in second for name, value in record.items()
    }
    differing = [
        Logged(record["step"], name, value, theirs[record["step"], name])
        for record in first
        for name, value in record.items()
        if not name.endswith(OF_THE_CLOCK) and theirs.get((record["step"], name), value) != value
    ]
    return min(differing, key=lambda logged: logged.step, default=None)


def first_batch(first: ConfigDict, second: ConfigDict, steps: int) -> tuple[int, int] | None:
    """Returns the first step whose batches hold other examples, and the first place in them; None if there is none.

    The order of examples is a function of the config, so that no run need have written it down.

    Args:
      first: config of a run.
      second: that of another.
      steps: to compare.
    """
    flat = [configs.flatten(config) for config in (first, second)]
    if any(flat[0][field] != flat[1][field] for field in EXAMPLES):
        return 0, 0
    orders = [Shuffled(config.data.num_examples, config.batch_size, config.seed) for config in (first, second)]
    for step in range(steps):
        ours, theirs = (order(step)[0] for order in orders)
        shared = min(len(ours), len(theirs))
        differing = np.flatnonzero(ours[:shared] != theirs[:shared])
        if len(differing) or len(ours) != len(theirs):
            return step, int(differing[0]) if len(differing) else shared
    return None


def common_step(first: Run, second: Run) -> int | None:
    """Returns the first step of which both runs have a checkpoint; None if there is none."""
    steps = []
    for run in (first, second):
        with Checkpoints(run.workdir, read_only=True) as checkpoints:
            steps.append({*checkpoints.steps})
    return min(steps[0] & steps[1], default=None)


def first_layer(order: Sequence[str], first: Mapping[str, Any], second: Mapping[str, Any]) -> str | None:
    """Returns the first layer whose parameters differ; None where none do.

    Args:
      order: names of the layers as the network runs them.
      first: variables of a network.
      second: of one with the same layers.

    Raises:
      UserError: the networks' variables have other names or shapes.
    """
    differing = [distance.layer for distance in layer_distances(first, second) if distance.largest]
    place = {name: index for index, name in enumerate(order)}
    return min(differing, key=lambda layer: place.get(layer, len(place)), default=None)


def explain(first: Run, second: Run, order: Sequence[str]) -> list[str]:
    """Returns where two runs first part, a line each: config, examples, what they logged, parameters.

    Args:
      first: a run.
      second: another.
      order: names of the layers as the first network runs them.
    """
    fields = configs.differences(first.config, second.config)
    lines = [f"config: {field} is {ours!r} and {theirs!r}" for field, (ours, theirs) in fields.items()]
    lines = lines or ["config: the same"]
    steps = min(first.program.total_steps, second.program.total_steps)
    batch = first_batch(first.config, second.config, steps)
    lines.append(
        f"examples: other ones from step {batch[0]} on, place {batch[1]} of the batch"
        if batch
        else f"examples: the same in all {steps:,} steps"
    )
    logged = first_logged(first.metrics, second.metrics)
    lines.append(
        f"logged: {logged.name} at step {logged.step} is {logged.first} and {logged.second}"
        if logged
        else "logged: nothing differs that both have"
    )
    step = common_step(first, second)
    if step is None:
        return [*lines, "parameters: no step has a checkpoint in both"]
    try:
        layer = first_layer(order, *(load_run(run.workdir, step).variables for run in (first, second)))
    except UserError as error:
        return [*lines, f"parameters: {error}"]
    return [*lines, f"parameters at step {step}: " + (f"{layer} is the first that differs" if layer else "the same")]
