"""The exact parameters and multiply-adds of every network, and what every layer gives, at its paper's input size."""

import importlib
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cnn_research import models
from cnn_research.analysis import tabulate

MODULE = importlib.import_module("cnn_research.analysis.tabulate")  # the package's attribute is the function

# Name: (trainable parameters, multiply-adds of convolutions and fully connected layers for one image).
COUNTS = {
    "alexnet": (60_965_224, 724_406_816),
    "alexnet_ungrouped": (62_378_344, 1_135_256_096),
    "alexnet_owt": (61_100_840, 714_188_480),
    "fast_yolo": (45_089_374, 2_418_728_960),
    "deconvnet": (251_805_653, 32_745_979_904),
    "fast_rcnn": (134_690_729, 187_568_099_328),
    "faster_rcnn": (137_073_622, 229_141_767_168),
    "fcn8s": (134_376_863, 110_844_039_168),
    "fcn16s": (134_364_410, 110_814_793_728),
    "fcn32s": (134_346_581, 110_801_977_344),
    "googlenet": (6_998_552, 1_582_671_872),
    "googlenet_bn": (6_624_904, 1_498_376_192),
    "googlenet_cifar": (5_871_914, 1_447_241_728),
    "lenet5": (60_000, 325_680),
    "lenet5_modern": (61_706, 416_520),
    "localizer": (138_373_932, 15_470_280_704),
    "mask_rcnn": (44_401_393, 748_053_257_472),  # the parameters are torchvision's and Detectron2's
    "mlp": (266_610, 266_200),
    "nin_cifar": (966_986, 222_486_528),
    "nin_imagenet": (7_595_176, 1_100_188_800),
    "rcnn": (57_773_561, 721_216_032),
    "resnet18": (11_689_512, 1_814_073_344),
    "resnet34": (21_797_672, 3_663_761_408),
    "resnet50": (25_557_032, 4_089_184_256),
    "resnet101": (44_549_160, 7_801_405_440),
    "resnet152": (60_192_808, 11_513_626_624),
    "resnet20_cifar": (269_722, 40_551_040),
    "resnet32_cifar": (464_154, 68_862_592),
    "resnet44_cifar": (658_586, 97_174_144),
    "resnet56_cifar": (853_018, 125_485_696),
    "resnet110_cifar": (1_727_962, 252_887_680),
    "resnet164_cifar": (1_703_258, 244_500_992),
    "resnet1001_cifar": (10_327_706, 1_487_849_984),
    "resnet1202_cifar": (19_421_274, 2_829_238_912),
    "unet": (31_030_658, 150_428_424_448),
    "vgg11": (132_863_336, 7_609_090_048),
    "vgg11_lrn": (132_863_336, 7_609_090_048),
    "vgg13": (133_047_848, 11_308_466_176),
    "vgg16_1x1": (133_638_952, 11_770_888_192),
    "vgg16": (138_357_544, 15_470_264_320),
    "vgg19": (143_667_240, 19_632_062_464),
    "yolo": (271_703_550, 20_285_153_280),
}


# Their tables take a quarter of a minute each.
DEEPEST = ("resnet1001_cifar", "resnet1202_cifar")


@pytest.fixture(autouse=True)
def no_receptive_fields(monkeypatch):
    """Saves the time that they take; tests/analysis has them."""
    monkeypatch.setattr(MODULE, "views", lambda *_: {})


def test_every_network_has_its_count():
    assert models.names() == sorted(COUNTS)


def test_the_documentation_has_these_counts():
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rows = re.findall(r"^\| `(\w+)` .*\| +([\d,]+) \| +([\d,]+) \|$", page, re.MULTILINE)
    assert {name: tuple(int(count.replace(",", "")) for count in counts) for name, *counts in rows} == COUNTS


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet1001_cifar", "resnet1202_cifar"])
def test_parameters_alone(name):
    init = partial(models.create(name).init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *models.input_shape(name))))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == COUNTS[name][0]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in DEEPEST else ()) for name in sorted(COUNTS)]
)
def test_count_and_sizes(name):
    table = tabulate(models.create(name), models.input_shape(name))
    assert (table.params, table.macs) == COUNTS[name]
    windows = [row for row in table.rows if row.kernel]
    assert windows or name == "mlp"
    for row in windows:
        for axis in (-3, -2):  # before the channels, and after the regions where there are some
            # O = (I - K + 2P) / S + 1, with the kernel as wide as its dilation makes it and 2P both ends' padding.
            extent = row.dilation[axis + 3] * (row.kernel[axis + 3] - 1) + 1
            before, after = row.input_shape[axis], row.output_shape[axis]
            if row.kind == "ConvTranspose":  # which goes the other way
                before, after = after, before
            size = (before - extent + sum(row.padding[axis + 3])) // row.stride[axis + 3] + 1
            assert after == size, row.name


@pytest.mark.parametrize(
    ("name", "fields", "billions"),
    [
        # He et al. 2015, table 1, where a bottleneck's first 1x1 convolution has the stride; figure 3 for VGG-19.
        ("resnet18", {}, 1.8),
        ("resnet34", {"shortcut": "A"}, 3.6),
        ("resnet50", {"stride_in": "1x1"}, 3.8),
        ("vgg19", {}, 19.6),
        ("googlenet", {}, 1.5),  # Szegedy et al. 2014, section 1: it was made to take no more than this
    ],
)
def test_as_the_papers_round_them(name, fields, billions):
    macs = tabulate(models.create(name, **fields), models.input_shape(name)).macs
    assert macs / 1e9 == pytest.approx(billions, abs=0.1)


def test_a_residual_network_by_hand():
    """ResNet-20 of section 4.2: 6n + 2 layers, n = 3, their maps of 32, 16 and 8 pixels with 16, 32 and 64 channels."""
    stem, head = 9 * 3 * 16 * 32**2, 64 * 10
    first = 6 * 9 * 16 * 16 * 32**2
    others = [9 * features * (features // 2 + 5 * features) * size**2 for features, size in ((32, 16), (64, 8))]
    assert stem + first + sum(others) + head == COUNTS["resnet20_cifar"][1]


def test_a_sliding_classifier_by_hand():
    """FCN-32s on 500x500 pixels, padded to 512x512: VGG's convolutions, and its hidden layers in 16x16 cells."""
    convolutions = (COUNTS["vgg16"][1] - 25_088 * 4096 - 4096 * 4096 - 4096 * 1000) * 16**2 // 7**2
    assert convolutions + 16**2 * (25_088 * 4096 + 4096 * 4096 + 4096 * 21) == COUNTS["fcn32s"][1]


def test_a_localizer_is_its_classifier_and_a_box():
    for each, classifier in zip(COUNTS["localizer"], COUNTS["vgg16"], strict=True):
        assert each - classifier in (4096 * 4, 4096 * 4 + 4)


def test_warped_regions_by_hand():
    """AlexNet with 21 classes, 20 machines on fc7, and 4 numbers for each class's box on pool5."""
    heads = 4096 * 21 + 4096 * 20 + 9216 * 80
    assert COUNTS["alexnet"][1] - 4096 * 1000 + heads == COUNTS["rcnn"][1]
    assert COUNTS["alexnet"][0] - 4097 * 1000 + heads + 21 + 20 + 80 == COUNTS["rcnn"][0]


def test_regions_by_hand():
    """VGG-16's maps of 608x1008 pixels, its hidden layers for each region, and two heads of 21 classes."""
    places = 38 * 63
    hidden, heads = 25_088 * 4096 + 4096 * 4096, 4096 * 5 * 21
    body = (COUNTS["vgg16"][1] - hidden - 4096 * 1000) * 16**2 * places // 224**2
    assert body + hidden + heads == COUNTS["fast_rcnn"][1]
    proposals = places * (9 * 512 * 512 + 512 * 9 * 5)
    assert body + 300 * (hidden + heads) + proposals == COUNTS["faster_rcnn"][1]


@pytest.mark.parametrize("name", ["alexnet", "fcn8s", "googlenet", "lenet5", "resnet20_cifar", "unet", "vgg16"])
def test_a_tables_parameters_are_those_of_the_variables(name):
    module, shape = models.create(name), (1, *models.input_shape(name))
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == COUNTS[name][0]
