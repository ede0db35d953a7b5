"""Measures the speed of what the project is made of: `python -m experiments.benchmark --suite=loop`.

Prints a table, and as the last line of stdout one JSON object, {"suite": …, "rows": [{"model": …, "ratio": …}]}.
`ratio` is ours over the other's, higher is better. What is compared takes turns, so that a machine whose speed drifts
slows both.

Suites:
  loop: images/s of a whole run (data, logging, checkpoints) over calling its compiled step alone on one resident batch.
"""

import contextlib
import io
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.data import sources
from cnn_research.data.batches import load
from cnn_research.data.order import Shuffled
from cnn_research.errors import UserError, nearest
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import image_spec
from cnn_research.training.parallel import make_parallel
from cnn_research.training.writers import read_records
from experiments import command_line

_SUITE = flags.DEFINE_string("suite", "loop", "what to measure")
_OUT = flags.DEFINE_string("out", "", "a file for the JSON object too")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 20_000, "pictures where MNIST or CIFAR-10 is absent", lower_bound=200)
_MODELS = flags.DEFINE_list("models", [], "only the rows of these networks")
_STEPS = flags.DEFINE_integer("steps", 900, "training steps a turn, of the quickest network", lower_bound=30)


def suite_loop(rounds: int, steps: int, examples: int, models: Sequence[str]) -> list[dict[str, Any]]:
    """A whole run against its step alone, for LeNet on MNIST and a small ResNet on CIFAR-10's shapes."""
    cases: dict[str, tuple[str, dict[str, Any], int]] = {
        "lenet5_modern": ("mnist", dict(channels=1, resize="pad"), steps),
        "resnet20_cifar": ("cifar10", dict(channels=3), max(30, steps // 20)),
    }
    if unknown := set(models) - set(cases):
        raise UserError(f"--models: suite loop has no {min(unknown)!r}; {nearest(min(unknown), cases)}")
    return [_loop_row(model, *case, rounds, examples) for model, case in cases.items() if model in models or not models]


def _loop_row(model: str, dataset: str, data: dict[str, Any], steps: int, rounds: int, examples: int) -> dict[str, Any]:
    config = training.default_config(model, num_classes=10)
    try:
        sources.find(dataset)
    except UserError:  # on a fresh machine pictures of the same size stand in
        dataset = f"shapes/32x32_train{examples}_test100_objects1-1"
    config.data.update(name=dataset, test="test", **data)
    # The first third warms up: the step, the measures and the first checkpoint compile and import what they need.
    third = steps // 3
    config.update(
        duration=str(3 * third), log_every=max(2, third // 3), eval_every="1000ep", checkpoint_every=str(third)
    )
    bare = _bare(config, third)
    bare_speeds, run_speeds = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
            bare_speeds.append(bare())
            training.train(config, epath.Path(folder) / "run")
            run_speeds.append(_speed(epath.Path(folder) / "run" / "metrics.jsonl", third, config.batch_size))
            bare_speeds[-1] = statistics.mean([bare_speeds[-1], bare()])
    ratios = [run / alone for run, alone in zip(run_speeds, bare_speeds, strict=True)]
    return {
        "model": model,
        "data": dataset,
        "batch_size": config.batch_size,
        "bare_images_per_s": round(statistics.median(bare_speeds), 1),
        "run_images_per_s": round(statistics.median(run_speeds), 1),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in sorted(ratios)],
    }


def _speed(metrics: epath.Path, begin: int, batch_size: int) -> float:
    """Returns images/s of a run from the first record after step `begin` to the last one."""
    records = [record for record in read_records(metrics) if "seconds" in record and record["step"] > begin]
    first, last = records[0], records[-1]
    return (last["step"] - first["step"]) * batch_size / (last["seconds"] - first["seconds"])


def _bare(config: ConfigDict, steps: int) -> Callable[[], float]:
    """Returns a function that measures images/s of the compiled step on one batch that stays on the devices."""
    config = config.copy_and_resolve_references()
    source = open_split(config, config.data.train)
    config.data.num_examples = len(source)
    program = training.make_program(config)
    parallel = make_parallel(config.parallel)
    compiled = parallel.compile(program.train_step(parallel.axis_name))
    order = Shuffled(len(source), config.batch_size, config.seed)
    batch = parallel.place(load(source, *order(0), image_spec(config.data)))
    state = parallel.spread(parallel.replicate(program.init_state(program.init_variables())))

    def measure() -> float:
        nonlocal state
        state, _ = compiled(state, batch, {})
        jax.block_until_ready(state)
        began = time.perf_counter()
        for _ in range(steps):
            state, metrics = compiled(state, batch, {})
        jax.block_until_ready((state, metrics))
        return steps * config.batch_size / (time.perf_counter() - began)

    return measure


SUITES = {"loop": suite_loop}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as a table of aligned columns."""
    names = [name for name in rows[0] if name != "ratios"]
    lines = [
        names,
        *([f"{row[name]:,}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    """Measures and prints."""
    if _SUITE.value not in SUITES:
        raise UserError(f"--suite={_SUITE.value} is unknown; {nearest(_SUITE.value, SUITES)}")
    rows = SUITES[_SUITE.value](_ROUNDS.value, _STEPS.value, _EXAMPLES.value, _MODELS.value)
    result = json.dumps({"suite": _SUITE.value, "rows": rows})
    if _OUT.value:
        epath.Path(_OUT.value).write_text(result + "\n")
    print(table(rows))
    print(result)


if __name__ == "__main__":
    command_line.run(main)
