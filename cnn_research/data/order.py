"""Which examples a step sees: a pure function of the seed and the step.

The global batch of a step depends neither on the number of processes nor on where a run was interrupted, so the
position in the data is the step and nothing else needs to be saved.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Int

# step -> (indices into the split, False where the batch is padded)
Order = Callable[[int], tuple[Int[np.ndarray, "batch"], Bool[np.ndarray, "batch"]]]


@functools.lru_cache(maxsize=4)
def permutation(num_examples: int, seed: int, epoch: int) -> Int[np.ndarray, "examples"]:
    """Returns the order of one epoch.

    Sorting Philox's raw bits keeps the order the same in every version of NumPy, which promises that for the bits but
    not for `Generator.permutation`.

    Args:
      num_examples: length of the split.
      seed: of the run.
      epoch: counted from 0.
    """
    bits = np.random.Philox(key=[seed, epoch]).random_raw(num_examples)
    return np.argsort(bits, kind="stable")


@dataclasses.dataclass(frozen=True)
class Shuffled:
    """Training's order: epochs follow each other without a gap, each in an order of its own.

    A batch may hold the end of one epoch and the beginning of the next, so every example is seen equally often whatever
    the batch size.

    Attributes:
      num_examples: length of the split.
      batch_size: of the global batch.
      seed: of the run.
    """

    num_examples: int
    batch_size: int
    seed: int

    def __call__(self, step: int) -> tuple[Int[np.ndarray, "batch"], Bool[np.ndarray, "batch"]]:
        """Returns the indices of a step's examples, and a mask that is all True."""
        epochs, offsets = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.num_examples)
        indices = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = permutation(self.num_examples, self.seed, int(epoch))[offsets[epochs == epoch]]
        return indices, np.ones(self.batch_size, bool)


@dataclasses.dataclass(frozen=True)
class Sequential:
    """Evaluation's order: every example once, as stored; the last batch is padded with example 0 and masked.

    Attributes:
      num_examples: length of the split.
      batch_size: of the global batch.
    """

    num_examples: int
    batch_size: int

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-self.num_examples // self.batch_size)

    def __call__(self, step: int) -> tuple[Int[np.ndarray, "batch"], Bool[np.ndarray, "batch"]]:
        """Returns the indices of batch `step`, and where they are examples and not padding."""
        indices = step * self.batch_size + np.arange(self.batch_size)
        mask = indices < self.num_examples
        return np.where(mask, indices, 0), mask
