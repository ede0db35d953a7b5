import pytest

from cnn_research import tasks
from cnn_research.errors import UserError


def test_every_name_makes_a_task_whose_fields_are_flags():
    assert tasks.names() == [
        "classification",
        "detection",
        "instance_segmentation",
        "localization",
        "region_classification",
        "region_detection",
        "segmentation",
    ]
    for name in tasks.names():
        config = tasks.config(name)
        task = tasks.create(name, **config)
        assert isinstance(task, tasks.Task)
        assert isinstance(task, tasks.PhasedTask) == (name == "region_classification")
        assert "name" not in config
        assert dict(config) == vars(task)
        assert hash(task) == hash(tasks.create(name))


@pytest.mark.parametrize("name", ["detection", "instance_segmentation", "region_classification", "region_detection"])
def test_fields_beside_inherited_ones_are_given_by_name(name):
    with pytest.raises(TypeError, match="positional"):
        type(tasks.create(name))(0.5)


def test_fields_reach_the_task_and_the_config():
    fields = {"label_smoothing": 0.1, "criterion": "map"}
    assert tasks.create("classification", **fields).criterion == "map"
    assert tasks.config("classification", **fields).label_smoothing == 0.1


def test_a_whole_number_serves_as_a_float():
    penalty = tasks.create("classification", rubbish_penalty=2).rubbish_penalty
    assert (penalty, type(penalty)) == (2.0, float)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("clasification", {}, "did you mean 'classification'"),
        ("classification", {"label_smothing": 0.1}, "did you mean 'label_smoothing'"),
        ("classification", {"label_smoothing": "much"}, "loss.label_smoothing='much' is of the wrong type"),
        ("classification", {"label_smoothing": True}, "loss.label_smoothing=True is of the wrong type"),
        ("classification", {"label_smoothing": -0.1}, "loss.label_smoothing=-0.1"),
        ("classification", {"label_smoothing": 1.0}, "loss.label_smoothing=1.0"),
        ("classification", {"label_smoothing": float("nan")}, "loss.label_smoothing=nan"),
        ("classification", {"criterion": "maps"}, r"loss.criterion='maps' is unknown; did you mean 'map'"),
        ("classification", {"rubbish_penalty": 0.0}, "loss.rubbish_penalty=0.0"),
    ],
)
@pytest.mark.parametrize("function", [tasks.create, tasks.config])
def test_faults_are_named(function, name, fields, message):
    with pytest.raises(UserError, match=message):
        function(name, **fields)
