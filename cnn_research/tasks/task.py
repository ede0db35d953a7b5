"""The contract between a task and the loop: what every kind of problem says about losses, predictions and metrics.

A metric is made of sums over batches (`Task`) or, where it is none, as average precision, of a record of each example
(`RecordTask`). Evaluation of the second kind goes

    step, on the devices:  predict, measure -> {"boxes": [batch, n, 4], "valid": [batch, n], any other: [batch, n, …]}
    host, example by example:               without padding, boxes in pixels of the original image
    task.record(found, truth) -> record     of what is found in an example and what is true of it
    all processes exchange their records, task.summarize(records) -> named numbers

where `truth` is what `data.objects.Objects.truth` gives, of all objects that the image has.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, PRNGKeyArray

from cnn_research.metrics.records import Record

Batch = Mapping[str, Array | np.ndarray]
Predictions = Mapping[str, Array | np.ndarray]
Variables = Mapping[str, Any]
Ratio = tuple[Array, Array]


@runtime_checkable
class Task(Protocol):
    """A frozen dataclass of pure functions; all but `summarize` run inside the compiled step.

    Every batch holds `example_mask`, bool[batch]. A padded example, whose mask is False, counts nowhere.

    Attributes:
      primary_metric: the name in `summarize` by which checkpoints are ranked; higher is better.
    """

    primary_metric: ClassVar[str]

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """The objective, as ratios whose parts are added over micro-batches and devices before the one division.

        Args:
          model: called as the task needs it.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: the images and their annotation.
          rng: what is drawn inside the network, such as dropout.
          train: whether the model runs in its training mode.

        Returns:
          {term: (sum, weight)}, and aux: `batch_stats`, the new ones ({} if the model has none), and `metrics`,
          {name: (sum, weight)}, shown while training.
        """
        ...

    def predict(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Predictions for `batch["image"]`, one row an example."""
        ...

    def measure(self, predictions: Predictions, batch: Batch) -> dict[str, Any]:
        """Reduces predictions to a pytree of arrays that are added over batches and devices."""
        ...

    def summarize(self, measured: Any, /) -> dict[str, float]:
        """Turns the sums over a whole split into named numbers on the host."""
        ...


@runtime_checkable
class RecordTask(Task, Protocol):
    """A task that is measured by records of examples.

    `measure` gives arrays of a fixed size for each example: `boxes`, ymin, xmin, ymax, xmax in 0..1 of what the network
    sees; `valid`, which of them there are; and what else is known of each. `summarize` takes the records of the split,
    in its order.
    """

    def record(self, found: Record, truth: Record) -> Record:
        """Returns what is to be kept of an example, on the host.

        Args:
          found: what `measure` gave, without what is not valid; `boxes` in pixels of the original image.
          truth: `boxes` in the same pixels, `classes`, `ignored` and, where the data set has them, `areas`; where masks
            are read `masks`, as `metrics.detection.encode_masks` makes them, and `size`, the image's.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Stage:
    """Steps of a run in which some layers learn and the others stay as they are, with their statistics.

    Attributes:
      name: said when it begins.
      share: of the run's steps, as a number beside those of the other stages.
      learns: whether an outermost layer does, by its name.
      loss: as `Task.loss`.
      swaps: whether the twins and the layers that they are of change places before the first step.
      sees_twins: whether the loss and the predictions are of the twins, too.
    """

    name: str
    share: float
    learns: Callable[[str], bool]
    loss: Callable[..., tuple[dict[str, Ratio], dict[str, Any]]]
    swaps: bool = False
    sees_twins: bool = False


@runtime_checkable
class StagedTask(Task, Protocol):
    """A task whose steps may be of several stages, each of which begins with a fresh optimizer and its whole schedule.

    Some layers have twins then: a second set of variables, with the same values at the start, which no step changes. A
    stage that sees them finds them in `variables["twin"]`, as `params` and, where the model has them, `batch_stats`.
    """

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """Returns the stages in their order; () where all steps are alike."""
        ...

    def has_twin(self, model: nn.Module, layer: str) -> bool:
        """Returns whether an outermost layer has one, by its name; asked where there are stages."""
        ...


@runtime_checkable
class PhasedTask(Task, Protocol):
    """A task that fits layers once its steps are done, one after the other, on features of the whole training split.

    Attributes:
      phases: the names of these layers, whose values are zeros before.
    """

    phases: ClassVar[tuple[str, ...]]

    def sample(self, model: nn.Module, variables: Variables, batch: Batch, phase: str) -> dict[str, Array]:
        """Returns what a phase learns from, inside the compiled step."""
        ...

    def fit(self, model: nn.Module, phase: str, samples: Iterable[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Returns the layer's parameters, fitted on the host.

        Args:
          model: the network.
          phase: the layer's name.
          samples: what `sample` gave for each batch of the training split.
        """
        ...


def apply(
    model: nn.Module, variables: Variables, images: Array | np.ndarray, rng: PRNGKeyArray, train: bool
) -> tuple[Any, Mapping[str, Any]]:
    """Returns what a network says of images, and the collections that it leaves: `auxiliary`, the new `batch_stats`.

    Args:
      model: the network.
      variables: `params` and, where the model has them, `batch_stats`, which stay as they are unless `train`.
      images: as the network takes them.
      rng: the key of dropout; unused unless `train`.
      train: whether the model runs in its training mode.
    """
    if not train:
        return model.apply(variables, images, train=False), variables
    return model.apply(variables, images, train=True, mutable=["auxiliary", "batch_stats"], rngs={"dropout": rng})


def likeliest(logits: Float[Array, "*shape classes"]) -> Int32[Array, "*shape"]:
    """Returns the likeliest class, the first of equals, and -1 where a logit is NaN.

    Args:
      logits: of the classes.
    """
    return jnp.where(jnp.isnan(logits).any(axis=-1), -1, jnp.argmax(logits, axis=-1)).astype(jnp.int32)
