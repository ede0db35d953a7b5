"""Draws what a run says of images: each with its five likeliest labels, or the classes of its pixels, and the truth.

python -m experiments.predict --workdir=runs/digits_lenet5 --out=predictions
python -m experiments.predict --workdir=runs/digits_lenet5 --images='photos/*.png' --out=predictions

Without `--images` the pictures come from the run's test split. A file's true label is the name of its folder, where
that is a class. `--out` gets a picture an image, `grid.png` with the first of them, and `predictions.jsonl`.

Where pixels have classes, images are brought to the network's size and what it says back to theirs; `--tile=572,572
--margin=92` instead shows it images of any size as they are, in tiles with a margin of context. Beside its picture each
image gets the classes of its pixels as a grey PNG.
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from cnn_research import analysis
from cnn_research.data.images import IGNORE, decode, decode_mask
from cnn_research.errors import UserError
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import mask_spec
from experiments import command_line
from experiments.images import Example, from_files

_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_IMAGES = flags.DEFINE_string("images", "", "files, as a glob in quotes; the split's first examples unless given")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing; the run's test split unless given")
_COUNT = flags.DEFINE_integer("count", 16, "images at most", lower_bound=1)
_TILE = flags.DEFINE_list("tile", [], "height and width of the tiles of images that are segmented as they are")
_MARGIN = flags.DEFINE_integer("margin", 32, "pixels of context on each side of a tile", lower_bound=0)
_MULTIPLE = flags.DEFINE_integer(
    "multiple", 32, "the network's stride, of which tiles begin at multiples", lower_bound=1
)
_OUT = flags.DEFINE_string("out", "", "the folder for pictures and predictions.jsonl")

GRID = 16  # images in grid.png


def from_split(run: analysis.Run, split: str, count: int) -> Iterator[Example]:
    """Yields the first examples of a split, at their own size."""
    source, masks = open_split(run.config, split), mask_spec(run.config)
    for index, example in enumerate(source.read(range(min(count, len(source))), masks.feature if masks else "")):
        name = f"{source.name}_{split}_{index:05d}"
        image = decode(example["image"], run.config.data.channels)
        yield name, image, decode_mask(example[masks.feature], masks)[..., 0] if masks else int(example["label"])


def main() -> None:
    """Predicts, draws and writes."""
    command_line.require("workdir", "out")
    run = analysis.load_run(_WORKDIR.value, _STEP.value)
    if _IMAGES.value:
        examples = list(from_files(_IMAGES.value, _COUNT.value, run.config.data.channels, run.class_names))
    else:
        examples = list(from_split(run, _SPLIT.value or run.config.data.test, _COUNT.value))
    out = epath.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    out.mkdir(parents=True, exist_ok=True)
    draw = draw_segmentations if run.config.task == "segmentation" else draw_labels
    lines, summary = draw(run, examples, out)
    (out / "predictions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    print(f"{len(examples)} images drawn into {out}{summary}")


def draw_labels(run: analysis.Run, examples: list[Example], out: epath.Path) -> tuple[list[dict[str, Any]], str]:
    """Draws images with their likeliest labels; returns the lines of predictions.jsonl, and how many are right."""
    # Not at the top: matplotlib takes half a second, and faults of the flags come first.
    from cnn_research.analysis import figures

    _, images, labels = zip(*examples, strict=True)
    probabilities = run.predict(images)["probabilities"]
    grid = figures.prediction_grid(images[:GRID], probabilities[:GRID], run.class_names, labels[:GRID], columns=4)
    _save(grid, out / "grid.png")
    lines = []
    for row, (name, image, label) in enumerate(_progress(examples)):
        picture = out / f"{row:05d}_{Path(name).stem}.png"
        _save(figures.top_predictions(image, probabilities[row], run.class_names, label), picture)
        likeliest = np.argsort(-probabilities[row], kind="stable")[:5]
        top = {run.class_names[index]: round(float(probabilities[row][index]), 6) for index in likeliest}
        true = {} if label is None else {"true": run.class_names[label]}
        lines.append({"image": name, "picture": picture.name, "label": next(iter(top)), "top5": top, **true})
    known = [(row, label) for row, label in enumerate(labels) if label is not None]
    right = sum(int(probabilities[row].argmax()) == label for row, label in known)
    return lines, f", {right} of {len(known)} right" if known else ""


def draw_segmentations(run: analysis.Run, examples: list[Example], out: epath.Path) -> tuple[list[dict[str, Any]], str]:
    """Draws images with the classes of their pixels; returns the lines of predictions.jsonl, and how many are right."""
    from cnn_research.analysis import overlays

    lines, drawn, right, known = [], [], 0, 0
    for row, ((name, image, _), classes) in enumerate(zip(_progress(examples), _segment(run, examples), strict=True)):
        # Files have no masks: their folder's name, where it is a class, is none of their pixels'.
        truth = None if _IMAGES.value else examples[row][2]
        picture = out / f"{row:05d}_{Path(name).stem}.png"
        _save(overlays.segmentation_grid([image], [classes], [truth], run.class_names), picture)
        mask = picture.with_name(f"{picture.stem}_classes.png")
        mask.write_bytes(cv2.imencode(".png", classes.astype(np.uint8))[1].tobytes())
        counts = np.bincount(classes.ravel(), minlength=len(run.class_names))
        shares = {run.class_names[index]: round(counts[index] / classes.size, 6) for index in np.flatnonzero(counts)}
        lines.append({"image": name, "picture": picture.name, "classes": mask.name, "shares": shares})
        drawn.append((image, classes, truth))
        if truth is not None:
            right, known = right + int((classes == truth).sum()), known + int((truth != IGNORE).sum())
    images, predicted, truths = zip(*drawn[:GRID], strict=True)
    grid = overlays.segmentation_grid(images, predicted, truths, run.class_names)
    _save(grid, out / "grid.png")
    return lines, f", {right / known:.1%} of their pixels right" if known else ""


def _segment(run: analysis.Run, examples: list[Example]) -> Iterator[np.ndarray]:
    """Yields the classes of the pixels of images, at their own size."""
    images = [image for _, image, _ in examples]
    maps: Iterable[np.ndarray] = run.segment(images)
    if _TILE.value:
        try:
            height, width = map(int, _TILE.value)
        except ValueError:
            raise UserError(f"--tile={','.join(_TILE.value)}: give a height and a width, such as 572,572") from None
        maps = (run.segment_tiles(image, (height, width), _MARGIN.value, _MULTIPLE.value) for image in images)
    for probabilities in maps:
        yield probabilities.argmax(-1)


def _progress(examples: list[Example]) -> Iterable[Example]:
    return tqdm(examples, desc="drawing", unit="image", disable=None, leave=False)


def _save(figure: object, path: epath.Path) -> None:
    with path.open("wb") as file:
        figure.savefig(file, format="png", dpi=110)  # type: ignore[attr-defined]


if __name__ == "__main__":
    command_line.run(main)
