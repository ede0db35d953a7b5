"""The form of what the suite `conv` measures, and that all sides compute the same; not its figures."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.suites import conv, pytorch


def test_rows(monkeypatch):
    monkeypatch.setattr(pytorch, "imported", lambda: None)
    rows = conv.rows(1, ["lenet5 c3"])
    assert [(row["model"], row["direction"]) for row in rows] == [
        ("lenet5 c3", direction) for direction in ("forward", "by input", "by kernel")
    ]
    for row in rows:
        # 10x10 positions of a 5x5 kernel from 6 to 16 channels, for 128 images, two operations a multiply-add.
        assert row["gflop"] == pytest.approx(2 * 128 * 100 * 25 * 6 * 16 / 1e9, abs=1e-3)
        assert row["ratio"] == pytest.approx(row["gflops"] / row["lax_gflops"], rel=0.05)
        assert row["product_gflops"] > 0


def arrays(case):
    rng = np.random.default_rng(0)
    x, kernel = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in (case.images, case.kernel_shape))
    return x, kernel, jnp.asarray(rng.normal(size=jax.eval_shape(case.plain, x, kernel).shape), jnp.float32)


def smaller(name):
    """Returns a case with one image, of no more than 12 pixels a side."""
    case = conv.CASES[name]
    _, height, width, channels = case.images
    return dataclasses.replace(case, images=(1, min(height, 12), min(width, 12), channels))


def assert_close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(jnp.abs(ours).max()))


@pytest.mark.parametrize("name", ["nin cccp1", "vgg11 conv5_1", "alexnet conv2", "depthwise", "deconvnet up"])
def test_both_sides_convolve_alike(name):
    case = smaller(name)
    x, kernel, cotangent = arrays(case)
    assert_close(case.ours(x, kernel), case.plain(x, kernel))
    for argument in (0, 1):
        ours, theirs = (
            jax.jit(partial(conv._pulled, side, argument))(x, kernel, cotangent) for side in (case.ours, case.plain)
        )
        assert_close(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("name", conv.CASES)
def test_pytorch_convolves_alike(name):
    torch = pytest.importorskip("torch")
    case = smaller(name)
    x, kernel, cotangent = arrays(case)
    theirs = conv._in_torch(torch, case, x, kernel, cotangent)
    assert_close(case.ours(x, kernel), theirs["forward"]().detach().permute(0, 2, 3, 1).numpy())
    (by_input,) = theirs["by input"]()
    assert_close(conv._pulled(case.ours, 0, x, kernel, cotangent), by_input.permute(0, 2, 3, 1).numpy())
    (by_kernel,) = theirs["by kernel"]()
    axes = (2, 3, 0, 1) if case.transposed else (2, 3, 1, 0)
    assert_close(conv._pulled(case.ours, 1, x, kernel, cotangent), by_kernel.permute(*axes).numpy())
