"""Evaluation over a whole split: every example counts once, whatever the batch size and the number of devices."""

from typing import Any

import jax
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from cnn_research.data.order import Sequential
from cnn_research.data.sources import Source, open_source
from cnn_research.errors import UserError
from cnn_research.tasks import Task
from cnn_research.training.config import image_feature, mask_feature, max_objects
from cnn_research.training.feed import Feed, eval_spec, make_feed
from cnn_research.training.parallel import Jit
from cnn_research.training.step import Preprocessing, make_eval_step


class Evaluator:
    """A split and the compiled step that measures a network on it."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        preprocessing: Preprocessing,
        source: Source,
        config: ConfigDict,
        parallel: Jit,
    ):
        """Loads the split and prepares the step.

        Args:
          model: the network.
          task: its predictions and what is measured of them.
          preprocessing: of the images.
          source: the split.
          config: of the run.
          parallel: how the step runs; always `jit`, whatever trains.
        """
        check_classes(source, config)
        # Padding makes any batch size divide among the devices.
        batch_size = -(-min(config.eval_batch_size, len(source)) // parallel.devices) * parallel.devices
        self._order = Sequential(len(source), batch_size)
        self._feed: Feed = make_feed(source, self._order, config.data, parallel, eval_spec(config))
        self._task = task
        self._step = jax.jit(make_eval_step(model, task, preprocessing), out_shardings=parallel.replicated)

    def __call__(self, variables: dict[str, Any]) -> dict[str, float]:
        """Returns the metrics of the split, under the task's names.

        Args:
          variables: the network's, replicated over the mesh.
        """
        return self._task.summarize(self.measure(variables))

    def measure(self, variables: dict[str, Any]) -> dict[str, Any]:
        """Returns the sums over the split that the task makes metrics of.

        Args:
          variables: the network's, replicated over the mesh.
        """
        sums = pending = None
        for batch in self._feed(0, len(self._order)):
            new = self._step(variables, batch, self._feed.data)
            sums, pending = _added(sums, pending), new  # the host adds while the devices work
        return _added(sums, pending)


def _added(sums: Any, new: Any) -> Any:
    """Adds a batch's sums in 64 bits: Cityscapes' training split has three times the pixels that 32 count."""
    if new is None:
        return sums
    wide = jax.tree.map(_widened, jax.device_get(new))
    return wide if sums is None else jax.tree.map(np.add, sums, wide)


def _widened(x: np.ndarray) -> np.ndarray:
    return x.astype(np.int64 if np.issubdtype(x.dtype, np.integer) else np.float64)


def check_classes(source: Source, config: ConfigDict) -> None:
    """Refuses a data set with more classes than the network has outputs.

    Raises:
      UserError: naming both numbers.
    """
    names = class_names(source, config)
    if len(names) > config.model.num_classes:
        raise UserError(
            f"data set {source.name!r} has {len(names)} classes, model.num_classes is {config.model.num_classes}"
        )


def class_names(source: Source, config: ConfigDict) -> tuple[str, ...]:
    """Returns the names of the classes: the data set's, or where pixels have classes the recipe's."""
    if mask_feature(config.data):
        return tuple(config.data.class_names)
    return source.object_names if max_objects(config.data) else source.class_names


def open_split(config: ConfigDict, split: str) -> Source:
    """Opens a split of the config's data set."""
    return open_source(config.data.name, split, config.data.data_dir, image_feature(config.data))
