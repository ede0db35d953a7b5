"""Local response normalization as a layer."""

from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.ops.response import local_response_norm


class LocalResponseNorm(nn.Module):
    """Local response normalization as a layer, so that `nn.intercept_methods` can address it by name.

    The defaults are those of Krizhevsky, Sutskever & Hinton 2012.

    Attributes:
      size: how many neighbouring channels.
      k: added to the sum of their squares.
      alpha: factor of the sum, not divided by the size.
      beta: exponent.
    """

    size: int = 5
    k: float = 2.0
    alpha: float = 1e-4
    beta: float = 0.75

    def __call__(self, x: Float[Array, "*space channels"]) -> Float[Array, "*space channels"]:
        """Normalizes activations.

        Args:
          x: activations, channels last.
        """
        return local_response_norm(x, self.size, self.k, self.alpha, self.beta)
