"""Accuracies on ImageNet's 50,000 validation images (ILSVRC 2012) that others have published, a single crop each."""

from typing import NamedTuple


class Published(NamedTuple):
    """What was reported of a network.

    Attributes:
      top1: share of images whose class is the likeliest.
      top5: share whose class is among the five likeliest; None where it was not reported.
      source: who reports it.
    """

    top1: float
    top5: float | None
    source: str


_TORCHVISION = "torchvision, weights IMAGENET1K_V1"
_KRIZHEVSKY = "Krizhevsky et al. 2012, table 2, 1 CNN"
_SIMONYAN = "Simonyan & Zisserman 2014, arXiv:1409.1556, table 3"

IMAGENET: dict[str, Published] = {
    "alexnet": Published(0.593, 0.818, _KRIZHEVSKY),
    "alexnet_owt": Published(0.56522, 0.79066, _TORCHVISION),
    "googlenet": Published(0.687, 0.889, "BVLC's GoogLeNet, Caffe's model zoo"),
    "googlenet_bn": Published(0.6978, 0.8953, _TORCHVISION),
    "nin_imagenet": Published(0.5936, None, "Lin et al.'s network, Caffe's model zoo"),
    "resnet18": Published(0.6976, 0.8908, _TORCHVISION),
    "resnet34": Published(0.7331, 0.9142, _TORCHVISION),
    "resnet50": Published(0.7613, 0.9286, _TORCHVISION),
    "resnet101": Published(0.7737, 0.9355, _TORCHVISION),
    "resnet152": Published(0.7831, 0.9405, _TORCHVISION),
    "vgg11": Published(0.6902, 0.8863, _TORCHVISION),
    "vgg11_lrn": Published(0.703, 0.895, _SIMONYAN),
    "vgg13": Published(0.6993, 0.8925, _TORCHVISION),
    "vgg16_1x1": Published(0.727, 0.912, _SIMONYAN),
    "vgg16": Published(0.7159, 0.9038, _TORCHVISION),
    "vgg19": Published(0.7238, 0.9088, _TORCHVISION),
}
