"""Normalization: none, batch, group, layer or frozen batch statistics."""

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn import initializers
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from cnn_research.errors import UserError, nearest
from cnn_research.layers.initializers import Initializer

# The name of the axis of replicas under `jax.pmap`.
DEVICE_AXIS = "devices"

NORMS = ("batch", "frozen", "group", "layer", "none")


def _mean_over_devices(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the mean over `DEVICE_AXIS` where replicas are mapped; under `jit` the batch is whole already."""
    try:
        lax.axis_size(DEVICE_AXIS)
    except NameError:  # what an axis that nobody maps raises
        return x
    return lax.pmean(x, DEVICE_AXIS)


def batch_statistics(x: Float[Array, "batch *space channels"]) -> Float[Array, "2 channels"]:
    """Returns each channel's mean and variance over the batch of all devices and over space.

    Args:
      x: activations.
    """
    axes = tuple(range(x.ndim - 1))
    # One pass over the activations and one message between devices: Var x = E x² − (E x)².
    mean, mean_square = _mean_over_devices(jnp.stack([x.mean(axes), jnp.square(x).mean(axes)]))
    return jnp.stack([mean, jnp.maximum(mean_square - jnp.square(mean), 0)])


def group_count(channels: int) -> int:
    """Returns how many groups `group` makes: 32 as in its paper, or the most below that leave no channel on its own.

    Args:
      channels: channels to divide.
    """
    return max(groups for groups in range(1, 33) if channels % groups == 0 and (groups == 1 or channels >= 2 * groups))


def group_statistics(x: Float[Array, "batch *space channels"], groups: int) -> Float[Array, "2 batch *ones channels"]:
    """Returns mean and variance of each example's groups of channels, to be broadcast over space.

    Args:
      x: activations.
      groups: groups of channels.
    """
    grouped = x.reshape(len(x), math.prod(x.shape[1:-1]), groups, x.shape[-1] // groups)
    statistics = jnp.stack([grouped.mean((1, 3)), grouped.var((1, 3))])
    shape = (2, len(x), *(1 for _ in x.shape[1:-1]), x.shape[-1])
    return jnp.repeat(statistics, x.shape[-1] // groups, axis=-1).reshape(shape)


class Norm(nn.Module):
    """Normalizes activations, then scales and shifts each channel; statistics are in float32 at least.

    Attributes:
      kind: `none` returns its input. `batch` (Ioffe & Szegedy 2015) takes the statistics of the global batch, under
        `pmap` over `DEVICE_AXIS` too, and in evaluation their running means. `group` (Wu & He 2018) takes those of
        groups of channels of each example, `layer` (Ba et al. 2016) those of each whole example. `frozen` is batch norm
        whose statistics, scale and bias are constants in `batch_stats`.
      momentum: share of the running statistics that each step keeps (Flax's convention: 0.9 where PyTorch says 0.1).
        The running variance is the biased one, as in Flax.
      epsilon: added to the variance.
      scale_init: initializer of the scale, where it is a parameter.
      dtype: of the output.
      param_dtype: of scale and bias.
    """

    kind: str = "batch"
    momentum: float = 0.9
    epsilon: float = 1e-5
    scale_init: Initializer = initializers.ones
    dtype: DTypeLike = "float32"
    param_dtype: DTypeLike = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space channels"], train: bool) -> Float[Array, "batch *space channels"]:
        """Normalizes activations.

        Args:
          x: activations, channels last.
          train: whether `batch` takes the statistics of this batch, and moves the running ones towards them.

        Raises:
          UserError: the kind is not known.
        """
        if self.kind not in NORMS:
            raise UserError(f"norm {self.kind!r} is not known; {nearest(self.kind, NORMS)}")
        if self.kind == "none":
            return x
        shape = x.shape[-1:]
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))

        if self.kind in ("group", "layer"):
            mean, var = group_statistics(wide, group_count(*shape) if self.kind == "group" else 1)
        else:
            running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, wide.dtype)
            running_var = self.variable("batch_stats", "var", jnp.ones, shape, wide.dtype)
            mean, var = running_mean.value, running_var.value
            if train and self.kind == "batch":
                mean, var = batch_statistics(wide)
                if not self.is_initializing():
                    running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * mean
                    running_var.value = self.momentum * running_var.value + (1 - self.momentum) * var

        if self.kind == "frozen":
            scale = self.variable("batch_stats", "scale", jnp.ones, shape, self.param_dtype).value
            bias = self.variable("batch_stats", "bias", jnp.zeros, shape, self.param_dtype).value
        else:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
            bias = self.param("bias", initializers.zeros, shape, self.param_dtype)
        return ((wide - mean) * (lax.rsqrt(var + self.epsilon) * scale) + bias).astype(self.dtype)
