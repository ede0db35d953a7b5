"""The embedded `digits` set: scikit-learn's 1,797 real handwritten digits of 8x8 pixels, as a TFDS builder."""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Bool, Int

_DESCRIPTION = """
Handwritten digits of 43 people, scanned, cut to 32x32 bitmaps and counted in blocks of 4x4: 8x8 pixels of 17 grey
levels, here scaled to 0..255. It is the test part of the UCI set, as scikit-learn ships it. The split is ours: a fifth
of every class is the test split.
"""

_CITATION = """
@misc{alpaydin1998optdigits,
  author = {Alpaydin, Ethem and Kaynak, Cenk},
  title = {Optical Recognition of Handwritten Digits},
  year = {1998},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
}
"""

SPLIT_SEED = 1998
TEST_EVERY = 5  # every fifth digit is for testing: 360 of 1,797
GREY_LEVELS = 16


def is_test(labels: Int[np.ndarray, "examples"]) -> Bool[np.ndarray, "examples"]:
    """Tells which examples are for testing, the same with every version of NumPy and scikit-learn.

    The examples are put in order of class, and within a class by the raw 64-bit output of the Philox counter-based
    generator, whose stream NumPy keeps for ever (its distributions and shuffles it does not). Every fifth one is for
    testing, so that each class gives a fifth of its examples, to within one.

    Args:
      labels: the class of each example, in the order of scikit-learn's file.
    """
    keys = np.random.Philox(key=SPLIT_SEED).random_raw(len(labels))
    order = np.lexsort((keys, labels))
    test = np.zeros(len(labels), bool)
    test[order[::TEST_EVERY]] = True
    return test


class Digits(tfds.core.GeneratorBasedBuilder):
    """Builder of `digits`: `image` uint8[8, 8, 1] and `label`; 1,437 examples to train on and 360 to test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://doi.org/10.24432/C50P49",
            citation=_CITATION,
            disable_shuffling=True,  # the pipelines shuffle; on disk the order is scikit-learn's
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {"train": self._generate_examples(test=False), "test": self._generate_examples(test=True)}

    def _generate_examples(self, test: bool) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn import datasets  # slow to import, and only needed once, to prepare

        digits = datasets.load_digits()
        # Whole-number arithmetic: the nearest of 0..255, halves up.
        images = (digits.images.astype(np.int64) * 255 + GREY_LEVELS // 2) // GREY_LEVELS
        labels = digits.target.astype(np.int64)
        for index in np.flatnonzero(is_test(labels) == test).tolist():
            encoded = cv2.imencode(".png", images[index].astype(np.uint8))[1].tobytes()
            yield index, {"image": io.BytesIO(encoded), "label": int(labels[index])}
