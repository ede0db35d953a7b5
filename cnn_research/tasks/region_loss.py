"""What region networks are trained towards, the terms of their loss, and how what they say becomes detections.

Girshick 2015, "Fast R-CNN", arXiv:1504.08083; Ren et al. 2015, "Faster R-CNN", arXiv:1506.01497; He et al. 2017, "Mask
R-CNN", arXiv:1703.06870. All is of one image, and of fixed sizes. Boxes are ymin, xmin, ymax, xmax in pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Key

from cnn_research.ops.boxes import area, clip, decode, encode, iou, nms
from cnn_research.ops.matching import Matches, match, sample
from cnn_research.ops.regions import roi_align
from cnn_research.tasks.task import Ratio

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of regions' offsets, which then are about 1; anchors' have none


class Truth(NamedTuple):
    """The objects of an image.

    Attributes:
      boxes: in pixels.
      labels: their classes, from 0.
      valid: which there are.
    """

    boxes: Float[Array, "objects 4"]
    labels: Int[Array, " objects"]
    valid: Bool[Array, " objects"]


class Drawn(NamedTuple):
    """Regions that are trained.

    Attributes:
      boxes: in pixels.
      labels: of the classes, 0 the background.
      objects: which of the truth it is where the label is not 0.
      offsets: to that one's box.
      valid: which of these there are; those of objects come first.
    """

    boxes: Float[Array, "regions 4"]
    labels: Int[Array, " regions"]
    objects: Int[Array, " regions"]
    offsets: Float[Array, "regions 4"]
    valid: Bool[Array, " regions"]


class Detected(NamedTuple):
    """What is found in an image, best first.

    Attributes:
      boxes: in pixels.
      labels: their classes, from 0.
      scores: their probabilities.
      valid: which there are.
    """

    boxes: Float[Array, "detections 4"]
    labels: Int[Array, " detections"]
    scores: Float[Array, " detections"]
    valid: Bool[Array, " detections"]


def anchor_loss(
    rng: Key[Array, ""],
    logits: Float[Array, " anchors"],
    offsets: Float[Array, "anchors 4"],
    anchors: Float[np.ndarray, "anchors 4"],
    truth: Truth,
    *,
    foreground: float = 0.7,
    background: float = 0.3,
    count: int = 256,
    positive_fraction: float = 0.5,
    beta: float = 1 / 9,
) -> dict[str, Ratio]:
    """Returns the terms of a region proposal network's loss (Faster R-CNN, section 3.1.2).

    Both are divided by the number of anchors that are drawn, which balances them about as the paper's λ does. Anchors
    that cross the image's border are drawn like any other, as in Detectron2 and torchvision.

    Args:
      rng: the only source of chance.
      logits: of there being an object.
      offsets: of its box.
      anchors: in pixels.
      truth: the objects.
      foreground: IoU from which on an anchor is an object's; the best ones of each object are, too.
      background: IoU below which it is background.
      count: how many are drawn.
      positive_fraction: how many of them are objects' at most.
      beta: where the smooth L1 loss turns from a square into a line.

    Returns:
      `rpn_class`, the binary cross-entropy, and `rpn_box`, as (sum, weight).
    """
    matches = match(iou(jnp.asarray(anchors), truth.boxes), truth.valid, foreground, (0.0, background), True)
    drawn, valid = sample(rng, matches, count, positive_fraction)
    positive = matches.positive[drawn] & valid
    entropy = optax.sigmoid_binary_cross_entropy(logits[drawn], positive.astype(logits.dtype))
    wanted = encode(truth.boxes[matches.truth[drawn]], jnp.asarray(anchors)[drawn])
    weight = valid.sum(dtype=jnp.float32)
    return {
        "rpn_class": (jnp.where(valid, entropy, 0).sum(), weight),
        "rpn_box": (jnp.where(positive, _smooth_l1(offsets[drawn], wanted, beta), 0).sum(), weight),
    }


def draw_regions(
    rng: Key[Array, ""],
    regions: Float[Array, "regions 4"],
    truth: Truth,
    *,
    foreground: float = 0.5,
    background: tuple[float, float] = (0.0, 0.5),
    count: int = 128,
    positive_fraction: float = 0.25,
) -> Drawn:
    """Draws regions to train (Fast R-CNN, section 2.3), from the proposed ones and the truth's boxes.

    Args:
      rng: the only source of chance.
      regions: proposed; those without area are none.
      truth: the objects.
      foreground: IoU from which on a region is an object's.
      background: IoU from which on, and below which, it is background.
      count: how many are drawn.
      positive_fraction: how many of them are objects' at most.
    """
    candidates = lax.stop_gradient(jnp.concatenate([regions, jnp.where(truth.valid[:, None], truth.boxes, 0)]))
    there = area(candidates) > 0
    matches = match(iou(candidates, truth.boxes), truth.valid, foreground, background)
    matches = Matches(matches.truth, matches.positive & there, matches.negative & there)
    drawn, valid = sample(rng, matches, count, positive_fraction)
    objects, boxes = matches.truth[drawn], jnp.where(valid[:, None], candidates[drawn], 0)
    labels = jnp.where(matches.positive[drawn] & valid, truth.labels[objects] + 1, 0)
    return Drawn(boxes, labels, objects, encode(truth.boxes[objects], boxes, BOX_WEIGHTS), valid)


def region_loss(
    logits: Float[Array, "regions classes"],
    offsets: Float[Array, "regions classes 4"],
    drawn: Drawn,
    beta: float = 1.0,
) -> dict[str, Ratio]:
    """Returns the terms of regions' loss (Fast R-CNN, section 2.3), both over the number of regions.

    Args:
      logits: of the classes, 0 the background.
      offsets: of the box of an object of each class.
      drawn: what they are to be.
      beta: where the smooth L1 loss turns from a square into a line.

    Returns:
      `class`, the cross-entropy, and `box`, of the true class's alone, as (sum, weight).
    """
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, drawn.labels)
    told = _of_class(jnp.moveaxis(offsets, 1, -1), drawn.labels[:, None])
    weight = drawn.valid.sum(dtype=jnp.float32)
    return {
        "class": (jnp.where(drawn.valid, entropy, 0).sum(), weight),
        "box": (jnp.where(drawn.labels > 0, _smooth_l1(told, drawn.offsets, beta), 0).sum(), weight),
    }


def mask_targets(
    instances: Int[Array, "height width"],
    numbers: Int[Array, " regions"],
    boxes: Float[Array, "regions 4"],
    size: int,
) -> Bool[Array, "regions size size"]:
    """Returns the part of an object's mask that is in each region, at the mask head's size.

    Args:
      instances: the number of the object that each pixel of the image shows.
      numbers: of each region's object.
      boxes: of the regions, in pixels.
      size: side of the masks.
    """

    def cut(number: Int[Array, ""], box: Float[Array, "4"]) -> Float[Array, "size size"]:
        mask = (instances == number).astype(jnp.float32)
        return roi_align(mask[..., None], box[None], size)[0, ..., 0]

    return jax.vmap(cut)(numbers, boxes) >= 0.5


def mask_loss(
    logits: Float[Array, "regions height width classes"],
    labels: Int[Array, " regions"],
    masks: Bool[Array, "regions height width"],
) -> Ratio:
    """Returns the binary cross-entropy of the true class's mask, of no other one's (Mask R-CNN, section 3).

    Args:
      logits: of masks of an object of each class.
      labels: of the classes, 0 the background, whose regions have no masks.
      masks: what they are to be.

    Returns:
      The sum over pixels, and the number of pixels.
    """
    told = _of_class(logits, labels[:, None, None])
    entropy = optax.sigmoid_binary_cross_entropy(told, masks.astype(told.dtype))
    objects = labels > 0
    pixels = objects.sum(dtype=jnp.float32) * np.prod(masks.shape[1:], dtype=np.float32)
    return jnp.where(objects[:, None, None], entropy, 0).sum(), pixels


def detect(
    logits: Float[Array, "regions classes"],
    offsets: Float[Array, "regions classes 4"],
    regions: Float[Array, "regions 4"],
    image_size: Sequence[int],
    *,
    score_threshold: float = 0.05,
    iou_threshold: float = 0.5,
    count: int = 100,
) -> Detected:
    """Makes detections of what is said of regions: a region may be objects of several classes.

    Args:
      logits: of the classes, 0 the background.
      offsets: of the box of an object of each class.
      regions: in pixels; those without area are none.
      image_size: height and width.
      score_threshold: a probability of not more than this is no detection.
      iou_threshold: of a class's boxes that overlap more than this, only the best stays.
      count: how many there are at most, over all classes.
    """
    scores = jax.nn.softmax(logits)[:, 1:]
    boxes = clip(decode(offsets[:, 1:], regions[:, None], BOX_WEIGHTS), *image_size)
    thresholds = {"score_threshold": score_threshold, "iou_threshold": iou_threshold}
    return best_of_classes(scores, boxes, area(regions) > 0, **thresholds, count=count)


def best_of_classes(
    scores: Float[Array, "regions classes"],
    boxes: Float[Array, "regions classes 4"],
    valid: Bool[Array, " regions"],
    *,
    score_threshold: float,
    iou_threshold: float,
    count: int,
) -> Detected:
    """Keeps the best boxes, of which those of a class do not overlap much.

    Args:
      scores: of each region as an object of each class.
      boxes: of these objects.
      valid: which regions there are.
      score_threshold: a score of not more than this is no detection.
      iou_threshold: of a class's boxes that overlap more than this, only the best stays.
      count: how many there are at most, over all classes.
    """
    classes = scores.shape[1]
    there = (scores > score_threshold) & (area(boxes) > 0) & valid[:, None]
    labels = jnp.tile(jnp.arange(classes, dtype=jnp.int32), len(scores))
    scores, boxes, there = scores.reshape(-1), boxes.reshape(-1, 4), there.reshape(-1)
    chosen, valid = nms(boxes, scores, iou_threshold, count, labels, there)
    return Detected(jnp.where(valid[:, None], boxes[chosen], 0), labels[chosen], scores[chosen], valid)


def of_detections(
    logits: Float[Array, "detections height width classes"], labels: Int[Array, " detections"]
) -> Float[Array, "detections height width"]:
    """Returns the probabilities of detections' masks, each of its own class.

    Args:
      logits: of masks of an object of each class, 0 the background.
      labels: of the detections, from 0.
    """
    return jax.nn.sigmoid(_of_class(logits, labels[:, None, None] + 1))


def _of_class(x: Float[Array, "*shape classes"], labels: Int[Array, "..."]) -> Float[Array, "*shape"]:
    """Picks the values of a class; by comparing, for the gradient of a gather scatters."""
    return jnp.where(labels[..., None] == np.arange(x.shape[-1]), x, 0).sum(-1)


def _smooth_l1(x: Float[Array, "n 4"], y: Float[Array, "n 4"], beta: float) -> Float[Array, " n"]:
    """Returns the sum over the four of d²/2β where |d| < β, and |d| − β/2 beyond (Fast R-CNN, equation 3, has 1)."""
    return optax.losses.huber_loss(x, y, delta=beta).sum(-1) / beta
