"""What the shared fields refuse."""

import pytest
from flax import linen as nn

from cnn_research.errors import UserError
from cnn_research.layers import check_choice, check_shared, check_unused


class Network(nn.Module):
    """A module with every shared field."""

    num_classes: int = 10
    width: float = 1.0
    norm: str = "batch"
    activation: str = "relu"
    padding_mode: str = "zeros"
    kernel_init: str = "he_normal"
    dropout_rate: float = 0.0
    bn_momentum: float = 0.9
    bn_epsilon: float = 1e-5
    dtype: str = "float32"
    param_dtype: str = "float32"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"norm": "none"},
        {"norm": "group", "bn_epsilon": 1e-3},
        {"bn_momentum": 0.99, "width": 0.25, "dropout_rate": 0.5},
        {"dtype": "bfloat16", "padding_mode": "reflect"},
    ],
)
def test_what_a_network_can_use_passes(fields):
    check_shared(Network(**fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"norm": "bacth"}, "norm='bacth' is not known; did you mean 'batch'"),
        ({"activation": "rleu"}, "did you mean 'relu'"),
        ({"padding_mode": "zero"}, "did you mean 'zeros'"),
        ({"kernel_init": "he_norm"}, "did you mean 'he_normal'"),
        ({"dtype": "bf16"}, "dtype='bf16' is not known"),
        ({"param_dtype": "float31"}, "did you mean 'float32'"),
        ({"dtype": "float64"}, "JAX_ENABLE_X64"),
        ({"num_classes": 0}, "must be 1 or more"),
        ({"width": 0.0}, "must be more than 0"),
        ({"width": float("inf")}, "must be more than 0"),
        ({"dropout_rate": 1.0}, "less than 1"),
        ({"bn_momentum": -0.1}, "at least 0"),
        ({"bn_epsilon": 0.0}, "more than 0"),
        ({"norm": "none", "bn_epsilon": 1e-3}, "does nothing with norm='none'; leave it at 1e-05"),
        ({"norm": "frozen", "bn_momentum": 0.5}, "bn_momentum=0.5 does nothing with norm='frozen'"),
    ],
)
def test_the_rest_is_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message) as fault:
        check_shared(Network(**fields))
    assert "\n" not in str(fault.value)


def test_a_function_is_an_activation():
    class Free(nn.Module):
        activation: object = nn.relu

    check_shared(Free())


def test_check_choice():
    check_choice("pool", "max", ("avg", "max"))
    with pytest.raises(UserError, match="pool='mx' is not known; did you mean 'max'"):
        check_choice("pool", "mx", ("avg", "max"))


def test_check_unused():
    check_unused(Network(), ["width"], "here")
    with pytest.raises(UserError, match=r"width=2.0 does nothing here; leave it at 1.0"):
        check_unused(Network(width=2.0), ["width"], "here")
