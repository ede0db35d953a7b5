"""The earlier approach: a designed descriptor, then a linear classifier. Only the classifier learns.

python -m experiments.hog_svm --config=experiments/configs/mnist.py --workdir=runs/mnist_hog_svm

Histograms of oriented gradients (Dalal & Triggs 2005, "Histograms of oriented gradients for human detection",
doi:10.1109/CVPR.2005.177) and linear support vector machines, one class against the rest. Of the recipe its data and
its seed count, and nothing of its network or training: descriptors are of the images as stored, without augmentation.
The directory gets the files of any run, and `result.json` its keys: `step` is the number of the solver's iterations.

Test accuracy with the flags' defaults and all examples: digits 98.6%, in 1 second on 2 CPU cores; MNIST 98.3%, about 2
minutes; CIFAR-10 52.5%, about 4 minutes and 2.4 GB of memory.
"""

import importlib.metadata
import json
import math
import re
import sys
import time
import warnings
from typing import Any

import cv2
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax.nn import softmax
from jaxtyping import Float, Int, Integer, UInt8
from ml_collections import ConfigDict, config_flags
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from tqdm import tqdm

from cnn_research.data.batches import load
from cnn_research.data.crops import center_crop
from cnn_research.data.order import permutation
from cnn_research.data.sources import Source
from cnn_research.errors import UserError
from cnn_research.interop import safetensors
from cnn_research.tasks.classification import Classification
from cnn_research.training import config as configs
from cnn_research.training.evaluation import check_classes, open_split
from cnn_research.training.feed import image_spec
from cnn_research.training.writers import Writer, environment, read_result, write_text
from experiments import command_line

_CONFIG = config_flags.DEFINE_config_file("config", help_string="a recipe, FILE.py or FILE.py:argument")
_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_CELL = flags.DEFINE_integer("cell", 4, "side of a histogram's cell in pixels", lower_bound=1)
_C = flags.DEFINE_float("C", 0.01, "weight of the examples' losses beside the margin's width; the paper's is 0.01")
_MAX_EXAMPLES = flags.DEFINE_integer(
    "max_examples", 0, "training examples at most, drawn by the seed; 0: all", lower_bound=0
)

# What counts of a recipe.
DATA_FIELDS = (
    "name", "train", "test", "data_dir", "image", "image_size", "crop_size", "channels", "resize",
    "skip_corrupt",
)  # fmt: skip
FIELDS = ("seed", "model.num_classes", *(f"data.{name}" for name in DATA_FIELDS))

BINS = 9  # over 0 to 180 degrees: unsigned gradients
BLOCK = 2  # cells along each side of a block
CLIP = 0.2  # of L2-Hys: the largest value of a normalised block
MAX_ITERATIONS = 1000


class Hog:
    """The descriptor of the paper's default detector, but for the cells' size: no gamma, 9 bins, 2x2 cells, L2-Hys.

    Of a colour image each pixel takes the gradient of the channel where it is largest.
    """

    def __init__(self, image_size: tuple[int, ...], cell: int):
        """Prepares the descriptor.

        Args:
          image_size: height and width; images are stretched to the next whole number of cells, at least one block's.
          cell: side of a cell in pixels, 8 in the paper.
        """
        height, width = (max(BLOCK, math.ceil(side / cell)) * cell for side in image_size)
        self._window, block = (width, height), (BLOCK * cell, BLOCK * cell)
        # As in the paper, and not as OpenCV has it by default: a pixel's weight in its block falls with half a block as
        # σ (8 pixels there; OpenCV's is a quarter), and colours are taken as they are (OpenCV's are square roots).
        sigma, gamma_correction = BLOCK * cell / 2, False
        self._hog = cv2.HOGDescriptor(
            self._window, block, (cell, cell), (cell, cell), BINS, 1, sigma, cv2.HOGDescriptor_L2Hys, CLIP,
            gamma_correction,
        )  # fmt: skip
        self.size: int = self._hog.getDescriptorSize()

    def __call__(self, image: UInt8[np.ndarray, "height width channels"]) -> Float[np.ndarray, " size"]:
        """Describes an image.

        Args:
          image: grey or colour.
        """
        if image.shape[1::-1] != self._window:
            image = cv2.resize(image, self._window, interpolation=cv2.INTER_LINEAR)
        return np.ravel(self._hog.compute(image))


def describe(
    source: Source, indices: Int[np.ndarray, " examples"], config: ConfigDict, hog: Hog
) -> tuple[Float[np.ndarray, "examples size"], Integer[np.ndarray, " examples"]]:
    """Returns the descriptors and labels of a split's examples.

    Args:
      source: the split.
      indices: of the examples.
      config: of the run; its data part says how images are brought to size.
      hog: the descriptor.

    Raises:
      UserError: the descriptors do not fit into memory.
    """
    spec = image_spec(config.data)
    there = np.empty(len(indices), bool)
    try:
        descriptors = np.empty((len(indices), hog.size))  # float64, which the solver would turn them into
    except MemoryError as error:
        raise UserError(f"{error}; give --max_examples, or a larger --cell") from error
    labels = np.empty(len(indices), np.int32)
    began = time.monotonic()
    with tqdm(total=len(indices), desc=source.split, unit="image", disable=None, leave=False) as bar:
        for begin in range(0, len(indices), 1024):
            part = slice(begin, begin + 1024)
            batch = load(source, indices[part], np.ones(len(indices[part]), bool), spec)
            images = center_crop(jnp.asarray(batch["image"]), config.data.crop_size or spec.size)
            descriptors[part] = [hog(image) for image in np.asarray(images)]
            labels[part], there[part] = batch["label"], batch["example_mask"]
            bar.update(len(batch["label"]))
    seconds = time.monotonic() - began
    _say(f"{source.split}: {there.sum():,} descriptors of {hog.size:,} values in {seconds:.1f} s")
    if not there.all():
        skipped = ", ".join(map(str, indices[~there]))
        _say(f"{source.split}: skips what cannot be decoded: {skipped}")
        descriptors, labels = descriptors[there], labels[there]
    return descriptors, labels


def fit(
    descriptors: Float[np.ndarray, "examples size"],
    labels: Integer[np.ndarray, " examples"],
    num_classes: int,
    c: float,
    seed: int,
) -> tuple[Float[np.ndarray, "size classes"], Float[np.ndarray, " classes"], int]:
    """Fits a machine for each class: half the weights' squared norm, plus c times the squared hinge losses' sum.

    Args:
      descriptors: of the training examples.
      labels: their classes.
      num_classes: machines; that of a class without examples never wins.
      c: weight of the losses.
      seed: of the solver, which draws where examples are fewer than values.

    Returns:
      Weights, biases, and the iterations of the machine that took most.

    Raises:
      UserError: all examples are of one class.
    """
    if (labels == labels[0]).all():
        raise UserError(f"all {len(labels)} training examples are of class {labels[0]}; give more of them")
    weights, biases, iterations = np.zeros((descriptors.shape[1], num_classes)), np.full(num_classes, -np.inf), 0
    began = time.monotonic()
    for index in tqdm(np.unique(labels), desc="fitting", unit="class", disable=None, leave=False):
        machine = LinearSVC(C=c, dual="auto", max_iter=MAX_ITERATIONS, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # said below, in a line
            machine.fit(descriptors, labels == index)
        weights[:, index], biases[index] = machine.coef_[0], machine.intercept_[0]
        iterations = max(iterations, int(machine.n_iter_))
        if machine.n_iter_ >= MAX_ITERATIONS:
            _say(f"the machine of class {index} has not converged in {MAX_ITERATIONS:,} iterations; a smaller --C does")
    _say(f"{len(np.unique(labels))} machines in {time.monotonic() - began:.1f} s")
    return weights, biases, iterations


def _say(text: str) -> None:
    tqdm.write(text, file=sys.stderr)


def _run_config(config: ConfigDict) -> ConfigDict:
    """Returns what counts: the recipe's data and seed, and the flags.

    Raises:
      UserError: another field of the recipe was given, or a flag is out of range.
    """
    for argument in sys.argv[1:]:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        if match and match[1] not in FIELDS:
            raise UserError(f"--config.{match[1]} does nothing here; what counts is {', '.join(FIELDS)}")
    if not 0 < _C.value < math.inf:
        raise UserError(f"--C={_C.value} is out of range; it must be more than 0")
    if config.task != "classification":
        raise UserError(f"the recipe is of {config.task}; machines need one of classification")
    data = {name: config.data[name] for name in DATA_FIELDS}
    model = dict(name="hog_svm", num_classes=config.model.num_classes, cell=_CELL.value, C=_C.value)
    known = dict(seed=config.seed, task=config.task, data=data, model=model, max_examples=_MAX_EXAMPLES.value)
    return ConfigDict(known)


def train(config: ConfigDict, workdir: epath.Path) -> dict[str, float]:
    """Describes, fits, measures and writes the run's directory.

    Args:
      config: of the run, see `_run_config`.
      workdir: the run's directory.

    Returns:
      What `result.json` holds.

    Raises:
      UserError: the data or the directory is not right.
    """
    complete = configs.complete(config.to_dict())  # with what the parts of a network's run ask for
    train_source, test_source = (open_split(complete, config.data[split]) for split in ("train", "test"))
    for source in (train_source, test_source):
        check_classes(source, complete)
    with config.unlocked():
        config.data.num_examples, config.data.class_names = len(train_source), train_source.class_names
    _check_directory(config, workdir)
    if (workdir / "result.json").exists():
        return read_result(workdir / "result.json", "step")

    began = time.monotonic()
    hog = Hog(tuple(config.data.crop_size or config.data.image_size), config.model.cell)
    chosen = np.arange(len(train_source))
    if 0 < config.max_examples < len(chosen):
        chosen = np.sort(permutation(len(chosen), config.seed, epoch=0)[: config.max_examples])
    examples = describe(train_source, chosen, complete, hog)
    weights, biases, iterations = fit(*examples, config.model.num_classes, config.model.C, config.seed)
    seconds = time.monotonic() - began
    del examples

    descriptors, labels = describe(test_source, np.arange(len(test_source)), complete, hog)
    metrics = measure((descriptors @ weights + biases).astype(np.float32), labels)
    named = {f"{config.data.test}/{name}": value for name, value in metrics.items()}
    result = {"step": iterations, **named, "seconds": round(seconds, 2), "params": weights.size + biases.size}
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "config.json", configs.to_json(config))
    write_text(workdir / "environment.json", json.dumps(_environment(), indent=2) + "\n")
    machines = {"kernel": weights.astype(np.float32), "bias": biases.astype(np.float32)}
    safetensors.save({"params": {"machines": machines}}, workdir / "weights.safetensors")
    Writer(workdir, 0, tensorboard=False).write(iterations, {**named, "seconds": result["seconds"]})
    write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")
    return result


def measure(
    logits: Float[np.ndarray, "examples classes"], labels: Integer[np.ndarray, " examples"]
) -> dict[str, float]:
    """Returns the metrics of a classification that a margin has a meaning for; it is no logarithm of a probability.

    Args:
      logits: the machines' decisions.
      labels: the true classes.
    """
    task = Classification()
    predictions = {"logits": logits, "probabilities": softmax(logits), "label": logits.argmax(1).astype(np.int32)}
    batch = {"label": labels, "example_mask": np.ones(len(labels), bool)}
    metrics = task.summarize(task.measure(predictions, batch))
    return {name: metrics[name] for name in ("accuracy", "top5_accuracy", "error", "examples")}


def _check_directory(config: ConfigDict, workdir: epath.Path) -> None:
    """Refuses a directory that holds another run.

    Raises:
      UserError: naming the fields that differ.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"workdir {workdir} is a file; give a directory")
    if (workdir / "config.json").exists():
        changed = configs.differences(configs.load(workdir), configs.complete(config.to_dict()))
        if changed:
            raise UserError(f"workdir {workdir} holds a run of another config ({', '.join(changed)}); give another one")


def _environment() -> dict[str, Any]:
    """Returns what the run ran on, with the versions of the libraries that no other run needs."""
    facts = environment()
    libraries = ("scikit-learn", "opencv-contrib-python-headless")
    return facts | {"versions": facts["versions"] | {name: importlib.metadata.version(name) for name in libraries}}


def main() -> None:
    """Trains and prints the result, one JSON object."""
    command_line.require("config", "workdir")
    print(json.dumps(train(_run_config(_CONFIG.value), epath.Path(_WORKDIR.value).expanduser())))


if __name__ == "__main__":
    command_line.run(main)
