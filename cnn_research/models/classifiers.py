"""The table of the networks that classify, which are the bodies of others, too."""

from functools import partial
from typing import Any

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
