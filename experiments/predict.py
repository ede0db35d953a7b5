"""Draws what a run says of images: the likeliest labels, objects' boxes and masks, or pixels' classes; and the truth.

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
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from cnn_research import analysis
from cnn_research.data.batches import decoded
from cnn_research.data.images import IGNORE, restore_boxes
from cnn_research.data.objects import read_objects
from cnn_research.errors import UserError
from cnn_research.metrics.detection import encode_masks
from cnn_research.ops.boxes import iou_of_pairs
from cnn_research.ops.regions import paste_masks
from cnn_research.tasks.localization import OVERLAP
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import eval_spec, image_spec
from experiments import command_line
from experiments.images import Example, from_files, save

_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_IMAGES = flags.DEFINE_string("images", "", "files, as a glob in quotes; the split's first examples unless given")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing; the run's test split unless given")
_SCORE = flags.DEFINE_float("score", 0.3, "detection: the least score of what is drawn; predictions.jsonl has all")
_COUNT = flags.DEFINE_integer("count", 16, "images at most", lower_bound=1)
_TILE = flags.DEFINE_list("tile", [], "height and width of the tiles of images that are segmented as they are")
_MARGIN = flags.DEFINE_integer("margin", 32, "pixels of context on each side of a tile", lower_bound=0)
_MULTIPLE = flags.DEFINE_integer(
    "multiple", 32, "the network's stride, of which tiles begin at multiples", lower_bound=1
)
_OUT = flags.DEFINE_string("out", "", "the folder for pictures and predictions.jsonl")

GRID = 16  # images in grid.png
DETECTION = ("detection", "instance_segmentation", "region_classification", "region_detection")


def from_split(run: analysis.Run, split: str, count: int) -> Iterator[Example]:
    """Yields the first examples of a split, at their own size."""
    source, spec = open_split(run.config, split), eval_spec(run.config)
    for index, image, example in decoded(source, range(min(count, len(source))), spec):
        name = f"{source.name}_{split}_{index:05d}"
        if spec.max_objects:
            yield name, image, read_objects(example["objects"])
        else:
            yield name, image, example[spec.masks.feature][..., 0] if spec.masks else int(example["label"])


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
    detectors = dict.fromkeys(DETECTION, draw_detections)
    drawers = {**detectors, "localization": draw_boxes, "segmentation": draw_segmentations}
    draw = drawers.get(run.config.task, draw_labels)
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
    save(grid, out / "grid.png")
    lines = []
    for row, (name, image, label) in enumerate(_progress(examples)):
        picture = out / f"{row:05d}_{Path(name).stem}.png"
        save(figures.top_predictions(image, probabilities[row], run.class_names, label), picture)
        likeliest = np.argsort(-probabilities[row], kind="stable")[:5]
        top = {run.class_names[index]: round(float(probabilities[row][index]), 6) for index in likeliest}
        true = {} if label is None else {"true": run.class_names[label]}
        lines.append({"image": name, "picture": picture.name, "label": next(iter(top)), "top5": top, **true})
    known = [(row, label) for row, label in enumerate(labels) if label is not None]
    right = sum(int(probabilities[row].argmax()) == label for row, label in known)
    return lines, f", {right} of {len(known)} right" if known else ""


def draw_boxes(run: analysis.Run, examples: list[Example], out: epath.Path) -> tuple[list[dict[str, Any]], str]:
    """Draws images with their object's box; returns the lines of predictions.jsonl, and how many boxes are right."""
    from cnn_research.analysis import boxes

    images = [image for _, image, _ in examples]
    predictions, spec = run.predict(images), image_spec(run.config.data)
    lines, drawn, right, known = [], [], 0, 0
    for row, (name, image, truth) in enumerate(_progress(examples)):
        label, box = int(predictions["label"][row]), restore_boxes(predictions["box"][[row]], image.shape[:2], spec)[0]
        name_of_class, probability = run.class_names[label], float(predictions["probabilities"][row].max())
        line = {"label": name_of_class, "probability": round(probability, 6), "box": _rounded(box)}
        text, true = f"{name_of_class} {probability:.0%}", list[boxes.Box]()
        # Files have no boxes: their folder's name is no more than a class.
        if not _IMAGES.value and len(truth.boxes):
            largest = int((truth.boxes[:, 2:] - truth.boxes[:, :2]).prod(axis=1).argmax())
            true_box, true_class = truth.boxes[largest], run.class_names[truth.labels[largest]]
            overlap = float(iou_of_pairs(*map(jnp.asarray, (box, true_box))))
            line |= {"true": true_class, "true_box": _rounded(true_box), "iou": round(overlap, 6)}
            text, true = f"{text}, IoU {overlap:.2f}", [(true_box, f"true: {true_class}")]
            right, known = right + int(name_of_class == true_class and overlap >= OVERLAP), known + 1
        picture = out / f"{row:05d}_{Path(name).stem}.png"
        save(boxes.box_grid([image], [[(box, text)]], [true]), picture)
        drawn.append((image, [(box, text)], true))
        lines.append({"image": name, "picture": picture.name, **line})
    save(boxes.box_grid(*zip(*drawn[:GRID], strict=True)), out / "grid.png")
    return lines, f", {right} of {known} right" if known else ""


def draw_detections(run: analysis.Run, examples: list[Example], out: epath.Path) -> tuple[list[dict[str, Any]], str]:
    """Draws images with the boxes, and the masks where there are any, of what is found.

    Returns:
      The lines of predictions.jsonl, masks in them as COCO's run lengths; and how many objects are drawn.
    """
    from cnn_research.analysis import boxes, overlays

    images = [image for _, image, _ in examples]
    predictions, spec = run.predict(images), image_spec(run.config.data)
    lines, drawn = [], []
    for row, (name, image, truth) in enumerate(_progress(examples)):
        valid = predictions["valid"][row]
        classes = [run.class_names[label] for label in predictions["classes"][row][valid]]
        corners = restore_boxes(predictions["boxes"][row][valid], image.shape[:2], spec)
        detections = list(zip(corners, classes, predictions["scores"][row][valid].tolist(), strict=True))
        shown = [detection for detection in detections if detection[2] >= _SCORE.value]
        objects = [{"class": label, "score": round(score, 6), "box": _rounded(box)} for box, label, score in detections]
        if "masks" in predictions:
            size = image.shape[:2]
            masks = paste_masks(
                predictions["masks"][row][valid], corners * np.tile(size, 2), size, run.config.loss.mask_threshold
            )
            for each, counts in zip(objects, encode_masks(masks).tolist(), strict=True):
                each["mask"] = {"size": size, "counts": counts.decode()}
            image = overlays.instance_overlay(image, masks[: len(shown)])  # the best come first
        true = list[boxes.Box]()
        if not _IMAGES.value:
            true = [(box, run.class_names[label]) for box, label in zip(truth.boxes, truth.labels, strict=True)]
        picture = out / f"{row:05d}_{Path(name).stem}.png"
        save(boxes.detection_grid([image], [shown], [true], run.class_names), picture)
        drawn.append((image, shown, true))
        lines.append({"image": name, "picture": picture.name, "objects": objects})
    seen, found, truths = zip(*drawn[:GRID], strict=True)
    save(boxes.detection_grid(seen, found, truths, run.class_names), out / "grid.png")
    return lines, f", with {sum(len(shown) for _, shown, _ in drawn)} objects"


def _rounded(box: np.ndarray) -> list[float]:
    return [round(float(value), 4) for value in box]


def draw_segmentations(run: analysis.Run, examples: list[Example], out: epath.Path) -> tuple[list[dict[str, Any]], str]:
    """Draws images with the classes of their pixels; returns the lines of predictions.jsonl, and how many are right."""
    from cnn_research.analysis import overlays

    lines, drawn, right, known = [], [], 0, 0
    for row, ((name, image, _), classes) in enumerate(zip(_progress(examples), _segment(run, examples), strict=True)):
        # Files have no masks: their folder's name, where it is a class, is none of their pixels'.
        truth = None if _IMAGES.value else examples[row][2]
        picture = out / f"{row:05d}_{Path(name).stem}.png"
        save(overlays.segmentation_grid([image], [classes], [truth], run.class_names), picture)
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
    save(grid, out / "grid.png")
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


if __name__ == "__main__":
    command_line.run(main)
