"""Which method there is for which network: the table of docs/visualize.md, every pair of it traced."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from cnn_research import models
from cnn_research.analysis import gallery
from cnn_research.analysis.attribution import attribute, class_score, neuron
from cnn_research.analysis.attribution.targets import outputs
from cnn_research.analysis.neurons import codes, layers, patches, synthesis
from cnn_research.errors import UserError

PAGE = Path(__file__).parents[2] / "docs" / "visualize.md"

RESNETS = tuple(name for name in models.names() if name.startswith("resnet"))

# By the columns of the table: the networks, and the smallest fields and images that have all of their layers.
FAMILIES = {
    "LeNet": (("lenet5_modern", "lenet5"), {}, 32),
    "MLP": (("mlp",), {}, 8),
    "AlexNet": (("alexnet", "alexnet_ungrouped", "alexnet_owt"), {}, 79),
    "VGG": (("vgg11", "vgg11_lrn", "vgg13", "vgg16_1x1", "vgg16", "vgg19"), {}, 64),
    "NIN": (("nin_cifar", "nin_imagenet"), {}, 64),
    "GoogLeNet": (("googlenet", "googlenet_bn", "googlenet_cifar"), {}, 64),
    "ResNet": (RESNETS, {}, 32),
    "FCN": (("fcn8s", "fcn16s", "fcn32s"), {}, 64),
    "DeconvNet": (("deconvnet",), {"hidden": ()}, 64),
    "U-Net": (("unet",), {"padding": "same"}, 64),
}
# They are as the other ResNets, only deeper, and a trace of them takes a minute.
LEFT_OUT = {"resnet1001_cifar", "resnet1202_cifar"}


def table():
    """Returns what the page says: {method: {family: whether there is it}}."""
    lines = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("|")]
    (_, *families), _, *rows = [[cell.strip() for cell in line] for line in lines]
    return {name.strip("`"): {f: cell == "✓" for f, cell in zip(families, cells, strict=True)} for name, *cells in rows}


def trace(method, model, variables, images):
    """Traces what a method computes."""
    shape = images.shape[1:]
    if method in ("embedding", "confusions"):
        if len(jax.eval_shape(partial(model.apply, train=False), variables, images).shape) > 2:
            raise UserError("of images with one label")
        return codes.last_code(model, shape)
    if method == "filters":
        first = layers.kernel_layers(variables, model, shape)[0]
        return jax.eval_shape(partial(layers.filters, layer=first, input_shape=shape), variables)
    if method in ("activations", "top_patches", "deconvnet"):
        layer = layers.map_layers(model, shape)[0]
        if method == "deconvnet":
            return jax.eval_shape(partial(attribute, method, model, target=neuron(layer, 0)), variables, images)
        return jax.eval_shape(partial(patches.peaks, model, layer=layer), variables, images)
    canvas, rng = synthesis.pixels(shape), jax.random.key(0)
    if method == "maximize":
        make = partial(synthesis.maximize, model, target=class_score(0), count=1, canvas=canvas, rng=rng, steps=1)
        return jax.eval_shape(make, variables)
    if method == "invert":
        layer = codes.last_code(model, shape)
        features = jax.eval_shape(
            lambda variables, images: outputs(model, variables, images)[1][layer], variables, images
        )
        make = partial(synthesis.invert, model, layer=layer, canvas=canvas, rng=rng, steps=1)
        return jax.eval_shape(lambda variables, wanted: make(variables, wanted), variables, features)
    target = 0 if method == "cam" else class_score(0)
    options = {"window": 16, "strides": 16} if method == "occlusion" and shape[0] >= 16 else {}
    return jax.eval_shape(partial(attribute, method, model, target=target, **options), variables, images)


# Traced with the quick tests; the others take longer.
QUICK = ("lenet5_modern", "mlp", "resnet20_cifar")

NETWORKS = [
    pytest.param(family, name, fields, size, marks=[] if name in QUICK else [pytest.mark.slow], id=name)
    for family, (names, fields, size) in FAMILIES.items()
    for name in names
    if name not in LEFT_OUT
]


@pytest.mark.parametrize(("family", "name", "fields", "size"), NETWORKS)
def test_what_the_table_says_of_a_network(family, name, fields, size):
    model = models.create(name, **fields)
    images = jax.ShapeDtypeStruct((1, size, size, models.input_shape(name)[2]), "float32")
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)
    for method, there in table().items():
        if there[family]:
            trace(method, model, variables, images)
        else:
            with pytest.raises(UserError):
                trace(method, model, variables, images)


def test_the_table_has_every_method_and_every_network():
    assert list(table()) == list(gallery.METHODS)
    assert all(list(row) == list(FAMILIES) for row in table().values())
    shown = [name for task in gallery.TASKS for name in models.names(task)]
    assert {name for names, *_ in FAMILIES.values() for name in names} == {*shown}


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("LeNet", "MLP")])
def test_a_network_of_each_family_runs(family):
    """All attributions of the table in one program, of a narrow network."""
    (name, *_), fields, size = FAMILIES[family]
    if family == "ResNet":
        name, size = "resnet20_cifar", 16
    narrow = {"width": 0.2}
    model = models.create(name, **fields, **narrow, num_classes=4)
    images = jax.random.normal(jax.random.key(0), (2, size, size, models.input_shape(name)[2]))
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(1), images)
    methods = [method for method, there in table().items() if there[family] and method in gallery.attribution.METHODS]

    def run(variables, images):
        target = jnp.array([1, 2])
        whole = {"window": 32, "strides": 32} if size > 32 else {}
        return {
            method: attribute(method, model, variables, images, target, **(whole if method == "occlusion" else {}))
            for method in methods
        }

    for method, maps in jax.jit(run)(variables, images).items():
        assert maps.shape[:3] == images.shape[:3], method
        assert jnp.isfinite(maps).all(), method
