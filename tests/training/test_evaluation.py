import jax.numpy as jnp

from cnn_research.training.evaluation import Evaluator, open_split
from cnn_research.training.parallel import make_parallel
from cnn_research.training.program import make_program


def test_sums_over_a_split_hold_more_than_32_bits(digits_config, monkeypatch):
    config = digits_config()
    config.eval_batch_size, config.data.num_examples = 80, 1437
    program, parallel, source = make_program(config), make_parallel("jit"), open_split(config, "test")
    evaluator = Evaluator(program.model, program.task, program.preprocessing, source, config, parallel)
    most = 2**31 - 1
    monkeypatch.setattr(evaluator, "_step", lambda *_: {"confusion": jnp.array([[most, 1]]), "loss": jnp.float32(0.1)})
    sums = evaluator.measure({})
    batches = 5  # of 80 for 360 images
    assert sums["confusion"].tolist() == [[batches * most, batches]]
    assert abs(sums["loss"] - batches * 0.1) < 1e-6
