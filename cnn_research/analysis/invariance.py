"""How far a network's answers outlast a shift of its input: what subsampling is argued for with, measured.

Consistency, the share of images whose class stays what it was, as in Zhang 2019, "Making convolutional networks
shift-invariant again", arXiv:1904.11486; there two random shifts are compared, here each shift with none.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Integer, UInt8
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from cnn_research.analysis.figures import DPI, LINES, dress_curves
from cnn_research.analysis.run import Run
from cnn_research.data.batches import load_all, present
from cnn_research.errors import UserError
from cnn_research.ops.padding import pad
from cnn_research.training.evaluation import open_split
from cnn_research.training.feed import image_spec

# The ways to go, as steps (down, right); what is measured is their mean.
DIRECTIONS: dict[str, tuple[tuple[int, int], ...]] = {
    "horizontal": ((0, 1), (0, -1)),
    "vertical": ((1, 0), (-1, 0)),
    "diagonal": ((1, 1), (1, -1), (-1, 1), (-1, -1)),
}
MEASURES = ("accuracy", "consistency")

Classifier = Callable[[UInt8[Array, "batch height width channels"]], Int[Array, " batch"]]


@dataclasses.dataclass(frozen=True)
class ShiftCurve:
    """What a classifier does as its images are shifted; the keys are those of `DIRECTIONS`.

    Attributes:
      shifts: in pixels of the classifier's input; along both axes where the direction is diagonal.
      accuracy: share of images whose predicted class is the true one, for each shift.
      consistency: share of images whose predicted class is that of the image where it was, for each shift.
    """

    shifts: tuple[int, ...]
    accuracy: dict[str, tuple[float, ...]]
    consistency: dict[str, tuple[float, ...]]


def classifier(run: Run) -> Classifier:
    """Returns a run's network as a compiled function from images of its own size to classes.

    Args:
      run: of a classification.

    Raises:
      UserError: the run has another task.
    """
    if run.config.task != "classification":
        raise UserError(f"{run.workdir} is a run of {run.config.task}; shifts are measured of classification")

    @jax.jit
    def classify(variables: Any, images: Array) -> Array:
        return run.task.predict(run.model, variables, run.program.preprocessing.test({"image": images}))["label"]

    return functools.partial(classify, run.variables)


def load_split(
    run: Run, split: str = ""
) -> tuple[UInt8[np.ndarray, "examples height width channels"], Integer[np.ndarray, " examples"]]:
    """Returns a split's images, at the size that a run's network takes them, and their labels.

    Args:
      run: says which data set, and how its images are brought to size.
      split: with TFDS's slicing; the run's test split unless given.
    """
    examples = present(load_all(open_split(run.config, split or run.config.data.test), image_spec(run.config.data)))
    return examples["image"], examples["label"]


@functools.partial(jax.jit, static_argnames=("largest", "padding_mode"))
def _shift(images: Array, down: Array, right: Array, largest: int, padding_mode: str) -> Array:
    """Moves images by steps of at most `largest`, all with one program."""
    wide = pad(images, ((0, 0), (largest, largest), (largest, largest), (0, 0)), padding_mode)
    return jax.lax.dynamic_slice(wide, (0, largest - down, largest - right, 0), images.shape)


def shift_curve(
    classify: Classifier,
    images: UInt8[np.ndarray, "examples height width channels"],
    labels: Integer[np.ndarray, " examples"],
    shifts: Sequence[int],
    padding_mode: str = "edge",
    batch_size: int = 500,
) -> ShiftCurve:
    """Measures a classifier on images that are shifted to all sides.

    Args:
      classify: images on the device to classes, such as `classifier` gives.
      images: all that count.
      labels: their true classes.
      shifts: in pixels, 0 or more.
      padding_mode: what moves in from beyond the border: zeros, edge (the border's own pixels once more), reflect,
        symmetric or circular.
      batch_size: images at a time.

    Raises:
      UserError: a shift is out of range.
    """
    shifts = tuple(shifts)
    side = min(images.shape[1:3])
    for shift in shifts:
        if not 0 <= shift < side:
            raise UserError(f"a shift by {shift} is out of range on images of side {side}; it is 0 to {side - 1}")
    size = min(batch_size, len(images))
    steps = {(0, 0)} | {(shift * y, shift * x) for shift in shifts for way in DIRECTIONS.values() for y, x in way}
    predicted: dict[tuple[int, int], list[Array]] = {step: [] for step in sorted(steps)}
    for begin in range(0, len(images), size):
        part = images[begin : begin + size]
        # The last batch is filled up, so that one program serves all.
        batch = jnp.asarray(np.concatenate([part, images[: size - len(part)]]))
        for step, parts in predicted.items():
            parts.append(classify(_shift(batch, *step, max(shifts), padding_mode))[: len(part)])
    classes = {step: np.concatenate(jax.device_get(parts)) for step, parts in predicted.items()}

    def shares(truth: np.ndarray) -> dict[str, tuple[float, ...]]:
        right = {step: float(np.mean(those == truth)) for step, those in classes.items()}
        return {
            direction: tuple(float(np.mean([right[shift * y, shift * x] for y, x in ways])) for shift in shifts)
            for direction, ways in DIRECTIONS.items()
        }

    return ShiftCurve(shifts, accuracy=shares(labels), consistency=shares(classes[0, 0]))


def records(curves: Mapping[str, ShiftCurve]) -> list[dict[str, Any]]:
    """Returns one record for each run, direction and shift: `{"run": …, "direction": …, "shift": …, "accuracy": …}`.

    Args:
      curves: by the runs' names.
    """
    return [
        {"run": name, "direction": direction, "shift": shift}
        | {measure: getattr(curve, measure)[direction][index] for measure in MEASURES}
        for name, curve in curves.items()
        for direction in DIRECTIONS
        for index, shift in enumerate(curve.shifts)
    ]


def draw(curves: Mapping[str, ShiftCurve]) -> Figure:
    """Draws accuracy and consistency over the shift: a row of panels a measure, a panel a direction, a line a run.

    Args:
      curves: by the runs' names.
    """
    figure = Figure(figsize=(10.5, 6.2), dpi=DPI, layout="constrained")
    for measure, row in zip(MEASURES, figure.subplots(len(MEASURES), len(DIRECTIONS), sharey="row"), strict=True):
        for direction, axes in zip(DIRECTIONS, row, strict=True):
            for index, (name, curve) in enumerate(curves.items()):
                style = {"color": LINES[index % len(LINES)], "linestyle": ("-", "--", ":")[index // len(LINES) % 3]}
                axes.plot(
                    curve.shifts, getattr(curve, measure)[direction], marker="o", markersize=4, label=name, **style
                )
            dress_curves(axes, f"{measure}, {direction}")
            axes.set_xlabel("shift in pixels")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda shift, _: f"{shift:g}"))
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.get_legend().remove()
    lines, names = row[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(len(names), 4), frameon=False, fontsize=9)
    return figure
