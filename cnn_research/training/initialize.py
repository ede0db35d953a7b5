"""Where a run's variables come from: fresh, from another run, or from a file of weights."""

import re
import sys
from typing import Any

import flax
import jax
from etils import epath
from jax.sharding import Sharding

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.interop import pth, safetensors, torch
from cnn_research.interop.fit import differences
from cnn_research.training import config as configs
from cnn_research.training.checkpoints import Checkpoints, find_step
from cnn_research.training.parallel import Jit
from cnn_research.training.program import Program, make_program


def restore_run(
    workdir: epath.PathLike, step: int | str | None, sharding: Sharding
) -> tuple[Program, int, dict[str, Any]]:
    """Restores a run's variables, as it evaluates them, on whatever devices are here.

    Args:
      workdir: the run's directory.
      step: a step, `latest` (or None) or `best`.
      sharding: where to put the arrays.

    Returns:
      The run's program, the step, and the variables.

    Raises:
      UserError: the directory holds no run or no such checkpoint.
    """
    config = configs.load(workdir)
    if config.model.name not in models.names():
        raise UserError(f"{workdir} holds a run of {config.model.name}, which is no network")
    if unknown := configs.unknown_fields(config):
        print(
            f"{workdir}: fields of its config are not known here and do nothing: {', '.join(unknown)}", file=sys.stderr
        )
    program = make_program(config)
    metric = f"{program.config.data.test}/{program.task.primary_metric}"
    with Checkpoints(workdir, metric=metric, read_only=True) as checkpoints:
        step = find_step(checkpoints, step, workdir)
        if program.sees_twins(step):
            known = [other for other in checkpoints.steps if not program.sees_twins(other)]
            raise UserError(
                f"the checkpoint of step {step} in {workdir} is of two bodies, which are one network later only;"
                f" give one of the steps {known}"
            )
        averaged = program.config.ema > 0
        return program, step, checkpoints.restore_variables(step, program.abstract_variables, averaged, sharding)


def initial_variables(program: Program, parallel: Jit) -> dict[str, Any]:
    """Returns the variables that `config.init_from` names, or fresh ones, replicated over the devices.

    A layer named `head` that was made for another number of classes keeps its fresh values, and a line on stderr says
    so.

    Args:
      program: of the run.
      parallel: how the run's arrays lie.

    Raises:
      UserError: the source does not fit the network, and `config.init_except` does not say that it need not.
    """
    fresh = parallel.replicate(program.init_variables())
    path, excepted = program.config.init_from, program.config.init_except
    if not path:
        return fresh
    if path.endswith(".safetensors"):
        given = safetensors.load(path)
    elif path.endswith(".pth"):
        given = pth.load(path)
    elif (epath.Path(path) / "config.json").exists():
        given = restore_run(path, None, parallel.replicated)[2]
    else:
        raise UserError(f"init_from={path!r} is neither a run's directory nor a .safetensors or .pth file")
    if "params" not in given:
        given = torch.convert(program.model, fresh, given)
    return parallel.replicate(merge(fresh, _with_fresh_heads(fresh, given), excepted))


def _with_fresh_heads(fresh: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Returns `given` with the fresh values of heads from which it differs in the number of classes alone."""
    ours, theirs = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, given))
    heads: dict[str, str] = {}
    for path in ours.keys() & theirs.keys():
        layer = path.rpartition("/")[0]
        here, there = ours[path].shape, theirs[path].shape
        if layer.endswith("/head") and len(here) == len(there) and here != there and here[:-1] == there[:-1]:
            theirs[path], heads[layer] = ours[path], f"{there[-1]} classes there, {here[-1]} here"
    if jax.process_index() == 0:
        for layer, why in sorted(heads.items()):
            print(f"init_from: {layer} keeps its fresh values: {why}", file=sys.stderr)
    return flax.traverse_util.unflatten_dict(theirs, sep="/")


def merge(fresh: dict[str, Any], given: dict[str, Any], excepted: str = "") -> dict[str, Any]:
    """Returns `given` where it fits `fresh`, strictly.

    Args:
      fresh: variables of the network.
      given: variables from elsewhere.
      excepted: regex over paths (`params/head/kernel`) that keep their fresh values, in `given` or not.

    Raises:
      UserError: something outside `excepted` is missing, unexpected or of another shape.
    """
    ours, theirs = (flax.traverse_util.flatten_dict(tree, sep="/") for tree in (fresh, given))
    try:
        keep = {path for path in {*ours, *theirs} if excepted and re.search(excepted, path)}
    except re.error as error:
        raise UserError(f"init_except={excepted!r} is no regular expression: {error}") from error
    faults = differences(*({path: tree[path] for path in tree.keys() - keep} for tree in (ours, theirs)))
    if faults:
        raise UserError(
            f"init_from does not fit the network: {faults}."
            " Paths that init_except (a regex) matches keep their fresh values"
        )
    merged = {path: value if path in keep else theirs[path].astype(value.dtype) for path, value in ours.items()}
    return flax.traverse_util.unflatten_dict(merged, sep="/")
