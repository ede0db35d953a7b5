"""Phases: layers that a task fits once the steps are done, on features of the whole training split."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cnn_research.data.order import Sequential
from cnn_research.tasks import PhasedTask
from cnn_research.training.feed import Feed, eval_spec, make_feed
from cnn_research.training.parallel import Jit
from cnn_research.training.program import Program
from cnn_research.training.state import TrainState
from cnn_research.training.step import gather


def phases_left(program: Program, step: int) -> tuple[str, ...]:
    """Returns the phases that a run has before it, each of which counts as a step after the last one.

    Args:
      program: of the run.
      step: updates done, with the phases.
    """
    return program.task.phases[max(0, step - program.total_steps) :] if isinstance(program.task, PhasedTask) else ()


def fit_phase(program: Program, train_feed: Feed, state: TrainState, phase: str) -> TrainState:
    """Returns the state with the layer of a phase fitted, one step on.

    The devices share the images, each once and as evaluation sees them. All processes get all features, and so fit the
    same layer.

    Args:
      program: of the run.
      train_feed: the steps' feed of the training split.
      state: after the steps and the phases before.
      phase: its name.
    """
    task: Any = program.task
    config = program.config
    parallel, source = Jit(train_feed.parallel.mesh), train_feed.source
    order = Sequential(len(source), config.batch_size)
    feed = make_feed(source, order, config.data, parallel, eval_spec(config), skipped=train_feed.skipped)

    def sample(variables: Any, batch: Any, data: Any) -> Any:
        return task.sample(program.model, variables, program.preprocessing.test(gather(batch, data)), phase)

    step = jax.jit(sample, out_shardings=parallel.replicated)
    samples = (jax.device_get(step(state.evaluated, batch, feed.data)) for batch in feed(0, len(order)))
    layer = task.fit(program.model, phase, samples)

    def with_layer(params: Any) -> Any:
        def placed(old: jax.Array, new: Any) -> jax.Array:
            return jax.device_put(jnp.asarray(new, old.dtype), old.sharding)

        return params | {phase: jax.tree.map(placed, params[phase], layer)}

    average = state.average | {"params": with_layer(state.average["params"])} if state.average else {}
    return dataclasses.replace(state, step=state.step + 1, params=with_layer(state.params), average=average)
