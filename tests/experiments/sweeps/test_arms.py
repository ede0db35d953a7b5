import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnn_research.errors import UserError
from cnn_research.training import config as configs
from experiments import command_line
from experiments.sweeps import arms
from experiments.sweeps.arms import make_arms, parse_grid, resolve, short_names

DIGITS = "experiments/configs/digits.py"


@pytest.fixture(autouse=True)
def _in_repository(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def recipe(tmp_path):
    """A recipe with named sweeps."""
    path = tmp_path / "recipe.py"
    path.write_text(
        "from experiments import command_line\n"
        f"def get_config(model='lenet5_modern'): return command_line.load_config(f'{DIGITS}:{{model}}')\n"
        "def sweep_norm(): return [{'model.norm': norm, 'seed': s} for norm in ('none', 'batch') for s in range(2)]\n"
        "def sweep_ablation():\n"
        "    yield {}\n"
        "    yield {'model.pool': 'avg', 'optimizer.milestones': ['30%']}\n"
        "    yield {'config': 'lenet5'}\n"
        "def sweep_pool(argument='lenet5'):\n"
        "    return [{'config': argument, 'model.pool': pool} for pool in ('max', 'avg')]\n"
        "def sweep_nothing(): return []\n"
        "def sweep_wrong(): return ['model.norm']\n"
    )
    return str(path)


WORDS = st.sampled_from(["seed", "model", "norm", "name", "stage_2", "data"])
FIELDS = st.lists(WORDS, min_size=1, max_size=3).map(".".join)
PLAIN = st.text("abcXYZ019_.%:/+-", min_size=1, max_size=12)
TUPLES = st.recursive(st.integers(-9, 9) | st.text(max_size=4), lambda inner: st.tuples(inner, inner), max_leaves=4)
TUPLES = TUPLES.filter(lambda value: isinstance(value, tuple)).map(repr)
QUOTED = st.text(max_size=12).map(lambda text: (text, _quote(text)))
VALUES = st.one_of(PLAIN.map(lambda text: (text, text)), TUPLES.map(lambda text: (text, text)), QUOTED)


def _quote(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


@given(st.dictionaries(FIELDS, st.lists(VALUES, min_size=1, max_size=3), min_size=1, max_size=3), st.booleans())
def test_grid_means_what_was_written(grid, spacious):
    comma, semicolon, equals = (" , ", " ;\n ", " = ") if spacious else (",", ";", "=")
    text = semicolon.join(
        field + equals + comma.join(written for _, written in values) for field, values in grid.items()
    )
    texts = [[text for text, _ in values] for values in grid.values()]
    assert parse_grid(text) == [dict(zip(grid, product, strict=True)) for product in itertools.product(*texts)]


def test_grid_examples():
    assert parse_grid("model.norm=none,batch; seed=0,1;") == [
        {"model.norm": "none", "seed": "0"},
        {"model.norm": "none", "seed": "1"},
        {"model.norm": "batch", "seed": "0"},
        {"model.norm": "batch", "seed": "1"},
    ]
    assert [setting["a.b"] for setting in parse_grid("a.b=(0.5,1.0),(1.0,1.0)")] == ["(0.5,1.0)", "(1.0,1.0)"]
    assert parse_grid(r"decay='(^|/)\w+;=,$', \d") == [{"decay": r"(^|/)\w+;=,$"}, {"decay": r"\d"}]
    assert parse_grid("freeze=''") == [{"freeze": ""}]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("seed=", "a value of seed in the sweep is missing"),
        ("seed=1,,2", "a value of seed in the sweep is missing"),
        ("seed=1; norm", "'norm' in the sweep is no field=value"),
        ("=1", "no field=value"),
        ("model norm=1", "no field=value"),
        ("seed=1; seed=2", "names seed twice"),
        ("size=(1,2", "parentheses"),
        ("size=1),(2", "parentheses"),
        ("name='a", "a quote .* is not closed"),
        (" ; ", "the sweep is empty"),
    ],
)
def test_malformed_grids(grid, message):
    with pytest.raises(UserError, match=message):
        parse_grid(grid)


def test_flags_give_every_field_back():
    """Each field's own value, written as a flag, is that value again."""
    config = command_line.load_config(f"{DIGITS}:lenet5")
    texts = {field: arms._flag_text(value) for field, value in configs.flatten(config).items()}
    assert configs.to_json(resolve(f"{DIGITS}:lenet5", texts)) == configs.to_json(config)


def test_values_take_the_type_of_their_field():
    config = resolve(
        DIGITS,
        {
            "model.width": "2",
            "tensorboard": "false",
            "data.image_size": "(16,16)",
            "data.mean": "0.5",
            "duration": "5ep",
            "optimizer.milestones": "('30%',)",
        },
    )
    assert config.model.width == 2.0
    assert isinstance(config.model.width, float)
    assert config.tensorboard is False
    assert config.data.image_size == (16, 16)
    assert config.data.mean == (0.5,)
    assert config.duration == "5ep"
    assert config.optimizer.milestones == ("30%",)


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("model.nrom=none", "model.nrom is no field of .*did you mean 'model.norm'"),
        ("learning_rate=1", "learning_rate is no field"),
        ("model=lenet5", "it has the fields model."),
        ("seed=0,half", "seed='half' does not fit; a value is 0"),
        ("batch_size=0.5", "batch_size='0.5' does not fit; a value is"),
        ("model.norm=none,bacth", "norm='bacth' is not known; did you mean 'batch'"),
        ("optimizer.name=sgdd", "sgd"),
        ("config=lenet6", "'lenet6' is not known; did you mean 'lenet5"),
        ("duration=5epp", "duration='5epp' is no duration"),
        ("nrom", "has no sweep 'nrom'; did you mean 'norm'"),
        ("nothing", "sweep_nothing .* must return"),
        ("wrong", "sweep_wrong .* must return"),
    ],
)
def test_sweeps_that_do_not_fit(recipe, sweep, message):
    with pytest.raises(UserError, match=message):
        make_arms(recipe, sweep, {})


def test_grid_becomes_arms():
    made = make_arms(f"{DIGITS}:lenet5_modern", "model.norm=none,batch; seed=0,1", {"duration": "3ep", "seed": 7})
    assert [re.sub(r"-[0-9a-f]{8}$", "", arm.name) for arm in made] == [
        "norm=none,seed=0",
        "norm=none,seed=1",
        "norm=batch,seed=0",
        "norm=batch,seed=1",
    ]
    assert all(arm.config.duration == "3ep" for arm in made)
    assert made[3].fields == {"model.norm": "batch", "seed": 1}
    assert made[3].overrides == {"duration": "3ep", "seed": "1", "model.norm": "batch"}
    assert made[3].config.model.norm == "batch"
    assert made[3].config.seed == 1


def test_named_sweep_becomes_arms(recipe):
    norm = make_arms(recipe, "norm", {})
    assert [arm.fields for arm in norm] == [
        {"model.norm": norm, "seed": seed} for norm in ("none", "batch") for seed in (0, 1)
    ]
    baseline, pool, lenet5 = make_arms(recipe, "ablation", {})
    assert baseline.name.startswith("baseline-")
    assert baseline.fields == {"model.pool": "max", "optimizer.milestones": ("50%", "75%"), "config": ""}
    assert pool.name.startswith("pool=avg,milestones=30-")
    assert pool.config.optimizer.milestones == ("30%",)
    assert lenet5.recipe == f"{recipe}:lenet5"
    assert lenet5.config.model.name == "lenet5"
    assert lenet5.name.startswith("config=lenet5-")


def test_recipes_argument_is_a_field():
    made = make_arms(DIGITS, "config=lenet5,lenet5_modern", {})
    assert [arm.recipe for arm in made] == [f"{DIGITS}:lenet5", f"{DIGITS}:lenet5_modern"]
    assert [arm.config.model.name for arm in made] == ["lenet5", "lenet5_modern"]


@pytest.mark.parametrize(("given", "expected"), [("", "lenet5"), (":lenet5_modern", "lenet5_modern")])
def test_a_named_sweep_may_take_the_recipes_argument(recipe, given, expected):
    made = make_arms(recipe + given, "pool", {})
    assert [arm.fields for arm in made] == [{"config": expected, "model.pool": pool} for pool in ("max", "avg")]
    assert {arm.config.model.name for arm in made} == {expected}


def test_numpy_numbers_are_values():
    assert arms._flag_text(np.float64(0.1)) == "0.1"
    assert arms._flag_text(np.int32(3)) == "3"


def test_names_follow_the_config():
    def names(sweep, **overrides):
        return [arm.name for arm in make_arms(DIGITS, sweep, overrides)]

    once = names("model.width=1,2; seed=0,1")
    assert names("model.width=1,2; seed=0,1") == once
    assert len(set(once)) == 4
    assert set(names("model.width=2; seed=0,1,2")) & set(once) == set(once[2:])  # a grid may grow
    assert not set(names("model.width=1,2; seed=0,1", duration="3ep")) & set(once)
    assert names("model.width=1,2; seed=0,1", log_every=7) == once  # only watched otherwise
    assert len(set(names("parallel=jit,pmap"))) == 2


def test_one_config_is_one_arm():
    assert len(make_arms(DIGITS, "model.width=1,1.0,2", {})) == 2


def test_names_are_file_names(tmp_path):
    grid = "augmentation.mixup=0.0; optimizer.decay='(^|/)kernel$','../é|\n'; data.std=(0.5,),(0.25,)"
    made = make_arms(DIGITS, grid, {})
    for arm in made:
        assert re.fullmatch(r"[A-Za-z0-9_.,=+-]+", arm.name)
        (tmp_path / arm.name).mkdir()
    assert len(list(tmp_path.iterdir())) == 4
    long = make_arms(DIGITS, f"optimizer.decay='{'kernel|' * 99}','{'kernel|' * 100}'", {})
    assert all(len(arm.name) < 200 for arm in long)
    assert len({arm.name for arm in long}) == 2


def test_short_names():
    assert short_names(["model.norm", "seed", "model.name", "optimizer.name"]) == {
        "model.norm": "norm",
        "seed": "seed",
        "model.name": "model.name",
        "optimizer.name": "optimizer.name",
    }


@given(st.lists(FIELDS, max_size=6, unique=True))
def test_short_names_tell_fields_apart(fields):
    names = short_names(fields)
    assert len(set(names.values())) == len(fields)
    assert all(field == name or field.endswith("." + name) for field, name in names.items())
