"""Durations as people say them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.training.durations import parse_steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("10ep", 4690),
        ("1 epoch", 469),
        ("2 epochs", 938),
        ("0.5ep", 234),  # 234.5: Python rounds halves to even
        ("500", 500),
        (500, 500),
        ("500 steps", 500),
        ("1step", 1),
        ("5%", 50),
        ("2.5%", 25),
        ("0.05", 50),
        (0.05, 50),
        (".05", 50),
        ("1.0", 1000),
        (1.0, 1000),
        ("100%", 1000),
        ("0", 0),
        ("  7 ", 7),
    ],
)
def test_durations_in_steps(duration, steps):
    assert parse_steps(duration, steps_per_epoch=469.0, total=1000) == steps


@given(st.integers(0, 1000), st.integers(1, 10**6), st.integers(1, 4096))
def test_epochs_are_rounded_once(epochs, num_examples, batch_size):
    steps = parse_steps(f"{epochs}ep", num_examples / batch_size)
    assert abs(steps * batch_size - epochs * num_examples) <= batch_size / 2 * (1 + 1e-9)


@given(st.integers(0, 10**9))
def test_a_whole_number_is_steps(steps):
    assert parse_steps(steps, 3.7) == parse_steps(str(steps), 3.7) == steps


@pytest.mark.parametrize("duration", ["", "ten", "-5", "5 %%", "10 minutes", "1e3", "ep", "5ep10", "nan", "inf", "."])
def test_what_is_no_duration_is_refused(duration):
    with pytest.raises(UserError, match=r"^eval_every='.*' is no duration; write 10ep \(epochs\), 500 \(steps\) or 5%"):
        parse_steps(duration, 10.0, 100, "eval_every")


@pytest.mark.parametrize("duration", ["5%", "0.05", 1.0])
def test_the_whole_is_no_share_of_itself(duration):
    with pytest.raises(UserError, match=r"^duration=.* is a share of the whole run; write 10ep"):
        parse_steps(duration, 10.0)
