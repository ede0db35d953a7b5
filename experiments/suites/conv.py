"""Convolutions of the sizes that the networks use: forwards, by their input and by their kernel."""

import dataclasses
import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from cnn_research.ops.convolution import convolve, convolve_transposed
from experiments.suites import pytorch, timing


@dataclasses.dataclass(frozen=True)
class Case:
    """A convolution.

    Attributes:
      images: batch, height, width, channels.
      features: output channels.
      size: of the kernel, height and width.
      stride: step, or distance of the stamps.
      padding: width at every border.
      groups: of channels.
      transposed: whether it is the transpose of a convolution.
    """

    images: tuple[int, int, int, int]
    features: int
    size: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    transposed: bool = False

    @property
    def kernel_shape(self) -> tuple[int, int, int, int]:
        """Height, width, channels per group, features."""
        return self.size, self.size, self.images[-1] // self.groups, self.features

    def ours(self, x: Array, kernel: Array) -> Array:
        """Convolves by the project's function."""
        function = convolve_transposed if self.transposed else convolve
        return function(x, kernel, self.stride, self.padding, groups=self.groups)

    def plain(self, x: Array, kernel: Array) -> Array:
        """Convolves by `lax` alone."""
        border = self.size - 1 - self.padding if self.transposed else self.padding
        return lax.conv_general_dilated(
            x,
            jnp.flip(kernel, (0, 1)) if self.transposed else kernel,
            (1, 1) if self.transposed else (self.stride, self.stride),
            ((border, border), (border, border)),
            lhs_dilation=(self.stride, self.stride) if self.transposed else None,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )

    def flops(self, output_shape: Sequence[int]) -> int:
        """Floating-point operations, two for a multiply-add, none for zeros between pixels."""
        positions = self.images if self.transposed else output_shape
        return 2 * math.prod(positions[:3]) * math.prod(self.kernel_shape)


CASES = {
    "lenet5 c1": Case((128, 32, 32, 1), 6, 5),
    "lenet5 c3": Case((128, 14, 14, 6), 16, 5),
    "resnet20 stem": Case((128, 32, 32, 3), 16, 3, padding=1),
    "resnet20 stage1": Case((128, 32, 32, 16), 16, 3, padding=1),
    "resnet20 stage2": Case((128, 16, 16, 32), 32, 3, padding=1),
    "resnet20 stage3": Case((128, 8, 8, 64), 64, 3, padding=1),
    "vgg11 conv1_1": Case((128, 32, 32, 3), 64, 3, padding=1),
    "vgg11 conv2_1": Case((128, 16, 16, 64), 128, 3, padding=1),
    "vgg11 conv3_2": Case((128, 8, 8, 256), 256, 3, padding=1),
    "vgg11 conv5_1": Case((128, 2, 2, 512), 512, 3, padding=1),
    "nin conv1": Case((128, 32, 32, 3), 192, 5, padding=2),
    "nin cccp1": Case((128, 32, 32, 192), 160, 1),
    "nin conv2": Case((128, 16, 16, 96), 192, 5, padding=2),
    "resnet18 stem": Case((16, 224, 224, 3), 64, 7, stride=2, padding=3),
    "resnet18 stage1": Case((16, 56, 56, 64), 64, 3, padding=1),
    "resnet18 stage2": Case((16, 56, 56, 64), 128, 3, stride=2, padding=1),
    "resnet18 stage4": Case((16, 7, 7, 512), 512, 3, padding=1),
    "resnet50 conv3": Case((16, 14, 14, 256), 1024, 1),
    "alexnet conv2": Case((32, 27, 27, 96), 256, 5, padding=2, groups=2),
    "32 groups": Case((16, 28, 28, 128), 128, 3, padding=1, groups=32),
    "depthwise": Case((16, 28, 28, 128), 128, 3, padding=1, groups=128),
    "unet up": Case((16, 28, 28, 64), 64, 2, stride=2, transposed=True),
    "deconvnet up": Case((16, 28, 28, 64), 64, 4, stride=2, padding=1, transposed=True),
}


def rows(rounds: int, models: Sequence[str]) -> list[timing.Row]:
    """GFLOP/s of ours, of plain `lax` and of a product of matrices; with `--against=torch` our speed over its, too."""
    torch = pytorch.imported()
    return [row for name in timing.chosen(models, CASES) for row in _rows(name, CASES[name], rounds, torch)]


def _rows(name: str, case: Case, rounds: int, torch: ModuleType | None) -> list[timing.Row]:
    random = np.random.default_rng(0)
    x, kernel = (jnp.asarray(random.normal(size=shape), jnp.float32) for shape in (case.images, case.kernel_shape))
    y_shape = jax.eval_shape(case.ours, x, kernel).shape
    cotangent = jnp.asarray(random.normal(size=y_shape), jnp.float32)
    square = jnp.asarray(random.normal(size=(1536, 1536)), jnp.float32)
    product = _waiting(jnp.matmul, square, square)
    directions: dict[str, Callable[[Callable[..., Array]], Callable[[], object]]] = {
        "forward": lambda function: _waiting(function, x, kernel),
        "by input": lambda function: _waiting(partial(_pulled, function, 0), x, kernel, cotangent),
        "by kernel": lambda function: _waiting(partial(_pulled, function, 1), x, kernel, cotangent),
    }
    theirs = _in_torch(torch, case, x, kernel, cotangent) if torch else {}
    table = []
    for direction, timed in directions.items():
        sides = {"ours": timed(case.ours), "lax": timed(case.plain), "product": product}
        if theirs:
            sides["torch"] = theirs[direction]
        times = timing.in_turns(sides, rounds, least=0.05)
        gflop = case.flops(y_shape) / 1e9
        rates = {side: gflop / statistics.median(times[side]) for side in ("ours", "lax")}
        rate_of_product = 2 * len(square) ** 3 / 1e9 / statistics.median(times["product"])
        row = {
            "model": name,
            "direction": direction,
            "gflop": round(gflop, 3),
            "gflops": round(rates["ours"], 1),
            "lax_gflops": round(rates["lax"], 1),
            "product_gflops": round(rate_of_product, 1),
        }
        if theirs:
            row["torch_ratio"] = timing.ratios(times["torch"], times["ours"])["ratio"]
        table.append(row | timing.ratios(times["lax"], times["ours"]))
    return table


def _pulled(function: Callable[..., Array], argument: int, x: Array, kernel: Array, cotangent: Array) -> Array:
    """Returns the gradient by one argument."""
    other = (kernel, x)[argument]
    primal = (x, kernel)[argument]
    linear = (lambda x: function(x, other)) if argument == 0 else (lambda kernel: function(other, kernel))
    return jax.vjp(linear, primal)[1](cotangent)[0]


def _waiting(function: Callable[..., Array], *arguments: Array) -> Callable[[], object]:
    """Returns a function that runs another, compiled, and waits for its result."""
    compiled = jax.jit(function)
    return lambda: jax.block_until_ready(compiled(*arguments))


def _in_torch(torch: ModuleType, case: Case, *arrays: Array) -> dict[str, Callable[[], object]]:
    """Returns the same in PyTorch, with the images' channels last in memory."""
    x, kernel, cotangent = (torch.tensor(np.asarray(array)).permute(0, 3, 1, 2) for array in arrays)
    kernel = torch.tensor(np.asarray(arrays[1]))
    if case.transposed:
        function, kernel = torch.nn.functional.conv_transpose2d, kernel.permute(2, 3, 0, 1)
    else:
        function, kernel = torch.nn.functional.conv2d, kernel.permute(3, 2, 0, 1)
    kernel = kernel.contiguous(memory_format=torch.channels_last).requires_grad_()
    x.requires_grad_()
    forward = partial(function, x, kernel, stride=case.stride, padding=case.padding, groups=case.groups)
    y = forward()
    return {
        "forward": forward,
        "by input": lambda: torch.autograd.grad(y, x, cotangent, retain_graph=True),
        "by kernel": lambda: torch.autograd.grad(y, kernel, cotangent, retain_graph=True),
    }
