"""The script that draws filters, as a user starts it and piece by piece."""

from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from matplotlib.patches import Rectangle

from cnn_research.errors import UserError
from cnn_research.ops.filters import gaussian
from experiments.filters import choose, draw, filters, from_files, number, picture_names, shrink, to_pixels

MINUS = "\N{MINUS SIGN}"


@pytest.fixture(scope="module")
def run(shell):
    """Returns a function from flags to the exit code, stdout and stderr of the script."""
    return partial(shell, "filters")


def photo(height=20, width=30):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with an image in colour and a grey one of one name, and a file that is no image."""
    folder = tmp_path_factory.mktemp("images")
    cv2.imwrite(str(folder / "a.png"), photo())
    cv2.imwrite(str(folder / "a.jpg"), photo()[..., 0])
    (folder / "bad.png").write_bytes(b"no image")
    return folder


def test_a_photograph_is_there_without_files(run, tmp_path):
    code, out, err = run("--filters=edge", f"--out={tmp_path}/new/folder")
    assert (code, err) == (0, "")
    (picture,) = (tmp_path / "new" / "folder").iterdir()
    assert (picture.name, out) == ("china_filters.png", f"{picture}\n")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_an_image_that_is_none_ends_in_one_line_before_anything_is_written(run, images, tmp_path):
    code, out, err = run(f"--images={images}/*", "--filters=blur", "--padding=circular", f"--out={tmp_path}/out")
    assert (code, out) == (2, "")
    assert err == f"error: {images}/bad.png: an image cannot be decoded; PNG and JPEG files can\n"
    assert not (tmp_path / "out").exists()


def test_pictures_of_one_name_are_numbered():
    assert picture_names(["a/x.png", "b/y.png"]) == ["x_filters.png", "y_filters.png"]
    assert picture_names(["a/x.png", "b/x.jpg"]) == ["00000_x_filters.png", "00001_x_filters.png"]


def test_a_glob_that_matches_nothing(images):
    with pytest.raises(UserError, match="no file matches"):
        next(from_files(f"{images}/*.gif"))


def test_files_come_in_order_and_in_colour(images):
    (grey_name, grey), (name, colour) = from_files(f"{images}/a.*")
    assert [Path(grey_name).name, Path(name).name] == ["a.jpg", "a.png"]
    np.testing.assert_array_equal(colour, photo()[..., ::-1])  # OpenCV writes blue first
    assert (grey == grey[..., :1]).all()


def test_filters_come_in_the_order_of_their_names():
    assert list(choose(["sobel", "blur"])) == ["sobel", "blur"]
    assert list(choose([])) == list(filters())
    with pytest.raises(UserError, match="did you mean 'edge'"):
        choose(["egde"])


def test_an_edge_is_shown_about_grey_and_a_magnitude_above_black():
    image = np.zeros((8, 100, 3), np.uint8)
    image[:, 50:] = 100
    kinds = filters()
    pixels, caption = to_pixels(kinds["sobel_x"](image, "edge"), kinds["sobel_x"])
    assert (pixels[4, [20, 49, 50, 80], 0] == [128, 255, 255, 128]).all()
    assert caption == f"values 0 to 400\nblack {MINUS}400, grey 0, white 400"
    pixels, caption = to_pixels(kinds["sobel"](image, "edge"), kinds["sobel"])
    assert (pixels[4, [20, 49, 50, 80], 0] == [0, 255, 255, 0]).all()
    assert caption == "values 0 to 400\nblack 0, white 400"
    pixels, caption = to_pixels(kinds["sharpen"](image, "edge"), kinds["sharpen"])
    assert (pixels[4, [20, 49, 50, 80], 0] == [0, 0, 200, 100]).all()
    assert caption == f"values {MINUS}100 to 200\nblack 0, white 255"


def test_outliers_do_not_hide_what_edges_show():
    result = np.full((10, 100, 3), 10, np.float32)
    result[0, 0] = -1000
    pixels, caption = to_pixels(result, filters()["edge"])
    assert (pixels[0, 0, 0], pixels[5, 5, 0]) == (0, 255)
    assert caption == f"values {MINUS}1,000 to 10\nblack {MINUS}10, grey 0, white 10"


def test_an_even_image_has_no_edges():
    kinds = filters()
    for name, shade in (("edge", 128), ("sobel", 0), ("blur", 70)):
        pixels, _ = to_pixels(kinds[name](np.full((5, 5, 3), 70, np.uint8), "edge"), kinds[name])
        assert (pixels == shade).all()


def test_numbers_in_cells():
    assert [number(value) for value in (5.0, -1.0, 0.0, float(np.float32(1 / 9)))] == ["5", f"{MINUS}1", "0", "1/9"]
    assert [number(float(value)) for value in gaussian(5, 1.0)[0]] == [".003", ".013", ".022", ".013", ".003"]
    assert [number(value) for value in (-0.12, 1.303)] == [f"{MINUS}0.120", "1.303"]


def test_large_images_are_shrunk_and_small_ones_left():
    image = photo(20, 30)
    assert shrink(image, 30) is image
    assert shrink(image, 15).shape == (10, 15, 3)
    assert shrink(photo(4, 400), 20).shape == (1, 20, 3)


def test_a_row_is_image_kernel_and_result():
    rows = choose(["edge", "sobel"])
    figure = draw("title", photo(), rows, "edge")
    axes = np.array(figure.axes).reshape(2, 3)
    for (name, kind), (left, middle, right) in zip(rows.items(), axes, strict=True):
        np.testing.assert_array_equal(left.images[0].get_array(), photo())
        np.testing.assert_array_equal(right.images[0].get_array(), to_pixels(kind(photo(), "edge"), kind)[0])
        assert middle.get_title() == name
        drawn = [image.get_array() for image in middle.images]
        np.testing.assert_array_equal(drawn, kind.kernels)
        cells = [text.get_text() for text in middle.texts if text.get_transform() == middle.transData]
        assert cells == [number(float(value)) for kernel in kind.kernels for value in kernel.ravel()]


def test_the_middle_of_a_large_image_is_magnified():
    image = photo(150, 200)
    figure = draw("title", image, choose(["blur"]), "zeros")
    left, _, right = figure.axes
    (inset,), (frame,) = left.child_axes, (patch for patch in left.patches if isinstance(patch, Rectangle))
    np.testing.assert_array_equal(inset.images[0].get_array(), image[59:91, 84:116])
    assert (*frame.get_xy(), frame.get_width(), frame.get_height()) == (83.5, 58.5, 32, 32)
    np.testing.assert_array_equal(right.child_axes[0].images[0].get_array(), right.images[0].get_array()[59:91, 84:116])


def test_an_image_may_be_too_small_for_a_mirror():
    with pytest.raises(UserError, match="too wide for 'reflect'"):
        draw("title", photo(2, 2), choose(["gaussian"]), "reflect")
