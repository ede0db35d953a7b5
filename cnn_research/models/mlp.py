"""The multi-layer perceptron that LeNet-5 was compared with. LeCun, Bottou, Bengio & Haffner 1998, section III.C.

"Gradient-based learning applied to document recognition", Proceedings of the IEEE 86(11), doi:10.1109/5.726791. On
MNIST's images of 28x28 its 784-300-100-10 has a test error of 3.05%.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from cnn_research.errors import UserError
from cnn_research.layers import Activation, Norm, check_shared, check_unused, initializer


class MLP(nn.Module):
    """Fully connected layers from the pixels to the classes.

    Attributes:
      num_classes: classes.
      features: units of each hidden layer; none at all leave a linear classifier.
      width: multiplies the hidden units.
      activation: follows every hidden layer.
      norm: follows every hidden layer in place of its biases.
      dropout_rate: share of each hidden layer's outputs that training drops.
      kernel_init: initializer of the weights.
      bn_momentum: share of the running statistics that a step keeps, with batch norm.
      bn_epsilon: added to the norm's variance.
      bn_group: how many devices share the statistics of batch norm; 0: all.
      dtype: of the computation; logits are in float32 at least.
      param_dtype: of the parameters.
    """

    num_classes: int = 10
    features: tuple[int, ...] = (300, 100)
    width: float = 1.0
    activation: str | Callable[[Array], Array] = "scaled_tanh"
    norm: str = "none"
    dropout_rate: float = 0.0
    kernel_init: str = "lecun1998"
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    bn_group: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"

    def __post_init__(self) -> None:
        """Refuses fields that do not go together."""
        check_shared(self)
        if min(self.features, default=1) < 1:
            raise UserError(f"features={self.features} is out of range; each hidden layer must have 1 or more units")
        if not self.features:
            check_unused(self, ["width", "activation", "norm", "dropout_rate"], "with features=()")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, images: Float[Array, "batch height width channels"], train: bool
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of images.

        Args:
          images: of any one size, which the first layer's weights are made for, and any number of channels.
          train: whether to drop units and to use the batch's own statistics.
        """
        dtypes: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        dense: Callable[..., nn.Module] = partial(nn.Dense, kernel_init=initializer(self.kernel_init), **dtypes)
        norm = partial(Norm, self.norm, self.bn_momentum, self.bn_epsilon, self.bn_group, **dtypes)
        x = images.reshape(len(images), -1)
        for index, features in enumerate(self.features, start=1):
            units = max(1, round(self.width * features))
            x = dense(units, use_bias=self.norm == "none", name=f"fc{index}")(x)
            x = norm(name=f"fc{index}_norm")(x, train)
            x = Activation(self.activation, name=f"fc{index}_activation")(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train, name=f"fc{index}_dropout")(x)
        logits = dense(self.num_classes, name="head")(x)
        return logits.astype(jnp.promote_types(self.dtype, jnp.float32))
