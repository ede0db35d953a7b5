"""The training state: everything that a step reads and replaces."""

from collections.abc import Callable
from functools import partial
from typing import Any

import flax
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Key


@flax.struct.dataclass
class TrainState:
    """What training carries from step to step.

    The leaves are arrays in a step; JAX and Orbax also build the same tree of shapes, of shardings and of placeholders.

    Attributes:
      step: int32 scalar, the number of updates done.
      rng: key of the run; each step folds its number in.
      params: the network's parameters.
      batch_stats: running statistics of its norms; empty where there are none.
      opt_state: the optimizer's.
      average: `params` and `batch_stats` averaged over steps, which evaluation then uses; empty unless `config.ema` is
        set.
      twin: a second set of variables of some layers, for tasks whose stages want one; empty for all others.
    """

    step: Any
    rng: Any
    params: Any
    batch_stats: Any
    opt_state: Any
    average: Any
    twin: Any = flax.struct.field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """The variables that training updates."""
        return as_variables(self.params, self.batch_stats)

    @property
    def evaluated(self) -> dict[str, Any]:
        """The variables to evaluate: the averaged ones where there are any."""
        return self.average or self.variables


def as_variables(params: Any, batch_stats: Any) -> dict[str, Any]:
    """Returns the dict of collections that `module.apply` takes; without statistics there is no such collection."""
    return {"params": params, "batch_stats": batch_stats} if batch_stats else {"params": params}


def init_variables(model: nn.Module, image_shape: tuple[int, ...], rng: Key[Array, ""]) -> dict[str, Any]:
    """Returns a network's fresh variables.

    Args:
      model: the network.
      image_shape: height, width, channels.
      rng: key of the initial values.
    """
    # LLVM takes seconds over random bits that are drawn once. With less care LeNet-5's values, the same to the last
    # bit, are there after one second of compiling instead of six (two cores, jaxlib 0.10.2).
    options = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    init = jax.jit(partial(model.init, train=False), compiler_options=options)
    return init({"params": rng}, jnp.zeros((1, *image_shape)))


def create_state(
    variables: dict[str, Any],
    optimizer: optax.GradientTransformation,
    seed: int,
    averaged: bool = False,
    has_twin: Callable[[str], bool] | None = None,
) -> TrainState:
    """Returns the state before the first step.

    Args:
      variables: the network's, fresh or from elsewhere.
      optimizer: gives the optimizer's state.
      seed: of the run.
      averaged: whether to keep an average of the variables.
      has_twin: whether an outermost layer has a twin, by its name.
    """
    twin = (
        {name: {layer: tree[layer] for layer in tree if has_twin(layer)} for name, tree in variables.items()}
        if has_twin
        else {}
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        rng=jax.random.key(seed),
        params=variables["params"],
        batch_stats=variables.get("batch_stats", {}),
        opt_state=optimizer.init(variables["params"]),
        average=jax.tree.map(jnp.copy, variables) if averaged else {},
        twin=jax.tree.map(jnp.copy, twin),
    )
