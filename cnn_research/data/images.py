"""Images from their files: decoded, cut and brought to one size, at once and no finer than is seen of them."""

import dataclasses
import functools
import struct
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Shaped, UInt8

from cnn_research.data.proposals import Proposals
from cnn_research.data.windows import RandomWindows, Window
from cnn_research.errors import UserError, nearest

RESIZE = ("stretch", "pad", "fit", "crop")
IGNORE, UNKNOWN = 255, 254  # in masks: no class, and a value that should not be there

# By how much JPEG's inverse transform can shrink an image, and OpenCV's flag for it, which colours take too.
REDUCTIONS = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}


class CorruptImageError(UserError):
    """An image or a mask cannot be decoded."""


@dataclasses.dataclass(frozen=True)
class MaskSpec:
    """What is read of each pixel's class; how it is brought to size is the image's part.

    Attributes:
      feature: that holds the masks.
      num_classes: classes are 0..num_classes-1; 255 means ignore.
      values: the value that each class has in the file, where these are not the classes; all others are ignored.
      borders: whether the batch also says how far each pixel lies between two objects, see `borders`.
    """

    feature: str
    num_classes: int
    values: tuple[int, ...] = ()
    borders: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.num_classes < UNKNOWN:
            raise UserError(f"model.num_classes={self.num_classes}: a mask has 1 to {UNKNOWN - 1} classes")
        if self.values and (len(self.values) != self.num_classes or not all(0 <= value < 256 for value in self.values)):
            raise UserError(
                f"data.mask_values={self.values}: give a value from 0 to 255 for each of {self.num_classes} classes,"
                " or ()"
            )


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """The one shape that every image is brought to.

    Attributes:
      size: height and width.
      channels: 1 for grey, 3 for colour.
      resize: `stretch` each side by itself; `pad`: centred on black, made smaller only if it does not fit; `fit`:
        likewise, made larger too, as large as fits; `crop`: the largest window of this shape in the middle.
      windows: in training, random windows instead.
      masks: where each pixel has a class.
      max_objects: where objects have boxes and classes, how many of an image a batch has room for. Without both each
        image has a label.
      proposals: where a network is given the regions that it looks at.
      skip_corrupt: whether an example whose image or mask cannot be decoded counts as padding; else it is an error.
    """

    size: tuple[int, ...]
    channels: int = 3
    resize: str = "stretch"
    windows: RandomWindows | None = None
    masks: MaskSpec | None = None
    max_objects: int = 0
    proposals: Proposals | None = None
    skip_corrupt: bool = False

    def __post_init__(self) -> None:
        if self.resize not in RESIZE:
            raise UserError(f"data.resize={self.resize!r} is unknown; {nearest(self.resize, RESIZE)}")
        if self.channels not in (1, 3):
            raise UserError(f"data.channels={self.channels}: images have 1 channel (grey) or 3 (colour)")
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"data.image_size={self.size}: give a height and a width in pixels, such as 32,32")

    def place(self, size: tuple[int, int], draws: Sequence[float] = ()) -> tuple[Window, Window]:
        """Returns which part of an image is seen, and where in the result it comes to lie.

        Args:
          size: height and width of the image.
          draws: of the example, for `windows`; without them the image is seen as `resize` says.
        """
        whole, result = Window(0, 0, *size), Window(0, 0, *self.size)
        if self.windows and len(draws):
            return self.windows(size, (result.height, result.width), draws), result
        if self.resize == "stretch":
            return whole, result
        scales = [part / whole for part, whole in zip(self.size, size, strict=True)]
        if self.resize == "crop":
            height, width = (max(1, round(part / max(scales))) for part in self.size)
            return Window((size[0] - height) // 2, (size[1] - width) // 2, height, width), result
        scale = min(scales) if self.resize == "fit" else min(1.0, *scales)
        height, width = (max(1, round(part * scale)) for part in size)
        return whole, Window((1 + self.size[0] - height) // 2, (1 + self.size[1] - width) // 2, height, width)


def decode(encoded: bytes, channels: int, reduction: int = 1) -> UInt8[np.ndarray, "height width channels"]:
    """Decodes a PNG or JPEG file, whatever its own number of channels, as it is stored (without turning it by EXIF).

    Args:
      encoded: the file's bytes.
      channels: 1 for grey, 3 for RGB.
      reduction: 1, 2, 4 or 8: how many pixels become one, along each side.

    Raises:
      CorruptImageError: the bytes are no image. Of one that is cut off decoders give what there is.
    """
    mode = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
    image = _decode(encoded, mode | REDUCTIONS[reduction])
    return image.reshape(*image.shape[:2], channels)


def _decode(encoded: bytes, flags: int) -> Shaped[np.ndarray, "height width *channels"]:
    try:
        image = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:  # no bytes at all, or more pixels than OpenCV takes
        image = None
    if image is None:
        raise CorruptImageError("an image cannot be decoded; PNG and JPEG files can")
    return image


def is_corrupt(encoded: bytes) -> bool:
    """Tells whether an image's file cannot be decoded."""
    try:
        _decode(encoded, cv2.IMREAD_REDUCED_GRAYSCALE_8)
    except CorruptImageError:
        return True
    return False


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Reads a JPEG file's height and width out of its header, which takes a thousandth of decoding it.

    Returns:
      The stored size (EXIF may say that it is to be turned); None where the file is no JPEG that can be reduced.
    """
    if not encoded.startswith(b"\xff\xd8"):
        return None
    # Segments (ITU-T T.81, annex B): FF, a marker, the length of the rest in two bytes.
    position = 2
    while position + 9 <= len(encoded) and encoded[position] == 0xFF:
        marker = encoded[position + 1]
        if 0xC0 <= marker <= 0xC2:  # a frame: baseline, extended or progressive; precision, height, width, …
            height, width = struct.unpack_from(">HH", encoded, position + 5)
            return (height, width) if height and width else None
        # A byte FF may be repeated before a marker.
        position += 1 if marker == 0xFF else 2 + int.from_bytes(encoded[position + 2 : position + 4])
    return None


def write(
    encoded: bytes, spec: ImageSpec, out: UInt8[np.ndarray, "height width channels"], draws: Sequence[float] = ()
) -> tuple[int, int]:
    """Decodes an image and brings it to size, into its place in a batch.

    A photograph is decoded at a half, a quarter or an eighth of its size where what is seen of it then still has as
    many pixels as the result. That keeps within about 35 dB of exact decoding and averaging, where exact decoding and
    bilinear resizing of 2, 4 or 8 pixels to one have 31, 26 or 22 (medians of random windows of VOC's photographs).

    Args:
      encoded: the file's bytes.
      spec: what the image is brought to.
      out: of `spec`'s shape.
      draws: of the example, for `spec.windows`.

    Returns:
      The height and width of the whole image.

    Raises:
      CorruptImageError: the bytes are no image, or not one of the size that they say.
    """
    size = jpeg_size(encoded)
    if size is None:
        image = decode(encoded, spec.channels)
        size = image.shape[:2]
        seen, place = spec.place(size, draws)
    else:
        seen, place = spec.place(size, draws)
        reduction, seen = reduced(seen, place)
        image = decode(encoded, spec.channels, reduction)
        if image.shape[:2] != tuple(-(-side // reduction) for side in size):
            raise CorruptImageError(
                f"an image cannot be decoded; its header says {size} pixels, which it does not have"
            )
    _resize(image, seen, place, out)
    return size


def reduced(seen: Window, place: Window) -> tuple[int, Window]:
    """Returns by how much a photograph shrinks as it is decoded, and where in that what is seen of it lies.

    That is on whole pixels, which moves it by less than a pixel of the result.

    Args:
      seen: of the photograph.
      place: in the result.
    """
    shrinks = min(seen.height / place.height, seen.width / place.width)
    if shrinks < 2:
        return 1, seen
    reduction = max(reduction for reduction in REDUCTIONS if reduction <= shrinks)
    return reduction, Window(*(part // reduction for part in seen))


def write_mask(
    encoded: bytes,
    size: tuple[int, int],
    spec: ImageSpec,
    out: UInt8[np.ndarray, "height width 1"],
    draws: Sequence[float] = (),
) -> None:
    """Decodes an image's mask and brings it to size as `write` does the image, each pixel to the nearest one's class.

    Args:
      encoded: see `decode_mask`.
      size: height and width of the image.
      spec: what it is brought to, with `masks`.
      out: of `spec`'s size; 255 where no part of the image comes to lie.
      draws: of the example, for `spec.windows`.

    Raises:
      CorruptImageError: the mask is no image.
      UserError: it is not the image's size, or has a value that is no class.
    """
    assert spec.masks
    mask = decode_mask(encoded, spec.masks)
    if mask.shape[:2] != size:
        raise UserError(f"the mask has {mask.shape[:2]} pixels and the image {size}; they must be the same")
    seen, place = spec.place(size, draws)
    out[...] = IGNORE
    # By the pixels' centres, as images are resized; OpenCV's other one takes their corners.
    part = cv2.resize(_cut(mask, seen), (place.width, place.height), interpolation=cv2.INTER_NEAREST_EXACT)
    _cut(out, place)[..., 0] = part


def decode_mask(encoded: bytes, spec: MaskSpec) -> UInt8[np.ndarray, "height width 1"]:
    """Decodes a mask at its own size.

    Args:
      encoded: the file's bytes, a grey PNG of 8 or 16 bits.
      spec: what its values mean.

    Returns:
      The classes of the pixels; 255 means ignore.

    Raises:
      CorruptImageError: the mask is no image.
      UserError: it has a value that is no class.
    """
    values = _decode(encoded, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)[..., None]
    classes = _classes(spec).take(values, mode="clip")
    if (classes == UNKNOWN).any():
        raise UserError(
            f"a mask has the value {values[classes == UNKNOWN].max()}, model.num_classes is {spec.num_classes};"
            " give more classes, or the values that are classes as data.mask_values"
        )
    return classes


@functools.cache
def _classes(spec: MaskSpec) -> UInt8[np.ndarray, "257"]:
    """Returns the class of each value of a byte, and of all larger ones."""
    if spec.values:
        classes = np.full(257, IGNORE, np.uint8)
        classes[list(spec.values)] = np.arange(spec.num_classes)
        return classes
    classes = np.full(257, UNKNOWN, np.uint8)
    classes[: spec.num_classes], classes[IGNORE] = np.arange(spec.num_classes), IGNORE
    return classes


def place_boxes(
    boxes: Float32[np.ndarray, "objects 4"], size: tuple[int, int], spec: ImageSpec, draws: Sequence[float] = ()
) -> Float32[np.ndarray, "objects 4"]:
    """Moves boxes as `write` does their image, and cuts them off where what is seen of it ends.

    One whose centre is not seen is lost, as in `augmentation`.

    Args:
      boxes: ymin, xmin, ymax, xmax in 0..1 of the image.
      size: height and width of the image.
      spec: what it is brought to.
      draws: of the example, for `spec.windows`.

    Returns:
      In 0..1 of the result; a box that is lost has no area.
    """
    seen, place = spec.place(size, draws)
    shares = _shares(boxes, size, seen)
    centres = shares.mean(axis=1)
    shares[((centres < 0) | (centres > 1)).any(axis=1)] = 0
    return _placed(shares, place, spec.size)


def restore_boxes(
    boxes: Float32[np.ndarray, "objects 4"], size: tuple[int, int], spec: ImageSpec
) -> Float32[np.ndarray, "objects 4"]:
    """Undoes `place_boxes`, where nothing is drawn.

    Args:
      boxes: in 0..1 of what the image was brought to.
      size: height and width of the image.
      spec: what it was brought to.
    """
    seen, place = spec.place(size)
    return _placed(_shares(boxes, spec.size, place), seen, size)


def _shares(
    boxes: Float32[np.ndarray, "objects 4"], size: Sequence[int], window: Window
) -> Float64[np.ndarray, "objects 2 2"]:
    """Returns the corners of boxes, which are in 0..1 of an image, in 0..1 of a window of it."""
    return (boxes.reshape(-1, 2, 2) * np.array(size, np.float64) - window[:2]) / window[2:]


def _placed(
    shares: Float64[np.ndarray, "objects 2 2"], window: Window, size: Sequence[int]
) -> Float32[np.ndarray, "objects 4"]:
    """Undoes `_shares`, and cuts off what is not in the window."""
    return ((window[:2] + np.clip(shares, 0, 1) * window[2:]) / size).reshape(-1, 4).astype(np.float32)


def restore(
    maps: Float32[np.ndarray, "height width channels"], spec: ImageSpec, size: tuple[int, int]
) -> Float32[np.ndarray, "new_height new_width channels"]:
    """Brings what is said of an image at `spec.size` back to the image's own size, bilinearly.

    Args:
      maps: of `spec.size`, or its middle; or with a border, which is left out.
      spec: what the image was brought to.
      size: the image's height and width.

    Returns:
      Of the image's size; where `spec` leaves a part of the image out, what is said of the nearest pixel.
    """
    maps = _fit(maps, spec.size)
    seen, place = spec.place(size)
    part = cv2.resize(
        np.ascontiguousarray(_cut(maps, place)), (seen.width, seen.height), interpolation=cv2.INTER_LINEAR
    )
    part = part.reshape(seen.height, seen.width, -1)  # OpenCV drops a single channel
    widths = (seen.top, size[0] - seen.top - seen.height), (seen.left, size[1] - seen.left - seen.width), (0, 0)
    return np.pad(part, widths, mode="edge")


def _fit(
    maps: Float32[np.ndarray, "height width channels"], size: tuple[int, ...]
) -> Float32[np.ndarray, "new_height new_width channels"]:
    """Cuts maps to their middle, or repeats their border."""
    for axis, side in enumerate(size):
        missing = side - maps.shape[axis]
        if missing < 0:
            maps = maps.take(np.arange(side) + -missing // 2, axis)
        else:
            widths = [(0, 0)] * maps.ndim
            widths[axis] = missing // 2, missing - missing // 2
            maps = np.pad(maps, widths, mode="edge")
    return maps


def resize(
    image: UInt8[np.ndarray, "height width channels"], spec: ImageSpec
) -> UInt8[np.ndarray, "new_height new_width channels"]:
    """Brings an image to `spec.size`, as `spec.resize` says."""
    out = np.empty((*spec.size, spec.channels), np.uint8)
    _resize(image, *spec.place(image.shape[:2]), out)
    return out


def _resize(
    image: UInt8[np.ndarray, "height width channels"],
    seen: Window,
    place: Window,
    out: UInt8[np.ndarray, "new_height new_width channels"],
) -> None:
    """Resizes a window of an image into a place of another, which is black elsewhere; nothing else is read."""
    if place[2:] != out.shape[:2]:
        out[...] = 0
    part, target = _cut(image, seen), _cut(out, place)
    if part.shape == target.shape:
        target[...] = part
        return
    # Between the two nearest pixels, which leaves none out down to half the size; the mean of all takes four times as
    # long, and OpenCV has none where one side grows. Half the size itself is the mean of four, both ways.
    shrinks = seen.height / place.height, seen.width / place.width
    interpolation = cv2.INTER_AREA if max(shrinks) > 2 and min(shrinks) >= 1 else cv2.INTER_LINEAR
    cv2.resize(part, (place.width, place.height), dst=target, interpolation=interpolation)


def _cut(
    image: Shaped[np.ndarray, "height width channels"], window: Window
) -> Shaped[np.ndarray, "new_height new_width channels"]:
    return image[window.top : window.top + window.height, window.left : window.left + window.width]
