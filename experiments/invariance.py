"""Measures how far runs' answers outlast a shift of the images: accuracy and consistency, as curves and as a table.

python -m experiments.invariance --runs='runs/digits_*' --max_shift=4 --out=invariance

Every image of the split is shifted by whole pixels of the network's input to the left and the right, up and down, and
along both diagonals. Consistency is the share of images whose predicted class stays what it was without the shift.
`--out` gets `curves.png`, `table.md` and `table.csv`; the table is printed too.
"""

import csv
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from absl import flags
from etils import epath
from tqdm import tqdm

from cnn_research import analysis
from cnn_research.errors import UserError, nearest
from cnn_research.ops.padding import MODES
from cnn_research.training.writers import write_text
from experiments import command_line
from experiments.markdown import markdown_table
from experiments.runs import find_runs

if TYPE_CHECKING:
    from cnn_research.analysis.invariance import ShiftCurve

_RUNS = flags.DEFINE_string("runs", "", "the runs' directories, as a glob in quotes")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing; each run's test split unless given")
_MAX_SHIFT = flags.DEFINE_integer("max_shift", 4, "the largest shift in pixels", lower_bound=1)
_PADDING_MODE = flags.DEFINE_string("padding_mode", "edge", f"what moves in from beyond the border: {', '.join(MODES)}")
_OUT = flags.DEFINE_string("out", "", "the folder for curves.png, table.md and table.csv")


def table_text(curves: Mapping[str, "ShiftCurve"]) -> str:
    """Returns the table as markdown: what is to be compared stands one below the other.

    Args:
      curves: by the runs' names, all of the same shifts.
    """
    from cnn_research.analysis.invariance import DIRECTIONS, MEASURES

    shifts = next(iter(curves.values())).shifts
    rows = [["measure", "direction", "run", *(f"{shift} px" for shift in shifts)]]
    rows += [
        [measure, direction, name, *(f"{value:.4f}" for value in getattr(curve, measure)[direction])]
        for measure in MEASURES
        for direction in DIRECTIONS
        for name, curve in curves.items()
    ]
    return "\n".join(markdown_table(rows, left=3)) + "\n"


def main() -> None:
    """Measures, prints and draws."""
    command_line.require("runs", "out")
    if _PADDING_MODE.value not in MODES:
        raise UserError(f"--padding_mode={_PADDING_MODE.value} is not known; {nearest(_PADDING_MODE.value, MODES)}")
    paths = find_runs(_RUNS.value)
    # Not at the top: matplotlib takes half a second, and faults of the flags come first.
    from cnn_research.analysis import invariance

    out = epath.Path(_OUT.value)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out} is a file; give a folder")
    curves = {}
    for name, path in tqdm(paths.items(), unit="run", disable=None, leave=False):
        run = analysis.load_run(path, _STEP.value)
        classify = invariance.classifier(run)
        images, labels = invariance.load_split(run, _SPLIT.value)
        shifts = range(_MAX_SHIFT.value + 1)
        curves[name] = invariance.shift_curve(classify, images, labels, shifts, _PADDING_MODE.value)

    out.mkdir(parents=True, exist_ok=True)
    picture, table = io.BytesIO(), io.StringIO()
    invariance.draw(curves).savefig(picture, format="png")
    (out / "curves.png").write_bytes(picture.getvalue())
    rows = invariance.records(curves)
    writer = csv.DictWriter(table, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "table.csv", table.getvalue())
    text = table_text(curves)
    write_text(out / "table.md", text + "\n![curves](curves.png)\n")
    print(text, end="")


if __name__ == "__main__":
    command_line.run(main)
