"""Tables of networks against the course's and the papers' numbers, hand counts, and what layers turn out to see."""

import importlib
import itertools
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util
from jax.extend.core import ClosedJaxpr, Jaxpr

from cnn_research import models
from cnn_research.analysis import tabulate
from cnn_research.errors import UserError
from cnn_research.layers import Activation, Conv, Norm, Pool, taps
from cnn_research.models.inception import Inception
from cnn_research.models.resnet import ResNet

MODULE = importlib.import_module("cnn_research.analysis.tabulate")  # the package's attribute is the function


def rows_of(table):
    return {row.name: row for row in table.rows}


# Sizes, parameters, memory.


def test_tensors_of_vgg16(table):
    """The course's tensor table; its memory is in values, 4 bytes each."""
    expected = []
    size, channels = 224, 3
    for stage, (features, convolutions) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for index in range(1, convolutions + 1):
            shape = (size, size, features)
            expected.append((f"conv{stage}_{index}", shape, 9 * channels * features, features))
            channels = features
        size //= 2
        expected.append((f"pool{stage}", (size, size, features), 0, 0))
    expected += [("fc6", (4096,), 7 * 7 * 512 * 4096, 4096), ("fc7", (4096,), 4096 * 4096, 4096)]
    expected += [("head", (1000,), 4096 * 1000, 1000)]
    rows = table("vgg16").shown()
    assert [(row.name, row.output_shape, row.weights, row.biases) for row in rows] == expected
    assert [row.activation_bytes for row in rows] == [4 * math.prod(shape) for _, shape, _, _ in expected]
    assert rows[-4].output_shape == (7, 7, 512)
    assert table("vgg16").params == 138_357_544
    assert table("vgg16").activation_bytes == 4 * 15_087_080  # the course's 15.2 million less the image's 150,528
    assert table("vgg16").largest_activation_bytes == 4 * 224 * 224 * 64


def test_inputs_are_outputs_of_what_came_before(table):
    rows = table("vgg16").rows
    assert rows[0].input_shape == (224, 224, 3)
    for row, before in zip(rows[1:], rows, strict=False):
        assert row.input_shape in (before.output_shape, (math.prod(before.output_shape),))


def test_lenet5_as_the_paper_has_it(table):
    rows = rows_of(table("lenet5"))
    trainable = {"C1": 156, "S2": 12, "C3": 1516, "S4": 32, "C5": 48_120, "F6": 10_164}
    assert {name: row.params for name, row in rows.items() if row.params} == trainable
    # 340,908 connections: the multiply-adds, a connection for each bias, subsampling's four inputs and bias for each
    # unit, and those of the radial basis functions, which multiply nothing.
    units = {name: math.prod(row.output_shape) for name, row in rows.items()}
    biases = sum(units[name] for name in ("C1", "C3", "C5", "F6"))
    assert table("lenet5").macs + biases + 5 * (units["S2"] + units["S4"]) + 84 * units["output"] == 340_908
    assert rows["C3"].macs == 60 * 25 * 100  # connections of table I, not 6 times 16


def test_a_dtype_of_two_bytes_halves_the_memory(table):
    half = tabulate(models.create("lenet5_modern", dtype="bfloat16"), (32, 32, 1))
    assert 2 * half.activation_bytes == table("lenet5_modern").activation_bytes
    assert half.macs == table("lenet5_modern").macs
    assert half.largest_activation_bytes == 2 * 28 * 28 * 6


def test_norms_count_where_they_have_parameters(table):
    batch, frozen = (tabulate(models.create("resnet20_cifar", norm=norm), (32, 32, 3)) for norm in ("batch", "frozen"))
    norms = [row for row in batch.rows if row.kind == "Norm batch"]
    assert sum(row.params for row in norms) == batch.params - frozen.params == 2 * (16 + 6 * (16 + 32 + 64))
    assert all(row in batch.shown() for row in norms)
    assert not [row for row in frozen.shown() if row.kind.startswith("Norm")]
    assert batch.activation_bytes == frozen.activation_bytes


def test_heads_that_training_alone_runs():
    model = models.create("googlenet", auxiliary_weights=(0.3, 0.3), width=0.1)
    plain = models.create("googlenet", width=0.1)
    shape = (96, 96, 3)
    table, without = tabulate(model, shape), tabulate(plain, shape)
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *shape)))
    assert table.params == sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert (table.macs, table.activation_bytes) == (without.macs, without.activation_bytes)
    extra = table.rows[len(without.rows) :]
    assert table.rows[: len(without.rows)] == without.rows
    assert [row.name for row in extra] == [
        f"auxiliary_{head}/{layer}" for head in (1, 2) for layer in ("conv", "fc", "head")
    ]
    assert all(row.input_shape is row.output_shape is None and row.params and not row.macs for row in extra)
    assert extra[0].kind == "Conv"
    assert "training alone" in table.text()
    assert "training alone" not in without.text()


class Shared(nn.Module):
    """Calls one layer twice, has a parameter of its own, and no argument `train`."""

    @nn.compact
    def __call__(self, x):
        conv = Conv(3, 3, padding=1, name="conv")
        x = conv(conv(x)) * self.param("gain", nn.initializers.ones, (7,)).sum()
        return nn.ConvTranspose(5, (4, 4), (2, 2), padding="SAME", name="up")(nn.Conv(2, (3, 3), 2, name="down")(x))


def test_layers_called_twice_and_flaxs_own():
    table = tabulate(Shared(), (8, 6, 3), "shared")
    rows = rows_of(table)
    assert list(rows) == ["conv", "conv#2", "down", "up", "Shared"]
    assert [rows[name].params for name in rows] == [84, 0, 9 * 3 * 2 + 2, 16 * 2 * 5 + 5, 7]
    assert rows["conv"].macs == rows["conv#2"].macs == 81 * 48
    assert [rows[name].receptive_field for name in ("conv", "conv#2", "down", "up")] == [(3, 3), (5, 5), (7, 7), (9, 9)]
    # TensorFlow's SAME, which the layer asks for, has its one row and column of padding at the end.
    assert rows["down"].padding == ((0, 1), (0, 1))
    assert rows["down"].first_pixel == (-2, -2)
    # A transposed convolution puts its kernel on each of its 4x3 inputs.
    assert (rows["up"].output_shape, rows["up"].macs, rows["up"].jump) == ((8, 6, 5), 160 * 12, (1, 1))
    assert table.params == sum(row.params for row in table.rows)


class Block(nn.Module):
    """Adds what it computes to its input."""

    @nn.compact
    def __call__(self, x):
        return x + Activation(name="activation")(Conv(3, 3, padding=1, padding_mode="reflect", name="conv")(x))


class Blocks(nn.Module):
    """Blocks whose class a transformation may have changed."""

    block: Any

    @nn.compact
    def __call__(self, x):
        return self.block(name="block2")(self.block(name="block1")(x))


def test_layers_within_a_transformation():
    plain, remat = (tabulate(Blocks(block), (8, 8, 3)).rows for block in (Block, nn.remat(Block)))
    assert plain == remat
    assert [row.receptive_field for row in plain] == 3 * [(3, 3)] + 3 * [(5, 5)]


def test_a_layer_alone_is_a_network():
    (row,) = tabulate(Conv(4, 3, groups=2), (9, 7, 6)).rows
    expected = dict(name="Conv", kind="Conv", groups=2, macs=9 * 3 * 4 * 35, params=9 * 3 * 4 + 4)
    assert {field: getattr(row, field) for field in expected} == expected


def test_nothing_is_allocated():
    before = len(jax.live_arrays())
    table = tabulate(models.create("vgg16"), (16_384, 16_384, 3))
    assert rows_of(table)["fc6"].weights == 512**3 * 4096  # two terabytes
    assert len(jax.live_arrays()) == before


# Multiply-adds.


def equations(program):
    """Yields the equations of a program and of those that it calls."""
    for eqn in program.eqns:
        yield eqn
        branches = eqn.params.get("branches", ())  # of `lax.platform_dependent`, its default last
        for value in (*eqn.params.values(), *branches[-1:]):
            if isinstance(value, ClosedJaxpr | Jaxpr):
                yield from equations(value)


def multiplied(model, shape):
    """Returns the multiply-adds of the products and convolutions of a traced network."""
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, *shape)))
    program = jax.make_jaxpr(partial(model.apply, train=False))(variables, jnp.zeros((1, *shape)))
    total = 0
    for eqn in equations(program):
        if eqn.primitive.name == "dot_general":
            contracted = eqn.params["dimension_numbers"][0][0]
            total += eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[axis] for axis in contracted)
        if eqn.primitive.name == "conv_general_dilated":
            total += eqn.outvars[0].aval.size * math.prod(eqn.invars[1].aval.shape[:3])
    return total


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("lenet5_modern", {}),
        ("lenet5_modern", {"sharing": "local"}),
        ("lenet5_modern", {"sharing": "dense"}),
        ("alexnet", {}),
        ("mlp", {}),
        ("nin_cifar", {}),
        ("resnet20_cifar", {"shortcut": "shortcut_gating", "norm": "group", "stage_sizes": (1, 1)}),
    ],
)
def test_multiply_adds_are_those_of_the_program(name, fields):
    model, shape = models.create(name, **fields), models.input_shape(name)
    assert tabulate(model, shape).macs == multiplied(model, shape)


# Receptive fields.


def test_receptive_fields_of_the_literature(table):
    assert rows_of(table("vgg16"))["pool5"].receptive_field == (212, 212)
    assert rows_of(table("alexnet"))["pool5"].receptive_field == (195, 195)
    assert rows_of(table("vgg16"))["fc6"].receptive_field == (404, 404)  # 7 positions, 32 pixels apart
    assert rows_of(table("vgg16"))["pool5"].jump == (32, 32)
    assert rows_of(table("vgg16"))["fc6"].jump is None


class Branches(nn.Module):
    """Everything between layers that the networks do: sums, concatenations, crops, strided slices, global means."""

    @nn.compact
    def __call__(self, x, train):
        x = Conv(2, (3, 4), (2, 1), padding="same", name="stem")(x)
        large = Conv(2, 3, padding=2, dilation=2, name="large")(x)
        x = jnp.concatenate([Pool("avg", 3, 1, 1, name="pool")(x), large], axis=-1)
        valid = Conv(4, 3, name="valid")(x)
        x = Activation("identity", name="sum")(valid + x[:, 1:-1, 1:-1])
        half = Pool("avg", 2, 2, name="half")(x)
        x = Activation("identity", name="shortcut")(half + x[:, : 2 * half.shape[1] : 2, : 2 * half.shape[2] : 2])
        gate = nn.Dense(4, name="gate")(x.mean((1, 2)))
        x = Activation("identity", name="scaled")(x * 0.5 + gate[:, None, None])
        return nn.Dense(3, name="head")(x.reshape(len(x), -1))


def inception(**fields):
    def layer(x, features, kernel, *, train, name):
        return Conv(features, kernel, padding="same", name=name)(x)

    return Inception((1, 1, 1, 1, 1, 1), large_kernel=5, pool="avg", layer=layer, **fields)


LINEAR: dict[str, Any] = {"activation": "identity", "pool": "avg"}


def resnet(**fields):
    small = dict(num_classes=2, features=2, block="basic", stem_kernel=3, stem_strides=1, stage_sizes=(1, 2, 1))
    return ResNet(**LINEAR | small | fields)


# Networks that are linear with positive weights, and their images' shapes.
NETWORKS: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {
    "branches": (Branches(), (26, 19, 2)),
    "inception": (inception(reduction=True), (13, 12, 2)),
    "naive inception": (inception(reduction=False), (13, 12, 2)),
    "lenet5": (models.create("lenet5", activation="identity", padding=2), (28, 28, 1)),
    "local lenet5": (models.create("lenet5_modern", sharing="local", padding=2, width=0.5, **LINEAR), (28, 28, 1)),
    "dense lenet5": (models.create("lenet5_modern", sharing="dense", width=0.5, **LINEAR), (32, 32, 1)),
    "nin": (models.create("nin_cifar", width=0.02, **LINEAR), (32, 29, 3)),
    "shortcut A": (resnet(shortcut="A"), (31, 40, 3)),
    "bottlenecks": (resnet(block="bottleneck", stride_in="1x1", stem_kernel=4, stem_strides=2), (40, 37, 3)),
    "preactivation": (resnet(skip="full_preactivation", pool="none", norm="group"), (21, 24, 3)),
    **{
        mode: (resnet(pool="none", padding_mode=mode, stage_sizes=(1, 1)), (24, 29, 3))
        for mode in ("edge", "reflect", "symmetric", "circular")
    },
}


def positive(path, leaf):
    """Returns a variable with which every layer adds up what it sees: kernels 1 / inputs, no biases, norms 1."""
    *_, name = path
    value = {"kernel": 1 / max(1, math.prod(leaf.shape[:-1])), "bias": 0, "mean": 0}.get(name, 1)
    return jnp.full(leaf.shape, value, leaf.dtype)


def seen_pixels(model, shape):
    """Returns for each layer and each position of its output which rows, and which columns, of an image it sees.

    Images are 0 but for one row or column. Norms are left out, as group norm sees everything.
    """
    height, width, _ = shape
    images = np.zeros((height + width, *shape), np.float32)
    images[np.arange(height), np.arange(height)] = 1
    images[np.arange(height, height + width), :, np.arange(width)] = 1
    variables = jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images[:1])
    flat = traverse_util.flatten_dict(variables)
    variables = traverse_util.unflatten_dict({path: positive(path, leaf) for path, leaf in flat.items()})

    def skip(method, args, kwargs, context):
        return args[0] if isinstance(context.module, Norm) else method(*args, **kwargs)

    def run(images):
        with nn.intercept_methods(skip):
            return taps.record(lambda: model.apply(variables, images, train=False))[1]

    depends = {name: np.moveaxis(np.asarray(output).any(-1), 0, -1) for name, output in jax.jit(run)(images).items()}
    return {name: (each[..., :height], each[..., height:]) for name, each in depends.items()}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_sees_what_the_table_says(name):
    model, shape = NETWORKS[name]
    seen = seen_pixels(model, shape)
    inside = set()
    for row in tabulate(model, shape).rows:
        if row.kind.startswith(("Norm", "RadialBasis")):
            continue
        for axis, extent in enumerate(shape[:2]):
            for place in np.ndindex(row.output_shape[:-1]):
                pixels = np.flatnonzero(seen[row.name][axis][place])
                # What is fully connected sees one and the same from everywhere.
                first = row.first_pixel[axis] + (row.jump[axis] * place[axis] if row.jump else 0)
                last = first + row.receptive_field[axis] - 1
                if first >= 0 and last < extent:
                    inside.add(row.name)
                    assert (pixels[0], pixels[-1]) == (first, last), (row.name, place)
                elif (
                    getattr(model, "padding_mode", "zeros") == "zeros"
                ):  # else what lies beyond a border lies within too
                    assert first <= pixels[0], (row.name, place)
                    assert pixels[-1] <= last, (row.name, place)
    assert len(inside) >= 3


@pytest.mark.parametrize("up", ["bilinear", "transposed"])
def test_what_finer_maps_see_again(up):
    """The table's numbers are then off by less than the distance between values of the coarsest maps."""
    model = models.create("unet", padding="same", depth=2, width=1 / 32, up=up, **LINEAR)
    shape = (68, 76, 1)
    seen = seen_pixels(model, shape)
    rows = [row for row in tabulate(model, shape).rows if row.jump and not row.kind.startswith("Norm")]
    coarsest = max(row.jump[0] for row in rows)
    assert coarsest == 4
    finer = [row for row in rows if row.name.startswith(("upsample", "upconv", "conv2_3", "conv1_", "head"))]
    assert len(finer) >= 8
    for row in finer:
        for axis, extent in enumerate(shape[:2]):
            middle = tuple(size // 2 for size in row.output_shape[:2])
            for place in itertools.product(*(range(each, each + 4) for each in middle)):
                pixels = np.flatnonzero(seen[row.name][axis][place])
                first = row.first_pixel[axis] + row.jump[axis] * place[axis]
                last = first + row.receptive_field[axis] - 1
                assert first >= 0, row.name
                assert last < extent, row.name
                assert abs(pixels[0] - first) < coarsest, (row.name, place)
                assert abs(pixels[-1] - last) < coarsest, (row.name, place)


@pytest.mark.parametrize("name", ["unet", "deconvnet", "fcn8s"])
@pytest.mark.parametrize("way", ["nearest", "bilinear", "switches"])
def test_what_is_seen_does_not_depend_on_the_images_size(name, way):
    fields: dict[str, Any] = dict(norm="batch", width=1 / 32)
    if name == "unet":
        fields |= dict(padding="same", up="unpool" if way == "switches" else "bilinear")
    elif name == "deconvnet":
        fields |= dict(unpool=way, hidden=())
    else:
        fields |= dict(learned="none" if way == "bilinear" else "all", hidden=())
    small, large = (tabulate(models.create(name, **fields), (size, size, 1)) for size in (64, 96))
    assert [row.receptive_field for row in small.rows] == [row.receptive_field for row in large.rows]
    assert max(row.receptive_field for row in small.rows if row.receptive_field)[0] > 96


@pytest.mark.parametrize("name", ["alexnet", "googlenet_cifar", "lenet5", "nin_cifar", "resnet20_cifar", "vgg11"])
def test_the_layers_fields_tell_what_the_program_does(name, table, monkeypatch):
    monkeypatch.setattr(MODULE, "_window", lambda call: None)
    for row, other in zip(table(name).rows, tabulate(models.create(name), models.input_shape(name)).rows, strict=True):
        assert (row.receptive_field, row.first_pixel) == (other.receptive_field, other.first_pixel), row.name
        # How far a neighbour's pixels lie is a convention where there is none.
        assert row.jump == other.jump or row.output_shape[:2] == (1, 1), row.name
        assert other.kernel is None


def test_norms_do_not_widen_what_is_seen():
    batch, group = (tabulate(resnet(norm=norm), (32, 32, 3)) for norm in ("batch", "group"))
    assert [row.receptive_field for row in batch.rows] == [row.receptive_field for row in group.rows]


def test_joins(table):
    rows = rows_of(table("googlenet_cifar"))
    join, branch = rows["inception_3a"], rows["inception_3a/conv5x5"]
    assert (join.kind, join.params, join.macs, join.activation_bytes) == ("join", 0, 0, 0)
    assert (join.input_shape, join.output_shape) == ((32, 32, 192), (32, 32, 256))
    assert join.receptive_field == branch.receptive_field > rows["inception_3a/conv1x1"].receptive_field
    # Where an activation follows a sum, that shows it; the stages and the network return what a block did.
    for skip, joins in (("original", []), ("full_preactivation", ["stage1/block1", "stage2/block1"])):
        rows = rows_of(tabulate(resnet(skip=skip, stage_sizes=(1, 1)), (32, 32, 3)))
        assert [name for name, row in rows.items() if row.kind == "join"] == joins


# Faults.


@pytest.mark.parametrize(
    ("name", "fields", "shape", "message"),
    [
        ("nin_imagenet", {}, (8, 8, 3), "mlpconv1/conv gets 8x8x3: a window of 11 does not fit an input of 8 .* 11"),
        ("googlenet", {}, (8, 8, 3), "pool3 gets 1x1x480: a window of 3 does not fit an input of 1 .* at least 3"),
        ("resnet20_cifar", {"padding_mode": "reflect"}, (4, 4, 3), "stage3/block1/conv2 gets 1x1x64: padding .* wide"),
        ("vgg16", {}, (16, 16, 3), "at least 32x32, not 16x16"),
        ("lenet5", {}, (28, 28, 1), "takes images of 32x32"),
        ("lenet5", {}, (32, 32), r"input_shape=\(32, 32\) is no \(height, width, channels\)"),
        ("lenet5", {}, (32, 0, 1), "is no"),
    ],
)
def test_sizes_that_cannot_pass_are_one_line(name, fields, shape, message):
    with pytest.raises(UserError, match=message) as fault:
        tabulate(models.create(name, **fields), shape)
    assert "\n" not in str(fault.value)
