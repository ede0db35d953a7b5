"""After a loss that is not finite: which step, which batch, which layer first."""

import io
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from cnn_research.layers import taps
from cnn_research.training.feed import Feed
from cnn_research.training.optimizers import path_name
from cnn_research.training.parallel import Jit
from cnn_research.training.program import Program
from cnn_research.training.state import TrainState
from cnn_research.training.step import step_rngs
from cnn_research.training.together import StepAlone
from cnn_research.training.writers import write_text


def write_postmortem(
    workdir: epath.Path, program: Program, feed: Feed, step_function: StepAlone, state: TrainState, step: int
) -> dict[str, Any]:
    """Replays a run to the step that failed, examines it, and writes `postmortem/report.json` and `batch.npz`.

    The loop only looks at its losses now and then, and each step overwrites the state of the one before; but steps are
    pure functions of the seed, so the last good state leads to the failing step again.

    Args:
      workdir: of the run.
      program: of the run.
      feed: of the training split.
      step_function: the compiled step.
      state: the last good one, replicated; it is consumed.
      step: whose loss or gradient is not finite: `run.batch(step)` is its batch.

    Returns:
      The report: `step`, `replayed_from`, `first` (`kind` and `layer`), `examples` (indices into the split).
    """
    report = {
        "step": step,
        "replayed_from": int(state.step),
        "split": feed.source.split,
        "examples": feed.order(step)[0].tolist(),
    }
    state = feed.parallel.spread(state)
    for number, batch in enumerate(feed(report["replayed_from"], step), start=report["replayed_from"]):
        state, _ = step_function(number, state, batch, feed.data)
    state = step_function.enter(step, feed.parallel.collect(state))

    batch = feed.batch(step)
    mesh = Jit(feed.parallel.mesh)
    on_device = mesh.place({key: value[mesh.block(len(value))] for key, value in batch.items()})
    report["first"] = first_nonfinite(program.at(step), state, on_device)
    if jax.process_index() == 0:
        folder = workdir / "postmortem"
        folder.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        np.savez_compressed(content, allow_pickle=False, **batch)
        (folder / "batch.npz").write_bytes(content.getvalue())
        write_text(folder / "report.json", json.dumps(report, indent=2) + "\n")
    return report


def first_nonfinite(program: Program, state: TrainState, batch: dict[str, Any]) -> dict[str, str]:
    """Finds where the first NaN or infinity appears in a step, which is run with the whole batch at once.

    Args:
      program: of the run, or of the step's stage.
      state: before the step.
      batch: as the feed gives it, before augmentation.

    Returns:
      `kind` (`parameter`, `output`, `loss`, `gradient`, `parameter gradient` or `gradient norm`) and the
      `layer` or the parameter's path. Outputs count from the input on, gradients from the loss back.
    """
    order: list[str] = []  # of the layers; JAX returns dicts sorted
    source = program.stage or program.task

    def losses(params: Any, zeros: dict[str, jax.Array], state: TrainState, batch: dict[str, Any]) -> Any:
        augment_rng, network_rng = step_rngs(state.rng, state.step)
        batch = program.preprocessing.train(batch, augment_rng)
        variables = {**state.variables, "params": params}
        if program.stage and program.stage.sees_twins:
            variables["twin"] = state.twin
        (terms, _), outputs = taps.record(
            lambda: source.loss(program.model, variables, batch, network_rng, train=True), zeros
        )
        order[:] = outputs
        return sum(total / jnp.where(weight == 0, 1, weight) for total, weight in terms.values()), outputs

    outputs = jax.eval_shape(losses, state.params, {}, state, batch)[1]

    @jax.jit
    def examine(state: TrainState, batch: dict[str, Any]) -> Any:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), outputs)
        derivative = jax.value_and_grad(losses, argnums=(0, 1), has_aux=True)
        (loss, values), gradients = derivative(state.params, zeros, state, batch)
        return jax.tree.map(lambda x: jnp.isfinite(x).all(), (state.params, values, loss, gradients))

    params, values, loss, (params_gradient, gradients) = jax.device_get(examine(state, batch))
    if found := _first_false(params):
        return {"kind": "parameter", "layer": found}
    for name in order:
        if not values[name]:
            return {"kind": "output", "layer": name}
    if not loss:
        return {"kind": "loss", "layer": ""}
    for name in reversed(order):
        if not gradients[name]:
            return {"kind": "gradient", "layer": name}
    if found := _first_false(params_gradient):
        return {"kind": "parameter gradient", "layer": found}
    return {"kind": "gradient norm", "layer": ""}  # every value is finite, but the sum of their squares overflows


def _first_false(tree: Any) -> str:
    return next((path_name(path) for path, finite in jax.tree_util.tree_leaves_with_path(tree) if not finite), "")
