"""VOC's own folder, with masks in colours of a palette, becomes a data set of classes."""

import cv2
import numpy as np
import pytest
from PIL import Image

from cnn_research.data import voc_segmentation
from cnn_research.data.batches import load_all
from cnn_research.data.images import ImageSpec, MaskSpec
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError

LISTS = {"train": ("2007_000032", "2007_000039"), "val": ("2007_000033",)}


@pytest.fixture
def devkit(tmp_path):
    """A folder as VOC's archive unpacks, with small pictures."""
    folder = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for split, names in LISTS.items():
        write_list(folder, split, names)
        for index, name in enumerate(names):
            write_mask(folder / "SegmentationClass", name, np.array([[0, 20, 255], [index, 15, 1]], np.uint8))
            pixels = np.full((2, 3, 3), 40 * index, np.uint8)
            assert cv2.imwrite(str(folder / "JPEGImages" / f"{name}.jpg"), pixels)
    return folder


def write_list(folder, split, names):
    (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))


def write_mask(folder, name, classes):
    image = Image.fromarray(classes, "P")
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    image.save(folder / f"{name}.png")


def prepared(devkit, tmp_path):
    return voc_segmentation.prepare(tmp_path / "data", devkit)


def test_masks_hold_classes_not_colours(devkit, tmp_path):
    builder = prepared(devkit, tmp_path)
    spec = ImageSpec((2, 3), masks=MaskSpec("segmentation_mask", 21))
    for split, names in LISTS.items():
        source = open_source("voc_segmentation", split, str(tmp_path / "data"))
        assert [example["file_name"].decode() for example in source.examples] == [f"{name}.jpg" for name in names]
        batch = load_all(source, spec)
        for index in range(len(names)):
            assert batch["segmentation_mask"][index, ..., 0].tolist() == [[0, 20, 255], [index, 15, 1]]
            assert np.abs(batch["image"][index].astype(int) - 40 * index).max() < 4
    assert prepared(devkit, tmp_path).data_path == builder.data_path


def test_augmented_split(devkit, tmp_path):
    write_list(devkit, "trainaug", LISTS["val"])
    (devkit / "SegmentationClassAug").mkdir()
    Image.fromarray(np.full((2, 3), 7, np.uint8)).save(devkit / "SegmentationClassAug" / f"{LISTS['val'][0]}.png")
    assert set(prepared(devkit, tmp_path).info.splits) == {"train", "val", "trainaug"}
    source = open_source("voc_segmentation", "trainaug", str(tmp_path / "data"))
    batch = load_all(source, ImageSpec((2, 3), masks=MaskSpec("segmentation_mask", 21)))
    assert np.unique(batch["segmentation_mask"]).tolist() == [7]


def test_what_is_missing_is_named(devkit, tmp_path):
    (devkit / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(UserError, match=r"has no ImageSets/Segmentation/val\.txt; give the folder VOC2012"):
        prepared(devkit, tmp_path)
    write_list(devkit, "val", ["2008_000001"])
    with pytest.raises(UserError, match=r"a list names what is not there: .*2008_000001"):
        prepared(devkit, tmp_path)
    assert not list((tmp_path / "data").glob("voc_segmentation/1.0.0"))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), "holds colours; a mask has a palette, or a single channel"),
        (np.full((2, 3), 21, np.uint8), "has the value 21; classes are 0 to 20"),
        (None, "cannot be read as an image"),
    ],
)
def test_bad_masks_are_named(devkit, tmp_path, pixels, message):
    path = devkit / "SegmentationClass" / f"{LISTS['train'][1]}.png"
    if pixels is None:
        path.write_bytes(path.read_bytes()[:40])
    else:
        Image.fromarray(pixels).save(path)
    with pytest.raises(UserError, match=f"{path}.*{message}"):
        prepared(devkit, tmp_path)
