"""Two fabricated runs, and where they first part."""

from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath

from cnn_research import training
from cnn_research.analysis import Run, divergence
from cnn_research.data.order import Shuffled

RECORDS = [
    {"step": 10, "train/loss": 2.0, "seconds": 1.0, "images_per_second": 7.0},
    {"step": 20, "train/loss": 1.5, "test/accuracy": 0.4, "seconds": 2.0},
]


class Fabricated(Run):
    """A run of eight steps without a directory."""

    def __init__(self, name, config, records):
        given = dict(given_config=config, given_records=records)
        self.__dict__.update(workdir=epath.Path(name), program=SimpleNamespace(total_steps=8), **given)

    config = property(lambda self: self.given_config)
    metrics = property(lambda self: self.given_records)


@pytest.fixture
def config():
    made = training.default_config("lenet5", num_classes=10)
    made.data.update(name="digits", num_examples=50)
    made.batch_size = 16
    return made


def test_first_logged_value():
    slower = [dict(record, seconds=99.0, images_per_second=1.0) for record in RECORDS]
    assert divergence.first_logged(RECORDS, slower) is None
    other = [RECORDS[0], {**RECORDS[1], "test/accuracy": 0.5}, {"step": 30, "train/loss": 9.0}]
    assert divergence.first_logged(RECORDS, other) == (20, "test/accuracy", 0.4, 0.5)
    both = [{**RECORDS[0], "train/loss": 2.5}, other[1]]
    assert divergence.first_logged(other, both) == (10, "train/loss", 2.0, 2.5)


def test_first_batch_with_other_examples(config):
    other = config.copy_and_resolve_references()
    assert divergence.first_batch(config, other, 8) is None
    other.seed = 1
    step, place = divergence.first_batch(config, other, 8)
    ours, theirs = (Shuffled(50, 16, seed)(step)[0] for seed in (0, 1))
    assert step == 0
    assert (ours[:place] == theirs[:place]).all()
    assert ours[place] != theirs[place]
    other.seed, other.batch_size = 0, 20
    assert divergence.first_batch(config, other, 8) == (0, 16)
    other.update(batch_size=16)
    other.data.train = "train[:50]"
    assert divergence.first_batch(config, other, 8) == (0, 0)


def test_first_layer_is_that_of_the_network_not_of_the_alphabet():
    first = {"params": {name: {"kernel": np.ones(3)} for name in ("C1", "F6", "A9")}}
    second = {"params": {name: {"kernel": np.ones(3) * (1 + (name != "C1"))} for name in ("C1", "F6", "A9")}}
    assert divergence.first_layer(["C1", "F6", "A9"], first, second) == "F6"
    assert divergence.first_layer(["C1", "A9", "F6"], first, second) == "A9"
    assert divergence.first_layer(["C1"], first, first) is None


def test_a_line_for_each_way_to_part(config, monkeypatch):
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.2
    runs = [
        Fabricated(name, each, records)
        for name, each, records in (("a", config, RECORDS), ("b", other, [{"step": 10, "train/loss": 2.1}]))
    ]
    variables = {"a": {"params": {"C1": {"kernel": np.ones(2)}}}, "b": {"params": {"C1": {"kernel": np.zeros(2)}}}}
    monkeypatch.setattr(divergence, "common_step", lambda *_: 10)
    monkeypatch.setattr(divergence, "load_run", lambda path, step: SimpleNamespace(variables=variables[path.name]))
    lines = divergence.explain(*runs, ["C1"])
    assert lines == [
        "config: optimizer.learning_rate is 0.1 and 0.2",
        "examples: the same in all 8 steps",
        "logged: train/loss at step 10 is 2.0 and 2.1",
        "parameters at step 10: C1 is the first that differs",
    ]
