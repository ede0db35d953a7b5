"""How numbers are written in a report."""

import re
from typing import Any

# Names of metrics that are shares of 1, which are written in per cent.
_SHARE = re.compile(r"accuracy|error|iou|recall|(^|[_/])a[pr](\d|_|$)")


def is_share(name: str) -> bool:
    """Tells whether a metric is a share of 1: an accuracy, an error rate, an average precision.

    Args:
      name: `accuracy`, `test/coco_ap75`.
    """
    return _SHARE.search(name) is not None


def number(value: Any, name: str = "", digits: int = 1) -> str:
    """Returns a value as text: 84.3%, 61,706, 0.4595, 1.2e-05.

    Args:
      value: what is no number is written as it is.
      name: of the metric, which tells whether it is a share of 1.
      digits: of a share, after the point.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if is_share(name):
        return f"{value:.{digits}%}"
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def magnitude(count: int) -> str:
    """Returns a large number with a prefix: 269.7 k, 40.8 M."""
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:,.1f} {prefix}"
    return str(count)


def duration(seconds: int | float) -> str:
    """Returns a time as people say it: 48 s, 31 min 44 s, 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
