"""The form of what the suite `pool` measures, and that both sides compute the same; not its figures."""

import jax
import numpy as np
import pytest

from experiments.suites import pool, pytorch


def test_rows(monkeypatch):
    monkeypatch.setattr(pytorch, "imported", lambda: None)
    name = "max_pool 2x2/2 128x28x28x6"
    rows = pool.rows(1, [name])
    assert [(row["model"], row["direction"]) for row in rows] == [(name, "forward"), (name, "with gradient")]
    for row in rows:
        assert len(row["ratios"]) == 1
        assert row["ratio"] == pytest.approx(row["lax_ms"] / row["ours_ms"], rel=0.05)
        assert "torch_ratio" not in row


def test_all_sides_pool_alike():
    for case in pool.CASES.values():
        x = jax.random.normal(jax.random.key(0), (1, *case.images[1:3], 1))
        np.testing.assert_allclose(case.ours(x), case.plain(x), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_pytorch_pools_alike():
    torch = pytest.importorskip("torch")
    for case in pool.CASES.values():
        x = jax.random.normal(jax.random.key(0), case.images)
        theirs = pool._in_torch(torch, case, x, case.ours(x))
        np.testing.assert_allclose(case.ours(x), theirs["forward"]().permute(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
