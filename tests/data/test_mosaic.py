"""Four images become one, and their objects and masks go with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.data import mosaic
from cnn_research.data.augmentation import Augmentation, augment
from cnn_research.errors import UserError

BATCH, SIZE = 8, (24, 32)
FAST = {"xla_backend_optimization_level": 0}


def run(batch, **fields):
    augmented = jax.jit(lambda batch: augment(Augmentation(**fields), jax.random.key(3), batch, jnp.arange(BATCH)))
    return jax.tree.map(np.asarray, augmented.lower(batch).compile(FAST)(batch))


@pytest.fixture(scope="module")
def batch():
    """Images whose first channel says which they are and whose second one what is in their mask: two rectangles."""
    rng = np.random.default_rng(0)
    masks = np.zeros((BATCH, *SIZE, 1), np.uint8)
    boxes = np.zeros((BATCH, 3, 4), np.float32)
    for mask, corners in zip(masks, boxes, strict=True):
        for number in (1, 2):
            top, left = rng.integers(0, 10), 16 * (number - 1) + rng.integers(0, 4)
            height, width = rng.integers(6, 14, 2)
            bottom, right = top + height, min(left + width, 16 * number)
            mask[top:bottom, left:right] = number
            corners[number - 1] = top / 24, left / 32, bottom / 24, right / 32
    which = np.broadcast_to(np.arange(1, BATCH + 1).reshape(-1, 1, 1, 1) / 10, masks.shape)
    return {
        "image": np.concatenate([which, masks / 2, np.ones_like(masks)], axis=-1).astype(np.float32),
        "segmentation_mask": masks,
        "example_mask": np.ones(BATCH, bool),
        "objects/bbox": boxes,
        "objects/valid": np.array([[True, True, False]] * BATCH),
        "objects/number": np.array([[1, 2, 0]] * BATCH, np.int32),
        "objects/label": np.array([[place, place + 100, 0] for place in range(BATCH)], np.int32),
    }


def test_objects_and_masks_go_with_their_images(batch):
    """Each object that is kept has its box around what is seen of it, its own number, and its label."""
    found = run(jax.tree.map(jnp.asarray, batch), mosaic=1.0, fill=(0.0, 0.0, 0.0))
    assert found["objects/bbox"].shape == (BATCH, 12, 4)
    kept = 0
    for place in range(BATCH):
        image, mask = found["image"][place], found["segmentation_mask"][place, ..., 0]
        shown = mask != 255
        assert ((image[..., 2] == 0) <= ~shown).all()  # beyond the borders
        for part in range(4):
            source = (place - part) % BATCH
            of_part = shown & (np.abs(image[..., 0] - (source + 1) / 10) < 1e-4)
            assert of_part.any()
            for number in (1, 2):
                seen = mask == 256 * part + number
                assert (seen <= of_part).all()
                index = 3 * part + number - 1
                assert found["objects/label"][place, index] == source + 100 * (number - 1)
                assert found["objects/number"][place, index] == 256 * part + number
                if found["objects/valid"][place, index]:
                    rows, columns = np.nonzero(seen)
                    expected = rows.min(), columns.min(), rows.max() + 1, columns.max() + 1
                    box = found["objects/bbox"][place, index] * np.tile(SIZE, 2)
                    np.testing.assert_allclose(box, expected, atol=1.01)
                    kept += 1
            assert not found["objects/valid"][place, 3 * part + 2]
        # Where the mask has an object, so has the image, but for the pixels between.
        expected = np.where(shown, mask % 256, 0) / 2
        assert (np.abs(image[..., 1] - expected) > 0.3).mean() < 0.05
    assert kept > 2 * BATCH


def test_by_its_probability_an_image_stays_as_it_is(batch):
    batch = jax.tree.map(jnp.asarray, batch)
    found = run(batch, mosaic=0.5)
    same = (found["image"] == batch["image"]).all(axis=(1, 2, 3))
    assert 0 < same.sum() < BATCH
    np.testing.assert_array_equal(found["segmentation_mask"][same], batch["segmentation_mask"][same])
    for name in ("bbox", "valid", "number", "label"):
        np.testing.assert_array_equal(found[f"objects/{name}"][same, :3], batch[f"objects/{name}"][same])
    assert not found["objects/valid"][same, 3:].any()
    # What only fills a batch up is in no other image.
    filled = batch | {"example_mask": jnp.arange(BATCH) != 4}
    kept = np.isin(np.arange(BATCH), [4, 5, 6, 7])
    unchanged = (run(filled, mosaic=1.0)["image"] == batch["image"]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(unchanged, kept)


def test_replicas_put_the_same_together(batch):
    config, key = Augmentation(mosaic=1.0), jax.random.key(3)
    split = {name: x.reshape(4, 2, *x.shape[1:]) for name, x in batch.items()}
    mapped = jax.pmap(
        lambda part, places: augment(config, key, part, places, "replicas"),
        axis_name="replicas",
        devices=jax.devices()[:4],
    )
    found = mapped(split, np.arange(BATCH).reshape(4, 2))
    for name, value in run(jax.tree.map(jnp.asarray, batch), mosaic=1.0).items():
        np.testing.assert_allclose(np.asarray(found[name]).reshape(value.shape), value, atol=1e-5, err_msg=name)


def test_whole_images_meet_in_the_middle():
    layout = mosaic.Layout(jnp.array([12.0, 16.0]), jnp.array(0.5))
    images = jax.random.uniform(jax.random.key(0), (4, *SIZE, 2))
    halves = np.asarray(images).reshape(4, 12, 2, 16, 2, 2).mean((2, 4))
    expected = np.concatenate([np.concatenate(halves[:2], axis=1), np.concatenate(halves[2:], axis=1)])
    np.testing.assert_allclose(jax.jit(mosaic.put_together)(layout, images), expected, atol=1e-5)
    right_half = jnp.tile(jnp.array([0.0, 0.5, 1.0, 1.0]), (4, 1, 1))
    boxes, seen = jax.jit(mosaic.move_boxes, static_argnums=2)(layout, right_half, SIZE)
    np.testing.assert_allclose(boxes[:, 0] * 4, [[0, 1, 2, 2], [0, 3, 2, 4], [2, 1, 4, 2], [2, 3, 4, 4]])
    assert seen.all()


def test_data_without_objects_and_odd_probabilities_are_refused():
    with pytest.raises(UserError, match=r"augmentation\.mosaic moves objects and masks, and this data has neither"):
        run({"image": jnp.zeros((BATCH, 8, 8, 3)), "label": jnp.zeros(BATCH, int)}, mosaic=1.0)
    with pytest.raises(UserError, match=r"augmentation\.mosaic=1\.5 is no probability"):
        Augmentation(mosaic=1.5)
