"""Proposals: where a region proposal network says that objects are, whatever they are.

Ren et al. 2015, arXiv:1506.01497, section 3; from several levels as by Lin et al. 2016, arXiv:1612.03144, section 4.1.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from cnn_research.ops.boxes import area, clip, decode, nms


def propose(
    logits: Float[Array, " anchors"],
    offsets: Float[Array, "anchors 4"],
    levels: Sequence[Float[np.ndarray, "_ 4"]],
    image_size: Sequence[int],
    candidates: int,
    count: int,
    iou_threshold: float,
) -> Float[Array, "count 4"]:
    """Returns the best boxes of an image, cut off at its borders, of which none overlaps a better one of its level.

    Args:
      logits: of there being an object.
      offsets: of the boxes from their anchors.
      levels: the anchors of each level, in the order of logits and offsets.
      image_size: height and width, in the anchors' unit.
      candidates: how many of each level, the best ones, are decoded.
      count: how many are returned; where there are fewer, boxes without area follow.
      iou_threshold: of the suppression.
    """
    starts = np.cumsum([0, *map(len, levels)])
    boxes, scores, level = [], [], []
    for index, (start, anchors) in enumerate(zip(starts[:-1].tolist(), levels, strict=True)):
        best, chosen = lax.top_k(logits[start : start + len(anchors)], min(candidates, len(anchors)))
        boxes.append(clip(decode(offsets[start + chosen], jnp.asarray(anchors)[chosen]), *image_size))
        scores.append(best)
        level.append(np.full(len(best), index))
    candidate_boxes, candidate_scores = jnp.concatenate(boxes), jnp.concatenate(scores)
    seen = area(candidate_boxes) > 0
    indices, valid = nms(
        candidate_boxes, candidate_scores, iou_threshold, count, jnp.asarray(np.concatenate(level)), seen
    )
    return jnp.where(valid[:, None], candidate_boxes[indices], 0)
