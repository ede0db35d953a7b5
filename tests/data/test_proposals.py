"""Proposals: searched once, found in their files, and moved as their images are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.data.augmentation import Augmentation, augment
from cnn_research.data.batches import empty, load, nbytes
from cnn_research.data.images import ImageSpec, decode, place_boxes
from cnn_research.data.proposals import open_proposals
from cnn_research.data.propose import is_searched, search_split
from cnn_research.data.selective_search import SelectiveSearch, as_boxes
from cnn_research.data.sources import open_source
from cnn_research.data.windows import RandomWindows
from cnn_research.errors import UserError

NAME = "shapes/32x24_train12_test5"


def prepared(folder, monkeypatch, part=200):
    monkeypatch.setattr("cnn_research.data.propose.PART", part)
    return open_source(NAME, "train+test"), open_proposals(NAME, SelectiveSearch(), 6, str(folder))


def found(source, made):
    return [made.find(example["image"]) for example in source.read(range(len(source)))]


def test_in_parts_shards_and_resumed_they_are_the_same(tmp_path, monkeypatch):
    source, whole = prepared(tmp_path / "whole", monkeypatch)
    assert not is_searched(source, whole)
    assert [*search_split(source, whole)] == [17]
    assert is_searched(source, whole)
    expected = found(source, whole)
    for corners, example in zip(expected, source.read(range(17)), strict=True):
        np.testing.assert_array_equal(corners, SelectiveSearch()(decode(example["image"], 3)))

    source, parts = prepared(tmp_path / "parts", monkeypatch, part=4)
    interrupted = search_split(source, parts, workers=1)
    assert next(interrupted) == 4
    interrupted.close()
    assert not is_searched(source, parts)
    for shard in range(3):
        assert [*search_split(source, parts, shard=(shard, 3))][-1] == len(range(shard, 17, 3))
    for one, other in zip(expected, found(source, parts), strict=True):
        np.testing.assert_array_equal(one, other)
    files = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*")}
    assert [*search_split(source, parts)] == [4, 8, 12, 16, 17]
    assert files == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "parts").rglob("*")}
    # Of any slice of any split they are found.
    assert is_searched(open_source(NAME, "test[1:4]"), parts)


def test_batches_hold_the_first_of_them(tmp_path, monkeypatch):
    """As they lie in what is seen of the image, and zeros where there are no more."""
    source, made = prepared(tmp_path, monkeypatch)
    windows = RandomWindows(seed=0, area=(0.3, 0.6))
    draws = windows.draws(0, 5)
    padded = ImageSpec((32, 32), resize="pad", max_objects=2, proposals=made)
    message = rf"example 3 of {NAME}, split train\+test: no .* --split=train\+test .* --out={tmp_path}$"
    with pytest.raises(UserError, match=message):
        load(source, np.arange(3, 8), np.ones(5, bool), padded)
    [*_] = search_split(source, made)
    cut = ImageSpec((32, 32), max_objects=2, proposals=made, windows=windows)
    for spec, numbers in ((padded, None), (cut, draws)):
        batch = load(source, np.arange(3, 8), np.ones(5, bool), spec, numbers)
        assert {name: (x.shape, x.dtype) for name, x in empty(5, spec).items()} == {
            name: (x.shape, x.dtype) for name, x in batch.items()
        }
        for row, corners in enumerate(found(source, made)[3:8]):
            seen = place_boxes(as_boxes(corners[:6]), (32, 24), spec, () if numbers is None else numbers[row].tolist())
            np.testing.assert_array_equal(batch["proposals"][row, : len(seen)], seen)
            assert not batch["proposals"][row, len(seen) :].any()
    assert nbytes(range(10), spec) - nbytes(range(10), ImageSpec((32, 32))) == 10 * 6 * 4 * 4


def test_a_damaged_file_is_named(tmp_path, monkeypatch):
    source, made = prepared(tmp_path, monkeypatch)
    [*_] = search_split(source, made)
    [path] = tmp_path.rglob("*.npz")
    path.write_bytes(path.read_bytes()[:-50])
    other = open_proposals(NAME, SelectiveSearch(), 6, f"{tmp_path}/.")  # another name, so that it is read again
    with pytest.raises(UserError, match=rf"{path.name} is damaged: .*; remove it"):
        is_searched(source, other)


def test_augmentation_moves_them_as_objects():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.6, (8, 5, 2))
    boxes = jnp.float32(np.concatenate([low, low + rng.uniform(0.1, 0.4, low.shape)], axis=-1))
    batch = {"image": jnp.zeros((8, 12, 12, 1), "uint8"), "objects/bbox": boxes, "proposals": boxes}
    batch["objects/valid"] = jnp.ones((8, 5), bool)
    config = Augmentation(flip=True, dihedral=True, pad_crop=2, scale_jitter=(0.5, 2.0), random_resized_crop=(0.3, 1.0))
    moved = jax.jit(augment, static_argnums=0)(config, jax.random.key(0), batch, jnp.arange(8))
    valid = np.asarray(moved["objects/valid"])
    assert 5 < valid.sum() < 40
    np.testing.assert_array_equal(moved["proposals"][valid], moved["objects/bbox"][valid])
    assert not moved["proposals"][~valid].any()
    assert not np.array_equal(moved["proposals"], boxes)
    for config in (Augmentation(elastic=1.0), Augmentation(mixup=1.0)):
        with pytest.raises(UserError, match="changes the image but not yet its proposals"):
            augment(config, jax.random.key(0), {"image": batch["image"], "proposals": boxes}, jnp.arange(8))
