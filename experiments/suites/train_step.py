"""The compiled training step, one row a network, and the same network in PyTorch beside it."""

import dataclasses
import statistics
from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import ConfigDict

from cnn_research import training
from cnn_research.analysis import tabulate
from cnn_research.training.parallel import make_parallel
from experiments.suites import pytorch, timing

_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 0, "train_step: images a step; 0: what suits the network and the machine", lower_bound=0
)
_COMPILE = flags.DEFINE_bool(
    "torch_compile", None, "train_step: whether PyTorch compiles its networks; unless given, on an accelerator only"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A row of the table.

    Attributes:
      model: name of the network.
      image_shape: height, width and channels.
      batch_size: on a CPU.
      accelerated_batch_size: elsewhere.
      fields: of the network that differ from its defaults.
    """

    model: str
    image_shape: tuple[int, int, int]
    batch_size: int
    accelerated_batch_size: int
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)


CASES = {
    "lenet5": Case("lenet5", (32, 32, 1), 128, 1024),
    "resnet20_cifar": Case("resnet20_cifar", (32, 32, 3), 128, 1024),
    "vgg11": Case("vgg11", (32, 32, 3), 128, 1024, dict(num_classes=10, norm="batch", hidden=())),
    "nin_cifar": Case("nin_cifar", (32, 32, 3), 128, 1024),
    "resnet18@64": Case("resnet18", (64, 64, 3), 64, 512),
    "resnet18@224": Case("resnet18", (224, 224, 3), 16, 256),
    "resnet50@224": Case("resnet50", (224, 224, 3), 8, 256),
    "unet@128": Case("unet", (128, 128, 3), 4, 64, dict(padding="same", norm="batch", dropout_rate=0.0)),
}
TOO_LARGE = ("resnet50@224",)  # for a CPU, unless --models names it

# TFLOP/s of dense products in bfloat16, by a part of `device_kind`; the first that fits. NVIDIA's data sheets of
# A100, H100 and H200, without sparsity; https://cloud.google.com/tpu/docs/v4, v5e, v5p and v6e.
PEAKS = {
    "A100": 312,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "TPU v4": 275,
    "TPU v5 lite": 197,
    "TPU v5e": 197,
    "TPU v5": 459,
    "TPU v6": 918,
}


def peak(device_kind: str) -> int | None:
    """Returns what a device can do at most, in TFLOP/s of bfloat16; None where that is not known."""
    return next((tflops for kind, tflops in PEAKS.items() if kind in device_kind), None)


def rows(rounds: int, models: Sequence[str]) -> list[timing.Row]:
    """Images/s of one device, and with `--against=torch` PyTorch's and the ratio of the two."""
    torch = _networks_in_torch() if pytorch.imported() else None
    accelerated = jax.default_backend() != "cpu"
    named = models or [name for name in CASES if accelerated or name not in TOO_LARGE]
    table = [_row(name, accelerated, torch, rounds) for name in timing.chosen(named, CASES)]
    if torch:
        mean = statistics.geometric_mean(row["ratio"] for row in table)
        table.append({"model": "geometric mean", "ratio": round(mean, 4)})
    return table


def _networks_in_torch() -> ModuleType:
    from experiments.suites import torch_networks  # here: it imports PyTorch

    return torch_networks


def _row(name: str, accelerated: bool, torch: ModuleType | None, rounds: int) -> timing.Row:
    case = CASES[name]
    batch_size = _BATCH_SIZE.value or (case.accelerated_batch_size if accelerated else case.batch_size)
    config = make_config(case, batch_size)
    program, batch = training.make_program(config), make_batch(config)
    network = tabulate(program.model, program.image_shape)
    steps = 20 if accelerated else 1  # a call: on an accelerator so many that their dispatch overlaps
    sides = {"ours": partial(Trainer(program, batch).train, steps)}
    if torch:
        trainer, layout = _theirs(torch, config, batch, accelerated)
        if trainer.params != network.params:
            raise RuntimeError(f"{name} has {network.params} parameters, but {trainer.params} in PyTorch")
        sides["torch"] = partial(trainer.train, steps)
    times = timing.in_turns(sides, rounds, least=1.0)
    speeds = {side: [steps * config.batch_size / seconds for seconds in times[side]] for side in times}
    speed = statistics.median(speeds["ours"])
    gflops = 3 * 2 * network.macs * speed / 1e9  # forward, and the gradients by inputs and by weights
    row = {
        "model": name,
        "batch_size": config.batch_size,
        "precision": program.model.dtype,
        "images_per_s": round(speed, 1),
        "gflops": round(gflops, 1),
    }
    if tflops := peak(jax.devices()[0].device_kind):
        row["peak_share"] = round(gflops / 1e3 / tflops, 4)
    if torch:
        row |= {"torch_images_per_s": round(statistics.median(speeds["torch"]), 1), "torch_layout": layout}
        row |= timing.ratios(speeds["ours"], speeds["torch"])
    return row


def make_config(case: Case, batch_size: int) -> ConfigDict:
    """Returns the config of a run that trains a network without augmentation.

    Args:
      case: the network.
      batch_size: images a step.
    """
    config = training.default_config(case.model, **case.fields)
    config.update(batch_size=batch_size, duration="1000")
    *size, channels = case.image_shape
    config.data.update(num_examples=batch_size, image_size=tuple(size), channels=channels)
    # A small rate: the same batch over and over must not end in infinity.
    config.optimizer.update(learning_rate=0.001, schedule="constant", warmup="0", momentum=0.9, weight_decay=5e-4)
    if config.model.get("output") == "rbf":
        config.loss.criterion = "map"
    return config


def make_batch(config: ConfigDict) -> dict[str, np.ndarray]:
    """Returns a batch of noise, of the config's shape: a class for each image, or for each of its pixels."""
    random, size = np.random.default_rng(0), config.batch_size
    shape = (size, *config.data.image_size, config.data.channels)
    targets = {"segmentation_mask": (*shape[:3], 1)} if config.data.mask else {"label": (size,)}
    return {
        "image": random.integers(256, size=shape, dtype=np.uint8),
        "example_mask": np.ones(size, bool),
        **{
            name: random.integers(config.model.num_classes, size=shape, dtype=np.int32)
            for name, shape in targets.items()
        },
    }


class Trainer:
    """A run's compiled step, its state, and one batch that stays on the device."""

    def __init__(self, program: training.Program, batch: dict[str, np.ndarray]):
        """Compiles nothing yet.

        Args:
          program: of the run.
          batch: on the host.
        """
        parallel = make_parallel("jit", jax.devices()[:1])
        self.batch = parallel.place(batch)
        self.state = parallel.replicate(program.init_state(program.init_variables()))
        self._step = parallel.compile(program.train_step())

    def train(self, steps: int) -> None:
        """Takes steps, and waits until they are done."""
        for _ in range(steps):
            self.state, _ = self._step(self.state, self.batch, {})
        jax.block_until_ready(self.state)


def _theirs(torch: ModuleType, config: ConfigDict, batch: dict[str, np.ndarray], accelerated: bool) -> tuple[Any, str]:
    """Returns PyTorch's trainer, and how its images lie: on a CPU in the order that a trial finds faster."""
    compiled = accelerated if _COMPILE.value is None else _COMPILE.value
    layouts = ("NHWC",) if accelerated else ("NHWC", "NCHW")
    make = partial(torch.Trainer, config, batch, accelerated=accelerated, compiled=compiled)
    trainers = {layout: make(channels_last=layout == "NHWC") for layout in layouts}
    trials = timing.in_turns({layout: partial(trainers[layout].train, 1) for layout in layouts}, rounds=1)
    layout = min(layouts, key=lambda layout: trials[layout][0])
    return trainers[layout], layout
