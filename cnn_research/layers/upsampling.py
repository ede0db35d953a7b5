"""Layers that make maps larger without parameters."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError, nearest
from cnn_research.ops import upsampling
from cnn_research.ops.pooling import max_pool_with_switches, unpool

UPSAMPLINGS = {"bilinear": upsampling.bilinear, "nearest": upsampling.nearest}

UNPOOLS = ("bilinear", "nearest", "switches")


class Upsample(nn.Module):
    """Upsampling as a layer, so that `nn.intercept_methods` can address it by name.

    Attributes:
      kind: bilinear or nearest.
      factor: how many times as high and as wide the maps become.
    """

    kind: str
    factor: int

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch out_height out_width channels"]:
        """Makes maps larger.

        Args:
          x: maps.

        Raises:
          UserError: the kind is not known.
        """
        if self.kind not in UPSAMPLINGS:
            raise UserError(f"upsampling {self.kind!r} is not known; {nearest(self.kind, UPSAMPLINGS)}")
        return UPSAMPLINGS[self.kind](x, self.factor)


class Unpool(nn.Module):
    """The way back from a pooling whose windows lie side by side: maps as large as those that were pooled.

    Attributes:
      kind: `switches` puts each value where the largest of its window was, among zeros (Zeiler & Fergus 2014; Noh et
        al. 2015). `nearest` fills the window with it, `bilinear` interpolates; rows and columns at the end that no
        window saw repeat the last ones.
      factor: size of the windows.
    """

    kind: str = "switches"
    factor: int = 2

    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        unpooled: Float[Array, "batch out_height out_width unpooled_channels"],
    ) -> Float[Array, "batch out_height out_width channels"]:
        """Undoes the pooling of other maps on maps as small as their pooled ones.

        Args:
          x: small maps; for `switches` they have as many channels as the others.
          unpooled: the maps that were pooled.

        Raises:
          UserError: the kind is not known.
        """
        if self.kind not in UNPOOLS:
            raise UserError(f"unpool {self.kind!r} is not known; {nearest(self.kind, UNPOOLS)}")
        if self.kind == "switches":
            # XLA computes the maxima once, here and in the pooling.
            _, switches = max_pool_with_switches(unpooled, self.factor, self.factor)
            return unpool(x, switches, unpooled.shape, window=self.factor)
        return extended(UPSAMPLINGS[self.kind](x, self.factor), *unpooled.shape[1:3])


def extended(
    x: Float[Array, "batch height width channels"], height: int, width: int
) -> Float[Array, "batch out_height out_width channels"]:
    """Repeats the last row and the last column until maps have a size.

    Args:
      x: maps, not larger than that.
      height: of the result.
      width: of the result.
    """
    return jnp.pad(x, ((0, 0), (0, height - x.shape[1]), (0, width - x.shape[2]), (0, 0)), mode="edge")
