"""Measures a run on a whole split, from its checkpoint alone.

python -m experiments.evaluate --workdir=runs/digits_lenet5

Where objects or pixels have classes, a table of them comes first, and `--out=DIR` gets it as `per_class.md` beside
`worst.png`: the images with the lowest mean IoU, or the lowest AP50. Objects also get `curves.png`, precision against
recall. `--cells=1` says that pixels of class 1 are the inside of cells, and adds the scores of membranes: the best Rand
F-score over all thresholds, and the warping error.

Other data than the run's: `--data`, `--split`, `--image_size`; or its own, corrupted: `--corruption=gaussian_noise:3`,
at a level from 1 to 5 of Hendrycks & Dietterich 2019. Other weights: `--weights`, which `experiments.weights` averages.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath

from cnn_research import analysis
from cnn_research.data.batches import decoded
from cnn_research.data.corruption import CORRUPTIONS, parse_corruption
from cnn_research.errors import UserError
from cnn_research.metrics import membranes
from cnn_research.metrics import segmentation as metrics
from cnn_research.metrics.records import Record
from cnn_research.tasks.average_precision import AveragePrecision
from cnn_research.training.feed import eval_spec
from experiments import command_line, processes
from experiments.images import save
from experiments.markdown import markdown_table

_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing, such as train[:10%]; the run's test split unless given")
_DATA = flags.DEFINE_string("data", "", "another data set with the same classes; the run's unless given")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "the folder of data sets; those that are searched unless given")
_IMAGE_SIZE = flags.DEFINE_string("image_size", "", "height,width that images are brought to; the run's unless given")
_CORRUPTION = flags.DEFINE_string(
    "corruption", "", f"what is done to the images, and its level: {', '.join(CORRUPTIONS)}, as gaussian_noise:3"
)
_WEIGHTS = flags.DEFINE_string("weights", "", "a .safetensors file with weights; the checkpoint's unless given")
_OUT = flags.DEFINE_string("out", "", "segmentation, detection: the folder for the table and the worst images")
_SCORE = flags.DEFINE_float("score", 0.3, "detection: the least score of what is drawn into worst.png")
_WORST = flags.DEFINE_integer("worst", 8, "images in worst.png", lower_bound=1)
_CELLS = flags.DEFINE_integer("cells", -1, "segmentation: the class of the inside of cells; -1: there are none")

CHUNK = 16  # images that are segmented at a time

Segmented = tuple[int, np.ndarray, np.ndarray, np.ndarray]  # index, image, classes of its pixels, probabilities


def main() -> None:
    """Evaluates and prints the metrics as one JSON object."""
    command_line.require("workdir")
    processes.join()
    run = make_run()
    dense = run.config.task == "segmentation"
    for flag, given, fits in (
        ("--out", _OUT.value, dense or isinstance(run.task, AveragePrecision)),
        ("--cells", _CELLS.value >= 0, dense),
    ):
        if given and not fits:
            raise UserError(f"{flag} is not for runs of {run.config.task}; leave it out")
    split = _SPLIT.value or run.config.data.test
    evaluator = run.evaluator(split)
    measured = run.measure(split, evaluator)
    if jax.process_index():
        return
    values = evaluator.summarize(measured)
    if isinstance(run.task, AveragePrecision):
        show_table(per_class_of_objects(run, run.task.by_class(measured)))
        if _OUT.value:
            draw_objects(run, run.task, split, measured, epath.Path(_OUT.value))
    if dense:
        show_table(per_class(run, measured["confusion"]))
        if _OUT.value:
            draw_worst(run, split, epath.Path(_OUT.value) / "worst.png")
        if _CELLS.value >= 0:
            values |= cell_scores(run, split)
    flags_given = {"weights": _WEIGHTS, "data": _DATA, "image_size": _IMAGE_SIZE, "corruption": _CORRUPTION}
    changed = {name: flag.value for name, flag in flags_given.items() if flag.value}
    print(json.dumps({"step": run.step, **changed, **{f"{split}/{name}": value for name, value in values.items()}}))


def make_run() -> analysis.Run:
    """Returns the run with the weights and the data that the flags ask for."""
    corruption = parse_corruption(_CORRUPTION.value) if _CORRUPTION.value else None
    if not re.fullmatch(r"([1-9]\d*,[1-9]\d*)?", _IMAGE_SIZE.value):
        raise UserError(f"--image_size={_IMAGE_SIZE.value} is no height,width; write 64,64")
    run = analysis.load_run(_WORKDIR.value, _STEP.value)
    if _WEIGHTS.value:
        run = run.with_weights(_WEIGHTS.value)
    data: dict[str, Any] = {"name": _DATA.value, "data_dir": _DATA_DIR.value}
    if _IMAGE_SIZE.value:
        data["image_size"] = tuple(map(int, _IMAGE_SIZE.value.split(",")))
    if data := {field: value for field, value in data.items() if value}:
        run = run.with_data(**data)
    return dataclasses.replace(run, corruption=corruption)


def show_table(lines: list[str]) -> None:
    """Prints a table, and writes it into `--out`."""
    print("\n".join(lines), end="\n\n")
    if _OUT.value:
        out = epath.Path(_OUT.value)
        out.mkdir(parents=True, exist_ok=True)
        (out / "per_class.md").write_text("\n".join(lines) + "\n")


def per_class(run: analysis.Run, confusion: np.ndarray) -> list[str]:
    """Returns the lines of a table: a row a class, and the whole."""
    shares = confusion.sum(axis=1) / confusion.sum()
    columns = metrics.class_iou(confusion), metrics.class_accuracy(confusion), shares
    rows = [[name, *(f"{value:.1%}" for value in row)] for name, *row in zip(run.class_names, *columns, strict=True)]
    means = metrics.mean_iou(confusion), metrics.mean_accuracy(confusion), 1.0
    return markdown_table(
        [["class", "IoU", "accuracy", "pixels"], *rows, ["mean", *(f"{x:.1%}" for x in means)]], left=1
    )


def per_class_of_objects(run: analysis.Run, scores: Mapping[int, Mapping[str, float]]) -> list[str]:
    """Returns the lines of a table: a row a class that is in the split, and the whole."""
    names = [name for name in next(iter(scores.values())) if name != "objects"]
    rows = [
        [run.class_names[label], *(f"{score[name]:.1%}" for name in names), str(score["objects"])]
        for label, score in scores.items()
    ]
    means = [f"{np.mean([score[name] for score in scores.values()]):.1%}" for name in names]
    objects = sum(score["objects"] for score in scores.values())
    return markdown_table([["class", *names, "objects"], *rows, ["mean", *means, str(objects)]], left=1)


def draw_objects(
    run: analysis.Run, task: AveragePrecision, split: str, measured: Sequence[Record], out: epath.Path
) -> None:
    """Draws precision against recall, and the images with the lowest AP50."""
    from cnn_research.analysis import boxes

    curves = {run.class_names[label]: curve for label, curve in task.of_voc(measured)["curves"].items()}
    save(boxes.precision_recall(curves), out / "curves.png")
    scores = np.array([task.of_voc([record])["mean"] for record in measured])  # NaN, which is last, without objects
    worst = [measured[place] for place in np.argsort(scores, kind="stable")[: _WORST.value]]
    indices = [int(record["index"]) for record in worst]
    images, found, true = [], [], []
    for record, (_, image, _) in zip(
        worst, decoded(run.open_split(split), indices, eval_spec(run.config)), strict=True
    ):
        size = np.tile(image.shape[:2], 2)
        [names, true_names] = (
            [run.class_names[label] for label in record[f"{kind}/classes"]] for kind in ("found", "true")
        )
        detections = zip(record["found/boxes"] / size, names, record["found/scores"].tolist(), strict=True)
        images.append(image)
        found.append([detection for detection in detections if detection[2] >= _SCORE.value])
        true.append(list(zip(record["true/boxes"] / size, true_names, strict=True)))
    save(boxes.detection_grid(images, found, true, run.class_names), out / "worst.png")


def segmented(run: analysis.Run, split: str) -> Iterator[Segmented]:
    """Yields the index of a split's images, and what is true and what is said of their pixels, at their own size."""
    source, spec = run.open_split(split), eval_spec(run.config)
    assert spec.masks
    for begin in range(0, len(source), CHUNK):
        part = list(decoded(source, range(begin, min(begin + CHUNK, len(source))), spec))
        if not part:
            continue
        maps = run.segment([image for _, image, _ in part], CHUNK)
        for (index, image, example), probabilities in zip(part, maps, strict=True):
            yield index, image, example[spec.masks.feature][..., 0], probabilities


def draw_worst(run: analysis.Run, split: str, path: epath.Path) -> None:
    """Draws the images with the lowest mean IoU."""
    from cnn_research.analysis import overlays

    worst: list[tuple[float, int, tuple[np.ndarray, ...]]] = []
    for index, image, truth, probabilities in segmented(run, split):
        predicted = probabilities.argmax(-1)
        score = metrics.mean_iou(metrics.confusion_matrix(truth, predicted, len(run.class_names)))
        worst = sorted([*worst, (score, index, (image, predicted, truth))], key=lambda row: row[:2])[: _WORST.value]
    titles = [f"{split} {index}: mean IoU {score:.1%}" for score, index, _ in worst]
    images, predictions, truths = zip(*(row for _, _, row in worst), strict=True)
    save(overlays.segmentation_grid(images, predictions, truths, run.class_names, titles), path)


def cell_scores(run: analysis.Run, split: str) -> dict[str, float]:
    """Returns the scores of membranes, which are all pixels but those of `--cells`."""
    if _CELLS.value >= len(run.class_names):
        raise UserError(f"--cells={_CELLS.value} is no class; they are 0 to {len(run.class_names) - 1}")
    pairs = [(truth == _CELLS.value, values[..., _CELLS.value]) for _, _, truth, values in segmented(run, split)]
    interiors, probabilities = map(list, zip(*pairs, strict=True))
    score, threshold = membranes.best_rand_f_score(interiors, probabilities)
    warping = [membranes.warping_error(truth, values > threshold) for truth, values in pairs]
    return {"rand_f_score": score, "rand_threshold": threshold, "warping_error": float(np.mean(warping))}


if __name__ == "__main__":
    command_line.run(main)
