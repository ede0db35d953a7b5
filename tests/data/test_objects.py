import numpy as np
import pytest

from cnn_research.data.images import ImageSpec
from cnn_research.data.objects import empty_objects, read_objects, write_objects
from cnn_research.data.sources import open_source

BOXES = np.float32([[0, 0, 0.5, 0.5], [0, 0, 1, 1], [0.5, 0.5, 0.5, 1], [0.75, 0.5, 1, 1]])


def test_what_a_data_set_knows_of_objects():
    """VOC's difficult ones and COCO's crowds count neither way; COCO has areas; there may be none at all."""
    plain = read_objects({"bbox": BOXES, "label": [3, 1, 2, 4]})
    assert plain.labels.tolist() == [3, 1, 4]
    assert not plain.ignored.any()
    assert plain.dropped == 1
    assert plain.truth((10, 20)).keys() == {"boxes", "classes", "ignored"}
    np.testing.assert_array_equal(plain.truth((10, 20))["boxes"][2], [7.5, 10, 10, 20])
    voc = read_objects({"bbox": BOXES, "label": [3, 1, 2, 4], "is_difficult": [0, 1, 1, 0], "pose": [0] * 4})
    assert voc.ignored.tolist() == [False, True, False]
    coco = read_objects({"bbox": BOXES, "label": [3, 1, 2, 4], "is_crowd": [0, 0, 0, 1], "area": [5, 6, 7, 8]})
    assert coco.ignored.tolist() == [False, False, True]
    assert coco.truth((1, 1))["areas"].tolist() == [5, 6, 8]
    assert read_objects({}).truth((4, 4))["boxes"].shape == (0, 4)


def test_those_that_are_ignored_are_written_last():
    objects = read_objects({"bbox": BOXES, "label": [3, 1, 2, 4], "is_difficult": [0, 1, 0, 0]})
    batch = empty_objects(2, room=3)
    write_objects(objects, (8, 8), ImageSpec((4, 4), max_objects=3), batch, 1)
    assert batch["objects/label"].tolist() == [[0, 0, 0], [3, 4, 1]]
    assert batch["objects/ignored"].tolist() == [[False] * 3, [False, False, True]]
    assert batch["objects/valid"].tolist() == [[False] * 3, [True] * 3]
    assert batch["objects/number"].tolist() == [[0] * 3, [1, 4, 2]]  # the third has no area
    write_objects(objects, (8, 8), ImageSpec((4, 4), max_objects=2), batch := empty_objects(1, room=2), 0)
    assert batch["objects/label"].tolist() == [[3, 4]]


@pytest.mark.parametrize(
    ("name", "split", "classes"), [("bccd", "test", 3), ("voc/2012", "validation", 20)], ids=["bccd", "voc"]
)
def test_real_sets_in_the_form_of_voc(real_data, name, split, classes):
    """As TFDS itself reads them: boxes, classes, and VOC's difficult ones."""
    source = open_source(name, split)
    assert len(source.object_names) == classes
    ignored = 0
    for parsed, whole in zip(source.read(range(20), objects=True), source.examples, strict=False):
        ours, theirs = read_objects(parsed["objects"]), read_objects(whole["objects"])
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
        ignored += ours.ignored.sum()
    assert (ignored > 0) == (name == "voc/2012")
