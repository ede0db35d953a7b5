"""COCO's own folder becomes a data set of objects with boxes and a mask of their numbers."""

import json

import cv2
import numpy as np
import pycocotools.mask
import pytest

from cnn_research.data import coco
from cnn_research.data.batches import load_all
from cnn_research.data.images import ImageSpec, MaskSpec
from cnn_research.data.sources import open_source
from cnn_research.errors import UserError

HEIGHT, WIDTH = 12, 16


def annotation(index, segmentation, area, category=1, crowd=0, box=(0, 0, 4, 4)):
    return {
        **{"id": index, "image_id": 7, "category_id": category, "iscrowd": crowd},
        **{"segmentation": segmentation, "area": area, "bbox": list(box)},
    }


def runs(mask):
    """COCO's run lengths by hand: down the columns, first of zeros."""
    flat = mask.T.ravel()
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    return {"size": list(mask.shape), "counts": np.diff([0, *edges, flat.size]).tolist()}


def rectangle(top, left, height, width):
    mask = np.zeros((HEIGHT, WIDTH), int)
    mask[top : top + height, left : left + width] = 1
    return mask


CORNERS = [2, 1, 12, 1, 12, 9, 2, 9]  # x from 2 to 12, y from 1 to 9
ANNOTATIONS = [
    annotation(1, runs(rectangle(2, 3, 3, 4)), 12, category=90, box=(3, 2, 4, 3)),
    annotation(2, [CORNERS], 80, box=(2, 1, 10, 8)),
    annotation(3, runs(rectangle(0, 0, 12, 8)), 96, category=18, crowd=1, box=(0, 0, 8, 12)),
    annotation(4, runs(rectangle(2, 3, 3, 4)), 12.5, box=(3, 2, 4, 3)),  # behind the first
]


@pytest.fixture
def folder(tmp_path):
    """A folder as COCO's archives unpack, with one small picture that has objects and one that has none."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    for images in coco.SPLITS.values():
        (folder / images).mkdir()
        names = ["000000000007.jpg", "000000000003.jpg"]
        for name in names:
            assert cv2.imwrite(str(folder / images / name), np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
        content = {
            "images": [{"id": int(name[:12]), "file_name": name, "height": HEIGHT, "width": WIDTH} for name in names],
            "categories": [
                {"id": identity, "name": name} for identity, name in ((1, "person"), (18, "dog"), (90, "toothbrush"))
            ],
            "annotations": ANNOTATIONS,
        }
        (folder / "annotations" / f"instances_{images}.json").write_text(json.dumps(content))
    return folder


def test_objects_have_boxes_and_the_numbers_of_the_mask(folder, tmp_path):
    coco.prepare(tmp_path / "data", folder)
    source = open_source("coco_instances", "validation", str(tmp_path / "data"))
    assert source.object_names == coco.CLASSES
    spec = ImageSpec((HEIGHT, WIDTH), masks=MaskSpec("instance_mask", 253), max_objects=5)
    batch = load_all(source, spec)
    np.testing.assert_array_equal(batch["objects/valid"].sum(1), [3, 0])
    # The largest first, and what is ignored last.
    boxes = np.array([[1, 2, 9, 12], [2, 3, 5, 7], [0, 0, 12, 8]]) / [HEIGHT, WIDTH, HEIGHT, WIDTH]
    np.testing.assert_allclose(batch["objects/bbox"][0, :3], boxes, atol=1e-6)
    assert [coco.CLASSES[label] for label in batch["objects/label"][0, :3]] == ["person", "toothbrush", "dog"]
    np.testing.assert_array_equal(batch["objects/ignored"][0], [False, False, True, False, False])
    drawn = 3 * rectangle(0, 0, 12, 8)
    drawn[1:9, 2:12] = 2
    drawn[2:5, 3:7] = 1
    np.testing.assert_array_equal(batch["segmentation_mask"][0, ..., 0], drawn)
    np.testing.assert_array_equal(batch["objects/number"][0, :3], [2, 1, 3])
    assert not batch["segmentation_mask"][1].any()
    assert source.examples[0]["objects"]["area"] == [12, 80, 96]


def test_polygons_and_runs_are_the_same_masks():
    mask = rectangle(2, 3, 3, 4)
    polygon = [[3, 2, 7, 2, 7, 5, 3, 5]]
    np.testing.assert_array_equal(coco.decode(polygon, mask.shape), mask)
    np.testing.assert_array_equal(coco.decode(runs(mask), mask.shape), mask)
    both = coco.decode([*polygon, [10, 0, 12, 0, 12, 12, 10, 12]], mask.shape)
    np.testing.assert_array_equal(both, mask | rectangle(0, 10, 12, 2))
    slanted = [[1, 2, 14.5, 1, 9, 11], [0, 8, 6, 8.2, 3.3, 12]]
    expected = pycocotools.mask.decode(pycocotools.mask.merge(pycocotools.mask.frPyObjects(slanted, *mask.shape)))
    np.testing.assert_array_equal(coco.decode(slanted, mask.shape), expected)
    packed = pycocotools.mask.encode(np.asfortranarray(mask, np.uint8))
    np.testing.assert_array_equal(coco.decode({**packed, "counts": packed["counts"].decode()}, mask.shape), mask)


def test_what_is_missing_is_named(folder, tmp_path):
    path = folder / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    (folder / "val2017" / "000000000003.jpg").unlink()
    with pytest.raises(UserError, match=r"a list names what is not there: .*000000000003"):
        coco.prepare(tmp_path / "data", folder)
    content["categories"][0]["name"] = "martian"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="has the category 'martian', which is none of COCO's 80"):
        coco.prepare(tmp_path / "data", folder)
    path.unlink()
    with pytest.raises(UserError, match=r"has no annotations/instances_val2017\.json; give the folder of COCO 2017"):
        coco.prepare(tmp_path / "data", folder)
    assert not list((tmp_path / "data").glob("coco_instances/1.0.0"))


def test_more_objects_than_bytes_can_number_are_refused():
    grid = [annotation(index, runs(rectangle(index // 2, index % 2, 1, 1)), 1) for index in range(4)]
    kept, mask = coco.number(grid, (HEIGHT, WIDTH))
    assert [each["id"] for each in kept] == [0, 1, 2, 3]
    np.testing.assert_array_equal(mask[:2, :2], [[1, 2], [3, 4]])
    many = [
        annotation(i, [[i % 16, i // 16, i % 16 + 1, i // 16, i % 16 + 1, i // 16 + 1, i % 16, i // 16 + 1]], 1)
        for i in range(300)
    ]
    with pytest.raises(UserError, match="image 7 has 300 objects; 252 can be told apart"):
        coco.number(many, (20, 16))
