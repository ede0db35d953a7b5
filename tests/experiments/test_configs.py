import itertools
import re
from functools import partial
from pathlib import Path

import jax
import pytest

from cnn_research import models, training
from cnn_research.errors import UserError
from experiments import command_line
from experiments.sweeps.arms import make_arms

SMALL = ("cifar10", "digits", "fashion_mnist", "mnist")  # images that a LeNet takes
DENSE = ("camvid", "cityscapes", "isbi2012", "pets", "shapes_segmentation", "voc_segmentation")  # of segmentation
RECIPES = sorted((Path(__file__).parents[2] / "experiments" / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    """Builds, with shapes that fit, and says in its docstring how it is started and what to expect."""
    module = command_line.load_recipe(str(path))
    config = module.get_config()
    program = training.make_program(config)
    assert program.total_steps > 0
    outputs = jax.eval_shape(
        lambda variables: program.model.apply(variables, jax.numpy.zeros((2, *program.image_shape)), train=False),
        program.abstract_variables,
    )
    logits, *boxes = jax.tree.leaves(outputs)
    assert bool(boxes) == (config.task not in ("classification", "segmentation"))
    if config.task in ("instance_segmentation", "region_detection"):
        assert config.task == "region_detection" or outputs.masks.shape[:2] == outputs.regions.shape[:2]
        assert outputs.classified.logits.shape[-1] == config.model.num_classes
    elif config.task == "detection":
        cells, classes = outputs
        assert cells.shape == (*classes.shape[:3], config.model.boxes, 5)
        assert classes.shape[-1] == config.model.num_classes
    elif config.task == "segmentation":
        assert logits.shape == (2, *logits.shape[1:3], config.model.num_classes)
        assert len(config.data.class_names) == config.model.num_classes
    else:
        assert logits.shape == (2, config.model.num_classes)
    assert f"python -m experiments.train --config=experiments/configs/{path.name}" in module.__doc__
    assert re.search(r"accuracy|error|IoU|AP50", module.__doc__)
    assert re.search(r"\d+ (s|min|minutes|seconds|hours|days)\b", module.__doc__)


@pytest.mark.parametrize("model", ["lenet5", "lenet5_modern"])
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem in SMALL], ids=lambda path: path.stem)
def test_both_lenets_train_by_the_same_recipe(path, model):
    config = command_line.load_config(f"{path}:{model}")
    assert config.model.name == model
    assert (config.loss.criterion == "map") == (model == "lenet5")


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem in DENSE], ids=lambda path: path.stem)
def test_every_dense_network_trains_by_the_recipes(path):
    """They build, and say something of each pixel that they are asked about."""
    for model in models.names("segmentation"):
        config = command_line.load_config(f"{path}:{model}")
        assert config.model.name == model
        program = training.make_program(config)
        images = jax.ShapeDtypeStruct((2, *program.image_shape), "float32")
        apply = partial(program.model.apply, train=False)
        logits = jax.eval_shape(apply, program.abstract_variables, images)
        size = tuple(config.data.crop_size or config.data.image_size)
        assert logits.shape[1] >= size[0]
        assert logits.shape[2] >= size[1]


@pytest.mark.parametrize("name", ["bccd", "coco", "shapes_detection", "voc"])
def test_every_detector_trains_by_the_recipes(name):
    recipes = ("", ",overfit") if name == "voc" else ("",)
    for model, recipe in itertools.product((*models.names("detection"), "faster_rcnn"), recipes):
        program = training.make_program(command_line.load_config(f"experiments/configs/{name}.py:{model}{recipe}"))
        assert program.config.model.name == model
        assert program.abstract_variables["params"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_named_sweeps(path):
    """Each gives arms whose configs build."""
    names = [
        name.removeprefix("sweep_") for name in dir(command_line.load_recipe(str(path))) if name.startswith("sweep_")
    ]
    for name in names:
        assert len(make_arms(str(path), name, {})) > 1
    assert names or path.stem != "digits"


@pytest.mark.parametrize("name", DENSE)
def test_a_network_of_another_task_is_refused(name):
    config = command_line.load_config(f"experiments/configs/{name}.py:vgg16")
    with pytest.raises(
        UserError, match=r"vgg16 is a network for classification, task is 'segmentation'; give one of .*unet"
    ):
        training.make_program(config)


@pytest.mark.parametrize("argument", ["unet,papers", "fcn8s,paper"])
def test_a_recipe_that_is_none_is_refused(argument):
    with pytest.raises(UserError, match=r"recipe 'papers?'"):
        command_line.load_config(f"experiments/configs/isbi2012.py:{argument}")


def test_unets_paper_labels_all_that_it_is_asked_about():
    """In training 388 of 572 pixels, of which 384 count; in evaluation 516 of 700, of which the image's 512 do."""
    program = training.make_program(command_line.load_config("experiments/configs/isbi2012.py:unet,paper"))
    assert program.image_shape == (572, 572, 1)
    batch = {"image": jax.ShapeDtypeStruct((1, 512, 512, 1), "uint8")}
    images = jax.eval_shape(program.preprocessing.test, batch)["image"]
    logits = jax.eval_shape(partial(program.model.apply, train=False), program.abstract_variables, images)
    assert logits.shape == (1, 516, 516, 2)
