"""The script that draws what networks see, on a small run, in a process of its own."""

from functools import partial
from types import SimpleNamespace

import cv2
import jax
import pytest
from ml_collections import ConfigDict

from cnn_research import analysis, training
from cnn_research.data.images import decode
from cnn_research.errors import UserError
from experiments import visualize


@pytest.fixture(scope="module")
def run(shell):
    """Returns a function from flags to the exit code, stdout and stderr of the script."""
    return partial(shell, "visualize")


@pytest.fixture(scope="module")
def workdir(digits_config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "lenet"
    training.train(digits_config(), folder, jax.devices()[:1])
    return folder


def test_networks_that_find_objects_are_refused():
    run = SimpleNamespace(config=ConfigDict({"task": "detection"}))
    with pytest.raises(UserError, match=r"a network for detection is not drawn yet, those for classification and"):
        visualize.make_view(run)


def test_pictures_of_some_methods(run, workdir, tmp_path):
    methods = ["filters", "activations", "top_patches", "grad_cam", "confusions"]
    flags = f"--method={','.join(methods)}", "--layer=C3", "--examples=60", "--count=3"
    code, out, err = run(f"--workdir={workdir}", f"--out={tmp_path}", *flags)
    assert code == 0, err
    names = ["filters_C3", *(f"activations_0{index}" for index in range(3)), "top_patches_C3", "grad_cam", "confusions"]
    pictures = {path.stem: cv2.imread(str(path)) for path in tmp_path.glob("*.png")}
    assert set(names) <= set(pictures) <= {*names, "mistakes"}
    assert all(picture.std() > 0 for picture in pictures.values())
    assert out.splitlines()[-1].startswith(f"{len(pictures)} pictures drawn into {tmp_path} in ")
    assert not (tmp_path / "index.html").exists()


@pytest.mark.slow
def test_all_methods_of_files(run, workdir, tmp_path):
    photos = tmp_path / "photos" / "7"
    photos.mkdir(parents=True)
    images = analysis.load_run(workdir).batch(0)["image"]
    for index, image in enumerate(images[:3]):
        assert cv2.imwrite(str(photos / f"{index}.png"), image)
        assert decode((photos / f"{index}.png").read_bytes(), 1).shape == (32, 32, 1)
    flags = (f"--workdir={workdir}", f"--images={photos}/*.png", "--target=7", "--examples=60", f"--out={tmp_path}")
    code, out, err = run(*flags)
    assert code == 0, err
    assert out.splitlines()[0].startswith("left out: cam needs a network that ends with global average pooling")
    assert "Integrated gradients" in (tmp_path / "index.html").read_text()
    assert {"occlusion.png", "invert.png", "maximize.png", "embedding_tsne.png"} <= {p.name for p in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=nowhere"], "--out is missing"),
        (
            ["--workdir=nowhere", "--out=x", "--method=gradcam"],
            "--method=gradcam is not known; did you mean 'grad_cam'",
        ),
        (["--workdir=nowhere", "--out=x"], "holds no run"),
    ],
)
def test_faults_are_one_line(run, flags, message):
    code, out, err = run(*flags)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
