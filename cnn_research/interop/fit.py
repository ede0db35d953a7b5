"""What must fit to be taken: variables from elsewhere against a network's own."""

from collections.abc import Mapping
from typing import Any

import numpy as np

SHOWN = 6  # differences that an error lists


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Says in one line what is missing, unexpected or of another shape.

    Args:
      ours: a network's arrays by path, or shapes and dtypes.
      theirs: arrays from elsewhere by path.

    Returns:
      The first differences and the count of the others; nothing where both fit.
    """
    faults = [f"missing {path} {_shape(ours[path])}" for path in sorted(ours.keys() - theirs.keys())]
    faults += [f"unexpected {path} {_shape(theirs[path])}" for path in sorted(theirs.keys() - ours.keys())]
    faults += [
        f"{path} is {_shape(theirs[path])} there, {_shape(ours[path])} here"
        for path in sorted(ours.keys() & theirs.keys())
        if np.shape(ours[path]) != np.shape(theirs[path])
    ]
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def _shape(array: Any) -> str:
    return "x".join(map(str, np.shape(array))) or "scalar"
