"""Flax modules that several families of networks share, each a layer that analysis can address by name."""

from cnn_research.layers.activations import ACTIVATIONS, Activation, activation
from cnn_research.layers.convolution import Conv, ConvTranspose, PartialConv
from cnn_research.layers.dense import SlidingDense
from cnn_research.layers.fields import check_choice, check_shared, check_unused
from cnn_research.layers.initializers import INITIALIZERS, initializer
from cnn_research.layers.local import DenseConv, LocalConv
from cnn_research.layers.mlpconv import MlpConv
from cnn_research.layers.normalization import DEVICE_AXIS, NORMS, Norm
from cnn_research.layers.pooling import POOLS, AdaptiveAvgPool, Pool, TrainablePool
from cnn_research.layers.response import LocalResponseNorm
from cnn_research.layers.upsampling import UNPOOLS, Unpool, Upsample, extended

__all__ = [
    "ACTIVATIONS",
    "DEVICE_AXIS",
    "INITIALIZERS",
    "NORMS",
    "POOLS",
    "UNPOOLS",
    "Activation",
    "AdaptiveAvgPool",
    "Conv",
    "ConvTranspose",
    "DenseConv",
    "LocalConv",
    "LocalResponseNorm",
    "MlpConv",
    "Norm",
    "PartialConv",
    "Pool",
    "SlidingDense",
    "TrainablePool",
    "Unpool",
    "Upsample",
    "activation",
    "check_choice",
    "check_shared",
    "check_unused",
    "extended",
    "initializer",
]
