"""Common corruptions of images, at five levels. Hendrycks & Dietterich 2019, arXiv:1903.12261.

"Benchmarking neural network robustness to common corruptions and perturbations"; levels are those of the authors'
published code: ImageNet-C's, and for images of up to 64 pixels CIFAR-10-C's. Images are corrupted as they are stored,
before they are brought to the network's size.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from cnn_research.data.images import CorruptImageError, decode
from cnn_research.data.sources import Source
from cnn_research.errors import UserError, nearest

LEVELS = 5
SMALL = 64  # pixels of the longer side, up to which the levels are CIFAR-10-C's

Pixels = Float64[np.ndarray, "height width channels"]  # in 0..1
Changed = Float64[np.ndarray, "height width *channels"]  # OpenCV drops the axis of one channel
Draws = np.random.Generator


class Corruption(NamedTuple):
    """What is done to images.

    Attributes:
      kind: a name of `CORRUPTIONS`.
      level: from 1, the mildest, to 5.
    """

    kind: str
    level: int

    def __call__(self, image: UInt8[np.ndarray, "height width channels"], index: int) -> UInt8[np.ndarray, "_ _ _"]:
        """Returns a corrupted image.

        Args:
          image: grey (one channel) or RGB.
          index: of the example, which decides what is drawn.
        """
        corrupt, large, small = CORRUPTIONS[self.kind]
        option = (small if max(image.shape[:2]) <= SMALL else large)[self.level - 1]
        draws = np.random.Generator(np.random.Philox(key=[[*CORRUPTIONS].index(self.kind), index]))
        pixels = corrupt(image / 255, option, draws).reshape(image.shape)
        return (np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def parse_corruption(text: str) -> Corruption:
    """Returns the corruption of `gaussian_noise:3`.

    Raises:
      UserError: the text is no such corruption.
    """
    kind, _, level = text.partition(":")
    if kind not in CORRUPTIONS:
        raise UserError(f"corruption {kind!r} is not known; {nearest(kind, CORRUPTIONS)}")
    if level not in map(str, range(1, LEVELS + 1)):
        raise UserError(f"corruption {text!r} has no level; write {kind}:3, from 1 to {LEVELS}")
    return Corruption(kind, int(level))


@dataclasses.dataclass(frozen=True)
class CorruptedSource(Source):
    """A split whose images are corrupted as they are read, each always in the same way.

    Attributes:
      corruption: of the images.
    """

    corruption: Corruption = dataclasses.field(kw_only=True)

    def read(self, indices: Sequence[int], mask: str = "", objects: bool = False) -> Iterator[dict[str, Any]]:
        """Yields examples as `Source.read` does, their images as PNG.

        Args:
          indices: of the examples.
          mask: the feature of the masks; none unless given.
          objects: whether to read `objects`.
        """
        channels = self.features[self.image].shape[-1]
        for index, example in zip(indices, super().read(indices, mask, objects), strict=True):
            try:
                image = self.corruption(decode(example["image"], channels), int(index))
            except CorruptImageError:
                yield example  # whoever decodes it knows what to do
                continue
            stored = image if channels == 1 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
            yield example | {"image": cv2.imencode(".png", stored)[1].tobytes()}


def corrupted(source: Source, corruption: Corruption) -> CorruptedSource:
    """Returns a split with its images corrupted.

    Args:
      source: the split.
      corruption: of the images.
    """
    fields = {field.name: getattr(source, field.name) for field in dataclasses.fields(source)}
    return CorruptedSource(**fields, corruption=corruption)


def gaussian_noise(image: Pixels, deviation: float, draws: Draws) -> Changed:
    """Adds noise of a normal distribution."""
    return image + draws.normal(scale=deviation, size=image.shape)


def shot_noise(image: Pixels, photons: float, draws: Draws) -> Changed:
    """Counts photons, of which the brightest pixels get so many on average."""
    return draws.poisson(image * photons) / photons


def gaussian_blur(image: Pixels, deviation: float, _: Draws) -> Changed:
    """Blurs by a normal distribution, cut off at 4 deviations, with the borders' pixels beyond them."""
    reach = int(4 * deviation + 0.5)
    return cv2.GaussianBlur(image, (2 * reach + 1,) * 2, deviation, borderType=cv2.BORDER_REPLICATE)


def defocus_blur(image: Pixels, option: tuple[float, float], _: Draws) -> Changed:
    """Blurs by a disk of a radius, whose border is blurred by a deviation."""
    radius, alias = option
    reach, size = (8, 3) if radius <= 8 else (int(radius), 5)
    steps = np.arange(-reach, reach + 1)
    disk = (steps[:, None] ** 2 + steps**2 <= radius**2).astype(np.float64)
    return cv2.filter2D(image, -1, cv2.GaussianBlur(disk / disk.sum(), (size, size), alias))


def brightness(image: Pixels, more: float, _: Draws) -> Changed:
    """Adds to the value of each pixel's colour, the largest of its channels; hue and saturation stay."""
    value = image.max(-1, keepdims=True)
    factor = np.divide(np.clip(value + more, 0, 1), value, out=np.ones_like(value), where=value > 0)
    return np.where(value > 0, image * factor, more)


def contrast(image: Pixels, factor: float, _: Draws) -> Changed:
    """Moves all values towards their channel's mean."""
    mean = image.mean((0, 1), keepdims=True)
    return (image - mean) * factor + mean


def pixelate(image: Pixels, factor: float, _: Draws) -> Changed:
    """Makes the image smaller, and large again with visible pixels."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(1, int(width * factor)), max(1, int(height * factor))), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)


def jpeg(image: Pixels, quality: int, _: Draws) -> Changed:
    """Stores the image as JPEG."""
    pixels = (image[..., ::-1] * 255 + 0.5).astype(np.uint8)  # BGR, as OpenCV stores colours
    stored = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return decode(stored.tobytes(), image.shape[-1]) / 255


# By name: the function, and its option at each level for photographs and for small images.
CORRUPTIONS: dict[str, tuple[Callable[[Pixels, Any, Draws], Changed], Sequence[Any], Sequence[Any]]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (60.0, 25.0, 12.0, 5.0, 3.0), (500.0, 250.0, 100.0, 75.0, 50.0)),
    "gaussian_blur": (gaussian_blur, (1.0, 2.0, 3.0, 4.0, 6.0), (0.4, 0.6, 0.7, 0.8, 1.0)),
    "defocus_blur": (
        defocus_blur,
        ((3.0, 0.1), (4.0, 0.5), (6.0, 0.5), (8.0, 0.5), (10.0, 0.5)),
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
    ),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5), (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05), (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25), (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (jpeg, (25, 18, 15, 10, 7), (80, 65, 58, 50, 40)),
}
