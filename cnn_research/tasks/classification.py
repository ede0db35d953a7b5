"""Classification: one label an image, by softmax cross-entropy or by LeNet-5's discriminative criterion."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from cnn_research.errors import UserError, nearest
from cnn_research.metrics.classification import calibration_bins, calibration_error, confusion_matrix, top_k_correct
from cnn_research.tasks.task import Batch, Predictions, Ratio, Variables, apply, likeliest

CRITERIA = ("cross_entropy", "map")


@dataclasses.dataclass(frozen=True)
class Classification:
    """One label an image.

    The `map` criterion is LeCun et al. 1998, eq. 9, for models whose logits are negated penalties, -y:
    y_label + log(e^-j + sum_i e^-y_i). It is the cross-entropy with one more class, rubbish, whose penalty is the
    constant j.

    Attributes:
      label_smoothing: ε in the target (1 - ε) onehot + ε / num_classes; an array in a program of several runs.
      criterion: cross_entropy or map.
      rubbish_penalty: j > 0 of `map`: a wrong class is pushed away only while its penalty is below about j. The paper
        gives no value. Where j is far below the right class's penalty (tens, for LeNet-5's 84-unit codes) eq. 9 is the
        paper's eq. 8, which pulls towards the right code and pushes from none; where j is far above every penalty it is
        the cross-entropy.
    """

    label_smoothing: float | Array = 0.0
    criterion: str = "cross_entropy"
    rubbish_penalty: float = 30.0

    primary_metric: ClassVar[str] = "accuracy"

    def __post_init__(self) -> None:
        if not isinstance(self.label_smoothing, jax.Array) and not 0 <= self.label_smoothing < 1:
            raise UserError(f"loss.label_smoothing={self.label_smoothing} is no share; give a number from 0 to below 1")
        if self.criterion not in CRITERIA:
            raise UserError(f"loss.criterion={self.criterion!r} is unknown; {nearest(self.criterion, CRITERIA)}")
        if not 0 < self.rubbish_penalty < math.inf:
            raise UserError(f"loss.rubbish_penalty={self.rubbish_penalty} is no penalty; give a number above 0")

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """Sums the criterion over the batch's examples.

        With `label_other` and `label_weight` (mixup, cutmix) in the batch the target of an example is
        label_weight of `label` and the rest of `label_other`, in the loss and in the accuracy.

        Auxiliary classifiers, which leave {name: {"logits": …, "weight": …}} in the collection `auxiliary` in training,
        have the same targets; each adds its loss times its weight.

        Args:
          model: maps images to logits.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`, `label` and `example_mask`. Batch norm in training mode sees padded images too.
          rng: the key of dropout; unused unless `train`.
          train: whether the model runs in its training mode.

        Returns:
          {"loss": (sum, weight)}, or with auxiliary classifiers a term `main` and one by the name of each; and aux: the
          new `batch_stats`, and `metrics` with the accuracy as (sum, weight).
        """
        logits, updated = apply(model, variables, batch["image"], rng, train)
        mask, label = jnp.asarray(batch["example_mask"]), jnp.asarray(batch["label"])
        targets: list[tuple[Array, Array | float]] = [(label, 1.0)]
        if "label_other" in batch:
            share = jnp.asarray(batch["label_weight"])
            targets = [(label, share), (jnp.asarray(batch["label_other"]), 1 - share)]

        def total(of_label: Callable[[Array], Array]) -> Array:
            return jnp.where(mask, sum(share * of_label(label) for label, share in targets), 0).sum()

        def loss(logits: Array) -> Array:
            # Before the criterion, not only after it: the gradient of a NaN is NaN even where it is not selected.
            logits = jnp.where(mask[:, None], jnp.asarray(logits, jnp.float32), 0)
            return total(lambda label: self._losses(logits, label, self.label_smoothing))

        weight = mask.sum(dtype=jnp.float32)
        heads = updated.get("auxiliary", {})
        terms = {"main" if heads else "loss": (loss(logits), weight)}
        terms |= {name: (head["weight"] * loss(head["logits"]), weight) for name, head in heads.items()}
        correct = total(lambda label: top_k_correct(logits, label, k=1))
        aux = {"batch_stats": updated.get("batch_stats", {}), "metrics": {"accuracy": (correct, weight)}}
        return terms, aux

    def predict(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Classifies images.

        Args:
          model: maps images to logits.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`.

        Returns:
          `logits` float32[batch, classes]; `probabilities`, their softmax (under `map`: the posterior given that the
          image is no rubbish); `label` int32[batch], the likeliest class, the first of equals, -1 where a logit is NaN.
        """
        logits = jnp.asarray(model.apply(variables, batch["image"], train=False), jnp.float32)
        label = likeliest(logits)
        return {"logits": logits, "probabilities": jax.nn.softmax(logits), "label": label}

    def measure(self, predictions: Predictions, batch: Batch) -> dict[str, Any]:
        """Sums what `summarize` needs.

        Args:
          predictions: what `predict` gave.
          batch: `label` and `example_mask`.

        Returns:
          int32 `examples`, `correct`, `correct_top5` and `confusion` [true, predicted]; float32 `loss`, without label
          smoothing; `calibration`, the bins of the calibration error.
        """
        logits, label, mask = map(jnp.asarray, (predictions["logits"], batch["label"], batch["example_mask"]))
        return {
            "examples": mask.sum(dtype=jnp.int32),
            "correct": (top_k_correct(logits, label, k=1) & mask).sum(dtype=jnp.int32),
            "correct_top5": (top_k_correct(logits, label, k=5) & mask).sum(dtype=jnp.int32),
            "confusion": confusion_matrix(label, predictions["label"], logits.shape[-1], mask),
            "loss": jnp.where(mask, self._losses(logits, label, smoothing=0.0), 0).sum(),
            "calibration": calibration_bins(predictions["probabilities"], label, mask),
        }

    def summarize(self, sums: Mapping[str, Any]) -> dict[str, float]:
        """Divides the sums over a whole split.

        Args:
          sums: what `measure` gave, added over all batches.

        Returns:
          `accuracy`, `top5_accuracy`, `error` and `calibration_error` as shares of 1, the mean `loss`, and the number
          of `examples`.

        Raises:
          UserError: there was no example.
        """
        examples = int(sums["examples"])
        if not examples:
            raise UserError("the split holds no examples; evaluation needs one at least")
        accuracy = int(sums["correct"]) / examples
        return {
            "accuracy": accuracy,
            "top5_accuracy": int(sums["correct_top5"]) / examples,
            "error": 1 - accuracy,
            "loss": float(sums["loss"]) / examples,
            "calibration_error": calibration_error(sums["calibration"]),
            "examples": examples,
        }

    def _losses(
        self, logits: Float[Array, "batch classes"], labels: Integer[Array, " batch"], smoothing: float | Array
    ) -> Float[Array, " batch"]:
        """The criterion of each example."""
        log_normalizer = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
        if self.criterion == "map":
            log_normalizer = jnp.logaddexp(log_normalizer, -self.rubbish_penalty)
        losses = log_normalizer - logits
        of_label = jnp.take_along_axis(losses, labels[:, None], axis=-1)[:, 0]
        if not isinstance(smoothing, jax.Array) and not smoothing:
            return of_label  # a class of probability zero, an infinite loss, must not be multiplied by zero
        return (1 - smoothing) * of_label + smoothing * losses.mean(axis=-1)
