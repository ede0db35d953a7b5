"""Proposals against loops."""

from functools import partial

import jax
import numpy as np

from cnn_research.ops.anchors import pyramid_anchors
from cnn_research.ops.boxes import area
from cnn_research.ops.proposals import propose

SIZE = (40, 56)
LEVELS = pyramid_anchors(SIZE, (8, 16), ((12.0,), (24.0,)))
ANCHORS = np.concatenate(LEVELS)


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    both = np.prod(np.maximum(high - low, 0))
    return both / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - both)


def proposals_by_hand(logits, offsets, candidates, count, threshold):
    """Each level on its own, one box after another; then the best of all levels."""
    kept, start = [], 0
    for anchors in LEVELS:
        mine = range(start, start + len(anchors))
        start += len(anchors)
        chosen = []
        for index in sorted(mine, key=lambda index: -logits[index])[:candidates]:
            ymin, xmin, ymax, xmax = ANCHORS[index]
            height, width = ymax - ymin, xmax - xmin
            y = (ymin + ymax) / 2 + offsets[index, 0] * height
            x = (xmin + xmax) / 2 + offsets[index, 1] * width
            height, width = height * np.exp(offsets[index, 2]), width * np.exp(offsets[index, 3])
            box = np.array([y - height / 2, x - width / 2, y + height / 2, x + width / 2])
            box = np.clip(box, 0, [*SIZE, *SIZE])
            if (box[2:] > box[:2]).all() and all(overlap(box, other) <= threshold for _, other in chosen):
                chosen.append((logits[index], box))
        kept += chosen
    boxes = [box for _, box in sorted(kept, key=lambda pair: -pair[0])[:count]]
    return np.array(boxes + [np.zeros(4)] * (count - len(boxes)))


def test_proposals_are_those_of_loops():
    rng = np.random.default_rng(0)
    images = 6
    logits = rng.normal(size=(images, len(ANCHORS))).astype(np.float32)
    offsets = rng.normal(0, 0.5, (images, len(ANCHORS), 4)).astype(np.float32)
    offsets[0, :, :2] += 20  # all but a few are beyond the image
    offsets[1, :, 0] -= 2
    for candidates, count, threshold in ((40, 30, 0.5), (200, 12, 0.3)):
        fields = dict(levels=LEVELS, image_size=SIZE, candidates=candidates, count=count, iou_threshold=threshold)
        found = jax.jit(jax.vmap(partial(propose, **fields)))(logits, offsets)
        expected = [
            proposals_by_hand(*each, candidates, count, threshold) for each in zip(logits, offsets, strict=True)
        ]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    assert not area(found[0])[-1]
