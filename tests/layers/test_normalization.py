"""`Norm` against Flax's norms, and its statistics over devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cnn_research.errors import UserError
from cnn_research.layers import DEVICE_AXIS, NORMS, Norm
from cnn_research.layers.normalization import group_count


def activations(batch=8, channels=6):
    scale = jnp.arange(1.0, channels + 1)
    return 3 + scale * jax.random.normal(jax.random.key(0), (batch, 4, 5, channels))


def affine(channels=6):
    keys = jax.random.split(jax.random.key(1))
    return {"scale": jax.random.normal(keys[0], (channels,)), "bias": jax.random.normal(keys[1], (channels,))}


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("group", nn.GroupNorm(num_groups=3, epsilon=1e-3)),
        ("layer", nn.GroupNorm(num_groups=1, epsilon=1e-3)),
        ("batch", nn.BatchNorm(use_running_average=False, momentum=0.7, epsilon=1e-3)),
    ],
)
def test_equals_flaxs(kind, reference):
    x, params = activations(), affine()
    module = Norm(kind, momentum=0.7, epsilon=1e-3)
    stats = {"batch_stats": {"mean": jnp.ones(6), "var": jnp.full(6, 2.0)}} if kind == "batch" else {}
    y, moved = module.apply({"params": params, **stats}, x, train=True, mutable=["batch_stats"])
    expected, moved_expected = reference.apply({"params": params, **stats}, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moved, moved_expected)


def test_batch_in_evaluation_uses_the_running_statistics():
    x, params = activations(), affine()
    stats = {"mean": jnp.arange(6.0), "var": jnp.arange(1.0, 7.0)}
    y = Norm("batch", epsilon=0.1).apply({"params": params, "batch_stats": stats}, x, train=False)
    expected = (x - stats["mean"]) / jnp.sqrt(stats["var"] + 0.1) * params["scale"] + params["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_initialization_moves_no_statistics():
    variables = Norm("batch").init(jax.random.key(0), activations(), train=True)
    assert variables["batch_stats"]["mean"].tolist() == [0] * 6
    assert variables["batch_stats"]["var"].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("none", {}),
        ("batch", {"params": {"scale", "bias"}, "batch_stats": {"mean", "var"}}),
        ("group", {"params": {"scale", "bias"}}),
        ("layer", {"params": {"scale", "bias"}}),
        ("frozen", {"batch_stats": {"scale", "bias", "mean", "var"}}),
    ],
)
def test_variables_lie_directly_under_the_layers_name(kind, names):
    variables = jax.eval_shape(lambda: Norm(kind).init(jax.random.key(0), activations(), train=False))
    assert {collection: set(values) for collection, values in variables.items()} == names


def test_there_are_no_other_kinds():
    assert set(NORMS) == {"none", "batch", "group", "layer", "frozen"}
    with pytest.raises(UserError, match="norm 'bacth' is not known; did you mean 'batch'"):
        Norm("bacth").init(jax.random.key(0), activations(), train=False)


def test_none_returns_its_input():
    x = activations()
    assert Norm("none").apply({}, x, train=True) is x


def test_frozen_is_batch_in_evaluation_and_never_moves():
    x = activations()
    stats = {**affine(), "mean": jnp.arange(6.0), "var": jnp.arange(1.0, 7.0)}
    y, moved = Norm("frozen").apply({"batch_stats": stats}, x, train=True, mutable=["batch_stats"])
    params = {name: stats[name] for name in ("scale", "bias")}
    expected = Norm("batch").apply({"params": params, "batch_stats": stats}, x, train=False)
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, moved["batch_stats"], stats)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (6, 3), (16, 8), (30, 15), (64, 32), (120, 30), (256, 32), (96, 32)]
)
def test_group_count(channels, groups):
    assert group_count(channels) == groups


def test_scale_init_is_the_scale():
    y, variables = Norm("group", scale_init=nn.initializers.zeros).init_with_output(
        jax.random.key(0), activations(), train=True
    )
    assert variables["params"]["scale"].tolist() == [0] * 6
    assert not y.any()


def test_bfloat16_activations_have_float32_statistics():
    x = jnp.full((8, 16, 16, 1), 1.0, jnp.bfloat16).at[:4].set(1.03125)  # bfloat16 alone counts to 256
    module = Norm("batch", dtype="bfloat16")
    variables = module.init(jax.random.key(0), x, train=False)
    y, moved = module.apply(variables, x, train=True, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert moved["batch_stats"]["mean"].dtype == jnp.float32
    assert moved["batch_stats"]["mean"][0] == pytest.approx(0.1 * 1.015625, rel=1e-5)


def test_dense_features_are_normalized_too():
    x = activations()[:, 0, 0]
    for kind in ("batch", "group", "layer"):
        y, _ = Norm(kind).init_with_output(jax.random.key(0), x, train=True)
        assert y.mean() == pytest.approx(0, abs=1e-5)
        assert y.shape == x.shape


@partial(jax.value_and_grad, argnums=(0, 2), has_aux=True)
def loss_and_gradients(params, stats, x):
    variables = {"params": params, "batch_stats": stats}
    y, moved = Norm("batch").apply(variables, x, train=True, mutable=["batch_stats"])
    return jnp.sin(y).mean(), moved["batch_stats"]


def assert_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), actual, expected)


def test_statistics_are_those_of_the_global_batch_under_jit_and_pmap():
    x, params = activations(batch=16), affine()
    stats = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
    (loss, moved), (gradient, x_gradient) = jax.jit(loss_and_gradients)(params, stats, x)

    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    actual = jax.jit(loss_and_gradients)(params, stats, sharded)
    assert_close(actual, ((loss, moved), (gradient, x_gradient)))

    def replica(params, stats, x):
        (loss, moved), (gradient, x_gradient) = loss_and_gradients(params, stats, x)
        return jax.lax.pmean(loss, DEVICE_AXIS), moved, jax.lax.pmean(gradient, DEVICE_AXIS), x_gradient

    mapped = jax.pmap(replica, axis_name=DEVICE_AXIS, in_axes=(None, None, 0))
    *replicated, x_gradients = mapped(params, stats, x.reshape(8, 2, *x.shape[1:]))
    first, last = (jax.tree.map(lambda a, device=device: a[device], replicated) for device in (0, 7))
    jax.tree.map(np.testing.assert_array_equal, first, last)
    assert_close(first, [loss, moved, gradient])
    # Each replica took the mean over its own eighth of the batch.
    assert_close(x_gradients.reshape(x.shape) / 8, x_gradient)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_a_group_of_devices_shares_statistics(group):
    """Under `jit` and `pmap` each group normalizes as a batch of its own; all keep the mean of the groups'."""
    x, params = activations(batch=16), affine()
    module = Norm("batch", group=group)
    variables = {"params": params, "batch_stats": {"mean": jnp.zeros(6), "var": jnp.ones(6)}}

    def normalize(x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])

    alone = [normalize(part) for part in jnp.split(x, 8 // group)]
    expected = jnp.concatenate([y for y, _ in alone])
    stats = jax.tree.map(lambda *parts: jnp.stack(parts).mean(0), *(moved["batch_stats"] for _, moved in alone))

    mesh = jax.make_mesh((8,), (DEVICE_AXIS,), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        y, moved = jax.jit(normalize)(jax.device_put(x, NamedSharding(mesh, PartitionSpec(DEVICE_AXIS))))
    assert_close((y, moved["batch_stats"]), (expected, stats))

    y, moved = jax.pmap(normalize, axis_name=DEVICE_AXIS)(x.reshape(8, 2, *x.shape[1:]))
    assert_close(y.reshape(x.shape), expected)
    for device in (0, 7):
        assert_close(jax.tree.map(lambda a, device=device: a[device], moved["batch_stats"]), stats)


def test_a_group_must_divide_the_devices():
    x, module = activations(batch=16), Norm("batch", group=3)
    variables = module.init(jax.random.key(0), x, train=False)
    mesh = jax.make_mesh((8,), (DEVICE_AXIS,), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh), pytest.raises(UserError, match="bn_group=3 does not divide the 8 devices"):
        module.apply(variables, x, train=True, mutable=["batch_stats"])


def test_an_axis_of_another_name_does_not_synchronize():
    x = activations(batch=16).reshape(8, 2, 4, 5, 6)
    module = Norm("batch")
    variables = module.init(jax.random.key(0), x[0], train=False)

    def replica(x):
        return module.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    y = jax.pmap(replica, axis_name="others")(x)
    np.testing.assert_allclose(y[3], replica(x[3]), rtol=1e-4, atol=1e-5)
