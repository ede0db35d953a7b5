"""Measures the speed of what the project is made of: `python -m experiments.benchmark --suite=loop`.

Prints a table, and as the last line of stdout one JSON object, {"suite": …, "rows": [{"model": …, "ratio": …}]}.
`ratio` is ours over the other's, higher is better, the median over the rounds. What is compared takes turns, so that a
machine whose speed drifts slows both.

Suites:
  loop: images/s of a whole run (data, logging, checkpoints) over calling its compiled step alone on one resident batch.
  train_step: images/s of that step by network; with --against=torch over those of the same network in PyTorch. On an
    accelerator in bfloat16, with the share of what the chip can do.
  startup: seconds from the command to the end of the first training step; the ratio is those of a cold start over those
    of a warm one, with the programs in the compilation cache.
  input: images/s of photographs becoming batches of random windows, 224x224: on a core, over OpenCV's bare decoding and
    over Pillow; and over one thread or process, with more.
  conv: GFLOP/s of convolutions, forwards, by their input and by their kernel, beside those of a product of matrices;
    the ratio is over plain `lax`, and with --against=torch there is torch_ratio, over PyTorch.
  pool: milliseconds of max and average pooling; likewise.
  attribute: images/s of each attribution, of whole batches; the ratio is over a loop over images.
  detect: images/s of each detector, of whole batches, from bytes to boxes; likewise; with --full of the papers'
    networks. And milliseconds of non-maximum suppression alone; the ratio is over OpenCV's.
"""

import json
from typing import Any

from absl import flags
from etils import epath

from cnn_research.errors import UserError, nearest
from experiments import command_line
from experiments.suites import attribute, conv, detect, input, loop, pool, startup, train_step

_SUITE = flags.DEFINE_string("suite", "loop", "what to measure")
_OUT = flags.DEFINE_string("out", "", "a file for the JSON object too")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "turns of each", lower_bound=1)
_MODELS = flags.DEFINE_list("models", [], "only the rows of these networks or operations")

SUITES = {
    "loop": loop.rows,
    "train_step": train_step.rows,
    "startup": startup.rows,
    "input": input.rows,
    "conv": conv.rows,
    "pool": pool.rows,
    "attribute": attribute.rows,
    "detect": detect.rows,
}


def table(rows: list[dict[str, Any]]) -> str:
    """Returns rows as a table of aligned columns; a row may lack some of the first one's."""
    names = [name for name in rows[0] if name != "ratios"]
    cells = [[row.get(name, "") for name in names] for row in rows]
    lines = [names, *([f"{cell:,}" if isinstance(cell, float) else str(cell) for cell in row] for row in cells)]
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
