"""Linear support vector machines and ridge regressors on a network's features, fitted on the host as R-CNN does.

Girshick et al. 2014, arXiv:1311.2524, section 2.3 and appendices B and C; what the paper leaves open is as in its code.
Features come in parts, of which only what is needed is kept, for those of all regions would not fit into memory.
"""

import warnings
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Bool, Float, Float32, Int

NORM = 20.0  # that features have in the mean, which gives `cost` and `ridge` a meaning
# Of negatives: those above the first margin are hard, and kept until they are below the second.
HARD, EASY = -1.0001, -1.2
NEW = 2000  # examples after which a machine is fitted again
NEVER = -1e4  # the bias of a class without examples

Layer = dict[str, Float32[np.ndarray, "..."]]  # kernel and bias


class Machine:
    """The machine of a class, and the examples that it learns from: all positives, and hard negatives."""

    def __init__(self, units: int, cost: float):
        """Begins with no examples.

        Args:
          units: of a feature.
          cost: weight of the examples' losses beside the margin's width; a positive's counts twice.
        """
        self._cost, self._fitted, self._new = cost, False, 0
        self._positives = self._negatives = np.empty((0, units), np.float32)
        self.weights, self.bias = np.zeros(units), NEVER

    def see(self, features: Float32[np.ndarray, "examples units"], signs: Int[np.ndarray, " examples"]) -> None:
        """Takes those examples that matter, and learns from time to time.

        Args:
          features: of regions.
          signs: above 0 positives, below 0 negatives.
        """
        negatives = features[signs < 0]
        if self._fitted:
            negatives = negatives[self._margins(negatives) > HARD]
        self._positives = np.concatenate([self._positives, features[signs > 0]])
        self._negatives = np.concatenate([self._negatives, negatives])
        self._new += len(negatives)
        if self._new > NEW:
            self.fit()

    def fit(self) -> None:
        """Learns from the examples, and drops the easy ones; without examples of either kind it stays as it is."""
        if not len(self._positives) or not len(self._negatives):
            return
        from sklearn import exceptions, svm  # not at the top: it takes a second, of every run of whatever task

        machine = svm.LinearSVC(C=self._cost, loss="hinge", class_weight={1: 2}, intercept_scaling=10.0, random_state=0)
        labels = np.repeat([1, -1], [len(self._positives), len(self._negatives)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", exceptions.ConvergenceWarning)  # it is fitted again with more
            machine.fit(np.concatenate([self._positives, self._negatives]), labels)
        self.weights, self.bias = machine.coef_[0], float(machine.intercept_[0])
        self._fitted, self._new = True, 0
        self._negatives = self._negatives[self._margins(self._negatives) > EASY]

    def _margins(self, features: Float32[np.ndarray, "examples units"]) -> Float[np.ndarray, " examples"]:
        return features @ self.weights + self.bias


def fit_machines(samples: Iterable[Mapping[str, np.ndarray]], cost: float) -> Layer:
    """Fits a machine a class in one pass over regions, after which more change little.

    Args:
      samples: `features` [images, regions, units] and `signs` int [images, regions, classes]: 1 an object, -1 none, 0
        does not count.
      cost: see `Machine`.
    """
    machines: list[Machine] = []
    scale = 0.0
    for sample in samples:
        features, signs = _rows(sample, "signs", (sample["signs"] != 0).any(-1))
        if not machines:
            scale, machines = _scale(features), [Machine(features.shape[1], cost) for _ in signs.T]
        for machine, each in zip(machines, signs.T, strict=True):
            machine.see(scale * features, each)
    for machine in machines:
        machine.fit()
    weights = np.stack([machine.weights for machine in machines], axis=1)
    return _layer(scale * weights, np.array([machine.bias for machine in machines]))


def fit_boxes(samples: Iterable[Mapping[str, np.ndarray]], classes: int, ridge: float) -> Layer:
    """Fits the regressors of each class's boxes, by least squares with a penalty on the weights alone.

    Args:
      samples: `features` [images, regions, units], `labels` int [images, regions], 0 where there is no object, and
        `offsets` [images, regions, 4].
      classes: without the background.
      ridge: weight of the penalty.
    """
    from sklearn.linear_model import Ridge

    kept = [
        (*_rows(sample, "labels", sample["labels"] > 0), sample["offsets"][sample["labels"] > 0]) for sample in samples
    ]
    features, labels, offsets = map(np.concatenate, zip(*kept, strict=True))
    scale = _scale(features)
    kernel, bias = np.zeros((features.shape[1], classes, 4)), np.zeros((classes, 4))
    for index in np.unique(labels) - 1:
        mine = labels == index + 1
        regressor = Ridge(alpha=ridge).fit(scale * features[mine], offsets[mine])
        kernel[:, index], bias[index] = scale * regressor.coef_.T, regressor.intercept_
    return _layer(kernel.reshape(-1, 4 * classes), bias.reshape(-1))


def _rows(
    sample: Mapping[str, np.ndarray], name: str, marks: Bool[np.ndarray, "images regions"]
) -> tuple[np.ndarray, np.ndarray]:
    return sample["features"][marks], sample[name][marks]


def _scale(features: Float32[np.ndarray, "examples units"]) -> float:
    """Returns what gives features their norm; 1 for none."""
    mean = float(np.linalg.norm(features, axis=1).mean()) if len(features) else 0.0
    return NORM / mean if mean else 1.0


def _layer(kernel: np.ndarray, bias: np.ndarray) -> Layer:
    return {"kernel": kernel.astype(np.float32), "bias": bias.astype(np.float32)}
