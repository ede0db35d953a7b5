"""Poolings of the sizes that the networks use: forwards, and with their gradient."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from cnn_research.ops.pooling import avg_pool, max_pool
from experiments.suites import pytorch, timing


@dataclasses.dataclass(frozen=True)
class Case:
    """A pooling.

    Attributes:
      kind: max or avg.
      images: batch, height, width, channels.
      window: its height and its width.
      stride: step.
      padding: width at every border.
    """

    kind: str
    images: tuple[int, int, int, int]
    window: int
    stride: int
    padding: int = 0

    @property
    def name(self) -> str:
        """The row's."""
        return f"{self.kind}_pool {self.window}x{self.window}/{self.stride} {'x'.join(map(str, self.images))}"

    def ours(self, x: Array) -> Array:
        """Pools by the project's function."""
        return {"max": max_pool, "avg": avg_pool}[self.kind](x, self.window, self.stride, self.padding)

    def plain(self, x: Array) -> Array:
        """Pools by `lax` alone."""
        border = (self.padding, self.padding)
        windows = (1, self.window, self.window, 1), (1, self.stride, self.stride, 1), ((0, 0), border, border, (0, 0))
        if self.kind == "max":
            return lax.reduce_window(x, -jnp.inf, lax.max, *windows)
        return lax.reduce_window(x, 0.0, lax.add, *windows) / self.window**2


CASES = {
    case.name: case
    for case in (
        Case("max", (128, 28, 28, 6), 2, 2),
        Case("max", (128, 32, 32, 64), 2, 2),
        Case("max", (128, 32, 32, 16), 3, 2, padding=1),
        Case("max", (16, 56, 56, 64), 3, 2),
        Case("max", (32, 112, 112, 64), 3, 2, padding=1),
        Case("max", (16, 28, 28, 192), 3, 1, padding=1),
        Case("avg", (128, 28, 28, 6), 2, 2),
        Case("avg", (128, 16, 16, 192), 3, 2),
        Case("avg", (16, 28, 28, 192), 3, 1, padding=1),
    )
}


def rows(rounds: int, models: Sequence[str]) -> list[timing.Row]:
    """Milliseconds of ours and of plain `lax`, two rows a case; with `--against=torch` our speed over its, too."""
    torch = pytorch.imported()
    return [row for name in timing.chosen(models, CASES) for row in _rows(CASES[name], rounds, torch)]


def _rows(case: Case, rounds: int, torch: ModuleType | None) -> list[timing.Row]:
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(size=case.images), jnp.float32)
    cotangent = jnp.asarray(random.normal(size=jax.eval_shape(case.ours, x).shape), jnp.float32)
    theirs = _in_torch(torch, case, x, cotangent) if torch else {}
    table = []
    for direction in ("forward", "with gradient"):
        sides = {
            side: _waiting(pool, x) if direction == "forward" else _waiting(partial(_pulled, pool), x, cotangent)
            for side, pool in {"ours": case.ours, "lax": case.plain}.items()
        }
        if theirs:
            sides["torch"] = theirs[direction]
        times = timing.in_turns(sides, rounds, least=0.1)
        row: timing.Row = {"model": case.name, "direction": direction}
        row |= {f"{side}_ms": round(1e3 * statistics.median(times[side]), 3) for side in sides}
        if theirs:
            row["torch_ratio"] = timing.ratios(times["torch"], times["ours"])["ratio"]
        table.append(row | timing.ratios(times["lax"], times["ours"]))
    return table


def _pulled(pool: Callable[[Array], Array], x: Array, cotangent: Array) -> tuple[Array, Array]:
    """Returns what a pooling returns, and its gradient."""
    y, pull = jax.vjp(pool, x)
    return y, pull(cotangent)[0]


def _waiting(function: Callable[..., object], *arguments: Array) -> Callable[[], object]:
    """Returns a function that runs another, compiled, and waits for its result."""
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _in_torch(torch: ModuleType, case: Case, x: Array, cotangent: Array) -> dict[str, Callable[[], object]]:
    """Returns the same in PyTorch, with the channels last in memory, which is the faster way there too."""
    images, weights = (torch.tensor(np.asarray(array)).permute(0, 3, 1, 2) for array in (x, cotangent))
    pool = {"max": torch.nn.functional.max_pool2d, "avg": torch.nn.functional.avg_pool2d}[case.kind]
    forward = partial(pool, kernel_size=case.window, stride=case.stride, padding=case.padding)
    learned = images.clone().requires_grad_()
    return {
        "forward": lambda: forward(images),
        "with gradient": lambda: torch.autograd.grad(forward(learned), learned, weights),
    }
