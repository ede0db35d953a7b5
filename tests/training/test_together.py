"""Several runs as one program: each is as it would be by itself."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.errors import UserError
from cnn_research.training import together
from cnn_research.training.config import to_json

SETTINGS = [
    {"seed": 0, "learning_rate": 0.02, "weight_decay": 5e-4, "label_smoothing": 0.0},
    {"seed": 1, "learning_rate": 0.01, "weight_decay": 0.0, "label_smoothing": 0.1},
    {"seed": 1, "learning_rate": 0.03, "weight_decay": 0.1, "label_smoothing": 0.0},
]


@pytest.fixture(scope="module")
def configs(digits_config):
    def make(seed, learning_rate, weight_decay, label_smoothing, optimizer="nesterov"):
        config = digits_config("mlp", dropout_rate=0.2)
        config.seed = seed
        config.optimizer.update(name=optimizer, learning_rate=learning_rate, weight_decay=weight_decay, warmup="2")
        config.loss.label_smoothing = label_smoothing
        config.augmentation.pad_crop = 2
        return config

    return lambda **fields: [make(**settings, **fields) for settings in SETTINGS]


@pytest.fixture(scope="module")
def alone(configs, tmp_path_factory):
    """The runs by themselves: their directories and results."""
    workdirs = [tmp_path_factory.mktemp("alone") for _ in SETTINGS]
    return workdirs, [training.train(config, w) for config, w in zip(configs(), workdirs, strict=True)]


def assert_same(first, second):
    """The same to rounding: what is checkpointed, what is written."""
    for step in (6, 12):
        pair = [jax.device_get(analysis.load_run(workdir, step).variables) for workdir in (first, second)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), *pair)


@pytest.mark.parametrize("over_runs", [together.side_by_side, jax.vmap])
def test_each_run_is_as_it_would_be_alone(configs, alone, tmp_path, monkeypatch, over_runs):
    """`vmap` is for accelerators; it has to be right here, too."""
    monkeypatch.setattr(together, "side_by_side", over_runs)
    workdirs = [tmp_path / str(index) for index in range(len(SETTINGS))]
    results = training.train_together(configs(), workdirs)
    for workdir, result, expected, by_itself in zip(workdirs, results, alone[1], alone[0], strict=True):
        assert_same(workdir, by_itself)
        timed = ("images_per_second", "seconds")
        assert result.keys() == expected.keys()
        for name in expected.keys() - {*timed}:
            assert result[name] == pytest.approx(expected[name], abs=1e-4), name
        assert (workdir / "result.json").exists()
    assert len({result["test/loss"] for result in results}) == len(SETTINGS)


def test_one_that_fails_leaves_the_others_be(configs, alone, tmp_path):
    """A rate that cannot go well, and a directory that holds another run."""
    several = configs()
    several[0].optimizer.learning_rate = 1e30
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "config.json").write_text(to_json(several[0]))
    diverged, refused, result = training.train_together(several, [tmp_path / str(index) for index in range(3)])
    assert isinstance(diverged, UserError)
    assert "not finite at step" in str(diverged)
    assert (tmp_path / "0" / "postmortem" / "report.json").exists()
    assert "holds a run of another config" in str(refused)
    assert result["step"] == 12
    assert_same(tmp_path / "2", alone[0][2])


def test_runs_of_different_steps_go_on(configs, alone, tmp_path):
    """One was interrupted before its last checkpoint, one after it, one is done."""
    workdirs = [shutil.copytree(workdir, tmp_path / str(index)) for index, workdir in enumerate(alone[0])]
    for workdir in workdirs[:2]:
        (workdir / "result.json").unlink()
    shutil.rmtree(workdirs[0] / "checkpoints" / "12")
    results = training.train_together(configs(), workdirs)
    assert [result["step"] for result in results] == [12] * 3
    assert results[2] == alone[1][2]
    for workdir, by_itself in zip(workdirs, alone[0], strict=True):
        assert_same(workdir, by_itself)


def test_only_scalars_may_differ(configs, tmp_path):
    several = configs()
    several[1].optimizer.momentum = 0.5
    with pytest.raises(UserError, match=r"optimizer.weight_decay, .* and nothing else, not optimizer.momentum"):
        training.train_together(several, [tmp_path / str(index) for index in range(3)])
    several = configs()
    for config in several:
        config.parallel = "pmap"
    with pytest.raises(UserError, match="parallel=jit"):
        training.train_together(several, [tmp_path / str(index) for index in range(3)])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars", "lamb", "muon"])
def test_optimizers_take_arrays(configs, name):
    """What an optimizer does with its scalars as arrays is what it does with them as numbers."""
    config = configs(optimizer=name)[0]
    config.data.num_examples = 1437
    program = training.make_program(config)
    params = {"dense": {"kernel": jnp.linspace(-1, 1, 6).reshape(2, 3), "bias": jnp.ones(3)}}
    gradients = jax.tree.map(jnp.cos, params)

    def two_steps(optimizer):
        state = optimizer.init(params)
        _, state = optimizer.update(gradients, state, params)
        return optimizer.update(gradients, state, params)[0]

    def traced(rate, decay):
        values = {"optimizer.learning_rate": rate, "optimizer.weight_decay": decay, "loss.label_smoothing": rate}
        return two_steps(program.with_scalars(values).optimizer)

    settings = config.optimizer
    found = jax.jit(traced)(jnp.float32(settings.learning_rate), jnp.float32(settings.weight_decay))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, two_steps(program.optimizer))
