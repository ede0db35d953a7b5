"""Optimizers and learning-rate schedules by name, from Optax; decay and freezing by regex over parameters' paths."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from ml_collections import ConfigDict

from cnn_research.errors import UserError, nearest
from cnn_research.training.durations import parse_steps

SCHEDULES = ("constant", "cosine", "linear", "step")


def make_schedule(config: ConfigDict, total_steps: int, steps_per_epoch: float) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    Args:
      config: `config.optimizer`.
      total_steps: of the whole run.
      steps_per_epoch: not rounded.

    Raises:
      UserError: an unknown schedule or a duration that is none.
    """
    peak, warmup = config.learning_rate, parse_steps(config.warmup, steps_per_epoch, total_steps, "optimizer.warmup")
    if peak <= 0:
        raise UserError(f"optimizer.learning_rate={peak} must be above 0")
    if config.final < 0 or config.factor < 0:
        raise UserError(f"optimizer.final={config.final} and factor={config.factor} must not be negative")
    decay_steps = max(total_steps - warmup, 1)
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    elif config.schedule == "cosine":
        after = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final)
    elif config.schedule == "linear":
        after = optax.linear_schedule(peak, peak * config.final, decay_steps)
    elif config.schedule == "step":
        milestones = [parse_steps(at, steps_per_epoch, total_steps, "optimizer.milestones") for at in config.milestones]
        starts = [max(at - warmup, 0) for at in milestones]
        after = optax.piecewise_constant_schedule(peak, {at: config.factor ** starts.count(at) for at in starts})
    else:
        raise UserError(f"optimizer.schedule={config.schedule!r} is unknown; {nearest(config.schedule, SCHEDULES)}")
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


def path_name(path: tuple[Any, ...]) -> str:
    """Returns a leaf's address in a tree, `stage2/block3/conv1/kernel`: what regexes are matched against."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def matches(regex: str, field: str) -> Callable[[Any], Any]:
    """Returns a function from a tree to booleans: where `regex` is found in a leaf's path; an empty one nowhere.

    Args:
      regex: searched for in each path.
      field: the config's name of it, for messages.

    Raises:
      UserError: not a regular expression.
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        raise UserError(f"{field}={regex!r} is no regular expression: {error}") from error

    def mask(tree: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: bool(regex and pattern.search(path_name(path))), tree)

    return mask


def _sgd(
    config: ConfigDict, schedule: optax.Schedule, decay: Callable[..., Any], nesterov: bool = False
) -> optax.GradientTransformation:
    decayed = optax.add_decayed_weights(config.weight_decay, decay)
    return optax.chain(decayed, optax.sgd(schedule, momentum=config.momentum or None, nesterov=nesterov))


def _nesterov(config: ConfigDict, schedule: optax.Schedule, decay: Callable[..., Any]) -> optax.GradientTransformation:
    return _sgd(config, schedule, decay, nesterov=True)


def _adamw(config: ConfigDict, schedule: optax.Schedule, decay: Callable[..., Any]) -> optax.GradientTransformation:
    return optax.adamw(
        schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=decay
    )


def _lars(config: ConfigDict, schedule: optax.Schedule, decay: Callable[..., Any]) -> optax.GradientTransformation:
    # Norms and biases take plain steps: You et al. 2017 (arXiv:1708.03888) scale the layers' weights only.
    return optax.lars(schedule, config.weight_decay, decay, trust_ratio_mask=decay, momentum=config.momentum)


def _lamb(config: ConfigDict, schedule: optax.Schedule, decay: Callable[..., Any]) -> optax.GradientTransformation:
    return optax.lamb(
        schedule, config.beta1, config.beta2, config.epsilon, weight_decay=config.weight_decay, mask=decay
    )


def _muon(config: ConfigDict, schedule: optax.Schedule, decay: Callable[..., Any]) -> optax.GradientTransformation:
    def matrices(params: Any) -> Any:
        """A convolution's kernel [height, width, in, out] is a matrix from its window to its outputs."""
        axes = {2: ((0,), (1,)), 4: ((0, 1, 2), (3,))}
        return jax.tree.map(
            lambda p: optax.contrib.MuonDimensionNumbers(*axes[p.ndim]) if p.ndim in axes else None, params
        )

    # Muon masks the decay of its matrices only, so its direction is taken alone and the decay added to all of it.
    direction = optax.contrib.muon(
        -1.0,
        beta=config.momentum,
        eps=config.epsilon,
        adam_b1=config.beta1,
        adam_b2=config.beta2,
        muon_weight_dimension_numbers=matrices,
    )
    decayed = optax.add_decayed_weights(config.weight_decay, decay)
    return optax.chain(direction, decayed, optax.scale_by_learning_rate(schedule))


OPTIMIZERS = {"sgd": _sgd, "nesterov": _nesterov, "adamw": _adamw, "lars": _lars, "lamb": _lamb, "muon": _muon}


def _without(stays: Callable[[Any], Any], optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns the optimizer with updates of 0 where `stays` marks a leaf."""

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradients, state, params)
        return jax.tree.map(lambda still, x: jnp.zeros_like(x) if still else x, stays(params), updates), state

    return optax.GradientTransformation(optimizer.init, update)


def make_optimizer(
    config: ConfigDict,
    schedule: optax.Schedule,
    weight_decay: Array | None = None,
    stays: Callable[[Any], Any] | None = None,
) -> optax.GradientTransformation:
    """Returns the optimizer: clipping, the update rule with its decay, and nothing for what is frozen.

    Args:
      config: `config.optimizer`.
      schedule: learning rate by step.
      weight_decay: in place of the config's, where it is traced.
      stays: marks further leaves that stay as they are; the optimizer's state is of the same form without it.

    Raises:
      UserError: an unknown optimizer or a regex that is none.
    """
    for field in ("weight_decay", "clip_norm", "epsilon"):
        if config[field] < 0:
            raise UserError(f"optimizer.{field}={config[field]} must not be negative")
    for field in ("momentum", "beta1", "beta2"):
        if not 0 <= config[field] < 1:
            raise UserError(f"optimizer.{field}={config[field]} is a decay: at least 0, below 1")
    if config.name not in OPTIMIZERS:
        raise UserError(f"optimizer.name={config.name!r} is unknown; {nearest(config.name, OPTIMIZERS)}")
    if weight_decay is not None:
        config = ConfigDict({**config.to_dict(), "weight_decay": weight_decay})
    optimizer = OPTIMIZERS[config.name](config, schedule, matches(config.decay, "optimizer.decay"))
    if config.clip_norm:
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), optimizer)
    if stays:
        optimizer = _without(stays, optimizer)
    if not config.freeze:
        return optimizer
    frozen = matches(config.freeze, "optimizer.freeze")

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda stays: "frozen" if stays else "trained", frozen(params))

    return optax.multi_transform({"trained": optimizer, "frozen": optax.set_to_zero()}, labels)
