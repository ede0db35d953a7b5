"""FCN against the paper's numbers, against the classifier that slides, and against sums written out by hand."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.analysis import tabulate
from cnn_research.errors import UserError
from cnn_research.interop import torch as interop
from cnn_research.layers.taps import record
from cnn_research.models.fcn import BODIES, FCN
from cnn_research.models.vgg import VGG

TINY = dict(num_classes=3, width=1 / 32, hidden=(320, 256))
SKIPS = {"fcn32s": 0, "fcn16s": 1, "fcn8s": 2}


def shapes(module, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(module.init, train=False), jax.random.key(0), images)


def logits_shape(module, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(module.apply, train=False), shapes(module, *shape), images).shape


def random_variables(module, *shape, scale=0.15):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, scale, leaf.shape), leaf.dtype), shapes(module, *shape))


def normal(*shape):
    return jax.random.normal(jax.random.key(7), shape)


def outputs(module, variables, images):
    """Returns the logits and what each layer gives; compiled at once, which is sooner than layer by layer."""
    return jax.jit(lambda variables, images: record(lambda: module.apply(variables, images, train=False)))(
        variables, images
    )


def apply(module, variables, images):
    return outputs(module, variables, images)[0]


@pytest.mark.parametrize(
    ("name", "learned", "count"),
    [
        # Before upsampling: the paper's layers, Caffe's counts.
        ("fcn32s", "none", 134_346_581),
        ("fcn16s", "none", 134_346_581 + 10_773),
        ("fcn8s", "none", 134_346_581 + 10_773 + 5_397),
        # A transposed convolution of all classes by all classes, 4x4 between the sums, twice its stride at the end.
        ("fcn32s", "inner", 134_346_581),
        ("fcn16s", "inner", 134_357_354 + 4 * 4 * 21**2),
        ("fcn8s", "inner", 134_362_751 + 2 * 4 * 4 * 21**2),
        ("fcn32s", "all", 134_346_581 + 64 * 64 * 21**2),
        ("fcn16s", "all", 134_357_354 + (4 * 4 + 32 * 32) * 21**2),
        ("fcn8s", "all", 134_362_751 + (2 * 4 * 4 + 16 * 16) * 21**2),
    ],
)
def test_counts(name, learned, count):
    params = shapes(models.create(name, learned=learned), 1, 64, 64, 3)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


def test_a_classifiers_parameters_fit():
    """VGG's, named and shaped as they are, but for its head."""
    vgg = shapes(VGG(), 1, 224, 224, 3)["params"]
    fcn = shapes(models.create("fcn8s"), 1, 100, 100, 3)["params"]
    assert {name: vgg[name] for name in vgg if name != "head"} == {
        name: layer for name, layer in fcn.items() if "score" not in name
    }


def test_the_classifier_slides():
    """The scores of the cell in the middle of 224x224 pixels are what VGG says of the image."""
    vgg, fcn, images = VGG(**TINY), FCN(**TINY, skips=0), normal(2, 224, 224, 3)
    variables = random_variables(vgg, *images.shape, scale=0.08)
    head = variables["params"].pop("head")
    score = {"kernel": head["kernel"][None, None], "bias": head["bias"]}
    _, layers = outputs(fcn, {"params": variables["params"] | {"score": score}}, images)
    assert layers["score"].shape == (2, 7, 7, 3)
    expected = apply(vgg, {"params": variables["params"] | {"head": head}}, images)
    np.testing.assert_allclose(layers["score"][:, 3, 3], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("border", ["image", "same"])
@pytest.mark.parametrize("size", [(1, 1), (32, 64), (33, 31), (100, 75)])
def test_every_pixel_has_its_logits(size, border):
    for skips in SKIPS.values():
        assert logits_shape(FCN(**TINY, skips=skips, border=border), 2, *size, 1) == (2, *size, 3)


def test_scores_are_added_up_from_coarse_to_fine():
    """As bilinear interpolation before each sum, and once more up to the pixels, of which the middle ones are kept."""
    module, images = FCN(**TINY, learned="none"), normal(1, 70, 101, 3)
    logits, layers = outputs(module, random_variables(module, *images.shape), images)
    x = layers["score"]
    assert x.shape == (1, 3, 4, 3)
    for layer in ("pool4", "pool3"):
        x = jax.image.resize(x, (1, 2 * x.shape[1], 2 * x.shape[2], 3), "bilinear") + layers[f"score_{layer}"]
    x = jax.image.resize(x, (1, 96, 128, 3), "bilinear")
    np.testing.assert_allclose(logits, x[:, 13:83, 13:114], rtol=1e-4, atol=1e-5 * np.abs(x).max())


@pytest.mark.parametrize("skips", [0, pytest.param(1, marks=pytest.mark.slow), 2])
def test_what_is_learned_starts_as_interpolation(skips):
    """Inside: at the border of the maps the stamps of a transposed convolution add up to less than one."""
    images = normal(1, 128, 128, 3)
    fixed = FCN(**TINY, body="vgg11", skips=skips, learned="none")
    params = random_variables(fixed, 1, 32, 32, 3)["params"]
    expected = apply(fixed, {"params": params}, images)
    for learned in ("inner", "all"):
        module = fixed.clone(learned=learned)
        started = jax.jit(partial(module.init, train=False))(jax.random.key(0), images[:, :32, :32])["params"]
        logits = apply(module, {"params": started | params}, images)
        inside = np.s_[:, 48:-48, 48:-48]
        np.testing.assert_allclose(logits[inside], expected[inside], rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_scores_start_at_zero():
    module = FCN(**TINY)
    params = jax.jit(partial(module.init, train=False))(jax.random.key(0), normal(1, 32, 32, 3))["params"]
    for name in ("score", "score_pool4", "score_pool3"):
        assert not any(leaf.any() for leaf in params[name].values())


def test_the_border_of_the_image_is_what_fc6_sees_beyond_it():
    """Scores with it are those of an image with that border, less the cells of the border."""
    module, images = FCN(**TINY), normal(1, 64, 96, 3)
    variables = random_variables(module, *images.shape)
    logits, layers = outputs(module.clone(border="image"), variables, images)
    _, around = outputs(module, variables, jnp.pad(images, ((0, 0), (96, 96), (96, 96), (0, 0))))
    np.testing.assert_allclose(layers["score"], around["score"][:, 3:-3, 3:-3], rtol=1e-4, atol=1e-4)
    assert not np.allclose(logits, apply(module, variables, images))


# Of classifiers of one table row, and deeper ones like them, one stands for all.
@pytest.mark.parametrize(
    "name",
    [
        *("alexnet", "alexnet_owt", "googlenet", "googlenet_cifar", "nin_cifar", "nin_imagenet", "vgg11_lrn", "vgg16"),
        *("resnet18", "resnet50", "resnet20_cifar", "resnet164_cifar"),
    ],
)
def test_every_classifier_is_a_body(name):
    """Its maps have a cell for each stride's pixels, and the layers after them no parameters."""
    norm = "batch" if "resnet" in name else "none"
    skips = len(BODIES[name].layers) - 1
    module = FCN(body=name, skips=skips, num_classes=3, hidden=(), norm=norm)
    shape, layers = (1, 70, 101, 2), {}

    def run(variables, images):
        nonlocal layers
        logits, layers = outputs(module, variables, images)
        return logits

    variables = shapes(module, *shape)
    assert "head" not in variables["params"]
    assert jax.eval_shape(run, variables, jax.ShapeDtypeStruct(shape, jnp.float32)).shape == (1, 70, 101, 3)
    coarsest = max(BODIES[name].layers)
    for stride, layer in BODIES[name].layers.items():
        for axis, size in ((1, 70), (2, 101)):
            cells = -(-size // coarsest) * coarsest // stride
            # Margins may leave some more, which are cut off.
            assert cells <= layers[layer].shape[axis] <= cells + (4 if any(BODIES[name].margins) else 0)


@pytest.mark.parametrize("body", ["alexnet", "alexnet_owt", "nin_imagenet"])
def test_windows_without_padding_see_what_lies_in_their_cells(body):
    """The middle of a window is less than half a cell from the middle of the cell that it stands for."""
    module = FCN(body=body, num_classes=3, hidden=())
    rows = {row.name: row for row in tabulate(module, (64, 64, 3)).rows}
    for stride, layer in BODIES[body].layers.items():
        row = rows[layer]
        spare = (row.output_shape[0] - 64 // stride) // 2
        # Receptive fields are symmetric about a window's middle, and count from the padded image's first pixel.
        middle = row.first_pixel[0] + (row.receptive_field[0] - 1) / 2 + spare * stride
        assert abs(middle - (stride - 1) / 2) <= stride / 2 + 0.5, layer


def test_all_classifiers_but_those_without_maps_are_bodies():
    assert sorted(BODIES) == sorted({*models.names("classification")} - {"lenet5", "lenet5_modern", "mlp"})


def test_a_bodys_weights_come_from_torchvision():
    vgg = random_variables(VGG(configuration="A", **TINY), 1, 224, 224, 3)
    state = interop.dump("vgg11", vgg, **TINY)
    module = FCN(body="vgg11", **TINY)
    template = shapes(module, 1, 64, 64, 3)
    converted = interop.convert(module, template, state)
    taken = {path for path in converted if path.startswith("params/")}
    assert {path.split("/")[1] for path in taken} == vgg["params"].keys() - {"head"}
    for path in taken:
        _, layer, leaf = path.split("/")
        np.testing.assert_array_equal(converted[path], vgg["params"][layer][leaf])
    assert converted.keys() == taken
    with pytest.raises(UserError, match="fcn8s has no counterpart in torchvision"):
        interop.dump("fcn8s", template, **TINY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body": "lenet5"}, "body='lenet5' is not known"),
        ({"body": "vgg61"}, "did you mean 'vgg1"),
        ({"skips": 3}, "skips=3 is out of range; vgg16 has 2 finer maps"),
        ({"body": "nin_cifar"}, "nin_cifar has 1 finer maps"),
        ({"border": "smae"}, "did you mean 'same'"),
        ({"learned": "everything"}, "learned='everything' is not known"),
        ({"hidden": (0,)}, "each layer must have 1 or more units"),
        ({"hidden_kernel": 0}, "hidden_kernel=0 is out of range"),
        ({"hidden_kernel": 6, "border": "image"}, "needs an odd hidden_kernel, not 6"),
        ({"hidden": (), "dropout_rate": 0.1}, "dropout_rate=0.1 does nothing with hidden=\\(\\)"),
    ],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        FCN(**fields)
