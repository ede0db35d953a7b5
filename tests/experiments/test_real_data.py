"""Recipes on real data sets, where `CNN_RESEARCH_DATA_DIRS` names a folder of them."""

from pathlib import Path

import jax
import pytest

from cnn_research import training
from cnn_research.data.sources import open_source
from cnn_research.training import config as configs
from experiments import command_line

RECIPES = Path(__file__).parents[2] / "experiments" / "configs"


@pytest.mark.usefixtures("real_data")
def test_mnist(tmp_path):
    """Sizes and classes as published; a short training on a part of it by the recipe."""
    config = command_line.load_config(f"{RECIPES}/mnist.py:lenet5_modern")
    sizes = {split: len(open_source(config.data.name, split, config.data.data_dir)) for split in ("train", "test")}
    assert sizes == {"train": 60_000, "test": 10_000}
    config.data.train = "train[:20%]"
    config.update(duration="1ep", eval_every="1ep", checkpoint_every="1ep", tensorboard=False)
    result = training.train(config, tmp_path, jax.devices()[:1])
    assert result["test/accuracy"] > 0.9
    assert result["test/examples"] == 10_000
    assert configs.load(tmp_path).data.class_names == tuple("0123456789")
