"""The fields that all families of networks share, and what they may hold."""

import dataclasses
from collections.abc import Iterable

import jax.numpy as jnp
from flax import linen as nn

from cnn_research.errors import UserError, nearest
from cnn_research.layers.activations import ACTIVATIONS
from cnn_research.layers.initializers import INITIALIZERS
from cnn_research.layers.normalization import NORMS
from cnn_research.ops import padding

DTYPES = ("bfloat16", "float16", "float32", "float64")

_CHOICES: dict[str, Iterable[str]] = {
    "norm": NORMS,
    "activation": ACTIVATIONS,
    "padding_mode": padding.MODES,
    "kernel_init": INITIALIZERS,
    "dtype": DTYPES,
    "param_dtype": DTYPES,
}

# Field: (in words, test).
_RANGES = {
    "num_classes": ("1 or more", lambda value: value >= 1),
    "width": ("more than 0", lambda value: 0 < value < float("inf")),
    "dropout_rate": ("at least 0 and less than 1", lambda value: 0 <= value < 1),
    "bn_momentum": ("at least 0 and less than 1", lambda value: 0 <= value < 1),
    "bn_epsilon": ("more than 0", lambda value: value > 0),
    "bn_group": ("0, for all devices, or more", lambda value: value >= 0),
}


def check_choice(field: str, value: str, known: Iterable[str]) -> None:
    """Refuses a value that is not one of the field's.

    Args:
      field: name of the field, for the message.
      value: what it holds.
      known: what it may hold.

    Raises:
      UserError: the value is not known.
    """
    if value not in known:
        raise UserError(f"{field}={value!r} is not known; {nearest(value, known)}")


def check_unused(module: nn.Module, fields: Iterable[str], why: str) -> None:
    """Refuses fields that would do nothing where they are, unless they keep their defaults.

    Args:
      module: the network.
      fields: names of the fields without effect.
      why: what keeps them from it, for the message.

    Raises:
      UserError: one of them differs from its default.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(module)}
    for field in fields:
        if getattr(module, field) != defaults[field]:
            raise UserError(f"{field}={getattr(module, field)!r} does nothing {why}; leave it at {defaults[field]!r}")


def check_shared(module: nn.Module) -> None:
    """Refuses values of the shared fields, as far as the network has them, that no network can use.

    Args:
      module: the network.

    Raises:
      UserError: a value is not known, out of its range, or without effect.
    """
    held = {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}
    for field, known in _CHOICES.items():
        if field in held and not callable(held[field]):
            check_choice(field, held[field], known)
    for field, (words, holds) in _RANGES.items():
        if field in held and not holds(held[field]):
            raise UserError(f"{field}={held[field]!r} is out of range; it must be {words}")
    if "float64" in (held.get("dtype"), held.get("param_dtype")) and jnp.result_type(float) != jnp.float64:
        raise UserError("float64 is off in JAX; set the environment variable JAX_ENABLE_X64=1, or use float32")
    if held.get("norm") == "none":
        check_unused(module, {"bn_epsilon"} & held.keys(), "with norm='none'")
    if held.get("norm", "batch") != "batch":
        check_unused(module, sorted({"bn_momentum", "bn_group"} & held.keys()), f"with norm={held['norm']!r}")
