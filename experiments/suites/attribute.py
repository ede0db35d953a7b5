"""Attributions, compiled and of whole batches: images a second, and beside them a loop over images."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from cnn_research import models
from cnn_research.analysis.attribution import METHODS, attribute
from cnn_research.errors import UserError
from experiments.suites import timing


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and images for it.

    Attributes:
      model: its name.
      images: batch, height, width, channels.
    """

    model: str
    images: tuple[int, int, int, int]


CASES = {
    "lenet5_modern": Case("lenet5_modern", (64, 32, 32, 1)),
    "resnet20_cifar": Case("resnet20_cifar", (16, 32, 32, 3)),
}


def rows(rounds: int, names: Sequence[str]) -> list[timing.Row]:
    """Images/s of a whole batch; `ratio` is over the same compiled program for one image, in a loop."""
    return [row for name in timing.chosen(names, CASES) for row in _rows(CASES[name], rounds)]


def _rows(case: Case, rounds: int) -> list[timing.Row]:
    model = models.create(case.model)
    images = jax.random.normal(jax.random.key(0), case.images)
    labels = jnp.arange(len(images)) % model.num_classes
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    table = []
    for method in METHODS:
        compiled = jax.jit(partial(attribute, method, model))
        try:
            jax.eval_shape(compiled, variables, images, labels)
        except UserError:  # the network has not what the method needs
            continue
        sides = {
            "batch": partial(_whole, compiled, variables, images, labels),
            "loop": partial(_one_by_one, compiled, variables, images, labels),
        }
        times = timing.in_turns(sides, rounds)
        speeds = {side: [len(images) / seconds for seconds in times[side]] for side in sides}
        row: timing.Row = {"model": case.model, "method": method, "batch_size": len(images)}
        row |= {f"{side}_images_per_s": round(statistics.median(speeds[side]), 1) for side in sides}
        table.append(row | timing.ratios(speeds["batch"], speeds["loop"]))
    return table


def _whole(compiled: Callable[..., Array], variables: Any, images: Array, labels: Array) -> None:
    jax.block_until_ready(compiled(variables, images, labels))


def _one_by_one(compiled: Callable[..., Array], variables: Any, images: Array, labels: Array) -> None:
    for index in range(len(images)):
        jax.block_until_ready(compiled(variables, images[index : index + 1], labels[index : index + 1]))
