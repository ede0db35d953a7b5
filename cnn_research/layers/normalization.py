"""Normalization: none, batch, group, layer or frozen batch statistics."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.nn import initializers
from jax.sharding import get_abstract_mesh
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from cnn_research.errors import UserError, nearest
from cnn_research.layers.initializers import Initializer

# The name of the axis of replicas under `jax.pmap`, and of the mesh's under `jax.jit`.
DEVICE_AXIS = "devices"

NORMS = ("batch", "frozen", "group", "layer", "none")


def _replicas() -> int:
    """Returns the size of `DEVICE_AXIS` where replicas are mapped, and 0 elsewhere."""
    try:
        return lax.axis_size(DEVICE_AXIS)
    except NameError:  # what an axis that nobody maps raises
        return 0


def _check_group(group: int, devices: int) -> None:
    if devices % group:
        raise UserError(f"bn_group={group} does not divide the {devices} devices")


# Networks repeat layers of one shape. Under a `jit` of its own what they do is traced once for all of them, and XLA
# inlines it: with that, and what `ops.convolution` does, ResNet-110's training step is traced and lowered in 2.5 s, not
# in 5.6.
@partial(jax.jit, static_argnums=1)
def batch_statistics(x: Float[Array, "batch *space channels"], group: int = 0) -> Float[Array, "2 *groups channels"]:
    """Returns each channel's mean and variance over space and over the batch of the devices that share statistics.

    Args:
      x: activations.
      group: how many devices share statistics; 0: all.

    Returns:
      Mean and variance. Under `jit`, where the batch is that of all devices, those of several groups are to be
      broadcast over the batch: their shape is (2, batch, 1, …, channels).

    Raises:
      UserError: the devices do not divide into such groups.
    """
    replicas, devices = _replicas(), get_abstract_mesh().shape.get(DEVICE_AXIS, 1)
    axes, index_groups = tuple(range(x.ndim - 1)), None
    grouped = x
    if replicas and 0 < group < replicas:
        _check_group(group, replicas)
        index_groups = [list(range(first, first + group)) for first in range(0, replicas, group)]
    if not replicas and 0 < group < devices:
        _check_group(group, devices)
        # A device's part of the batch is one block of it.
        grouped, axes = x.reshape(devices // group, -1, *x.shape[1:]), tuple(range(1, x.ndim))
    # One pass over the activations and one message between devices: Var x = E x² − (E x)².
    statistics = jnp.stack([grouped.mean(axes), jnp.square(grouped).mean(axes)])
    if replicas:
        statistics = lax.pmean(statistics, DEVICE_AXIS, axis_index_groups=index_groups)
    mean, mean_square = statistics
    statistics = jnp.stack([mean, jnp.maximum(mean_square - jnp.square(mean), 0)])
    if grouped is x:
        return statistics
    statistics = jnp.repeat(statistics, len(x) // statistics.shape[1], axis=1)
    return statistics.reshape(2, len(x), *(1 for _ in x.shape[1:-1]), x.shape[-1])


def _running(statistics: Float[Array, "2 *groups channels"]) -> Float[Array, "2 channels"]:
    """Returns the mean of the groups' statistics: what all devices keep."""
    statistics = statistics.mean(tuple(range(1, statistics.ndim - 1)))
    return lax.pmean(statistics, DEVICE_AXIS) if _replicas() else statistics


@jax.jit
def _normalized(
    x: Float[Array, "batch *space channels"],
    mean: Float[Array, "*broadcast channels"],
    var: Float[Array, "*broadcast channels"],
    epsilon: Float[ArrayLike, ""],
    scale: Float[Array, "channels"],
    bias: Float[Array, "channels"],
) -> Float[Array, "batch *space channels"]:
    return (x - mean) * (lax.rsqrt(var + epsilon) * scale) + bias


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
      group: how many devices share the statistics of `batch`, so that these are over a batch of bounded size; 0: all.
        The running statistics are the mean over the groups.
      scale_init: initializer of the scale, where it is a parameter.
      dtype: of the output.
      param_dtype: of scale and bias.
    """

    kind: str = "batch"
    momentum: float = 0.9
    epsilon: float = 1e-5
    group: int = 0
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
                mean, var = statistics = batch_statistics(wide, self.group)
                if not self.is_initializing():
                    new_mean, new_var = _running(statistics) if self.group else statistics
                    running_mean.value = self.momentum * running_mean.value + (1 - self.momentum) * new_mean
                    running_var.value = self.momentum * running_var.value + (1 - self.momentum) * new_var

        if self.kind == "frozen":
            scale = self.variable("batch_stats", "scale", jnp.ones, shape, self.param_dtype).value
            bias = self.variable("batch_stats", "bias", jnp.zeros, shape, self.param_dtype).value
        else:
            scale = self.param("scale", self.scale_init, shape, self.param_dtype)
            bias = self.param("bias", initializers.zeros, shape, self.param_dtype)
        return _normalized(wide, mean, var, self.epsilon, scale, bias).astype(self.dtype)
