"""PASCAL VOC's semantic segmentation, from the folder that its archive unpacks to, as a TFDS builder."""

import io
from collections.abc import Iterator
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from cnn_research.errors import UserError

CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255  # the border of objects, and what is too hard to tell

# The folder with the masks of each split's list in ImageSets/Segmentation.
SPLITS = {"train": "SegmentationClass", "val": "SegmentationClass", "trainaug": "SegmentationClassAug"}
OPTIONAL = ("trainaug",)

_DESCRIPTION = """
Photographs and the class of each of their pixels (Everingham et al. 2010): `segmentation_mask` is 0 on the background,
1 to 20 on objects and 255 where nothing is to be learnt. Split `trainaug` is there where its list and the masks of
Hariharan et al. (2011), as single-channel images, have been added to the folder.
"""


class VocSegmentation(tfds.core.GeneratorBasedBuilder):
    """Builder of `voc_segmentation`: `image`, `segmentation_mask` and `file_name`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack VOCtrainval_11-May-2012.tar; the folder with JPEGImages, SegmentationClass and ImageSets is manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "segmentation_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "file_name": tfds.features.Text(),
                }
            ),
            homepage="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
            disable_shuffling=True,  # the order of the lists
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = epath.Path(dl_manager.manual_dir)
        return {
            split: self._generate_examples(folder, split)
            for split in SPLITS
            if split not in OPTIONAL or _list(folder, split).exists()
        }

    def _generate_examples(self, folder: epath.Path, split: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for name in _list(folder, split).read_text().split():
            mask = read_mask(folder / SPLITS[split] / f"{name}.png")
            image = (folder / "JPEGImages" / f"{name}.jpg").read_bytes()
            encoded = cv2.imencode(".png", mask)[1].tobytes()
            yield (
                name,
                {"image": io.BytesIO(image), "segmentation_mask": io.BytesIO(encoded), "file_name": f"{name}.jpg"},
            )


def prepare(data_dir: epath.PathLike, manual_dir: epath.PathLike) -> tfds.core.DatasetBuilder:
    """Returns the builder of the data set, ready to be read; prepares it if need be.

    Args:
      data_dir: the folder of data sets to write to.
      manual_dir: VOC's folder, such as `VOCdevkit/VOC2012`.

    Raises:
      UserError: something is missing in VOC's folder, or is not what it should be.
    """
    builder = VocSegmentation(data_dir=data_dir)
    if builder.is_prepared():
        return builder
    folder = epath.Path(manual_dir).expanduser()
    needed = [folder / "JPEGImages", folder / "SegmentationClass", _list(folder, "train"), _list(folder, "val")]
    missing = next((path for path in needed if not path.exists()), None)
    if missing:
        raise UserError(f"--manual_dir={manual_dir} has no {missing.relative_to(folder)}; give the folder VOC2012")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=folder), file_format="array_record"
        )
    except FileNotFoundError as error:
        raise UserError(f"a list names what is not there: {error}") from error
    return builder


def _list(folder: epath.Path, split: str) -> epath.Path:
    return folder / "ImageSets" / "Segmentation" / f"{split}.txt"


def read_mask(path: epath.Path) -> UInt8[np.ndarray, "height width"]:
    """Returns the classes that a file holds, not the colours in which it shows them.

    Args:
      path: of a PNG with a palette, or with a single channel.

    Raises:
      UserError: the file is no such image, or holds other values than classes and 255.
    """
    try:
        with path.open("rb") as file, Image.open(file) as image:
            mode, values = image.mode, np.array(image)
    except (OSError, SyntaxError) as error:
        if not path.exists():
            raise
        raise UserError(f"{path} cannot be read as an image") from error
    if mode not in ("P", "L"):
        raise UserError(f"{path} holds colours; a mask has a palette, or a single channel")
    if ((values >= len(CLASSES)) & (values != VOID)).any():
        raise UserError(f"{path} has the value {values[values != VOID].max()}; classes are 0 to {len(CLASSES) - 1}")
    return values
