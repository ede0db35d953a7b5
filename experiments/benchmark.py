"""Measures the speed of what the project is made of: `python -m experiments.benchmark --suite=loop`.

Prints a table, and as the last line of stdout one JSON object, {"suite": …, "rows": [{"model": …, "ratio": …}]}.
`ratio` is ours over the other's, higher is better, the median over the rounds. What is compared takes turns, so that a
machine whose speed drifts slows both.

Suites:
  loop: images/s of a whole run (data, logging, checkpoints) over calling its compiled step alone on one resident batch.
"""

import json
from typing import Any

from absl import flags
from etils import epath

from cnn_research.errors import UserError, nearest
from experiments import command_line
from experiments.suites import loop

_SUITE = flags.DEFINE_string("suite", "loop", "what to measure")
_OUT = flags.DEFINE_string("out", "", "a file for the JSON object too")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each", lower_bound=1)
_MODELS = flags.DEFINE_list("models", [], "only the rows of these networks or operations")

SUITES = {"loop": loop.rows}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as a table of aligned columns."""
    names = [name for name in rows[0] if name != "ratios"]
    lines = [
        names,
        *([f"{row[name]:,}" if isinstance(row[name], float) else str(row[name]) for name in names] for row in rows),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> None:
    """Measures and prints."""
    if _SUITE.value not in SUITES:
        raise UserError(f"--suite={_SUITE.value} is unknown; {nearest(_SUITE.value, SUITES)}")
    rows = SUITES[_SUITE.value](_ROUNDS.value, _MODELS.value)
    result = json.dumps({"suite": _SUITE.value, "rows": rows})
    if _OUT.value:
        epath.Path(_OUT.value).write_text(result + "\n")
    print(table(rows))
    print(result)


if __name__ == "__main__":
    command_line.run(main)
