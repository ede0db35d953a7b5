"""Looks into a run's checkpoints: parameters by name, distances between checkpoints, their average, files of weights.

python -m experiments.weights --workdir=runs/digits_lenet5 --params='C1|head'
python -m experiments.weights --workdir=runs/digits_lenet5 --step=675 --compare=898
python -m experiments.weights --workdir=runs/digits_lenet5 --compare=runs/other
python -m experiments.weights --workdir=runs/digits_lenet5 --average=all --out=mean.safetensors
python -m experiments.weights --workdir=runs/digits_lenet5 --step=best --out=best.safetensors

`experiments.evaluate --weights` and `--config.init_from` of training take such a file. With `--layout=torch` it is a
state dict of torchvision's network. The table of distances begins with the layer that moved most.
"""

from typing import Any

import numpy as np
from absl import flags
from etils import epath

from cnn_research import analysis
from cnn_research.analysis import weights
from cnn_research.errors import UserError
from cnn_research.interop import safetensors, torch
from cnn_research.training.checkpoints import Checkpoints
from experiments import command_line
from experiments.markdown import markdown_table

_WORKDIR = flags.DEFINE_string("workdir", "", "the run's directory, local or in a bucket")
_STEP = flags.DEFINE_string("step", "latest", "a step that has a checkpoint, or latest, or best")
_PARAMS = flags.DEFINE_string("params", "", "a regular expression over paths of variables, to print what they are like")
_COMPARE = flags.DEFINE_string("compare", "", "another step of the run, or the directory of another run")
_AVERAGE = flags.DEFINE_list("average", [], "steps with commas between, or all, whose mean --out gets")
_OUT = flags.DEFINE_string("out", "", "a .safetensors file for the weights")
_LAYOUT = flags.DEFINE_enum("layout", "own", ("own", "torch"), "names and order of the weights in it")


def main() -> None:
    """Does what the flags ask for."""
    command_line.require("workdir")
    if _AVERAGE.value and not _OUT.value:
        raise UserError("--average needs a file; give --out=mean.safetensors")
    if not (_PARAMS.value or _COMPARE.value or _OUT.value):
        raise UserError("give --params=REGEX, --compare=STEP or --out=FILE.safetensors")
    if _OUT.value and not _OUT.value.endswith(".safetensors"):
        raise UserError(f"--out={_OUT.value}: the file's name ends in .safetensors")
    run = analysis.load_run(_WORKDIR.value, _STEP.value)
    if _PARAMS.value:
        print("\n".join(parameters(run)))
    if _COMPARE.value:
        print("\n".join(distances(run)))
    if _OUT.value:
        export(run, epath.Path(_OUT.value))


def parameters(run: analysis.Run) -> list[str]:
    """Returns the lines of a table: a row for each array that was asked for."""
    rows = [["variable", "shape", "mean", "deviation", "least", "largest"]]
    for path, array in weights.select(run.variables, _PARAMS.value).items():
        value = np.asarray(array, np.float64)
        numbers = [f"{number:.4g}" for number in (value.mean(), value.std(), value.min(), value.max())]
        rows.append([path, "x".join(map(str, value.shape)), *numbers])
    return markdown_table(rows, left=2)


def distances(run: analysis.Run) -> list[str]:
    """Returns the lines of a table: a row a layer, the one that moved most first."""
    if epath.Path(_COMPARE.value).is_dir():
        other = analysis.load_run(_COMPARE.value)
    else:
        other = analysis.load_run(_WORKDIR.value, _COMPARE.value)
    found = sorted(weights.layer_distances(run.variables, other.variables), key=lambda each: -each.relative)
    rows = [["layer", "distance over norm", "distance", "largest change"]]
    rows += [[each.layer, f"{each.relative:.4f}", f"{each.absolute:.4g}", f"{each.largest:.4g}"] for each in found]
    return [f"step {run.step} of {run.workdir} and step {other.step} of {other.workdir}:", "", *markdown_table(rows, 1)]


def export(run: analysis.Run, out: epath.Path) -> None:
    """Writes the weights of the step, or the mean of several."""
    variables, what = run.variables, f"step {run.step}"
    if _AVERAGE.value:
        with Checkpoints(run.workdir, read_only=True) as checkpoints:
            known = [str(step) for step in checkpoints.steps]
        steps = known if _AVERAGE.value == ["all"] else _AVERAGE.value
        variables = weights.average([analysis.load_run(run.workdir, step).variables for step in steps])
        what = f"the mean of steps {', '.join(steps)}"
    if _LAYOUT.value == "torch":
        fields: dict[str, Any] = run.config.model.to_dict()
        variables = torch.dump(fields.pop("name"), variables, **fields)
    out.parent.mkdir(parents=True, exist_ok=True)
    safetensors.save(variables, out)
    print(f"{what} of {run.workdir} written to {out}")


if __name__ == "__main__":
    command_line.run(main)
