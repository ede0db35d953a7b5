from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import training
from cnn_research.data.augmentation import Augmentation
from cnn_research.errors import UserError
from cnn_research.metrics import records
from cnn_research.tasks import RecordTask
from cnn_research.tasks.average_precision import AveragePrecision
from cnn_research.training import evaluation
from cnn_research.training.evaluation import Evaluator, check_classes, open_split
from cnn_research.training.parallel import make_parallel
from cnn_research.training.program import make_program
from cnn_research.training.step import Preprocessing


def test_classes_are_compared_where_a_network_has_some(digits_config):
    config = digits_config()
    source = open_split(config, "train")
    check_classes(source, config)
    config.model.num_classes = 9
    with pytest.raises(UserError, match="has 10 classes, model"):
        check_classes(source, config)
    del config.model.num_classes
    check_classes(source, config)


def test_sums_over_a_split_hold_more_than_32_bits(digits_config, monkeypatch):
    config = digits_config()
    config.eval_batch_size, config.data.num_examples = 80, 1437
    program, parallel, source = make_program(config), make_parallel("jit"), open_split(config, "test")
    evaluator = Evaluator(program.model, program.task, program.preprocessing, source, config, parallel)
    most = 2**31 - 1
    sums = {"confusion": jnp.array([[most, 1]]), "loss": jnp.float32(0.1)}
    monkeypatch.setattr(evaluator, "_step", lambda *_: (sums, np.ones(80, bool), np.ones((80, 2), np.int32)))
    sums = evaluator.measure({})
    batches = 5  # of 80 for 360 images
    assert sums["confusion"].tolist() == [[batches * most, batches]]
    assert abs(sums["loss"] - batches * 0.1) < 1e-6


class Oracle(AveragePrecision):
    """Finds what is written into a batch, two objects an image at most."""

    def loss(self, model, variables, batch, rng, train):
        raise NotImplementedError

    def predict(self, model, variables, batch):
        valid = batch["objects/valid"]
        scores = jnp.arange(1.0, 1 + valid.size).reshape(valid.shape)
        return {"boxes": batch["objects/bbox"], "classes": batch["objects/label"], "scores": scores, "valid": valid}


@pytest.mark.parametrize("resize", ["stretch", "pad"])
def test_records_are_of_whole_images_at_their_own_size(resize, monkeypatch):
    """Whatever size the network sees, and in whatever batches; the truth has also those without room in a batch."""
    config = training.default_config("localizer", num_classes=4)
    config.data.update(name="shapes/32x24_train64_test20", image_size=(40, 44), resize=resize, max_objects=2)
    config.eval_batch_size = 16
    source, parallel = open_split(config, "test"), make_parallel("jit")
    preprocessing = Preprocessing(Augmentation(), (0.5,), (0.5,))
    evaluator = Evaluator(nn.Module(), Oracle(), preprocessing, source, config, parallel)
    assert isinstance(Oracle(), RecordTask)
    found, truth = records.split(evaluator.measure({}))
    assert len(found) == len(truth) == 20
    assert any(len(each["boxes"]) > 2 for each in truth)
    for one, other, example in zip(found, truth, source.examples, strict=True):
        boxes = np.array(example["objects"]["bbox"]) * [32, 24, 32, 24]
        np.testing.assert_allclose(other["boxes"], boxes, atol=1e-5)
        assert other["classes"].tolist() == [*example["objects"]["label"]]
        assert len(one["boxes"]) == len(one["scores"]) == min(2, len(boxes))
        for box, label in zip(one["boxes"], one["classes"], strict=True):
            assert ((np.abs(boxes - box) < 1e-4).all(axis=1) & (other["classes"] == label)).any()
    # Of two processes each makes the records of every other example.
    for index in (0, 1):
        mine = SimpleNamespace(**vars(jax) | {"process_count": lambda: 2, "process_index": lambda index=index: index})
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "jax", mine)
            patch.setattr(records, "gather", lambda made, places: made)
            part = evaluator.measure({})
        np.testing.assert_equal(records.split(part), (found[index::2], truth[index::2]))
    values = evaluator({})
    assert values["objects"] == sum(len(each["boxes"]) for each in truth)
    assert 0.5 < values["ap50"] < 1
