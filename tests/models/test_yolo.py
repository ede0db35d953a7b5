import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research import models
from cnn_research.errors import UserError

IMAGES = jax.ShapeDtypeStruct((2, 64, 64, 3), "float32")


def shapes(name="yolo", images=IMAGES, **fields):
    """Shapes of a network's variables and of what it gives."""
    module = models.create(name, **fields)
    return jax.eval_shape(lambda x: module.init_with_output(jax.random.key(0), x, train=False)[::-1], images)


@pytest.mark.parametrize(("name", "convolutions", "units"), [("yolo", 24, [4096]), ("fast_yolo", 9, [256, 4096])])
def test_layers_of_the_paper(name, convolutions, units):
    """Section 2: 24 convolutional layers, or 9, then fully connected ones; 7x7 cells of 2 boxes and 20 classes."""
    variables, grid = shapes(name, jax.ShapeDtypeStruct((2, 448, 448, 3), "float32"))
    kernels = {layer: leaves["kernel"].shape for layer, leaves in variables["params"].items()}
    assert sum(len(shape) == 4 for shape in kernels.values()) == convolutions
    dense = [shape for shape in kernels.values() if len(shape) == 2]
    assert [shape[1] for shape in dense] == [*units, 7 * 7 * 30]
    assert dense[0][0] == 7 * 7 * 1024
    assert grid.cells.shape == (2, 7, 7, 2, 5)
    assert grid.classes.shape == (2, 7, 7, 20)


def test_the_grid_is_of_any_size_behind_hidden_layers_and_of_the_maps_size_without():
    small = dict(body="small", width=1 / 16, num_classes=4, boxes=3)
    _, grid = shapes(**small, hidden=(8,), grid=(5, 6))
    assert grid.cells.shape == (2, 5, 6, 3, 5)
    _, grid = shapes(**small, hidden=(), grid=(8, 8), dropout_rate=0.5)
    assert grid.classes.shape == (2, 8, 8, 4)
    with pytest.raises(UserError, match=r"grid=\(7, 7\) without hidden layers, on maps of \(8, 8\); give that"):
        shapes(**small, hidden=())


def test_any_classifier_is_a_body():
    """Up to the layer that is named; what comes after it is not there."""
    fields = dict(body="resnet20_cifar", hidden=(), norm="batch", num_classes=4)
    variables, grid = shapes(**fields, body_layer="stage3", grid=(16, 16))
    assert grid.cells.shape == (2, 16, 16, 2, 5)
    assert variables["params"]["head"]["kernel"].shape == (1, 1, 64, 14)
    variables, _ = shapes(**fields, body_layer="stage2", grid=(32, 32))
    assert variables["params"].keys() == {"conv1", "bn1", "stage1", "stage2", "head"}
    with pytest.raises(UserError, match=r"body_layer is empty; name the layer of body='resnet20_cifar'"):
        models.create("yolo", **fields)
    with pytest.raises(UserError, match=r"body_layer='stage3' does nothing with body='small'"):
        models.create("yolo", body="small", body_layer="stage3")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"body": "darknett"}, r"body='darknett' is not known; did you mean 'darknet'"),
        ({"grid": (7,)}, r"grid=\(7,\) with boxes=2: give rows and columns"),
        ({"boxes": 0}, r"grid=\(7, 7\) with boxes=0: give rows and columns"),
        ({"hidden": (0,)}, r"hidden=\(0,\) is out of range"),
        ({"hidden": (), "dropout_rate": 0.1}, r"dropout_rate=0.1 does nothing with hidden=\(\)"),
    ],
)
def test_fields_out_of_range(fields, message):
    with pytest.raises(UserError, match=message):
        models.create("yolo", **fields)


def test_boxes_start_in_the_middle_of_their_cells():
    module = models.create("yolo", body="small", width=1 / 16, hidden=(), grid=(8, 8), num_classes=3)
    images = jnp.zeros((1, 64, 64, 3))
    grid, _ = jax.jit(lambda: module.init_with_output(jax.random.key(0), images, train=False))()
    np.testing.assert_array_equal(grid.cells, np.broadcast_to([0.5, 0.5, 0.5, 0.5, 0], grid.cells.shape))
    assert not grid.classes.any()
