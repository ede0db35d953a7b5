"""Times functions in turns, so that a machine whose speed drifts slows all of them."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from cnn_research.errors import UserError, nearest

Row = dict[str, Any]


def chosen(models: Sequence[str], cases: Iterable[str]) -> list[str]:
    """Returns the cases that `--models` names, or all of them where it names none.

    Raises:
      UserError: a name is not a case of the suite.
    """
    cases = list(cases)
    if unknown := set(models) - set(cases):
        raise UserError(f"--models={min(unknown)}: the suite has no such row; {nearest(min(unknown), cases)}")
    return [case for case in cases if case in models or not models]


def seconds(
    function: Callable[[], object], least: float = 0.3, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Returns how long one call takes, in seconds: the mean of as many calls as fit into `least` seconds, one or more.

    Args:
      function: does its work before it returns.
      least: seconds to measure for.
      clock: of the wall; or `time.process_time`, for which a core that others use too stands still while they do.
    """
    calls, began = 0, clock()
    while (elapsed := clock() - began) < least or not calls:
        function()
        calls += 1
    return elapsed / calls


def in_turns(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    least: float = 0.3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns the seconds that a call of each function takes, one value a round, after a first call that warms up."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            time.sleep(0.05)  # XLA's threads look out for more work some milliseconds longer
            times[name].append(seconds(function, least, clock))
    return times


def ratios(ours: Sequence[float], others: Sequence[float]) -> Row:
    """Returns `ratio`, the median over the rounds of our speed over the other's, and `ratios`, all of them in order."""
    values = sorted(our / other for our, other in zip(ours, others, strict=True))
    return {"ratio": round(statistics.median(values), 4), "ratios": [round(value, 4) for value in values]}
