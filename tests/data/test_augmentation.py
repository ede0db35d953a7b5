import dataclasses
import json

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.colors import rgb_to_hsv

from cnn_research.data.augmentation import Augmentation, Draw, augment, crop_center, normalize
from cnn_research.errors import UserError

BATCH = 16
POSITIONS = jnp.arange(BATCH)

# For each operation's field a value that turns it on; for each other field one that changes what an operation does.
ON = {
    "elastic": 3.0,
    "random_resized_crop": (0.2, 0.8),
    "pad_crop": 3,
    "scale_jitter": (0.5, 2.0),
    "flip": True,
    "dihedral": True,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.2,
    "cutout": 5,
    "mixup": 0.5,
    "cutmix": 1.0,
}
OTHERS = {
    "aspect_ratio": ({"random_resized_crop": (0.2, 0.8)}, (2.0, 3.0)),
    "pad_mode": ({"pad_crop": 3}, "reflect"),
    "fill": ({"cutout": 5}, (0.5, 0.4, 0.3)),
}
EVERYTHING = Augmentation(**ON)


def make_batch(channels=3, **others):
    generator = np.random.default_rng(0)
    images = 0.1 + 0.8 * generator.random((BATCH, 12, 10, channels), dtype=np.float32)
    labels = generator.permutation(BATCH).astype(np.int32)
    return {"image": images, "label": labels, "example_mask": np.ones(BATCH, bool)} | others


# Small programs that run once: the compiler's effort would be most of these tests' time.
augment_jitted = jax.jit(
    augment,
    static_argnums=0,
    static_argnames="crop_size",
    compiler_options={"xla_backend_optimization_level": 0},
)


def run(config, batch=None, rng=0, positions=POSITIONS, **options):
    batch = jax.tree.map(jnp.asarray, make_batch() if batch is None else batch)
    return jax.tree.map(np.asarray, augment_jitted(config, jax.random.key(rng), batch, positions, **options))


def test_off_is_free():
    batch = jax.tree.map(jnp.asarray, make_batch())
    assert augment(Augmentation(), jax.random.key(0), batch, POSITIONS) == batch
    jaxpr = jax.make_jaxpr(lambda *args: augment(Augmentation(), *args))(jax.random.key(0), batch, POSITIONS)
    assert not jaxpr.eqns


@pytest.mark.parametrize("config", [Augmentation(), Augmentation(flip=True, dihedral=True, brightness=0.4)])
def test_bytes_are_as_good_as_floats(config):
    images = np.random.default_rng(0).integers(0, 256, (BATCH, 12, 10, 3), np.uint8)
    as_bytes, as_floats = (
        run(config, make_batch(image=images), crop_size=(9, 10))["image"]
        for images in (images, images.astype(np.float32) / 255)
    )
    assert as_bytes.dtype == np.float32
    np.testing.assert_allclose(as_bytes, as_floats, atol=1e-6)


def test_every_field_does_something():
    fields = {field.name for field in dataclasses.fields(Augmentation)}
    assert fields == ON.keys() | OTHERS.keys() | {"mosaic"}  # which test_mosaic.py turns
    assert {draw.name.lower() for draw in Draw} == ON.keys() | {"mixup_or_cutmix", "crop", "mosaic"}
    batch = make_batch()
    for field, value in ON.items():
        changed = (run(Augmentation(**{field: value}))["image"] != batch["image"]).any(axis=(1, 2, 3))
        assert changed.mean() > 0.25, field
    for field, (base, value) in OTHERS.items():
        assert (run(Augmentation(**base))["image"] != run(Augmentation(**base, **{field: value}))["image"]).any(), field


def test_keys_that_nothing_changes_pass_through():
    batch = make_batch(original_size=np.arange(2 * BATCH, dtype=np.int32).reshape(BATCH, 2))
    augmented = run(Augmentation(flip=True, mixup=1.0), batch)
    assert augmented.keys() == batch.keys() | {"label_other", "label_weight"}
    for key in batch.keys() - {"image"}:
        np.testing.assert_array_equal(augmented[key], batch[key])
    assert run(Augmentation(flip=True), batch).keys() == batch.keys()
    assert augmented["image"].dtype == augmented["label_weight"].dtype == np.float32


@pytest.mark.parametrize(
    ("config", "crop_size"), [(EVERYTHING, ()), (Augmentation(flip=True, cutmix=1.0), (7, 6))], ids=["whole", "cropped"]
)
def test_any_cut_over_devices_gives_the_same(config, crop_size):
    batch, rng = make_batch(), jax.random.key(7)
    expected = run(config, batch, rng=7, crop_size=crop_size)

    mesh = jax.make_mesh((8,), ("devices",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put((batch, POSITIONS), NamedSharding(mesh, PartitionSpec("devices")))
    compiled = augment_jitted.lower(config, rng, *sharded, crop_size=crop_size).compile()
    jitted = compiled(rng, *sharded)
    assert "all-gather" not in compiled.as_text()

    def split(x):
        return x.reshape(8, -1, *x.shape[1:])

    mapped = jax.pmap(lambda *args: augment(config, rng, *args, "replicas", crop_size), axis_name="replicas")(
        jax.tree.map(split, batch), split(POSITIONS)
    )
    mapped = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), mapped)

    for found in (jitted, mapped):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            np.testing.assert_allclose(found[key], value, atol=1e-5, err_msg=key)


def test_an_example_depends_on_its_position_and_the_step_alone():
    config = dataclasses.replace(EVERYTHING, mixup=0.0, cutmix=0.0)
    batch = make_batch()
    backwards = run(config, {key: value[::-1] for key, value in batch.items()}, positions=POSITIONS[::-1])
    np.testing.assert_allclose(backwards["image"][::-1], run(config, batch)["image"], atol=1e-6)
    repeated = batch | {"image": np.repeat(batch["image"][:1], BATCH, axis=0)}
    assert len(np.unique(run(config, repeated)["image"], axis=0)) == BATCH
    assert (run(config, rng=1)["image"] != run(config, rng=2)["image"]).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("field", sorted(ON.keys() - {"cutout", "mixup", "cutmix"}))
def test_one_operation_leaves_anothers_draws_alone(field):
    alone = run(Augmentation(**{field: ON[field]}))["image"]
    with_cutout = run(Augmentation(**{field: ON[field]}, cutout=5))["image"]
    cut = (with_cutout == 0).all(axis=-1)
    np.testing.assert_allclose(with_cutout[~cut], alone[~cut], atol=1e-6)
    # And where the cuts are does not depend on the other operation: padding is 0 too, so they may only be hidden in it.
    bare = (run(Augmentation(cutout=5))["image"] == 0).all(axis=-1)
    assert (cut >= bare).all()
    assert field in ("pad_crop", "scale_jitter") or (cut == bare).all()


def test_a_random_window_depends_on_position_and_step_alone():
    batch, size = make_batch(), (7, 6)

    def corners(found):
        windows = np.lib.stride_tricks.sliding_window_view(batch["image"], size, axis=(1, 2))
        same = np.moveaxis(windows, 3, -1) == found["image"][:, None, None]
        example, top, left = np.nonzero(same.all(axis=(3, 4, 5)))
        np.testing.assert_array_equal(example, POSITIONS)
        return np.stack([top, left], axis=-1)

    drawn = corners(run(Augmentation(), crop_size=size))
    np.testing.assert_array_equal(drawn, corners(run(Augmentation(), crop_size=size)))
    assert len(np.unique(drawn, axis=0)) > BATCH / 2
    assert (drawn != corners(run(Augmentation(), crop_size=size, rng=1))).any()
    backwards = run(Augmentation(), {"image": batch["image"][::-1]}, positions=POSITIONS[::-1], crop_size=size)
    np.testing.assert_array_equal(drawn, corners({"image": backwards["image"][::-1]}))


@pytest.mark.parametrize("field", ["random_resized_crop", "pad_crop"])
def test_an_operation_that_crops_crops_to_the_size(field):
    config = Augmentation(**{field: ON[field]})
    whole, window = (run(config, crop_size=size)["image"] for size in ((12, 10), (7, 6)))
    np.testing.assert_array_equal(whole, run(config)["image"])
    assert window.shape == (BATCH, 7, 6, 3)


def test_the_middle_is_kept_where_nothing_is_drawn():
    batch = jax.tree.map(jnp.asarray, make_batch())
    cropped = crop_center(batch, (7, 6))
    np.testing.assert_array_equal(cropped["image"], batch["image"][:, 2:9, 2:8])
    assert cropped["label"] is batch["label"]
    assert crop_center(batch, ()) == batch


def test_a_window_that_targets_would_have_to_follow_is_refused():
    batch = jax.tree.map(jnp.asarray, make_batch(instance_mask=np.zeros((BATCH, 12, 10, 1), np.uint8)))
    for crop in (lambda: run(Augmentation(), batch, crop_size=(7, 6)), lambda: crop_center(batch, (7, 6))):
        with pytest.raises(UserError, match=r"data\.crop_size .* instance_mask; turn it off"):
            crop()
    with pytest.raises(UserError, match=r"data\.crop_size .* objects/bbox; turn it off"):
        crop_center({"image": batch["image"], "objects/bbox": jnp.zeros((BATCH, 1, 4))}, (7, 6))


def make_masked_batch():
    """Images whose first channel is nine classes, in stripes and steps, as the masks have them."""
    rows, columns = np.indices((12, 10))
    masks = ((rows // 4 * 3 + columns // 4) + np.zeros((BATCH, 1, 1)))[..., None].astype(np.uint8)
    images = np.concatenate([masks / 10, np.ones_like(masks), np.zeros_like(masks)], -1).astype(np.float32)
    return make_batch() | {"image": images, "segmentation_mask": masks, "border_distance": masks + np.float16(100)}


@pytest.mark.parametrize("field", ["elastic", "random_resized_crop", "pad_crop", "flip", "dihedral", "crop"])
def test_masks_move_with_their_images(field):
    """Wherever an image shows one class alone, the mask holds that class, and ignores what came from outside."""
    batch, on = make_masked_batch(), {field: value for field, value in [(field, ON.get(field))] if value}
    found = run(Augmentation(**on), batch, crop_size=(8, 7) if field == "crop" else ())
    masks = found["segmentation_mask"]
    assert masks.dtype == np.uint8
    assert masks.shape == (*found["image"].shape[:3], 1)
    assert (masks.shape != batch["segmentation_mask"].shape) or (masks != batch["segmentation_mask"]).any()
    known = masks != 255
    assert known.all() == (field not in ("elastic", "pad_crop"))
    assert known.mean() > 0.5
    np.testing.assert_array_equal(found["border_distance"], np.where(known, masks + 100, 255))
    seen = 10 * found["image"][..., :1]
    if field in ("elastic", "random_resized_crop"):  # interpolated between classes
        assert (np.abs(seen - masks) < 0.01)[known].mean() > 0.25
        assert np.corrcoef(seen[known], masks[known])[0, 1] > 0.9
    else:
        np.testing.assert_allclose(seen[known], masks[known], atol=1e-6)
        if field == "pad_crop":
            assert (found["image"][..., 1:2] == known).all()


def test_the_middle_of_masks_is_kept():
    batch = jax.tree.map(jnp.asarray, make_masked_batch())
    cropped = crop_center(batch, (7, 6))
    for key in ("image", "segmentation_mask", "border_distance"):
        np.testing.assert_array_equal(cropped[key], batch[key][:, 2:9, 2:8])


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_masks_are_not_mixed(field):
    with pytest.raises(UserError, match=rf"augmentation\.{field} mixes labels, and this data has masks; turn it off"):
        run(Augmentation(**{field: 1.0}), make_masked_batch())


def test_mixup_takes_from_the_example_before():
    batch, found = make_batch(), run(Augmentation(mixup=0.5))
    weight = found["label_weight"][:, None, None, None]
    expected = weight * batch["image"] + (1 - weight) * np.roll(batch["image"], 1, axis=0)
    np.testing.assert_allclose(found["image"], expected, atol=1e-6)
    np.testing.assert_array_equal(found["label_other"], np.roll(batch["label"], 1))
    assert len(np.unique(weight)) == BATCH


def test_cutmix_weighs_by_the_area_it_leaves():
    batch, found = make_batch(), run(Augmentation(cutmix=1.0))
    own = (found["image"] == batch["image"]).all(axis=-1)
    other = (found["image"] == np.roll(batch["image"], 1, axis=0)).all(axis=-1)
    assert (own ^ other).all()
    np.testing.assert_allclose(found["label_weight"], own.mean(axis=(1, 2)), atol=1e-6)


def test_each_example_takes_one_of_mixup_and_cutmix():
    taken = []
    for rng in range(8):
        mixup, cutmix, both = (
            run(Augmentation(**fields), rng=rng)
            for fields in ({"mixup": 0.5}, {"cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0})
        )
        is_mixup = both["label_weight"] == mixup["label_weight"]
        expected = np.where(is_mixup[:, None, None, None], mixup["image"], cutmix["image"])
        np.testing.assert_allclose(both["image"], expected, atol=1e-6)
        np.testing.assert_allclose(
            both["label_weight"], np.where(is_mixup, mixup["label_weight"], cutmix["label_weight"]), atol=1e-6
        )
        taken.extend(is_mixup)
    assert 0.35 < np.mean(taken) < 0.65


def test_padding_is_mixed_with_nothing():
    batch = make_batch()
    batch["example_mask"][-5:] = False
    for config in (Augmentation(mixup=1.0), Augmentation(cutmix=1.0)):
        found = run(config, batch)
        alone = (POSITIONS == 0) | (POSITIONS >= BATCH - 5)  # example 0 would take from the last one
        np.testing.assert_array_equal(found["image"][alone], batch["image"][alone])
        np.testing.assert_array_equal(found["label_weight"][alone], 1)
        assert (found["label_weight"][~alone] < 1).any()


def test_colour_jitter_draws_each_amount_from_its_own_range():
    count, color = 400, np.array([0.3, 0.35, 0.4], np.float32)
    images = np.broadcast_to(color, (count, 2, 1, 3)) + np.array([0.02, -0.02], np.float32)[:, None, None]

    def jitter(**strength):
        return run(Augmentation(**strength), {"image": images}, positions=jnp.arange(count))["image"]

    def spread(x, axis):
        return np.asarray(x).max(axis) - np.asarray(x).min(axis)

    bright = jitter(brightness=1.8)[:, 0, 0, 0] / 0.32
    factors = {
        "brightness": (jitter(brightness=0.4)[:, 0, 0, 0] / 0.32 - 0.6) / 0.8,
        "contrast": (spread(jitter(contrast=0.5)[..., 0], (1, 2)) / 0.04 - 0.5) / 1.0,
        "saturation": (spread(jitter(saturation=0.6)[:, 0, 0], 1) / 0.1 - 0.4) / 1.2,
        "hue": ((rgb_to_hsv(jitter(hue=0.2))[:, 0, 0, 0] - rgb_to_hsv(color)[0] + 0.5) % 1 - 0.5 + 0.2) / 0.4,
        "brightness from 0": bright / 2.8,
    }
    for name, uniform in factors.items():
        assert scipy.stats.kstest(uniform, "uniform").pvalue > 1e-3, name
    correlations = np.corrcoef([factors[name] for name in ("brightness", "contrast", "saturation", "hue")])
    assert (np.abs(correlations - np.eye(4)) < 0.2).all()


def test_grey_images_have_no_colour_to_jitter():
    batch = make_batch(channels=1)
    np.testing.assert_array_equal(run(Augmentation(saturation=0.5, hue=0.5), batch)["image"], batch["image"])
    assert (run(Augmentation(brightness=0.5), batch)["image"] != batch["image"]).any()


def box_around(mask):
    """The box around the pixels of a mask that are 1, in 0..1 of it."""
    edges = np.argwhere(mask[..., 0] == 1)
    return np.concatenate([edges.min(0), edges.max(0) + 1]) / np.tile(mask.shape[:2], 2)


@pytest.mark.parametrize(
    ("field", "size", "tolerance"),
    [
        *((field, size, 0) for field in ("flip", "dihedral", "pad_crop") for size in ((12, 10), (11, 11))),
        *((field, (12, 10), 0) for field in ("crop", "pad_crop+crop")),
        *((field, (60, 40), 2.5) for field in ("scale_jitter", "random_resized_crop")),
    ],
)
def test_boxes_move_with_their_images(field, size, tolerance):
    """They are around what is still seen; those that are lost are cut off somewhere."""
    rng = np.random.default_rng(3)
    masks = np.zeros((BATCH, *size, 1), np.uint8)
    for mask in masks:
        top, left, height, width = (rng.integers(1, np.tile(size, 2) // 2)).tolist()
        mask[top : top + height, left : left + width] = 1
    boxes = np.stack([box_around(mask) for mask in masks]).astype(np.float32)[:, None].repeat(2, axis=1)
    valid = np.array([[True, False]] * BATCH)
    batch = {"image": np.zeros((BATCH, *size, 1), np.float32), "objects/bbox": boxes, "objects/valid": valid}
    on = {name: ON[name] for name in field.split("+") if name in ON}
    window = (8, 9) if "crop" in field.split("+") else ()
    found = run(Augmentation(**on), batch | {"segmentation_mask": masks}, crop_size=window)
    size = found["segmentation_mask"].shape[1:3]
    assert size == (window or masks.shape[1:3])
    assert not found["objects/valid"][:, 1].any()
    kept = found["objects/valid"][:, 0]
    assert kept.all() == (field in ("flip", "dihedral", "scale_jitter"))  # by luck the last
    assert kept.sum() >= BATCH / 4
    for mask, box in zip(found["segmentation_mask"][kept], found["objects/bbox"][kept, 0], strict=True):
        np.testing.assert_allclose(box * np.tile(size, 2), box_around(mask) * np.tile(size, 2), atol=tolerance + 1e-4)
    lost = found["objects/bbox"][~kept, 0]
    assert ((lost == 0) | (lost == 1)).any(axis=1).all()
    moved = (found["objects/bbox"] != boxes).any(axis=(1, 2))
    assert moved.any()
    assert not moved.all() or field not in ("flip", "dihedral")


def test_a_box_stays_as_long_as_its_centre_is_seen():
    """By a pixel: a square of 4 pixels in an image of 8, shifted by at most 3 each way."""
    boxes = np.tile(np.float32([0, 0.25, 0.5, 0.75]), (BATCH, 1, 1))
    batch = {"image": np.zeros((BATCH, 8, 8, 1), np.float32), "objects/bbox": boxes}
    batch["image"][:, 0, 2] = 1
    found = run(Augmentation(pad_crop=3), batch | {"objects/valid": np.ones((BATCH, 1), bool)}, rng=1)
    valid, (top, left, bottom, right) = found["objects/valid"][:, 0], 8 * found["objects/bbox"][:, 0].T
    rows = bottom - 4  # by how much it was shifted down
    assert set(rows[valid]) == {-1, 0, 1, 2, 3}
    np.testing.assert_array_equal(top, np.maximum(rows, 0))
    assert (rows[~valid & (right > left)] <= -2).all()
    assert (~valid).any()


@pytest.mark.parametrize(
    ("field", "target"),
    [
        *((field, "instance_mask") for field in ("random_resized_crop", "pad_crop", "flip", "dihedral", "mixup")),
        *((field, "objects/bbox") for field in ("elastic", "mixup", "cutmix")),
    ],
)
def test_targets_that_would_have_to_move_are_refused(field, target):
    batch = make_batch(**{target: np.zeros((BATCH, 3, 4), np.float32)})
    with pytest.raises(UserError, match=rf"augmentation\.{field} .* {target}; turn it off"):
        run(Augmentation(**{field: ON[field]}), batch)


def test_operations_that_move_nothing_leave_spatial_targets_be():
    masks = np.random.default_rng(0).integers(0, 5, (BATCH, 12, 10, 1)).astype(np.uint8)
    batch = make_batch(segmentation_mask=masks, instance_mask=masks)
    found = run(Augmentation(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.2, cutout=5), batch)
    np.testing.assert_array_equal(found["segmentation_mask"], masks)


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_mixing_needs_labels(field):
    batch = {key: value for key, value in make_batch().items() if key != "label"}
    with pytest.raises(UserError, match=rf"augmentation\.{field} mixes labels"):
        run(Augmentation(**{field: 1.0}), batch)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("pad_crop", -1),
        ("pad_mode", "reflct"),
        ("cutout", -4),
        ("mixup", -0.1),
        ("cutmix", float("nan")),
        ("brightness", float("inf")),
        ("contrast", -1.0),
        ("saturation", -1.0),
        ("hue", 0.6),
        ("random_resized_crop", (0.0, 1.0)),
        ("random_resized_crop", (0.5, 0.4)),
        ("random_resized_crop", (0.5, 1.1)),
        ("random_resized_crop", (0.5,)),
        ("aspect_ratio", (0.0, 1.0)),
        ("aspect_ratio", (1.0, float("inf"))),
        ("aspect_ratio", (1.0, 1.0, 1.0)),
        ("scale_jitter", (0.0, 1.0)),
        ("scale_jitter", (1.5, 0.5)),
        ("fill", (0.5, 2.0)),
        ("fill", (float("nan"),)),
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(UserError, match=rf"^augmentation\.{field}=.*") as raised:
        Augmentation(**{field: value})
    assert "\n" not in str(raised.value)


def test_fill_fits_the_channels():
    with pytest.raises(UserError, match=r"augmentation\.fill=.* 3 channels"):
        run(Augmentation(cutout=3, fill=(0.5, 0.5)))


def test_lists_from_json_become_tuples_and_words_are_refused(monkeypatch):
    # Configurations come from files and flags, where no annotation holds.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    restored = Augmentation(**json.loads(json.dumps(dataclasses.asdict(EVERYTHING))))
    assert restored == EVERYTHING
    assert hash(restored) == hash(EVERYTHING)
    with pytest.raises(UserError, match=r"augmentation\.fill=\('a', 'b'\) must be numbers"):
        Augmentation(**{"fill": ("a", "b")})


def test_normalize_is_what_it_says():
    images = make_batch()["image"]
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    np.testing.assert_allclose(normalize(jnp.array(images), mean, std), (images - mean) / std, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(normalize(jnp.array(images), (0.5,), (0.2,)), (images - 0.5) / 0.2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mean", "std"), [((0.5, 0.5), (1.0,)), ((0.5,), (1.0,) * 4), ((0.5,), (0.0,)), ((0.5,), ())])
def test_normalize_refuses_what_does_not_fit(mean, std):
    with pytest.raises(UserError, match=r"^(mean|std)="):
        normalize(jnp.zeros((2, 4, 4, 3)), mean, std)
