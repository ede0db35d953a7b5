"""COCO's objects with their masks, from the folder that its archives unpack to, as a TFDS builder."""

import io
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import cv2
import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from faster_coco_eval.core import mask as rle
from jaxtyping import Bool, UInt8

from cnn_research.errors import UserError

# In the order of COCO's ids, which have gaps.
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant",
    "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard",
    "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli",
    "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table", "toilet",
    "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven", "toaster", "sink",
    "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip

# The folder of each split's photographs; its objects are in annotations/instances_FOLDER.json.
SPLITS = {"train": "train2017", "validation": "val2017"}

_DESCRIPTION = """
Photographs of everyday scenes (Lin et al. 2014, arXiv:1405.0312): `objects` as TFDS's `coco` has them, and
`instance_mask`, which is 0 on the ground and k where the k-th of `objects` is seen. Where COCO's masks overlap the
smaller object is seen, and crowds are behind all others. An object without a pixel of its own is left out.
"""


class CocoInstances(tfds.core.GeneratorBasedBuilder):
    """Builder of `coco_instances`: `image`, `image/id`, `objects` and `instance_mask`."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "First release."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Unpack train2017.zip, val2017.zip and annotations_trainval2017.zip in one folder, which is manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        objects = {
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "is_crowd": np.bool_,
            "area": np.int64,
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "image/id": np.int64,
                    "objects": tfds.features.Sequence(objects),
                    "instance_mask": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                }
            ),
            homepage="https://cocodataset.org",
            disable_shuffling=True,  # the order of the file
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = epath.Path(dl_manager.manual_dir)
        return {split: self._generate_examples(folder, images) for split, images in SPLITS.items()}

    def _generate_examples(self, folder: epath.Path, images: str) -> Iterator[tuple[int, dict[str, Any]]]:
        path = _annotations(folder, images)
        content = json.loads(path.read_text())
        labels = {}
        for category in content["categories"]:
            if category["name"] not in CLASSES:
                raise UserError(f"{path} has the category {category['name']!r}, which is none of COCO's 80")
            labels[category["id"]] = CLASSES.index(category["name"])
        of_image = defaultdict(list)
        for annotation in content["annotations"]:
            of_image[annotation["image_id"]].append(annotation)
        for index, image in enumerate(content["images"]):
            size = image["height"], image["width"]
            annotations, mask = number(of_image[image["id"]], size)
            yield (
                index,
                {
                    "image": io.BytesIO((folder / images / image["file_name"]).read_bytes()),
                    "image/id": image["id"],
                    "objects": [
                        {
                            "bbox": _box(annotation["bbox"], size),
                            "label": labels[annotation["category_id"]],
                            "is_crowd": bool(annotation["iscrowd"]),
                            "area": round(annotation["area"]),
                        }
                        for annotation in annotations
                    ],
                    "instance_mask": io.BytesIO(cv2.imencode(".png", mask)[1].tobytes()),
                },
            )


def prepare(data_dir: epath.PathLike, manual_dir: epath.PathLike) -> tfds.core.DatasetBuilder:
    """Returns the builder of the data set, ready to be read; prepares it if need be.

    Args:
      data_dir: the folder of data sets to write to.
      manual_dir: COCO's folder, with `train2017`, `val2017` and `annotations`.

    Raises:
      UserError: something is missing in COCO's folder, or is not what it should be.
    """
    builder = CocoInstances(data_dir=data_dir)
    if builder.is_prepared():
        return builder
    folder = epath.Path(manual_dir).expanduser()
    needed = [path for images in SPLITS.values() for path in (folder / images, _annotations(folder, images))]
    missing = next((path for path in needed if not path.exists()), None)
    if missing:
        raise UserError(f"--manual_dir={manual_dir} has no {missing.relative_to(folder)}; give the folder of COCO 2017")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=folder), file_format="array_record"
        )
    except FileNotFoundError as error:
        raise UserError(f"a list names what is not there: {error}") from error
    return builder


def _annotations(folder: epath.Path, images: str) -> epath.Path:
    return folder / "annotations" / f"instances_{images}.json"


def number(
    annotations: Sequence[Mapping[str, Any]], size: tuple[int, int]
) -> tuple[list[Mapping[str, Any]], UInt8[np.ndarray, "height width"]]:
    """Draws all objects of an image into one mask, the smaller ones over the larger ones, all over crowds.

    Args:
      annotations: of the image, as COCO's file has them.
      size: height and width of the image.

    Returns:
      Those that are seen, and where the mask is k, the k-th of them is.

    Raises:
      UserError: there are more than a mask of bytes can number.
    """
    order = sorted(range(len(annotations)), key=lambda i: (not annotations[i]["iscrowd"], -annotations[i]["area"]))
    drawn = np.zeros(size, np.int32)
    for index in order:
        drawn[decode(annotations[index]["segmentation"], size)] = index + 1
    numbers, mask = np.unique(np.append(0, drawn), return_inverse=True)
    if len(numbers) > 253:
        raise UserError(f"image {annotations[0]['image_id']} has {len(numbers) - 1} objects; 252 can be told apart")
    return [annotations[index - 1] for index in numbers[1:]], mask[1:].reshape(size).astype(np.uint8)


def decode(segmentation: Any, size: tuple[int, int]) -> Bool[np.ndarray, "height width"]:
    """Returns the mask that an annotation tells by polygons, or by its runs of pixels, down its columns.

    Args:
      segmentation: polygons, each x, y, x, y and so on; or `counts`, plain or packed into a text.
      size: height and width of the image.
    """
    if isinstance(segmentation, list):
        runs = rle.merge(rle.frPyObjects(segmentation, *size))
    elif isinstance(segmentation["counts"], list):
        runs = rle.frPyObjects(segmentation, *size)
    else:
        runs = segmentation
    return rle.decode(runs).astype(bool)


def _box(bbox: Sequence[int | float], size: tuple[int, int]) -> tfds.features.BBox:
    """Returns COCO's x, y, width, height in pixels as TFDS has boxes."""
    (x, y, w, h), (height, width) = bbox, size
    corners = np.array([y / height, x / width, (y + h) / height, (x + w) / width])
    return tfds.features.BBox(*corners.clip(0, 1).tolist())
