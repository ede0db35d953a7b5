"""YOLO's loss by hand, and against the paper's sums as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.tasks.yolo_loss import CellTargets, cell_targets, predicted_boxes, yolo_loss

TERMS = ("center", "size", "object", "no_object", "class")


def loss_by_hand(cells, probabilities, boxes, labels, valid):
    """Equation 3, cell by cell."""
    rows, columns, count, _ = cells.shape
    terms = dict.fromkeys(TERMS, 0.0)
    owners = {}
    for index in range(len(labels)):
        if valid[index]:
            cy, cx = (boxes[index][:2] + boxes[index][2:]) / 2
            owners.setdefault((min(int(cy * rows), rows - 1), min(int(cx * columns), columns - 1)), index)
    for row, column in np.ndindex(rows, columns):
        of_cell = cells[row, column]
        chosen = None
        if (row, column) in owners:
            index = owners[row, column]
            ymin, xmin, ymax, xmax = boxes[index]
            center, size = np.array([ymin + ymax, xmin + xmax]) / 2, np.array([ymax - ymin, xmax - xmin])
            overlaps, distances = [], []
            for y, x, root_height, root_width, _ in of_cell:
                guess, extent = (
                    np.array([(row + y) / rows, (column + x) / columns]),
                    np.array([root_height, root_width]) ** 2,
                )
                low, high = np.maximum(guess - extent / 2, [ymin, xmin]), np.minimum(guess + extent / 2, [ymax, xmax])
                both = np.prod(np.maximum(high - low, 0))
                overlaps.append(both / (np.prod(extent) + np.prod(size) - both))
                distances.append(((guess - center) ** 2 + (extent - size) ** 2).sum())
            chosen = int(np.argmax(overlaps) if max(overlaps) > 0 else np.argmin(distances))
            y, x, root_height, root_width, confidence = of_cell[chosen]
            terms["center"] += 5 * ((y - (center[0] * rows - row)) ** 2 + (x - (center[1] * columns - column)) ** 2)
            terms["size"] += 5 * ((root_height - size[0] ** 0.5) ** 2 + (root_width - size[1] ** 0.5) ** 2)
            terms["object"] += (confidence - overlaps[chosen]) ** 2
            hot = np.arange(probabilities.shape[-1]) == labels[index]
            terms["class"] += ((probabilities[row, column] - hot) ** 2).sum()
        terms["no_object"] += 0.5 * sum(of_cell[other, 4] ** 2 for other in range(count) if other != chosen)
    return terms


def test_terms_are_those_of_the_papers_sums():
    rng = np.random.default_rng(0)
    images, rows, columns, objects = 12, 3, 4, 5
    cells = rng.random((images, rows, columns, 2, 5)).astype(np.float32)
    cells[6:, ..., 2:4] *= 0.2  # small: some overlap nothing
    probabilities = rng.random((images, rows, columns, 3)).astype(np.float32)
    corners = np.sort(rng.random((images, objects, 2, 2)), axis=2).reshape(images, objects, 4).astype(np.float32)
    labels, valid = rng.integers(0, 3, (images, objects)).astype(np.int32), rng.random((images, objects)) < 0.7
    valid[0] = False
    corners[1, 0], valid[1, 0] = [1, 1, 1, 1], True  # its centre is the image's last corner

    @jax.jit
    @jax.vmap
    def ours(cells, probabilities, boxes, labels, valid):
        return yolo_loss(cells, probabilities, cell_targets(boxes, labels, valid, (rows, columns)))

    terms = ours(cells, probabilities, corners, labels, valid)
    assert tuple(terms) == tuple(sorted(TERMS))  # as `jit` returns a dict
    for image in range(images):
        expected = loss_by_hand(*(x[image] for x in (cells, probabilities, corners, labels, valid)))
        for term in TERMS:
            assert terms[term][image] == pytest.approx(expected[term], rel=1e-4, abs=1e-5)


def test_loss_by_hand():
    """One object in the second of two cells, found by its first box a quarter too high, and one false alarm."""
    targets = cell_targets(jnp.array([[0.25, 0.5, 0.75, 1.0]]), jnp.array([1]), jnp.array([True]), (1, 2))
    assert targets.occupied.tolist() == [[False, True]]
    side = 0.5**0.5
    cells = jnp.array(
        [[[[0.5, 0.5, 0.1, 0.1, 0.4], [0, 0, 0, 0, 0]], [[0.25, 0.5, side, side, 0.9], [0, 0, 1, 1, 0.6]]]]
    )
    np.testing.assert_allclose(predicted_boxes(cells)[0, 1, 0], [0, 0.5, 0.5, 1], atol=1e-6)
    probabilities = jnp.array([[[0.5, 0.5], [0.2, 0.7]]])

    def loss(cells):
        terms = yolo_loss(cells, probabilities, targets)
        return sum(terms.values()), terms

    (_, terms), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(cells)
    expected = {
        "center": 5 * 0.25**2,
        "size": 0,
        "object": (0.9 - 1 / 3) ** 2,  # half of both boxes is in common
        "no_object": 0.5 * (0.4**2 + 0.6**2),
        "class": 0.2**2 + 0.3**2,
    }
    for term, value in expected.items():
        assert terms[term] == pytest.approx(value, abs=1e-6)
    # The box in charge learns its place and its confidence, others only that they are none.
    np.testing.assert_allclose(gradient[0, 1, 0], [-2.5, 0, 0, 0, 2 * (0.9 - 1 / 3)], atol=1e-5)
    np.testing.assert_allclose(gradient[0, 1, 1], [0, 0, 0, 0, 0.6], atol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], [[0, 0, 0, 0, 0.4], [0, 0, 0, 0, 0]], atol=1e-6)


def test_weights_are_factors():
    targets = CellTargets(jnp.ones((1, 1), bool), jnp.array([[[0.2, 0.2, 0.8, 0.8]]]), jnp.zeros((1, 1), jnp.int32))
    cells, probabilities = jnp.full((1, 1, 2, 5), 0.3), jnp.ones((1, 1, 2))
    plain, weighted = jax.jit(
        lambda: (
            yolo_loss(cells, probabilities, targets, 1.0, 1.0),
            yolo_loss(cells, probabilities, targets, 2.0, 3.0),
        )
    )()
    for term, factor in zip(TERMS, (2, 2, 1, 3, 1), strict=True):
        assert plain[term] > 0
        assert weighted[term] == pytest.approx(factor * plain[term])
