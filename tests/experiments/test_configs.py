import re
from pathlib import Path

import jax
import pytest

from cnn_research import training
from experiments import command_line
from experiments.arms import make_arms

RECIPES = sorted((Path(__file__).parents[2] / "experiments" / "configs").glob("*.py"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe(path):
    """Builds, with shapes that fit, and says in its docstring how it is started and what to expect."""
    module = command_line.load_recipe(str(path))
    config = module.get_config()
    program = training.make_program(config)
    assert program.total_steps > 0
    logits = jax.eval_shape(
        lambda variables: program.model.apply(variables, jax.numpy.zeros((2, *program.image_shape)), train=False),
        program.abstract_variables,
    )
    assert logits.shape == (2, config.model.num_classes)
    assert f"python -m experiments.train --config=experiments/configs/{path.name}" in module.__doc__
    assert re.search(r"accuracy|error", module.__doc__)
    assert re.search(r"\d+ (s|min|minutes|seconds|days)\b", module.__doc__)


@pytest.mark.parametrize("model", ["lenet5", "lenet5_modern"])
@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem != "imagenet"], ids=lambda path: path.stem)
def test_both_lenets_train_by_the_same_recipe(path, model):
    config = command_line.load_config(f"{path}:{model}")
    assert config.model.name == model
    assert (config.loss.criterion == "map") == (model == "lenet5")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_named_sweeps(path):
    """Each gives arms whose configs build."""
    names = [
        name.removeprefix("sweep_") for name in dir(command_line.load_recipe(str(path))) if name.startswith("sweep_")
    ]
    for name in names:
        assert len(make_arms(str(path), name, {})) > 1
    assert names or path.stem != "digits"
