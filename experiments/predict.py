"""Draws what a run says of images: each with its five likeliest labels, the true one marked where it is known.

python -m experiments.predict --workdir=runs/digits_lenet5 --out=predictions
python -m experiments.predict --workdir=runs/digits_lenet5 --images='photos/*.png' --out=predictions

Without `--images` the pictures come from the run's test split. A file's true label is the name of its folder, where
that is a class. `--out` gets a picture an image, `grid.png` with the first of them, and `predictions.jsonl`.
"""

import glob
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from cnn_research import analysis
from cnn_research.data.images import decode
from cnn_research.errors import UserError
from cnn_research.training.evaluation import open_split
from experiments import command_line

_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_IMAGES = flags.DEFINE_string("images", "", "files, as a glob in quotes; the split's first examples unless given")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing; the run's test split unless given")
_COUNT = flags.DEFINE_integer("count", 16, "images at most", lower_bound=1)
_OUT = flags.DEFINE_string("out", "", "the folder for pictures and predictions.jsonl")

GRID = 16  # images in grid.png

Example = tuple[str, np.ndarray, int | None]  # name, image, true label


def from_files(pattern: str, count: int, channels: int, class_names: tuple[str, ...]) -> Iterator[Example]:
    """Yields images of files; their true label is the folder's name, where that is a class."""
    paths = sorted(filter(lambda path: Path(path).is_file(), glob.glob(pattern, recursive=True)))
    if not paths:
        raise UserError(f"--images={pattern}: no file matches")
    for path in map(Path, paths[:count]):
        folder = path.absolute().parent.name
        try:
            image = decode(path.read_bytes(), channels)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error
        yield str(path), image, class_names.index(folder) if folder in class_names else None


def from_split(run: analysis.Run, split: str, count: int) -> Iterator[Example]:
    """Yields the first examples of a split, at their own size."""
    source = open_split(run.config, split)
    for index, example in enumerate(source.examples.__getitems__(list(range(min(count, len(source)))))):
        name = f"{source.name}_{split}_{index:05d}"
        yield name, decode(example["image"], run.config.data.channels), int(example["label"])


def main() -> None:
    """Predicts, draws and writes."""
    command_line.require("workdir", "out")
    # Not at the top: matplotlib takes half a second, and faults of the flags come first.
    from cnn_research.analysis import figures

    run = analysis.load_run(_WORKDIR.value, _STEP.value)
    if _IMAGES.value:
        examples = list(from_files(_IMAGES.value, _COUNT.value, run.config.data.channels, run.class_names))
    else:
        examples = list(from_split(run, _SPLIT.value or run.config.data.test, _COUNT.value))
    _, images, labels = zip(*examples, strict=True)
    probabilities = run.predict(images)["probabilities"]

    out = epath.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    grid = figures.prediction_grid(images[:GRID], probabilities[:GRID], run.class_names, labels[:GRID], columns=4)
    _save(grid, out / "grid.png")
    lines = []
    for row, (name, image, label) in enumerate(tqdm(examples, desc="drawing", unit="image", disable=None, leave=False)):
        picture = out / f"{row:05d}_{Path(name).stem}.png"
        _save(figures.top_predictions(image, probabilities[row], run.class_names, label), picture)
        likeliest = np.argsort(-probabilities[row], kind="stable")[:5]
        top = {run.class_names[index]: round(float(probabilities[row][index]), 6) for index in likeliest}
        true = {} if label is None else {"true": run.class_names[label]}
        lines.append(
            json.dumps({"image": name, "picture": picture.name, "label": next(iter(top)), "top5": top, **true})
        )
    (out / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    known = [(row, label) for row, label in enumerate(labels) if label is not None]
    right = sum(int(probabilities[row].argmax()) == label for row, label in known)
    print(f"{len(examples)} images drawn into {out}" + (f", {right} of {len(known)} right" if known else ""))


def _save(figure: object, path: epath.Path) -> None:
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)  # type: ignore[attr-defined]


if __name__ == "__main__":
    command_line.run(main)
