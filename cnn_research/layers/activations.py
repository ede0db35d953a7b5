"""Activation functions, by name and as layers."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError, nearest


def scaled_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The squashing function of LeNet-5: f(±1) = ±1, where its curvature is largest (LeCun et al. 1998, appendix A).

    Args:
      x: weighted sums.
    """
    return 1.7159 * jnp.tanh(2 / 3 * x)


def identity(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """No activation: the network without its nonlinearity, for comparison.

    Args:
      x: weighted sums.
    """
    return x


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "elu": jax.nn.elu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "identity": identity,
    "leaky_relu": jax.nn.leaky_relu,  # slope 0.01
    "leaky_relu_0.1": partial(jax.nn.leaky_relu, negative_slope=0.1),  # Darknet's
    "relu": jax.nn.relu,
    "scaled_tanh": scaled_tanh,
    "selu": jax.nn.selu,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
}


def activation(name: str | Callable[[Array], Array]) -> Callable[[Array], Array]:
    """Returns the activation function of a name; a function is its own.

    Args:
      name: a key of `ACTIVATIONS`, or a function of an array.

    Raises:
      UserError: the name is not known.
    """
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise UserError(f"activation {name!r} is not known; {nearest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]


class Activation(nn.Module):
    """An activation function as a layer, so that `nn.intercept_methods` can address it by name.

    Attributes:
      function: a key of `ACTIVATIONS`, or a function of an array.
    """

    function: str | Callable[[Array], Array] = "relu"

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "..."]:
        """Applies the function to each value.

        Args:
          x: weighted sums.
        """
        return activation(self.function)(x)
