import numpy as np
import pytest

from cnn_research.errors import UserError
from experiments.suites import input as suite


@pytest.fixture(autouse=True)
def without_real_data(monkeypatch):
    monkeypatch.delenv("CNN_RESEARCH_DATA_DIRS", raising=False)


def test_rows(monkeypatch):
    """The form of what it gives and how right the pictures are, not how fast."""
    monkeypatch.setattr(suite, "BATCH_SIZE", 10)
    found = {row["model"]: row for row in suite.rows(1, ["opencv", "opencv_112", "pillow", "threads_1", "workers_1"])}
    assert list(found) == ["opencv", "opencv_112", "pillow", "threads_1", "workers_1"]
    for row in found.values():
        assert row["data"] == "windows of scikit-learn's photographs"
        assert row["images_per_s"] > 0
        assert 0 < row["ratio"] < 10
    assert found["threads_1"]["ratio"] == found["workers_1"]["ratio"] == 1
    # Windows of 224 pixels from those of 375, bilinear; and half of those of 112 reduced by 2.
    assert found["opencv"]["psnr"] > 34
    assert found["opencv_112"]["psnr"] > 30
    assert found["pillow"]["psnr"] > 34


def test_stand_ins_are_photographs_of_the_size_of_vocs():
    name, photographs = suite._photographs()
    assert name == "windows of scikit-learn's photographs"
    assert len(photographs) == suite.STAND_INS
    shapes = {suite.decode(photograph, 3).shape for photograph in photographs[:6]}
    assert shapes == {(375, 500, 3)}
    sky = suite.decode(photographs[0], 3)[:30].mean((0, 1))
    assert sky[0] < sky[1] < sky[2]  # blue


def test_what_is_compared_is_done_with_real_photographs(real_data, monkeypatch):
    monkeypatch.setenv("CNN_RESEARCH_DATA_DIRS", ":".join(map(str, real_data)))
    if not any((folder / "voc" / "2012").exists() for folder in real_data):
        pytest.skip("no voc/2012")
    name, photographs = suite._photographs()
    assert name == "voc/2012"
    assert np.mean([np.prod(suite.decode(photograph, 3).shape[:2]) for photograph in photographs]) > 150_000


def test_unknown_row():
    with pytest.raises(UserError, match="--models=opencv_12: the suite has no such row; did you mean 'opencv_112'"):
        suite.rows(1, ["opencv_12"])
