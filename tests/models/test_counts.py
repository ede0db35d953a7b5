"""The exact number of trainable parameters of every network, at the input size of its paper."""

import jax
import jax.numpy as jnp
import pytest

from cnn_research import models

# Name: (images, parameters).
COUNTS = {
    "lenet5": ((1, 32, 32, 1), 60_000),
    "lenet5_modern": ((1, 32, 32, 1), 61_706),
    "resnet18": ((1, 224, 224, 3), 11_689_512),
    "resnet34": ((1, 224, 224, 3), 21_797_672),
    "resnet50": ((1, 224, 224, 3), 25_557_032),
    "resnet101": ((1, 224, 224, 3), 44_549_160),
    "resnet152": ((1, 224, 224, 3), 60_192_808),
    "resnet20_cifar": ((1, 32, 32, 3), 269_722),
    "resnet32_cifar": ((1, 32, 32, 3), 464_154),
    "resnet44_cifar": ((1, 32, 32, 3), 658_586),
    "resnet56_cifar": ((1, 32, 32, 3), 853_018),
    "resnet110_cifar": ((1, 32, 32, 3), 1_727_962),
    "resnet164_cifar": ((1, 32, 32, 3), 1_703_258),
    "resnet1001_cifar": ((1, 32, 32, 3), 10_327_706),
    "resnet1202_cifar": ((1, 32, 32, 3), 19_421_274),
}


def test_every_network_has_its_count():
    assert models.names() == sorted(COUNTS)


@pytest.mark.parametrize("name", sorted(COUNTS))
def test_count(name):
    shape, expected = COUNTS[name]
    module = models.create(name)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(shape), train=False))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected
