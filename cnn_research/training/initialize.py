"""Where a run's variables come from: fresh, from another run, or from a file of weights."""

import re
from typing import Any

import flax
import jax
import numpy as np
from etils import epath
from jax.sharding import Sharding

from cnn_research.errors import UserError
from cnn_research.interop import safetensors
from cnn_research.training import config as configs
from cnn_research.training.checkpoints import Checkpoints, find_step
from cnn_research.training.parallel import Jit
from cnn_research.training.program import Program, make_program

SHOWN = 6  # differences that an error lists


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
    program = make_program(configs.load(workdir))
    metric = f"{program.config.data.test}/{program.task.primary_metric}"
    with Checkpoints(workdir, metric=metric, read_only=True) as checkpoints:
        step = find_step(checkpoints, step, workdir)
        averaged = program.config.ema > 0
        return program, step, checkpoints.restore_variables(step, program.abstract_variables, averaged, sharding)


def initial_variables(program: Program, parallel: Jit) -> dict[str, Any]:
    """Returns the variables that `config.init_from` names, or fresh ones, replicated over the devices.

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
    elif (epath.Path(path) / "config.json").exists():
        given = restore_run(path, None, parallel.replicated)[2]
    else:
        raise UserError(f"init_from={path!r} is neither a run's directory nor a .safetensors file")
    return parallel.replicate(merge(fresh, given, excepted))


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
    faults = [f"missing {path} {_shape(ours[path])}" for path in sorted(ours.keys() - theirs.keys() - keep)]
    faults += [f"unexpected {path} {_shape(theirs[path])}" for path in sorted(theirs.keys() - ours.keys() - keep)]
    faults += [
        f"{path} is {_shape(theirs[path])} there, {_shape(ours[path])} here"
        for path in sorted((ours.keys() & theirs.keys()) - keep)
        if np.shape(ours[path]) != np.shape(theirs[path])
    ]
    if faults:
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(
            f"init_from does not fit the network: {'; '.join(faults[:SHOWN])}{more}."
            " Paths that init_except (a regex) matches keep their fresh values"
        )
    merged = {path: value if path in keep else theirs[path].astype(value.dtype) for path, value in ours.items()}
    return flax.traverse_util.unflatten_dict(merged, sep="/")


def _shape(array: jax.Array | np.ndarray) -> str:
    return "x".join(map(str, np.shape(array))) or "scalar"
