"""A whole run against its step alone: what data, logging and checkpoints cost."""

import contextlib
import io
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
from cnn_research.errors import UserError
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import image_spec
from cnn_research.training.parallel import make_parallel
from cnn_research.training.writers import read_records
from experiments.suites import timing

_EXAMPLES = flags.DEFINE_integer(
    "examples", 20_000, "loop: pictures where MNIST or CIFAR-10 is absent", lower_bound=200
)
_STEPS = flags.DEFINE_integer("steps", 900, "loop: training steps a turn, of the quickest network", lower_bound=30)


# The data set, its fields, and how many times fewer steps than of the quickest network.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "lenet5_modern": ("mnist", dict(channels=1, resize="pad"), 1),
    "resnet20_cifar": ("cifar10", dict(channels=3), 20),
}


def rows(rounds: int, models: Sequence[str]) -> list[timing.Row]:
    """LeNet on MNIST and a small ResNet on CIFAR-10's shapes: images/s of a run over those of its compiled step."""
    return [_row(model, *CASES[model], rounds) for model in timing.chosen(models, CASES)]


def _row(model: str, dataset: str, data: dict[str, Any], fewer: int, rounds: int) -> timing.Row:
    config = training.default_config(model, num_classes=10)
    try:
        sources.find(dataset)
    except UserError:  # on a fresh machine pictures of the same size stand in
        dataset = f"shapes/32x32_train{_EXAMPLES.value}_test100_objects1-1"
    config.data.update(name=dataset, test="test", **data)
    # The first third warms up: the step, the measures and the first checkpoint compile and import what they need.
    third = max(30, _STEPS.value // fewer) // 3
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
    return {
        "model": model,
        "data": dataset,
        "batch_size": config.batch_size,
        "bare_images_per_s": round(statistics.median(bare_speeds), 1),
        "run_images_per_s": round(statistics.median(run_speeds), 1),
        **timing.ratios(run_speeds, bare_speeds),
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
