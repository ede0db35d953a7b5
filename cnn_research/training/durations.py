"""Durations as people say them: `10ep`, `500` steps, `5%` or `0.05` of the whole run."""

import re

from cnn_research.errors import UserError

_FORM = re.compile(r"(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>ep|epochs?|steps?|%|)")


def parse_steps(duration: str | int | float, steps_per_epoch: float, total: int = 0, field: str = "duration") -> int:
    """Returns a duration in steps, rounded.

    Args:
      duration: `10ep` (epochs), `500` (steps), `5%` or, with a point and no unit, `0.05` (shares of the whole run).
      steps_per_epoch: examples over batch size, not rounded.
      total: steps of the whole run, for shares; 0 where the whole is what is asked for.
      field: the config's name of it, for messages.

    Raises:
      UserError: not a duration, or a share of itself.
    """
    text = str(duration).strip()
    match = _FORM.fullmatch(text)
    if not match:
        raise UserError(f"{field}={text!r} is no duration; write 10ep (epochs), 500 (steps) or 5% (of the whole run)")
    number, unit = float(match["number"]), match["unit"]
    if unit.startswith("ep"):
        return round(number * steps_per_epoch)
    if unit == "%" or (not unit and "." in match["number"]):
        if not total:
            raise UserError(f"{field}={text!r} is a share of the whole run; write 10ep (epochs) or 500 (steps)")
        return round(number * total / (100 if unit == "%" else 1))
    return round(number)
