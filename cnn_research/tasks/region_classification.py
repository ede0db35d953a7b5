"""Detection by classifying regions: R-CNN's fine-tuning, and the linear machines and boxes that follow it.

Girshick et al. 2014, arXiv:1311.2524, section 2 and appendices B and C.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from cnn_research.errors import UserError
from cnn_research.layers.taps import record
from cnn_research.ops.boxes import area, clip, decode, encode, iou
from cnn_research.tasks import machines
from cnn_research.tasks.average_precision import AveragePrecision
from cnn_research.tasks.region_detection import check_fields, given_regions, region_metrics, summed, truth_of
from cnn_research.tasks.region_loss import Detected, Truth, best_of_classes, draw_regions
from cnn_research.tasks.task import Batch, Ratio, Variables

Regions = Float[Array, "batch regions 4"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionClassification(AveragePrecision):
    """Classes and boxes of objects, by a classifier of regions.

    Training is that of the classifier. Then `machines`, a linear one a class, are fitted on its features, and after
    them `box`, the regressors of boxes. Until then the classifier's probabilities are the scores, and the regions the
    boxes. Objects that are ignored are background.

    Attributes:
      foreground: IoU with an object from which on a region is that object's, in training.
      background: IoU from which on, and below which, a region is background, in training.
      regions_drawn: of an image; the paper's 128 are those of all images of a batch.
      positives: share of them that are objects' at most.
      machine_background: IoU with each object of its class below which a region is a machine's negative. Positives are
        the objects themselves.
      machine_cost: weight of the examples' losses beside the margin's width.
      box_foreground: IoU with an object from which on a region's regressors learn its box.
      ridge: weight of the regressors' penalty.
      regions_at_once: of an image, outside of training.
      score_threshold: a margin of not more than this is no detection; the paper's code keeps 40 an image and class,
        however low.
      nms_threshold: of two detections of a class with a larger IoU the worse goes.
      max_detections: of an image at most.
    """

    foreground: float = 0.5
    background: tuple[float, ...] = (0.0, 0.5)
    regions_drawn: int = 128
    positives: float = 0.25
    machine_background: float = 0.3
    machine_cost: float = 0.001
    box_foreground: float = 0.6
    ridge: float = 1000.0
    regions_at_once: int = 128
    score_threshold: float = -10.0
    nms_threshold: float = 0.3
    max_detections: int = 100

    phases: ClassVar[tuple[str, ...]] = ("machines", "box")

    def __post_init__(self) -> None:
        shares = ("foreground", "positives", "machine_background", "box_foreground", "nms_threshold")
        check_fields(self, shares, counts=("regions_drawn", "regions_at_once", "max_detections"))
        for field in ("machine_cost", "ridge"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"loss.{field}={getattr(self, field)} is no weight; give a number above 0")

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """Sums the classes' cross-entropy over regions that are drawn.

        Args:
          model: a `RegionClassifier`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`, `example_mask`, `objects/` `bbox`, `label`, `valid` and `ignored`, and `proposals`.
          rng: of the draws and of dropout.
          train: whether the model runs in its training mode.

        Returns:
          `class` as (sum, weight); and aux: the new `batch_stats`, and `metrics` with the accuracy of regions' classes,
          and the share of objects that a region covers (IoU 0.5), as (sum, weight).

        Raises:
          UserError: there are no regions.
        """
        drawing, dropout = jax.random.split(rng)
        regions, truth, there = given_regions(batch), truth_of(batch), jnp.asarray(batch["example_mask"])
        draw = partial(
            draw_regions,
            foreground=self.foreground,
            background=(self.background[0], self.background[1]),
            count=self.regions_drawn,
            positive_fraction=self.positives,
        )
        drawn = jax.vmap(draw)(jax.random.split(drawing, len(regions)), regions, truth)
        (logits, _, _), updated = model.apply(
            variables,
            batch["image"],
            train,
            drawn.boxes,
            mutable=["batch_stats"] if train else [],
            rngs={"dropout": dropout} if train else {},
        )
        batch_stats = updated.get("batch_stats", {}) if train else variables.get("batch_stats", {})
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, drawn.labels)
        terms = {"class": (jnp.where(drawn.valid, entropy, 0).sum(1), drawn.valid.sum(1, dtype=jnp.float32))}
        metrics = region_metrics(logits, drawn, regions, truth)
        return summed(terms, there), {"batch_stats": batch_stats, "metrics": summed(metrics, there)}

    def predict(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Finds objects.

        Args:
          model: a `RegionClassifier`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image` and `proposals`.

        Returns:
          Best first, `boxes` float32[batch, detections, 4] in 0..1 of the image, `classes` int32[batch, detections],
          `scores` float32[batch, detections], margins once the machines are fitted, and `valid` bool[batch,
          detections].
        """
        images, regions = batch["image"], given_regions(batch)
        size = images.shape[1:3]
        logits, margins, offsets = self._in_parts(lambda part: model.apply(variables, images, False, part), regions)
        fitted = (variables["params"]["machines"]["bias"] != 0).any()
        scores = jnp.where(fitted, margins, jax.nn.softmax(logits)[..., 1:])

        def of_image(scores: Array, offsets: Array, regions: Array) -> Detected:
            boxes = clip(decode(offsets, regions[:, None]), *size)
            thresholds = {"score_threshold": self.score_threshold, "iou_threshold": self.nms_threshold}
            return best_of_classes(scores, boxes, area(regions) > 0, **thresholds, count=self.max_detections)

        found = jax.vmap(of_image)(scores, offsets, regions)
        return {
            "boxes": found.boxes / np.array([*size, *size], np.float32),
            "classes": found.labels,
            "scores": found.scores,
            "valid": found.valid,
        }

    def sample(self, model: nn.Module, variables: Variables, batch: Batch, phase: str) -> dict[str, Array]:
        """Returns what a phase learns from: the features of proposals and of objects, and what is to be said of them.

        Args:
          model: a `RegionClassifier`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: that of `loss`.
          phase: one of `phases`.

        Returns:
          What `tasks.machines` takes.
        """
        truth, there = truth_of(batch), jnp.asarray(batch["example_mask"])
        regions = jnp.concatenate([jnp.where(truth.valid[..., None], truth.boxes, 0), given_regions(batch)], axis=1)
        network: Any = model
        layer = network.machine_layer if phase == "machines" else network.box_layer

        def describe(part: Regions) -> Float[Array, "batch regions units"]:
            _, outputs = record(lambda: model.apply(variables, batch["image"], False, part))
            return outputs[layer].reshape(*part.shape[:2], -1).astype(jnp.float32)

        classes = network.num_classes - 1
        signs, labels, offsets = jax.vmap(partial(self._wanted, classes=classes))(regions, truth)
        wanted = {"signs": signs} if phase == "machines" else {"labels": labels, "offsets": offsets}
        wanted = {name: jnp.where(there.reshape(-1, *(1,) * (x.ndim - 1)), x, 0) for name, x in wanted.items()}
        return {"features": self._in_parts(describe, regions), **wanted}

    def _wanted(self, regions: Float[Array, "regions 4"], truth: Truth, classes: int) -> tuple[Array, Array, Array]:
        """Returns the signs [regions, classes], labels [regions] and offsets [regions, 4] of an image's regions.

        The first regions are the objects.
        """
        exist = area(regions) > 0
        overlaps = jnp.where(truth.valid, iou(regions, truth.boxes), 0)
        of_class = truth.labels[:, None] == jnp.arange(classes)
        negative = jnp.where(of_class, overlaps[..., None], 0).max(1, initial=0) < self.machine_background
        objects = jnp.pad(of_class & truth.valid[:, None], ((0, len(regions) - len(truth.labels)), (0, 0)))
        signs = jnp.where(exist[:, None], jnp.where(objects, 1, -negative.astype(jnp.int32)), 0)
        nearest = jnp.argmax(overlaps, axis=1)
        labels = jnp.where(exist & (overlaps.max(1) >= self.box_foreground), truth.labels[nearest] + 1, 0)
        return signs, labels, encode(truth.boxes[nearest], regions)

    def fit(self, model: nn.Module, phase: str, samples: Iterable[Mapping[str, np.ndarray]]) -> machines.Layer:
        """Fits a layer, on the host.

        Args:
          model: a `RegionClassifier`.
          phase: the layer's name, one of `phases`.
          samples: what `sample` gave for each batch of the training split.
        """
        network: Any = model
        if phase == "machines":
            return machines.fit_machines(samples, self.machine_cost)
        return machines.fit_boxes(samples, network.num_classes - 1, self.ridge)

    def _in_parts(self, function: Callable[[Regions], Any], regions: Regions) -> Any:
        """Applies a function to so many regions of each image at a time."""
        images, count, _ = regions.shape
        if count <= self.regions_at_once:
            return function(regions)
        parts = -(-count // self.regions_at_once)
        padded = jnp.pad(regions, ((0, 0), (0, parts * self.regions_at_once - count), (0, 0)))
        outputs = jax.lax.map(function, padded.reshape(images, parts, -1, 4).swapaxes(0, 1))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(images, -1, *x.shape[3:])[:, :count], outputs)
