"""Detectors finding objects: images a second; and non-maximum suppression alone."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int

from cnn_research import training
from cnn_research.ops.boxes import nms
from cnn_research.training.config import is_given_regions
from experiments import command_line
from experiments.suites import timing

_FULL = flags.DEFINE_bool("full", False, "detect: networks as their papers have them, not small ones")

RECIPES = Path(__file__).parents[1] / "configs"
# The recipe of each network: a small one, and the paper's.
DETECTORS = {
    "localizer": ("voc.py:localizer,overfit", "voc.py:localizer"),
    "yolo": ("voc.py:yolo,overfit", "voc.py:yolo"),
    "fast_yolo": ("voc.py:fast_yolo,overfit", "voc.py:fast_yolo"),
    "rcnn": ("voc.py:rcnn,overfit", "voc.py:rcnn"),
    "fast_rcnn": ("voc.py:fast_rcnn,overfit", "voc.py:fast_rcnn"),
    "faster_rcnn": ("voc.py:faster_rcnn,overfit", "voc.py:faster_rcnn"),
    "mask_rcnn": ("shapes_instances.py:mask_rcnn", "coco.py:mask_rcnn"),
}
IMAGES = (8, 1)  # at a time, of a small network and of a full one
REGIONS = 300  # of an image, for networks to which they are given

NMS = {f"nms {count}": count for count in (1000, 8000)}  # boxes
CHOSEN, OVERLAP = 2048, 0.7  # more than are left, for OpenCV always chooses all


def rows(rounds: int, models: Sequence[str]) -> list[timing.Row]:
    """Images/s of batches, from bytes to boxes, over one image after the other; and milliseconds of suppression."""
    names = timing.chosen(models, [*DETECTORS, *NMS])
    return [_suppression(name, rounds) if name in NMS else _detection(name, rounds) for name in names]


def _detection(name: str, rounds: int) -> timing.Row:
    find, batch = detector(name, full=_FULL.value)
    count = len(batch["image"])
    sides: dict[str, Callable[[], object]] = {
        "batch": lambda: jax.block_until_ready(find(batch)),
        "loop": lambda: [
            jax.block_until_ready(find({key: x[place : place + 1] for key, x in batch.items()}))
            for place in range(count)
        ],
    }
    times = timing.in_turns(sides, rounds)
    speeds = {side: [count / seconds for seconds in times[side]] for side in sides}
    size = "x".join(map(str, batch["image"].shape[1:3]))
    row: timing.Row = {"model": name, "image_size": size, "batch_size": count}
    row |= {f"{side}_images_per_s": round(statistics.median(speeds[side]), 2) for side in sides}
    return row | timing.ratios(speeds["batch"], speeds["loop"])


def detector(name: str, full: bool) -> tuple[Callable[[Any], Any], dict[str, Array]]:
    """Returns the compiled predictions of a fresh network, and a batch of noise for them.

    Args:
      name: of the network.
      full: whether it is the paper's.
    """
    config = command_line.load_config(str(RECIPES / DETECTORS[name][full]))
    program = training.make_program(config)
    random = np.random.default_rng(0)
    batch = {"image": random.integers(0, 256, (IMAGES[full], *program.image_shape), np.uint8)}
    if is_given_regions(config.model):
        batch["proposals"] = np.stack([boxes(REGIONS, seed)[0] for seed in range(IMAGES[full])])
    predict = jax.jit(
        lambda variables, batch: program.task.predict(program.model, variables, program.preprocessing.test(batch))
    )
    return partial(predict, program.init_variables()), jax.tree.map(jnp.asarray, batch)


def _suppression(name: str, rounds: int) -> timing.Row:
    places, scores = boxes(NMS[name])
    ours = partial(nms, jnp.asarray(places), jnp.asarray(scores), OVERLAP, min(NMS[name], CHOSEN))
    sides: dict[str, Callable[[], object]] = {
        "ours": lambda: jax.block_until_ready(ours()),
        "opencv": partial(by_opencv, places, scores),
    }
    times = timing.in_turns(sides, rounds)
    row: timing.Row = {"model": name} | {f"{side}_ms": round(1e3 * statistics.median(times[side]), 3) for side in sides}
    return row | timing.ratios(times["opencv"], times["ours"])


def boxes(count: int, seed: int = 0) -> tuple[Float[np.ndarray, "boxes 4"], Float[np.ndarray, " boxes"]]:
    """Returns boxes, in 0..1 of an image, and their scores: as a network proposes them, many around few objects.

    Args:
      count: of the boxes.
      seed: of the draw.
    """
    random = np.random.default_rng(seed)
    centres, sizes = random.uniform(0.1, 0.9, (count // 20, 2)), random.uniform(0.05, 0.4, (count // 20, 2))
    around = random.integers(0, count // 20, count)
    centres = centres[around] + sizes[around] * random.normal(0, 0.1, (count, 2))
    sizes = sizes[around] * np.exp(random.normal(0, 0.1, (count, 2)))
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1)
    return corners.clip(0, 1).astype(np.float32), random.uniform(0.01, 1, count).astype(np.float32)


def by_opencv(places: Float[np.ndarray, "boxes 4"], scores: Float[np.ndarray, " boxes"]) -> Int[np.ndarray, " chosen"]:
    """Returns the indices of the boxes that OpenCV's suppression chooses, best first.

    Args:
      places: ymin, xmin, ymax, xmax.
      scores: above 0.
    """
    ymin, xmin, ymax, xmax = places.T
    rectangles = np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=1)
    chosen: Any = cv2.dnn.NMSBoxes(rectangles.tolist(), scores.tolist(), 0.0, OVERLAP)
    return chosen
