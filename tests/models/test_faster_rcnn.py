"""Region networks against other libraries' counts, the classifiers that they are made of, and sums written out."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.errors import UserError
from cnn_research.layers.taps import record
from cnn_research.models import alexnet
from cnn_research.models.faster_rcnn import BODIES, PYRAMID, RCNN
from cnn_research.ops.boxes import area

# Fast R-CNN's model S: CaffeNet's maps and hidden layers, which take 6x6 cells.
SMALL = dict(body="alexnet", region_size=6)
# Its convolutions of 11x11x3 values and a bias, 5x5x48, 3x3x256 and twice 3x3x192; fc6, which takes 6x6x256, and fc7;
# the logits of 21 classes, and the four offsets of each.
CONVOLUTIONS = 364 * 96 + 1201 * 256 + 2305 * 384 + 1729 * 384 + 1729 * 256
MODEL_S = CONVOLUTIONS + 9217 * 4096 + 4097 * 4096 + 4097 * 21 * 5
C4 = dict(body="resnet50", norm="frozen", hidden=(), region_pool="align", region_size=14)
TINY = dict(
    body="resnet20_cifar",
    strides=(2, 4),
    neck="fpn",
    norm="frozen",
    width=0.25,
    fpn_features=16,
    anchor_sizes=(6.0, 12.0, 24.0),
    rpn_features=16,
    candidates=(30, 20),
    proposals=(12, 8),
    region_pool="align",
    region_size=2,
    sampling_ratio=1,
    hidden=(20,),
    mask_features=(16,),
    mask_size=3,
    num_classes=4,
)


def shapes(module, *shape):
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(partial(module.init, train=False), jax.random.key(0), images)


def random_variables(module, *shape, scale=0.3):
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(0, scale, leaf.shape).astype(leaf.dtype), shapes(module, *shape))
    return variables | {"batch_stats": jax.tree.map(np.abs, variables.get("batch_stats", {}))}


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        # torchvision's fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn, whose norms have 53,120 parameters.
        (PYRAMID | dict(num_classes=91), 41_755_286),
        (PYRAMID | dict(num_classes=91, norm="batch", mask_features=(256,) * 4), 44_401_393 + 53_120),
        # ResNet-50's convolutions, the proposals' layers on 1024 channels, and two heads on 2048.
        (SMALL | dict(anchor_sizes=()), MODEL_S),
        # 3x3 convolutions to 256 channels, and of each of 9 anchors a logit and four offsets.
        (SMALL | dict(rpn_features=256), MODEL_S + (9 * 256 + 1) * 256 + 257 * 9 * 5),
        # Without groups conv2, conv4 and conv5 have as many weights again, those of the other half of the channels.
        (
            SMALL | dict(body="alexnet_ungrouped", anchor_sizes=()),
            MODEL_S + 25 * 48 * 256 + 9 * 192 * 384 + 9 * 192 * 256,
        ),
        # torchvision's AlexNet without its head, and two others.
        (SMALL | dict(body="alexnet_owt", anchor_sizes=()), 61_100_840 - 4097 * 1000 + 4097 * 21 * 5),
        (C4, 25_557_032 - 2_049_000 - 53_120 + 9 * 1024 * 512 + 512 + 513 * 9 * 5 + 2049 * 21 * 5),
    ],
)
def test_counts(fields, count):
    params = shapes(RCNN(**fields), 1, 64, 64, 3)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count


@pytest.mark.parametrize(
    ("classifier", "fields"),
    [("vgg16", {}), ("resnet50", C4), *((body, SMALL | {"body": body}) for body in alexnet.VARIANTS)],
)
def test_a_classifiers_parameters_fit(classifier, fields):
    """Named and shaped as they are, but for its head."""
    classes = models.create(classifier, norm=fields.get("norm", "none"))
    own = shapes(classes, 1, *models.input_shape(classifier))["params"]
    network = shapes(RCNN(**fields), 1, 64, 64, 3)["params"]
    assert network.keys() - own.keys() == {"box", "rpn"}
    for name in own.keys() - {"head"}:
        assert own[name] == network[name], name


@pytest.fixture(scope="module")
def pyramid():
    """A network of two maps and one further, an image that is no multiple of strides, and what all layers give."""
    network = RCNN(**TINY)
    images = jax.random.normal(jax.random.key(0), (2, 30, 41, 3))
    variables = random_variables(network, *images.shape)
    apply = jax.jit(lambda variables, images: record(lambda: network.apply(variables, images, train=False)))
    return network, variables, images, *apply(variables, images)


def test_maps_are_summed_up_from_coarse_to_fine(pyramid):
    *_, layers = pyramid
    fine, coarse = layers["fpn/lateral1"], layers["fpn/lateral2"]
    assert fine.shape[1:3] == (16, 22)
    assert coarse.shape[1:3] == (8, 11)
    larger = np.repeat(np.repeat(coarse, 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(layers["fpn/upsample2"], larger)
    params = pyramid[1]["params"]["fpn"]["output1"]
    expected = jax.lax.conv_general_dilated(
        fine + larger, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(layers["fpn/output1"], expected + params["bias"], rtol=1e-3, atol=1e-3)


def test_anchors_and_what_is_said_of_them_have_one_order(pyramid):
    """The row of all anchors: map by map, place by place; the third map has every second pixel of the second."""
    network, _, _, found, layers = pyramid
    anchors = network.anchors((30, 41))
    assert [len(level) for level in anchors] == [3 * 16 * 22, 3 * 8 * 11, 3 * 4 * 6]
    start = 0
    for level, name in zip(anchors, ("rpn/logits", "rpn/logits#2", "rpn/logits#3"), strict=True):
        logits, offsets = layers[name], layers[name.replace("logits", "offsets")]
        rows, columns = logits.shape[1:3]
        row, column = rows - 2, columns - 3
        place = 3 * (row * columns + column)
        np.testing.assert_array_equal(found.anchored.logits[:, start + place + 1], logits[:, row, column, 1])
        np.testing.assert_array_equal(found.anchored.offsets[:, start + place + 1], offsets[:, row, column, 4:8])
        stride = 32 // rows
        middle = (level[place + 1, :2] + level[place + 1, 2:]) / 2
        np.testing.assert_allclose(middle, [stride * (row + 0.5), stride * (column + 0.5)])
        start += len(level)


def test_proposals_are_in_the_image(pyramid):
    *_, found, _ = pyramid
    assert found.regions.shape == (2, 8, 4)
    assert (area(found.regions[:, :2]) > 0).all()
    assert (found.regions >= 0).all()
    assert (found.regions <= jnp.array([30, 41, 30, 41])).all()
    assert found.classified.offsets.shape == (2, 8, 4, 4)
    assert found.masks.shape == (2, 8, 6, 6, 4)


def test_regions_are_cut_out_of_maps():
    """One of 2x2 cells of 4 pixels, by fc6's and the head's matrices."""
    fields = TINY | dict(
        strides=(4,), neck="none", fpn_features=256, mask_features=(), mask_size=14, anchor_sizes=(8.0,)
    )
    network = RCNN(**fields)
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = random_variables(network, *images.shape)
    regions = jnp.array([[[8.0, 12, 16, 20], [0, 0, 8, 8]], [[24, 24, 32, 32], [4, 8, 12, 16]]])
    apply = jax.jit(lambda *args: record(lambda: network.apply(*args, train=False, regions=regions)))
    found, layers = apply(variables, images)
    params = variables["params"]
    for image, region in np.ndindex(2, 2):
        top, left = (regions[image, region, :2] // 4).astype(int)
        x = layers["stage3"][image, top : top + 2, left : left + 2].reshape(-1)
        x = np.maximum(x @ params["fc6"]["kernel"] + params["fc6"]["bias"], 0)
        logits = x @ params["head"]["kernel"] + params["head"]["bias"]
        offsets = (x @ params["box"]["kernel"] + params["box"]["bias"]).reshape(4, 4)
        np.testing.assert_allclose(found.classified.logits[image, region], logits, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(found.classified.offsets[image, region], offsets, rtol=1e-3, atol=1e-3)
    assert found.masks is None


def test_without_proposals_the_whole_image_is_a_region():
    network = models.create("fast_rcnn", body="vgg11", width=1 / 32, hidden=(64,))
    variables = shapes(network, 2, 40, 50, 3)
    found = jax.eval_shape(partial(network.apply, train=False), variables, jnp.zeros((2, 40, 50, 3)))
    assert found.anchored is None
    assert found.classified.logits.shape == (2, 1, 21)


# Of bodies of one kind one stands for all.
@pytest.mark.parametrize("body", ["vgg11_lrn", "vgg19", "resnet18", "resnet20_cifar", "alexnet", "alexnet_owt"])
def test_a_body_gives_maps_of_its_strides(body):
    strides = tuple(sorted(BODIES[body]))
    network = RCNN(**PYRAMID | dict(body=body, strides=strides, anchor_sizes=(8.0,) * len(strides), width=1 / 16))
    variables = shapes(network, 1, 70, 100, 3)
    run = partial(network.apply, train=False, method=network.features)
    maps = jax.eval_shape(run, variables, jnp.zeros((1, 70, 100, 3)))
    coarsest = strides[-1]
    sizes = [(-(-70 // coarsest) * coarsest // stride, -(-100 // coarsest) * coarsest // stride) for stride in strides]
    assert [each.shape[1:3] for each in maps] == sizes


@pytest.mark.parametrize("body", ["alexnet", "alexnet_owt"])
def test_a_cell_of_alexnets_map_stands_for_its_pixels(body):
    """What reaches the cell at row 11 and column 5 lies around the middle of the 16 pixels that are its own."""
    network = RCNN(body=body, anchor_sizes=(), pool="avg", width=1 / 64, hidden=(1,), kernel_init="glorot_uniform")
    images = jnp.ones((1, 380, 376, 1))
    positive = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), shapes(network, *images.shape))

    def cell(images):
        return network.apply(positive, images, train=False, method=network.features)[0][0, 11, 11].sum()

    reached = np.abs(jax.jit(jax.grad(cell))(images)[0, ..., 0]) > 0
    for axis in range(2):
        (places,) = np.nonzero(reached.any(axis=1 - axis))
        # conv1's window, 2 cells of 4 and of 8 pixels more of pool1 and pool2, conv2's 4 of 8, 3 times 2 of 16.
        assert len(places) == 11 + 2 * 4 + 4 * 8 + 2 * 8 + 6 * 16
        assert abs((places[0] + places[-1] + 1) / 2 - 16 * 11.5) == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body": "lenet5"}, "body='lenet5' is not known"),
        ({"neck": "fnp"}, "did you mean 'fpn'"),
        ({"region_pool": "avg"}, "region_pool='avg' is not known"),
        ({"strides": (32,)}, "are not in a row among those of vgg16: \\(1, 2, 4, 8, 16\\)"),
        ({"strides": (4, 16)}, "are not in a row"),
        ({"strides": ()}, "are not in a row"),
        ({"strides": (8, 16)}, "neck='none' takes one map"),
        ({"neck": "fpn"}, "region_pool='max' takes one map"),
        ({"neck": "fpn", "region_pool": "align"}, "for 1 maps; give one for each, or one more"),
        ({"hidden": (0,)}, "must be more than 0"),
        ({"anchor_sizes": (-1.0,)}, "must be more than 0"),
        ({"anchor_ratios": ()}, "leaves no anchors"),
        ({"proposal_overlap": 1.5}, "it must be from 0 to 1"),
        ({"hidden": ()}, "hidden=\\(\\) needs a map before a ResNet's last stage"),
        ({"anchor_sizes": (), "rpn_features": 7}, "rpn_features=7 does nothing with anchor_sizes=\\(\\)"),
        ({"fpn_features": 7}, "fpn_features=7 does nothing with neck='none'"),
        ({"sampling_ratio": 1}, "sampling_ratio=1 does nothing with region_pool='max'"),
        ({"mask_size": 7}, "mask_size=7 does nothing with mask_features=\\(\\)"),
    ],
)
def test_faults_of_fields(fields, message):
    with pytest.raises(UserError, match=message):
        RCNN(**fields)
