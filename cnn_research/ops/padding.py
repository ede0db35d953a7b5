"""What a convolution sees beyond the border of its input."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from cnn_research.errors import UserError, nearest

# Our words for numpy.pad's.
MODES = {
    "zeros": "constant",
    "edge": "edge",  # border extension: the last value is repeated
    "reflect": "reflect",  # mirrored about the last value, which is not repeated
    "symmetric": "symmetric",  # mirrored about the border, so that the last value is repeated
    "circular": "wrap",  # the image is one period of a cyclic signal
}


def pad(
    x: Shaped[Array, "..."],
    widths: int | Sequence[int] | Sequence[Sequence[int]],
    mode: str = "zeros",
) -> Shaped[Array, "..."]:
    """Extends an array beyond its borders.

    Args:
      x: any array.
      widths: values to add, as `numpy.pad` takes them: one number, (before, after) for every axis, or such a pair for
        each axis.
      mode: zeros, edge, reflect, symmetric or circular.

    Returns:
      The array with `before + after` more values along each axis.

    Raises:
      UserError: the mode is not known, or a mirror or a cycle would need more values than the axis has.
    """
    if mode not in MODES:
        raise UserError(f"padding mode {mode!r} is not known; {nearest(mode, MODES)}")
    pairs = [(int(before), int(after)) for before, after in np.broadcast_to(np.asarray(widths), (x.ndim, 2))]
    for axis, (size, pair) in enumerate(zip(x.shape, pairs, strict=True)):
        # Beyond these widths a mirror would have to be mirrored again.
        available = {"reflect": size - 1, "symmetric": size, "circular": size}.get(mode, max(pair))
        if min(pair) < 0:
            raise UserError(f"padding {pair} of axis {axis} is negative; a width is 0 or more")
        if max(pair) > max(available, 0):
            raise UserError(
                f"padding {pair} of axis {axis} is too wide for {mode!r} on {size} values; "
                f"at most {max(available, 0)}, or use 'zeros' or 'edge'"
            )
    return jnp.pad(x, pairs, mode=MODES[mode])
