"""One step of training and one of evaluation, as pure functions."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Int, Key

from cnn_research.data.augmentation import Augmentation, as_float, augment, crop_center, normalize
from cnn_research.tasks import Stage, Task
from cnn_research.training.state import TrainState, as_variables

Batch = dict[str, Array]
Sums = dict[str, tuple[Array, Array]]  # name -> (sum, weight)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """What the device does to uint8 images before the network sees them.

    Attributes:
      augmentation: of training's batches.
      mean: of pixels in 0..1, one for all channels or one for each.
      std: likewise.
      crop_size: height and width of the window that the network sees, random in training and the middle otherwise; ()
        is all of the image.
      whole: whether tests see all of the image all the same, as networks can that say something of each pixel
        or look at regions.
      mirror: pixels of mirrored border around what the network sees; targets have none.
    """

    augmentation: Augmentation
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_size: tuple[int, ...] = ()
    whole: bool = False
    mirror: int = 0

    def train(self, batch: Batch, rng: Key[Array, ""], axis_name: str | None = None) -> Batch:
        """Crops, augments and normalises a batch; each example draws by its position in the global batch."""
        positions = jnp.arange(batch["image"].shape[0])
        if axis_name:
            positions = positions + jax.lax.axis_index(axis_name) * positions.size
        batch = augment(self.augmentation, rng, batch, positions, axis_name, self.crop_size)
        return self._normalize(batch)

    def test(self, batch: Batch) -> Batch:
        """Crops and normalises a batch."""
        batch = crop_center(batch, () if self.whole else self.crop_size)
        return self._normalize(batch | {"image": as_float(batch["image"])})

    def _normalize(self, batch: Batch) -> Batch:
        images = normalize(batch["image"], self.mean, self.std)
        widths = (0, 0), (self.mirror, self.mirror), (self.mirror, self.mirror), (0, 0)
        return {**batch, "image": jnp.pad(images, widths, mode="reflect") if self.mirror else images}


def gather(batch: Batch, data: Batch) -> Batch:
    """Returns the examples of a batch that only holds their `index`es into the resident `data`; other batches pass.

    Where `data` has an `example_mask`, too, an example must be in both.
    """
    if "index" not in batch:
        return batch
    rest = {key: value for key, value in batch.items() if key != "index"}
    examples = {key: value.at[batch["index"]].get(mode="promise_in_bounds") for key, value in data.items()}
    if "example_mask" in data:
        rest["example_mask"] &= examples["example_mask"]
    return examples | rest


def step_rngs(rng: Key[Array, ""], step: Int[Array, ""]) -> Key[Array, "2"]:
    """Returns a step's two keys: the augmentation's and the network's."""
    return jax.random.split(jax.random.fold_in(rng, step))


def make_train_step(
    model: nn.Module,
    task: Task | Stage,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    preprocessing: Preprocessing,
    *,
    accumulate: int = 1,
    ema: float = 0.0,
    frozen: Callable[[Any], Any] | None = None,
    count_skipped: bool = False,
    axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]:
    """Returns `train_step(state, batch) -> (state, metrics)`.

    The task's sums and weights are added over devices and micro-batches and divided once, so that a loss over valid
    pixels or positive boxes does not depend on how the batch was cut.

    Args:
      model: the network.
      task: its loss, or that of a stage.
      optimizer: updates the parameters.
      schedule: the learning rate by step, only reported here.
      preprocessing: of the images.
      accumulate: micro-batches a step; batch norm sees one at a time.
      ema: decay of the averaged variables; 0 keeps none. Early averages follow faster: the decay is at most (1 + step)
        / (10 + step).
      frozen: marks the leaves of `batch_stats` that stay as they are.
      count_skipped: whether the metrics say how many of the examples are `skipped`.
      axis_name: of the devices under `pmap`.
    """

    def add_up(x: Array) -> Array:
        return jax.lax.psum(x, axis_name) if axis_name else x

    def loss_sums(
        state: TrainState, params: Any, batch_stats: Any, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Sums, dict[str, Any]]:
        variables = as_variables(params, batch_stats)
        if isinstance(task, Stage) and task.sees_twins:
            variables["twin"] = state.twin
        return task.loss(model, variables, batch, rng, train=True)

    def gradient(
        state: TrainState, batch_stats: Any, batch: Batch, rng: Key[Array, ""], weights: dict[str, Array] | None
    ) -> Any:
        """Differentiates a micro-batch's part of the loss; `weights` are the whole batch's, None where this is it."""

        def objective(params: Any) -> tuple[Array, Any]:
            terms, aux = loss_sums(state, params, batch_stats, batch, rng)
            whole = weights or {name: add_up(weight) for name, (_, weight) in terms.items()}
            parts = {name: total / _divisor(jax.lax.stop_gradient(whole[name])) for name, (total, _) in terms.items()}
            return _total(parts), (parts, aux)

        return jax.grad(objective, has_aux=True)(state.params)

    def accumulated(state: TrainState, batch: Batch, rng: Key[Array, ""]) -> Any:
        # A micro-batch takes every n-th example, which leaves each on the device where it is.
        micro = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, accumulate, *x.shape[1:]), 1, 0), batch)
        rngs = jax.random.split(rng, accumulate)

        def weigh(_: None, inputs: Any) -> tuple[None, dict[str, Array]]:
            terms, _aux = loss_sums(state, state.params, state.batch_stats, *inputs)
            return None, {name: weight for name, (_, weight) in terms.items()}

        # Where weights come from the batch alone, XLA drops the network from this pass.
        _, weights = jax.lax.scan(weigh, None, (micro, rngs))
        weights = jax.tree.map(lambda weight: add_up(weight.sum(0)), weights)

        def differentiate(carry: Any, inputs: Any) -> tuple[Any, Any]:
            (gradients, batch_stats), (batch, rng) = carry, inputs
            new, (parts, aux) = gradient(state, batch_stats, batch, rng, weights)
            return (jax.tree.map(jnp.add, gradients, new), aux["batch_stats"]), (parts, aux["metrics"])

        start = (jax.tree.map(jnp.zeros_like, state.params), state.batch_stats)
        (gradients, batch_stats), (parts, metrics) = jax.lax.scan(differentiate, start, (micro, rngs))
        parts, metrics = jax.tree.map(lambda x: x.sum(0), (parts, metrics))
        return gradients, (parts, {"batch_stats": batch_stats, "metrics": metrics})

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        augment_rng, network_rng = step_rngs(state.rng, state.step)
        if axis_name:  # what draws inside the network draws per replica
            network_rng = jax.random.fold_in(network_rng, jax.lax.axis_index(axis_name))
        batch = preprocessing.train(batch, augment_rng, axis_name)
        if accumulate > 1:
            gradients, (parts, aux) = accumulated(state, batch, network_rng)
        else:
            gradients, (parts, aux) = gradient(state, state.batch_stats, batch, network_rng, None)
        gradients, parts, sums = jax.tree.map(add_up, (gradients, parts, aux["metrics"]))

        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        batch_stats = aux["batch_stats"]
        if frozen:
            keep = frozen(batch_stats)
            batch_stats = jax.tree.map(
                lambda still, old, new: old if still else new, keep, state.batch_stats, batch_stats
            )
        average = state.average
        if ema:
            decay = jnp.minimum(ema, (1 + state.step) / (10 + state.step))
            average = optax.incremental_update(as_variables(params, batch_stats), average, 1 - decay)

        metrics = {
            "loss": _total(parts),
            "gradient_norm": optax.tree.norm(gradients),
            "learning_rate": schedule(state.step),
        }
        if count_skipped:
            metrics["skipped"] = add_up((~batch["example_mask"]).sum())
        metrics |= parts if len(parts) > 1 else {}
        metrics |= {name: total / _divisor(weight) for name, (total, weight) in sums.items()}
        state = dataclasses.replace(
            state, step=state.step + 1, params=params, batch_stats=batch_stats, opt_state=opt_state, average=average
        )
        return state, metrics

    return train_step


def _total(parts: dict[str, Array]) -> Array:
    return jnp.stack(list(parts.values())).sum()


def _divisor(weight: Array) -> Array:
    """A sum over nothing is zero, not NaN."""
    return jnp.where(weight == 0, 1, weight)


def make_eval_step(model: nn.Module, task: Task, preprocessing: Preprocessing) -> Callable[[Any, Batch, Batch], Any]:
    """Returns `eval_step(variables, batch, data) -> sums`, which add up over the batches of a split.

    Args:
      model: the network.
      task: its predictions and what is measured of them.
      preprocessing: of the images.
    """

    def eval_step(variables: Any, batch: Batch, data: Batch) -> Any:
        batch = preprocessing.test(gather(batch, data))
        return task.measure(task.predict(model, flax.core.unfreeze(variables), batch), batch)

    return eval_step
