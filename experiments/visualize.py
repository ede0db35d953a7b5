"""Draws what a run's network has learned and what it looks at: `--method=all`, or one of these.

python -m experiments.visualize --workdir=runs/digits_lenet5 --method=all --out=runs/digits_lenet5/report
python -m experiments.visualize --workdir=runs/digits_lenet5 --method=grad_cam --images='photos/*.png' --out=pictures
python -m experiments.visualize --workdir=runs/digits_lenet5 --method=maximize,deconvnet --layer=C3 --out=pictures

filters, activations: a layer's kernels, and its maps of an image. top_patches, deconvnet: what excites channels most in
the data, and those values projected back to the pixels. saliency, input_x_gradient, smoothgrad, integrated_gradients,
guided_backprop, cam, grad_cam, grad_cam_pp, occlusion: where the class that the network sees comes from. maximize,
invert: images that excite classes or channels most, and images made of a layer's features. embedding, confusions: codes
in the plane, and mistakes.

Without `--images` the pictures come from the run's test split. `--layer` is a name that `experiments.tabulate` lists.
`--out` gets a PNG a picture; with `--method=all` also `index.html`, the report that `experiments.report` writes.
"""

import time

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from cnn_research import analysis
from cnn_research.analysis.view import View
from cnn_research.data.batches import load, present
from cnn_research.data.images import resize
from cnn_research.errors import UserError, nearest
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import image_spec
from experiments import command_line
from experiments.images import from_files, save

_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_METHOD = flags.DEFINE_list("method", ["all"], "names with commas between, or all")
_LAYER = flags.DEFINE_string("layer", "", "name of a layer; those that suit the method unless given")
_TARGET = flags.DEFINE_string(
    "target", "", "the class to explain, by its name; the one that the network sees unless given"
)
_IMAGES = flags.DEFINE_string("images", "", "files to explain, as a glob in quotes; the split's first unless given")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing; the run's test split unless given")
_COUNT = flags.DEFINE_integer("count", 12, "images to explain at most", lower_bound=1)
_EXAMPLES = flags.DEFINE_integer("examples", 2000, "examples of the split to look through at most", lower_bound=3)
_OUT = flags.DEFINE_string("out", "", "the folder for pictures")


def main() -> None:
    """Draws and writes."""
    command_line.require("workdir", "out")
    out = epath.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    # Not at the top: matplotlib takes half a second, and faults of the flags come first.
    from cnn_research.analysis import gallery, report

    for method in _METHOD.value:
        if method not in (*gallery.METHODS, "all"):
            raise UserError(f"--method={method} is not known; {nearest(method, [*gallery.METHODS, 'all'])}")
    every = "all" in _METHOD.value
    view = make_view(analysis.load_run(_WORKDIR.value, _STEP.value))
    out.mkdir(parents=True, exist_ok=True)
    drawn = 0
    began = time.perf_counter()
    methods = [*gallery.METHODS] if every else _METHOD.value
    for method in tqdm(methods, unit="method", disable=None, leave=False):
        try:
            for name, figure in gallery.show(method, view):
                save(figure, out / f"{name}.png")
                drawn += 1
        except UserError as error:
            if not every:
                raise
            print(f"left out: {error}")
    if every:
        print(f"report: {report.write_run(view.run, out)}")
    print(f"{drawn} pictures drawn into {out} in {time.perf_counter() - began:.0f} s")


def make_view(run: analysis.Run) -> View:
    """Returns what the flags say to show."""
    from cnn_research.analysis import gallery

    if run.config.task not in gallery.TASKS:
        raise UserError(
            f"a network for {run.config.task} is not drawn yet, those for {' and '.join(gallery.TASKS)} are; of any"
            " network, analysis.attribution.attribute explains a score"
        )
    names = run.class_names
    if _TARGET.value and _TARGET.value not in names:
        raise UserError(f"--target={_TARGET.value} is no class; {nearest(_TARGET.value, names)}")
    spec = image_spec(run.config.data)
    source = open_split(run.config, _SPLIT.value or run.config.data.test)
    count = min(_EXAMPLES.value, len(source))
    batch = present(load(source, np.arange(count), np.ones(count, bool), spec))
    data, labels = batch["image"], tuple(batch["label"].tolist()) if run.config.task == "classification" else ()
    images, given = data[: _COUNT.value], labels[: _COUNT.value]
    if _IMAGES.value:
        examples = list(from_files(_IMAGES.value, _COUNT.value, run.config.data.channels, names))
        images = np.stack([resize(image, spec) for _, image, _ in examples])
        given = tuple(label for _, _, label in examples) if labels else ()
    target = names.index(_TARGET.value) if _TARGET.value else None
    return View(run, images, given, data, labels, _LAYER.value, target)


if __name__ == "__main__":
    command_line.run(main)
