import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.data.selective_search import UNIT, SelectiveSearch, as_boxes
from cnn_research.errors import UserError
from cnn_research.ops.boxes import iou_of_pairs


def scene(height=60, width=80):
    """A rectangle and a disc on noise."""
    image = np.random.default_rng(0).integers(90, 110, (height, width, 3)).astype(np.uint8)
    image[10:30, 20:60] = (200, 40, 40)
    cv2.circle(image, (50, 45), 9, (30, 60, 220), -1)
    return image


def test_boxes_of_an_image():
    """They are in the image, each once, the same at every call, and OpenCV's; objects are among them."""
    image, search = scene(), SelectiveSearch()
    corners = search(image)
    np.testing.assert_array_equal(corners, search(image))
    assert len(np.unique(corners, axis=0)) == len(corners)
    assert (corners[:, 2:] > corners[:, :2]).all()
    theirs = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    theirs.setBaseImage(np.ascontiguousarray(image[..., ::-1]))
    theirs.switchToSelectiveSearchFast()
    expected = {(y, x, y + height, x + width) for x, y, width, height in theirs.process().tolist()}
    pixels = np.round(as_boxes(corners) * np.array([60, 80, 60, 80])).astype(int)
    assert set(map(tuple, pixels.tolist())) == expected
    for truth in ([10, 20, 30, 60], [36, 41, 55, 60]):
        assert np.asarray(iou_of_pairs(jnp.float32(pixels), jnp.float32(truth))).max() > 0.8


def test_the_mode_and_the_width_count():
    image = scene()
    fast, quality = (SelectiveSearch(mode)(image) for mode in ("fast", "quality"))
    assert len(quality) > len(fast)
    narrow = SelectiveSearch(width=40)(image)
    np.testing.assert_array_equal(narrow, SelectiveSearch()(cv2.resize(image, (40, 30), interpolation=cv2.INTER_AREA)))
    shares = as_boxes(narrow).astype(np.float64) * [30, 40, 30, 40]
    np.testing.assert_allclose(shares, np.round(shares), atol=40 / UNIT)  # on the small image's pixels
    assert len(SelectiveSearch()(image[..., :1]))  # grey


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"mode": "quick"}, "no mode 'quick'; did you mean|no mode 'quick'; "), ({"width": 0}, "0 pixels wide")],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        SelectiveSearch(**fields)
