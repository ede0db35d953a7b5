"""The table of names, and the way between configurations and modules."""

from itertools import chain

import jax.numpy as jnp
import pytest
from flax import linen as nn
from ml_collections import ConfigDict

from cnn_research import models
from cnn_research.errors import UserError


class Stages(nn.Module):
    """A network with a field of every type."""

    sizes: tuple[int, ...] = (3, 4)
    grid: tuple[tuple[int, int], str] = ((1, 2), "a")
    rate: float = 0.5
    depth: int = 2
    bias: bool = True
    activation: object = "relu"


@pytest.fixture
def stages(monkeypatch):
    monkeypatch.setitem(models.MODELS, "stages", models.partial(Stages, depth=3))


def test_names_are_sorted():
    assert models.names() == sorted(models.MODELS)
    assert {"lenet5", "lenet5_modern"} <= set(models.names())


def test_names_by_task():
    segmenters = ["deconvnet", "fcn16s", "fcn32s", "fcn8s", "unet"]
    assert models.names("segmentation") == segmenters
    others = {
        "detection": ["fast_yolo", "yolo"],
        "instance_segmentation": ["mask_rcnn"],
        "localization": ["localizer"],
        "region_classification": ["rcnn"],
        "region_detection": ["fast_rcnn", "faster_rcnn"],
    }
    assert {task: models.names(task) for task in others} == others
    assert sorted([*models.names("classification"), *segmenters, *chain(*others.values())]) == models.names()
    assert {models.task(name) for name in segmenters} == {"segmentation"}
    assert models.task("localizer") == "localization"
    assert models.task("yolo") == "detection"
    assert models.task("vgg16") == "classification"
    with pytest.raises(UserError, match="did you mean 'segmentation'"):
        models.names("segmentatoin")
    with pytest.raises(UserError, match="model 'unit' is not known"):
        models.task("unit")


@pytest.mark.parametrize("name", models.names())
def test_a_configuration_gives_the_network_again(name):
    config = models.config(name)
    assert config.name == name
    assert None not in config.values()
    assert models.create(**config) == models.create(name)


def test_a_configuration_holds_the_fields_given_and_all_defaults():
    config = models.config("lenet5_modern", width=2, norm="batch")
    assert (config.width, config.norm, config.output, config.num_classes) == (2.0, "batch", "softmax", 10)
    config.bn_momentum = 0.99  # every field is there to be flagged
    assert models.create(**config) == models.create("lenet5_modern", width=2.0, norm="batch", bn_momentum=0.99)


@pytest.mark.usefixtures("stages")
def test_lists_become_tuples():
    config = models.config("stages", sizes=[1, 2, 3], grid=[[5, 6], "b"])
    assert config.sizes == (1, 2, 3)
    module = models.create(**ConfigDict(config.to_dict()))
    assert module == Stages(sizes=(1, 2, 3), grid=((5, 6), "b"), depth=3)
    hash(module)


@pytest.mark.usefixtures("stages")
def test_a_whole_number_is_a_float_and_a_function_stays():
    module = models.create("stages", rate=1, activation=jnp.sin)
    assert isinstance(module.rate, float)
    assert module.activation is jnp.sin


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rate": "a"}, "rate='a' is of the wrong type; a right one is 0.5"),
        ({"rate": True}, "rate=True is of the wrong type"),
        ({"depth": True}, "depth=True is of the wrong type; a right one is 3"),
        ({"depth": 1.5}, "depth=1.5 is of the wrong type"),
        ({"depth": None}, "depth=None is of the wrong type"),
        ({"bias": 1}, "bias=1 is of the wrong type"),
        ({"sizes": (1, 2.5)}, "is of the wrong type"),
        ({"sizes": 3}, "sizes=3 is of the wrong type"),
        ({"grid": ((1, 2, 3), "a")}, "is of the wrong type"),
        ({"dept": 3}, "stages has no field 'dept'; did you mean 'depth'"),
        ({"parent": None}, "stages has no field 'parent'"),
    ],
)
def test_faults_of_fields_are_one_line(fields, message):
    with pytest.raises(UserError, match=message) as fault:
        models.create("stages", **fields)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("make", [models.create, models.config])
def test_an_unknown_name_gets_the_nearest(make):
    with pytest.raises(UserError, match="model 'lenet' is not known; did you mean 'lenet5'"):
        make("lenet")


def test_a_configuration_refuses_what_create_refuses():
    with pytest.raises(UserError, match="did you mean 'batch'"):
        models.config("lenet5", norm="bacth")


@pytest.mark.usefixtures("stages")
def test_a_configuration_holds_no_functions():
    with pytest.raises(UserError, match="activation is a function"):
        models.config("stages", activation=jnp.sin)


def test_the_images_that_networks_were_made_for():
    shapes = {name: models.input_shape(name) for name in models.names()}
    assert shapes["vgg16"] == shapes["alexnet_owt"] == (224, 224, 3)
    assert shapes["alexnet"] == (227, 227, 3)
    assert shapes["resnet20_cifar"] == shapes["nin_cifar"] == (32, 32, 3)
    assert shapes["lenet5"] == (32, 32, 1)
    assert shapes["unet"] == (572, 572, 1)
    assert shapes["fcn8s"] == (500, 500, 3)
    with pytest.raises(UserError, match="model 'vgg17' is not known; did you mean 'vgg1"):
        models.input_shape("vgg17")
