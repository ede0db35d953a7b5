"""Detection by regions: Fast and Faster R-CNN, their regions and their heads trained jointly or in turns."""

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from cnn_research.errors import UserError, nearest
from cnn_research.ops.boxes import iou
from cnn_research.tasks.alternating import TRAINING, Regions, proposed_by_twin, stages
from cnn_research.tasks.average_precision import AveragePrecision
from cnn_research.tasks.region_loss import Detected, Drawn, Truth, anchor_loss, detect, draw_regions, region_loss
from cnn_research.tasks.task import Batch, Ratio, Stage, Variables


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegionDetection(AveragePrecision):
    """Classes and boxes of objects, by a network that looks at regions.

    The loss is the sum of its terms: of anchors `rpn_class` and `rpn_box`, of regions `class` and `box`. Objects that
    are ignored are background.

    Attributes:
      training: `joint`, all layers by the sum of all terms, or `alternating`: the stages of `tasks.alternating`.
      stage_shares: the stages' shares of the steps, as numbers beside each other; unused in joint training.
      anchor_foreground: IoU with an object from which on an anchor is that object's.
      anchor_background: IoU with every object below which an anchor is background.
      anchors_drawn: of an image.
      anchor_positives: share of them that are objects' at most.
      anchor_beta: β of the smooth L1 loss of anchors' boxes, a square below it.
      foreground: IoU with an object from which on a region is that object's.
      background: IoU from which on, and below which, a region is background.
      regions_drawn: of an image.
      positives: share of them that are objects' at most.
      beta: β of the smooth L1 loss of regions' boxes.
      score_threshold: a probability of not more than this is no detection.
      nms_threshold: of two detections of a class with a larger IoU the worse goes.
      max_detections: of an image at most.
    """

    training: str = "joint"
    stage_shares: tuple[float, ...] = (2.0, 1.0, 2.0, 1.0)
    anchor_foreground: float = 0.7
    anchor_background: float = 0.3
    anchors_drawn: int = 256
    anchor_positives: float = 0.5
    anchor_beta: float = 1 / 9
    foreground: float = 0.5
    background: tuple[float, ...] = (0.0, 0.5)
    regions_drawn: int = 128
    positives: float = 0.25
    beta: float = 1.0
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        shares = ("anchor_foreground", "anchor_background", "anchor_positives", "foreground", "positives")
        check_fields(
            self,
            shares=(*shares, "score_threshold", "nms_threshold"),
            counts=("anchors_drawn", "regions_drawn", "max_detections"),
        )
        for field in ("anchor_beta", "beta"):
            if not 0 < getattr(self, field) < math.inf:
                raise UserError(f"loss.{field}={getattr(self, field)} is no distance; give a number above 0")
        if self.training not in TRAINING:
            raise UserError(f"loss.training={self.training!r} is unknown; {nearest(self.training, TRAINING)}")
        if len(self.stage_shares) != 4 or not all(0 < share < math.inf for share in self.stage_shares):
            raise UserError(f"loss.stage_shares={self.stage_shares} are no four numbers above 0, such as (2, 1, 2, 1)")

    def stages(self, model: nn.Module) -> tuple[Stage, ...]:
        """Returns the four stages of alternating training, or none.

        Args:
          model: an `RCNN`.

        Raises:
          UserError: it proposes no regions.
        """
        if self.training == "joint":
            return ()
        return stages(model, self.stage_shares, self._loss)

    def has_twin(self, model: nn.Module, layer: str) -> bool:
        """Returns whether a layer is the body's, of which alternating training has two.

        Args:
          model: an `RCNN`.
          layer: its name.
        """
        network: Any = model
        return network.part(layer) == "body"

    def loss(
        self, model: nn.Module, variables: Variables, batch: Batch, rng: PRNGKeyArray, train: bool
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """Sums the losses over anchors and regions that are drawn, of joint training.

        Args:
          model: an `RCNN`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image`, `example_mask`, `objects/` `bbox`, `label`, `valid` and `ignored`, and where the network
            proposes no regions `proposals` float32[batch, regions, 4], as boxes are.
          rng: of the draws and of dropout.
          train: whether the model runs in its training mode.

        Returns:
          The terms as (sum, weight); and aux: the new `batch_stats`, and `metrics` with the accuracy of regions'
          classes, and the share of objects that a region covers (IoU 0.5), as (sum, weight).

        Raises:
          UserError: there are no regions.
        """
        return self._loss(("body", "rpn", "detector"), model, variables, batch, rng, train)

    def _loss(
        self,
        parts: Sequence[str],
        model: nn.Module,
        variables: Variables,
        batch: Batch,
        rng: PRNGKeyArray,
        train: bool,
    ) -> tuple[dict[str, Ratio], dict[str, Any]]:
        """Does what `loss` does for the parts of the network that learn; a twin of the body proposes the regions."""
        regions = proposed_by_twin(model, variables, batch, train)
        drawing, dropout = jax.random.split(rng)
        keys = jax.random.split(drawing, len(batch["image"]))
        (terms, metrics), updated = model.apply(
            {name: tree for name, tree in variables.items() if name != "twin"},
            parts,
            batch,
            regions,
            keys,
            train,
            method=self._losses,
            mutable=["batch_stats"] if train else [],
            rngs={"dropout": dropout} if train else {},
        )
        batch_stats = updated.get("batch_stats", {}) if train else variables.get("batch_stats", {})
        return terms, {"batch_stats": batch_stats, "metrics": metrics}

    def _losses(
        self,
        network: Any,
        parts: Sequence[str],
        batch: Batch,
        regions: Regions | None,
        keys: Key[Array, " batch"],
        train: bool,
    ) -> tuple[dict[str, Ratio], dict[str, Ratio]]:
        size, there = batch["image"].shape[1:3], jnp.asarray(batch["example_mask"])
        keys, truth = jax.vmap(jax.random.split)(keys), truth_of(batch)
        maps = network.features(batch["image"], train and "body" in parts)
        if "body" not in parts:
            maps = jax.lax.stop_gradient(maps)
        terms: dict[str, Ratio] = {}
        if regions is None:
            anchored = network.anchored(maps) if network.anchor_sizes else None
            regions = _regions(network, anchored, batch, train)
            if anchored and "rpn" in parts:
                terms = self._anchor_losses(keys[:, 0], anchored, network.anchors(size), truth)
        if "detector" not in parts:
            return summed(terms, there), summed(recall_of(regions, truth), there)
        drawn = jax.vmap(self._drawn)(keys[:, 1], regions, truth)
        logits, offsets = network.classify(maps, drawn.boxes, train)
        terms |= jax.vmap(partial(region_loss, beta=self.beta))(logits, offsets, drawn)
        terms |= self._further_losses(network, maps, drawn, batch)
        return summed(terms, there), summed(region_metrics(logits, drawn, regions, truth), there)

    def _anchor_losses(
        self, keys: Key[Array, " batch"], anchored: Any, anchors: Sequence[np.ndarray], truth: Truth
    ) -> dict[str, Ratio]:
        def of_image(key: Array, logits: Array, offsets: Array, truth: Truth) -> dict[str, Ratio]:
            return anchor_loss(
                key,
                logits,
                offsets,
                np.concatenate(anchors),
                truth,
                foreground=self.anchor_foreground,
                background=self.anchor_background,
                count=self.anchors_drawn,
                positive_fraction=self.anchor_positives,
                beta=self.anchor_beta,
            )

        return jax.vmap(of_image)(keys, anchored.logits, anchored.offsets, truth)

    def _drawn(self, key: Array, regions: Array, truth: Truth) -> Drawn:
        return draw_regions(
            key,
            regions,
            truth,
            foreground=self.foreground,
            background=(self.background[0], self.background[1]),
            count=self.regions_drawn,
            positive_fraction=self.positives,
        )

    def _further_losses(self, network: Any, maps: Any, drawn: Drawn, batch: Batch) -> dict[str, Ratio]:
        """Returns further terms of each image."""
        del network, maps, drawn, batch
        return {}

    def predict(self, model: nn.Module, variables: Variables, batch: Batch) -> dict[str, Array]:
        """Finds objects.

        Args:
          model: an `RCNN`.
          variables: `params` and, where the model has them, `batch_stats`.
          batch: `image` and, where the network proposes no regions, `proposals`.

        Returns:
          Best first, `boxes` float32[batch, detections, 4] in 0..1 of the image, `classes` int32[batch, detections],
          `scores` float32[batch, detections] and `valid` bool[batch, detections].
        """
        regions = proposed_by_twin(model, variables, batch, train=False)
        own = {name: tree for name, tree in variables.items() if name != "twin"}
        predictions: Any = model.apply(own, batch, regions, method=self._predictions)
        return predictions

    def _predictions(self, network: Any, batch: Batch, regions: Regions | None) -> dict[str, Array]:
        images = batch["image"]
        size = images.shape[1:3]
        maps = network.features(images, train=False)
        if regions is None:
            regions = _regions(network, network.anchored(maps) if network.anchor_sizes else None, batch, train=False)

        def of_image(logits: Array, offsets: Array, regions: Array) -> Detected:
            thresholds = {"score_threshold": self.score_threshold, "iou_threshold": self.nms_threshold}
            return detect(logits, offsets, regions, size, **thresholds, count=self.max_detections)

        logits, offsets = network.classify(maps, regions, train=False)
        found = jax.vmap(of_image)(logits, offsets, regions)
        return {
            "boxes": found.boxes / np.array([*size, *size], np.float32),
            "classes": found.labels,
            "scores": found.scores,
            "valid": found.valid,
            **self._further_predictions(network, maps, found),
        }

    def _further_predictions(self, network: Any, maps: Any, found: Detected) -> dict[str, Array]:
        """Returns what else is said of detections."""
        del network, maps, found
        return {}


def _regions(network: Any, anchored: Any, batch: Batch, train: bool) -> Regions:
    """Returns the regions to look at, in pixels: those that the network proposes, or where it does not, the batch's."""
    return network.proposed(anchored, batch["image"].shape[1:3], train) if anchored else given_regions(batch)


def check_fields(task: Any, shares: Sequence[str], counts: Sequence[str]) -> None:
    """Refuses values that no task that draws regions can use.

    Args:
      task: with `background`, a range of IoUs.
      shares: names of fields that are from 0 to 1.
      counts: names of fields that are 1 or more.

    Raises:
      UserError: naming the field.
    """
    for field in shares:
        if not 0 <= getattr(task, field) <= 1:
            raise UserError(f"loss.{field}={getattr(task, field)} is no share; give a number from 0 to 1")
    if len(task.background) != 2 or not 0 <= task.background[0] <= task.background[1] <= 1:
        raise UserError(f"loss.background={task.background} is no range of IoUs; give two, such as (0.0, 0.5)")
    for field in counts:
        if getattr(task, field) < 1:
            raise UserError(f"loss.{field}={getattr(task, field)} is out of range; give 1 or more")


def given_regions(batch: Batch) -> Float[Array, "batch regions 4"]:
    """Returns the regions that a batch has, in pixels of what the network sees.

    Raises:
      UserError: it has none.
    """
    if "proposals" not in batch:
        raise UserError(
            "the network proposes no regions and the batch has none; give data.max_proposals, or model.anchor_sizes"
        )
    return jnp.asarray(batch["proposals"]) * np.array([*batch["image"].shape[1:3]] * 2, np.float32)


def truth_of(batch: Batch) -> Truth:
    """Returns the objects to be found, in pixels of what the network sees."""
    size = np.array([*batch["image"].shape[1:3]] * 2, np.float32)
    valid = jnp.asarray(batch["objects/valid"]) & ~jnp.asarray(batch["objects/ignored"])
    return Truth(jnp.asarray(batch["objects/bbox"]) * size, jnp.asarray(batch["objects/label"]), valid)


def region_metrics(
    logits: Float[Array, "batch drawn classes"], drawn: Drawn, regions: Float[Array, "batch regions 4"], truth: Truth
) -> dict[str, Ratio]:
    """Returns what is shown of images in training, as (sum, weight) of each.

    Args:
      logits: of the regions that are drawn.
      drawn: these regions.
      regions: all of them.
      truth: the objects.

    Returns:
      `region_accuracy`, of the classes of those that are drawn, and `proposal_recall`, the share of objects that a
      region covers (IoU 0.5).
    """
    right = (jnp.argmax(logits, axis=-1) == drawn.labels) & drawn.valid
    return {"region_accuracy": (_count(right), _count(drawn.valid)), **recall_of(regions, truth)}


def recall_of(regions: Regions, truth: Truth) -> dict[str, Ratio]:
    """Returns `proposal_recall` of images, as `region_metrics` does.

    Args:
      regions: of the images.
      truth: their objects.
    """
    covered = jax.vmap(_covered)(regions, truth)
    return {"proposal_recall": (_count(covered), _count(truth.valid))}


def _covered(regions: Float[Array, "regions 4"], truth: Truth) -> Bool[Array, " objects"]:
    return (iou(truth.boxes, regions) >= 0.5).any(axis=1) & truth.valid


def _count(marks: Bool[Array, "batch _"]) -> Float[Array, " batch"]:
    return marks.sum(axis=1, dtype=jnp.float32)


def summed(ratios: dict[str, Ratio], there: Bool[Array, " batch"]) -> dict[str, Ratio]:
    """Adds up images' sums and weights, without those that only fill the batch up."""
    return jax.tree.map(lambda x: jnp.where(there, x, 0).sum(), ratios)
