"""Networks as graphs: their merges, and tensors that are the table's."""

import pytest

from cnn_research import models
from cnn_research.analysis import drawing, graph
from cnn_research.analysis.layout import lay_out


@pytest.fixture(scope="module")
def make():
    made = {}

    def get(name, **fields):
        key = name, *fields.items()
        if key not in made:
            made[key] = graph.make_graph(models.create(name, **fields), models.input_shape(name), name)
        return made[key]

    return get


def merges(of, kind):
    return [node for node in of.nodes.values() if node.kind == kind]


def overlaps(layout):
    """Returns the pairs of labels that cover each other."""
    boxes = []
    for block in layout.blocks.values():
        (x, y), (width, height) = block.center, block.label_size
        top = y - block.above - block.drop - 0.05
        boxes.append((block.node.name, x - block.shift - width / 2, x - block.shift + width / 2, top - height, top))
    return [
        (a[0], b[0])
        for i, a in enumerate(boxes)
        for b in boxes[:i]
        if a[1] < b[2] and b[1] < a[2] and a[3] < b[4] and b[3] < a[4]
    ]


@pytest.mark.parametrize(
    ("name", "kind", "count"),
    [
        ("lenet5", graph.ADD, 0),
        ("resnet18", graph.ADD, 8),
        ("googlenet", graph.CONCAT, 9),
        ("unet", graph.CONCAT, 4),
        pytest.param("fcn8s", graph.ADD, 2, marks=pytest.mark.slow),
    ],
)
def test_branches_meet_where_the_papers_have_it(make, name, kind, count):
    assert len(merges(make(name), kind)) == count


def test_skips_begin_and_end_where_the_papers_have_it(make):
    nodes = make("unet").nodes
    assert [node.inputs for node in merges(make("unet"), graph.CONCAT)] == [
        ("conv4_2", "upconv4"),
        ("conv3_2", "upconv3"),
        ("conv2_2", "upconv2"),
        ("conv1_2", "upconv1"),
    ]
    assert nodes["pool4"].inputs == ("conv4_2",)
    nodes = make("resnet18").nodes
    assert nodes["stage1/block1/add1"].inputs == ("pool1", "stage1/block1/conv2")
    assert nodes["stage2/block1/add1"].inputs == ("stage2/block1/conv2", "stage2/block1/shortcut_conv")
    assert nodes["conv1"].inputs == (graph.IMAGES,)
    assert set(make("googlenet").nodes["inception_3a"].inputs) == {
        f"inception_3a/{layer}" for layer in ("conv1x1", "conv3x3", "conv5x5", "pool_proj")
    }


def test_gated_and_preactivated_shortcuts(make):
    gated = make("resnet20_cifar", stage_sizes=(1, 1, 1), shortcut="exclusive_gating")
    assert merges(gated, graph.MULTIPLY)
    first = make("resnet20_cifar", stage_sizes=(1, 1, 1), skip="full_preactivation")
    assert first.nodes["stage2/block1"].kind == graph.ADD


@pytest.mark.parametrize("name", ["lenet5", "resnet18"])
def test_tensors_and_rows_are_the_tables(make, table, name):
    nodes = make(name).nodes
    assert make(name).table == table(name)
    rows = {row.name: row for row in table(name).rows}
    for node in nodes.values():
        if node.row:
            assert node.shape == rows[node.name].output_shape
    weighed = {row.name for row in table(name).rows if row.macs}
    assert weighed <= nodes.keys()


def test_each_node_comes_after_what_it_takes(make):
    for made in (make("googlenet"), graph.folded(make("googlenet"), 1), graph.folded(make("resnet18"), 1)):
        seen = set()
        for node in made.nodes.values():
            assert seen.issuperset(node.inputs)
            seen.add(node.name)


def test_folding_counts_equal_blocks(make):
    blocks = graph.folded(make("resnet18"), 2).nodes
    assert {name: node.count for name, node in blocks.items() if node.kind == graph.PART} == {
        f"stage{stage}/block{block}": count
        for stage, sizes in enumerate(((2,), (1, 1), (1, 1), (1, 1)), start=1)
        for block, count in enumerate(sizes, start=1)
    }
    stages = graph.folded(make("resnet18"), 1).nodes
    assert [*stages] == ["images", "conv1", "pool1", "stage1", "stage2", "stage3", "stage4", "head_pool", "head"]
    assert stages["stage3"].shape == (14, 14, 256)


def test_the_inside_of_a_module(make):
    within = graph.inside(make("googlenet"), "inception_3a")
    assert next(iter(within.nodes)) == "pool2"
    assert len(within.nodes) == 9  # six convolutions and a pooling, with what they take, and their concatenation
    assert within.table.params == 163_696  # the course's
    assert not overlaps(lay_out(within))


@pytest.mark.parametrize("name", ["lenet5", "googlenet", "resnet18", "unet"])
def test_no_label_covers_another(make, name):
    shown = graph.fitted(make(name), drawing.COLUMNS, drawing.LANES)
    layout = lay_out(shown)
    assert layout.blocks.keys() == shown.nodes.keys()
    assert overlaps(layout) == []


def test_a_picture_says_sizes_and_names(make):
    figure = drawing.draw(make("lenet5"))
    [axes] = figure.axes
    words = {text.get_text().replace("\N{MULTIPLICATION SIGN}", "x") for text in axes.texts}
    assert {"lenet5", "images", "32x32x1", "C1", "5x5 conv", "28x28x6", "S4", "5x5x16", "F6", "84", "10"} <= words


@pytest.mark.slow
@pytest.mark.parametrize("name", models.names())
def test_every_network_is_drawn(make, name):
    shown = graph.fitted(make(name), drawing.COLUMNS, drawing.LANES)
    assert overlaps(lay_out(shown)) == []
    assert drawing.draw(make(name)).axes
    cuts = {"faster_rcnn": 1, "mask_rcnn": 2}  # fast_rcnn is given its regions
    assert len(merges(make(name), graph.CUT)) == cuts.get(name, 0)
    if name == "fcn8s":
        assert make(name).nodes["score_pool3"].inputs == ("pool3",)
    macs = {row.name for row in make(name).table.rows if row.macs}
    assert macs <= make(name).nodes.keys()
