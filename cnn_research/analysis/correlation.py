"""How much neighbours in a layer's maps say the same, before and after pooling.

Pooling is to decorrelate: units that lie beside each other after it look at windows that lie further apart in the image
than those before it. How far it does so is a matter of measuring, here by Pearson's coefficient.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.layers.pooling import Pool, TrainablePool


class Change(NamedTuple):
    """Correlation of neighbouring units.

    Attributes:
      before: in the input of a pooling.
      after: in its output; NaN where that has no neighbours.
    """

    before: float
    after: float


def neighbour_correlation(maps: Float[Array, "batch height width channels"]) -> Float[Array, ""]:
    """Returns the correlation of units with those beside and below them, as the mean over channels.

    Args:
      maps: of one layer. Channels that are the same everywhere do not count; without others it is NaN.
    """
    maps = maps.astype(jnp.float32)
    pairs = [(maps[:, :-1], maps[:, 1:]), (maps[:, :, :-1], maps[:, :, 1:])]
    return jnp.nanmean(jnp.stack([_correlation(*pair) for pair in pairs if pair[0].size] or [jnp.full(1, jnp.nan)]))


def _correlation(x: Float[Array, "*all channels"], y: Float[Array, "*all channels"]) -> Float[Array, " channels"]:
    axes = tuple(range(x.ndim - 1))
    x, y = x - x.mean(axes), y - y.mean(axes)
    return (x * y).mean(axes) / jnp.sqrt((x**2).mean(axes) * (y**2).mean(axes))


def of_poolings(
    model: nn.Module, variables: Any, images: Float[Array, "batch height width channels"]
) -> dict[str, Change]:
    """Returns what each pooling of a network does to the correlation of neighbours.

    Args:
      model: the network.
      variables: its weights.
      images: as the network takes them.

    Returns:
      The change by the layer's name, from the image on; empty where the network has no pooling by windows.
    """

    @jax.jit
    def measured(variables: Any, images: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}

        def intercept(method: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
            output = method(*args, **kwargs)
            if isinstance(context.module, (Pool, TrainablePool)) and context.method_name == "__call__":
                pair = neighbour_correlation(args[0]), neighbour_correlation(output)
                found[f"{len(found):04d} {'/'.join(context.module.path)}"] = pair
            return output

        with nn.intercept_methods(intercept):
            model.apply(variables, images, train=False)
        return found

    values = jax.device_get(measured(variables, images))  # jit sorts what it returns by its keys
    return {name.split(" ", 1)[1]: Change(*map(float, pair)) for name, pair in sorted(values.items())}
