"""The digits are scikit-learn's, each in one split, and the split never changes."""

import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from sklearn import datasets
from sklearn.linear_model import LogisticRegression

from cnn_research.data import digits, embedded


@pytest.fixture(scope="module")
def splits(data_dir):
    """Images and labels of each split, as read from disk."""
    sources = {name: embedded.prepare("digits", data_dir).as_data_source(split=name) for name in ("train", "test")}
    return {
        name: (np.stack([example["image"] for example in source]), np.array([example["label"] for example in source]))
        for name, source in sources.items()
    }


@given(st.lists(st.integers(0, 9), min_size=1, max_size=200))
def test_every_class_gives_a_fifth_to_the_test_split(labels):
    labels = np.array(labels)
    test = digits.is_test(labels)
    assert test.sum() == -(-len(labels) // 5)
    for label in np.unique(labels):
        assert abs(test[labels == label].sum() - (labels == label).sum() / 5) < 1


def test_the_split_is_the_one_that_was_published():
    test = digits.is_test(datasets.load_digits().target)
    assert test.sum() == 360
    assert np.flatnonzero(test)[:8].tolist() == [2, 3, 6, 13, 15, 29, 37, 39]
    assert hashlib.sha256(np.packbits(test).tobytes()).hexdigest()[:16] == "3e192121861d45b4"


def test_the_split_is_not_scikit_learns_order():
    test = digits.is_test(datasets.load_digits().target)
    # Neighbours in the file are one writer's; a fifth of every stretch is tested.
    assert all(10 <= stretch.sum() <= 40 for stretch in np.array_split(test, 15))


def test_every_digit_is_read_back_once(splits):
    reference = datasets.load_digits()
    test = digits.is_test(reference.target)
    for name, chosen in (("train", ~test), ("test", test)):
        images, labels = splits[name]
        assert images.shape == (chosen.sum(), 8, 8, 1)
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(labels, reference.target[chosen])
        np.testing.assert_allclose(images[..., 0], reference.images[chosen] * 255 / 16, atol=0.5)
    assert (len(splits["train"][0]), len(splits["test"][0])) == (1437, 360)
    assert splits["train"][0].max() == 255


def test_labels_belong_to_their_images(splits):
    (train_images, train_labels), (test_images, test_labels) = splits["train"], splits["test"]
    model = LogisticRegression(max_iter=200).fit(train_images.reshape(len(train_images), -1) / 255, train_labels)
    assert model.score(test_images.reshape(len(test_images), -1) / 255, test_labels) > 0.9


def test_the_directory_needs_no_code(data_dir, splits):
    builder = tfds.builder_from_directory(embedded.prepare("digits", data_dir).data_dir)
    assert builder.info.features["label"].num_classes == 10
    assert "Alpaydin" in builder.info.citation
    np.testing.assert_array_equal(builder.as_data_source(split="test")[7]["image"], splits["test"][0][7])
