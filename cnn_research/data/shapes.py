"""The embedded `shapes` set: drawn scenes with classes, boxes, semantic and instance masks, as a TFDS builder."""

import dataclasses
import io
import re
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import UInt8

from cnn_research.data import scenes
from cnn_research.errors import UserError, nearest

_DESCRIPTION = """
Coloured ellipses, rectangles, triangles and stars on textured ground, drawn when the set is prepared. They overlap,
cross the border, and vary in size, aspect, angle, colour and texture, none of which tells the class. `label` is the
class of the object with the most visible pixels; `objects` go from back to front; boxes are tight around what is
visible. `segmentation_mask` is 0 on the ground and class + 1 elsewhere; `instance_mask` is 0 on the ground and k where
the k-th of `objects` is seen.
"""

SPLITS = ("train", "test")
SMALLEST_SIDE = 16
PIXELS_PER_OBJECT = 64  # that an image must have, so that its objects find room
MAX_OBJECTS = 255  # instances are numbered in a byte

# What a config's name is made of: how each part is written, and the fields that its numbers set.
_PARTS = {
    "size": ("{}x{}", ("height", "width")),
    "train": ("train{}", ("train",)),
    "test": ("test{}", ("test",)),
    "objects": ("objects{}-{}", ("min_objects", "max_objects")),
    "seed": ("seed{}", ("seed",)),
}


@dataclasses.dataclass(kw_only=True)
class ShapesConfig(tfds.core.BuilderConfig):
    """What to draw. Equal configs have equal names, and so share a directory.

    Attributes:
      name: the canonical text for `shapes_config`: the size, and what differs from the default.
      height: of every image, in pixels.
      width: of every image, in pixels.
      train: examples of the split `train`; asking for more leaves the first ones as they are.
      test: examples of the split `test`; likewise.
      min_objects: fewest objects in an image.
      max_objects: most objects in an image.
      seed: each seed gives other images.
    """

    name: str = dataclasses.field(init=False)
    height: int = 64
    width: int = 64
    train: int = 2000
    test: int = 500
    min_objects: int = 1
    max_objects: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        size = f"{self.height}x{self.width}"
        if min(self.height, self.width) < SMALLEST_SIDE:
            raise UserError(f"shapes of {size} pixels are too small; both sides must be at least {SMALLEST_SIDE}")
        if min(self.train, self.test) < 1:
            raise UserError(f"shapes with {self.train} train and {self.test} test images; each split needs at least 1")
        room = min(self.height * self.width // PIXELS_PER_OBJECT, MAX_OBJECTS)
        if not 1 <= self.min_objects <= self.max_objects <= room:
            raise UserError(
                f"shapes with {self.min_objects} to {self.max_objects} objects in {size} pixels;"
                f" the fewest and the most must be from 1 to {room}, in this order"
            )
        if not 0 <= self.seed < 2**63:
            raise UserError(f"shapes with seed {self.seed}; it must be at least 0 and less than 2^63")
        self.name = "_".join(
            form.format(*(getattr(self, field) for field in fields))
            for part, (form, fields) in _PARTS.items()
            if part == "size" or any(getattr(self, field) != getattr(ShapesConfig, field) for field in fields)
        )


def shapes_config(text: str) -> ShapesConfig:
    """Reads the part of a data set's name that follows `shapes/`.

    Args:
      text: parts joined by `_`, in any order, each at most once: HEIGHTxWIDTH, `train`COUNT, `test`COUNT,
        `objects`FEWEST-MOST, `seed`NUMBER, such as `96x128_train4000_test800_objects1-1_seed3`; empty for the default.
        These characters are the ones that TFDS allows in a config's name, and no shell, sweep or bucket gives them
        another meaning.

    Raises:
      UserError: a part is unknown, malformed, given twice or out of range.
    """
    values: dict[str, int] = {}
    for part in text.split("_") if text else []:
        key = re.sub(r"[^A-Za-z].*", "", part) or "size"
        if key not in _PARTS:
            raise UserError(f"shapes config {text!r} has an unknown part {part!r}; {nearest(key, _PARTS)}")
        form, fields = _PARTS[key]
        match = re.fullmatch(form.replace("{}", "([0-9]{1,20})"), part)
        if not match:
            example = form.format(*(getattr(ShapesConfig, field) for field in fields))
            raise UserError(f"shapes config {text!r} has a malformed part {part!r}; write it like {example}")
        if fields[0] in values:
            raise UserError(f"shapes config {text!r} gives the {key} twice; give it once")
        values |= zip(fields, map(int, match.groups()), strict=True)
    return ShapesConfig(**values)


def draw(config: ShapesConfig, split: str, index: int) -> scenes.Scene:
    """Draws an example: a pure function of the config's size, objects and seed, of the split and of the index.

    Args:
      config: what to draw.
      split: `train` or `test`.
      index: of the example in its split.
    """
    # Key and counter of a counter-based generator: no two examples share any part of its stream.
    philox = np.random.Philox(key=[config.seed, index], counter=[0, 0, 0, SPLITS.index(split)])
    objects = (config.min_objects, config.max_objects)
    return scenes.draw(np.random.Generator(philox), config.height, config.width, objects)


class Shapes(tfds.core.GeneratorBasedBuilder):
    """Builder of `shapes`, with a config for every size, count and seed."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    BUILDER_CONFIGS: ClassVar = [ShapesConfig()]

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        label = tfds.features.ClassLabel(names=scenes.CLASSES)
        mask = tfds.features.Image(shape=(config.height, config.width, 1), encoding_format="png")
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(config.height, config.width, 3), encoding_format="png"),
                    "label": label,
                    "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature(), "label": label}),
                    "segmentation_mask": mask,
                    "instance_mask": mask,
                }
            ),
            supervised_keys=("image", "label"),
            disable_shuffling=True,  # examples are independent: on disk they stand in the order of their index
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        for index in range(getattr(self.builder_config, split)):
            scene = draw(self.builder_config, split, index)
            yield (
                index,
                {
                    "image": _png(scene.image[..., ::-1]),  # OpenCV's order is blue, green, red
                    "label": int(scene.classes[np.argmax(scene.sizes)]),
                    "objects": [
                        {"bbox": tfds.features.BBox(*box), "label": label}
                        for box, label in zip(scene.boxes.tolist(), scene.classes.tolist(), strict=True)
                    ],
                    "segmentation_mask": _png(scene.semantic),
                    "instance_mask": _png(scene.instances),
                },
            )


def _png(array: UInt8[np.ndarray, "height width *channels"]) -> io.BytesIO:
    """Encodes losslessly; TFDS would need TensorFlow to encode an array."""
    return io.BytesIO(cv2.imencode(".png", array)[1].tobytes())
