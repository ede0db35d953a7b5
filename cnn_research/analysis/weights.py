"""Networks' variables as data: chosen by name, compared layer by layer, averaged."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax
import jax
import numpy as np

from cnn_research.errors import UserError, nearest
from cnn_research.interop.fit import differences


def flatten(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns variables as arrays by path, `params/conv1/kernel`.

    Args:
      variables: of a network, or those of some of its layers.
    """
    return flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")


def select(variables: Mapping[str, Any], pattern: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose paths a regular expression matches anywhere, by path.

    Args:
      variables: of a network.
      pattern: `params/conv1/kernel`, or `kernel$`.

    Raises:
      UserError: it is no regular expression, or no path matches.
    """
    flat = flatten(variables)
    try:
        chosen = {path: value for path, value in flat.items() if re.search(pattern, path)}
    except re.error as error:
        raise UserError(f"{pattern!r} is no regular expression: {error}") from error
    if not chosen:
        raise UserError(f"no path of a parameter matches {pattern!r}; {nearest(pattern, flat)}")
    return chosen


class Distance(NamedTuple):
    """How far a layer's variables are from those of another network.

    Attributes:
      layer: its path without the collection; `conv1 (batch_stats)` where these are no parameters.
      absolute: Euclidean distance.
      relative: to the Euclidean norm of the first network's; infinite where that is 0 and they differ.
      largest: difference of two values.
    """

    layer: str
    absolute: float
    relative: float
    largest: float


def layer_distances(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[Distance]:
    """Returns the distance of each layer, in the order of the first network's variables.

    Args:
      first: variables of a network.
      second: of one with the same layers.

    Raises:
      UserError: the networks' variables have other names or shapes.
    """
    ours, theirs = flatten(first), flatten(second)
    if faults := differences(ours, theirs):
        raise UserError(f"the networks' layers are not the same: {faults}")
    layers: dict[str, list[str]] = {}
    for path in ours:
        collection, _, rest = path.partition("/")
        suffix = "" if collection == "params" else f" ({collection})"
        layers.setdefault(rest.rpartition("/")[0] + suffix, []).append(path)
    distances = []
    for layer, paths in layers.items():
        values = np.concatenate([np.asarray(ours[path], np.float64).ravel() for path in paths])
        changes = np.concatenate([np.asarray(theirs[path], np.float64).ravel() for path in paths]) - values
        absolute, norm = float(np.linalg.norm(changes)), float(np.linalg.norm(values))
        relative = absolute / norm if norm else (float("inf") if absolute else 0.0)
        distances.append(Distance(layer, absolute, relative, float(np.abs(changes).max(initial=0.0))))
    return distances


def average(variables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the mean of networks' variables, as stochastic weight averaging takes it (arXiv:1803.05407).

    The running statistics of batch norm are averaged as the parameters are; the paper measures them anew.

    Args:
      variables: of one or more networks with the same layers.

    Raises:
      UserError: there are none, or the networks' variables have other names or shapes.
    """
    if not variables:
        raise UserError("there is nothing to average; give one checkpoint or more")
    flat = [flatten(each) for each in variables]
    for other in flat[1:]:
        if faults := differences(flat[0], other):
            raise UserError(f"the networks' layers are not the same: {faults}")
    means = {
        path: np.mean([np.asarray(each[path], np.float64) for each in flat], axis=0).astype(value.dtype)
        for path, value in flat[0].items()
    }
    return flax.traverse_util.unflatten_dict(means, sep="/")
