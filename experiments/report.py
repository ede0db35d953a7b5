"""Writes the report of a run or of a sweep: one page, `index.html`, that any browser shows without a network.

python -m experiments.report --workdir=runs/digits_lenet5
python -m experiments.report --workdir=runs/since_1998

Of a run it has results, curves, classes, layers, the config, and the pictures that are in `--out` (PNGs) from
`visualize`, `evaluate` and `predict`; `visualize --method=all` ends with it. Of a sweep it has the table of settings,
their curves, and how they differ, seed by seed.
"""

from absl import flags
from etils import epath

from cnn_research import analysis
from experiments import command_line

_WORKDIR = flags.DEFINE_string("workdir", "", "the directory of a run or a sweep, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_SPLIT = flags.DEFINE_string("split", "", "with TFDS's slicing; the run's test split unless given")
_METRIC = flags.DEFINE_string("metric", "", "of a sweep: what arms are compared by; the sweep's own unless given")
_OUT = flags.DEFINE_string("out", "", "the folder for index.html; WORKDIR/report unless given")


def main() -> None:
    """Writes the page and says where it is."""
    command_line.require("workdir")
    workdir = epath.Path(_WORKDIR.value).expanduser()
    out = epath.Path(_OUT.value or workdir / "report")
    if (workdir / "sweep.json").exists():
        from experiments.sweeps import page

        path = page.write(workdir, out, _METRIC.value)
    else:
        # Not at the top: matplotlib takes half a second, and faults of the flags come first.
        from cnn_research.analysis import report

        path = report.write_run(analysis.load_run(workdir, _STEP.value), out, _SPLIT.value)
    print(f"{path}: {path.stat().length / 2**20:.1f} MiB")


if __name__ == "__main__":
    command_line.run(main)
