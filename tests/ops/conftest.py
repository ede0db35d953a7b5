"""Operations of many shapes are compiled here, and run once: what counts is the time to compile."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly():
    """LLVM's optimizations take most of it; the results are those of the same operations."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
