"""The table of the networks that classify, which are the bodies of others, too."""

from functools import partial
from typing import Any

from flax import linen as nn

from cnn_research.models import alexnet, inception, nin, resnet, vgg
from cnn_research.models.lenet import LeNet
from cnn_research.models.mlp import MLP

CLASSIFIERS: dict[str, partial[Any]] = {
    "lenet5": partial(LeNet),
    "lenet5_modern": partial(
        LeNet, activation="relu", pool="max", c3="dense", output="softmax", kernel_init="he_normal"
    ),
    "mlp": partial(MLP),
    **{name: partial(alexnet.AlexNet, **fields) for name, fields in alexnet.VARIANTS.items()},
    **{name: partial(vgg.VGG, **fields) for name, fields in vgg.VARIANTS.items()},
    **{name: partial(nin.NIN, **fields) for name, fields in nin.VARIANTS.items()},
    **{name: partial(inception.GoogLeNet, **fields) for name, fields in inception.VARIANTS.items()},
    **{name: partial(resnet.ResNet, **fields) for name, fields in resnet.VARIANTS.items()},
}

# Fields that a network hands on to its body, where that has them.
SHARED = (
    *("width", "norm", "activation", "pool", "padding_mode", "kernel_init"),
    *("bn_momentum", "bn_epsilon", "bn_group", "dtype", "param_dtype"),
)


def as_body(network: nn.Module, **fields: Any) -> nn.Module:
    """Returns the classifier `network.body`, with those of the network's `SHARED` fields that it has.

    Args:
      network: with these fields.
      **fields: others of the body's; those that it does not have are left out.
    """
    make = CLASSIFIERS[network.body]
    own = vars(make(parent=None))
    values = {field: getattr(network, field) for field in SHARED} | fields
    if values["norm"] == "none":
        del values["bn_epsilon"]
    if own.get("pool") == "none":
        del values["pool"]
    return make(**{field: value for field, value in values.items() if field in own})
