"""The config: flags, files, and what may differ when a run goes on."""

import contextlib
import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from cnn_research import models, tasks
from cnn_research.data.augmentation import Augmentation
from cnn_research.errors import UserError
from cnn_research.training import config as configs
from cnn_research.training.program import make_program


@pytest.fixture
def config():
    return configs.default_config("lenet5")


@pytest.mark.parametrize("model", models.names())
def test_every_field_can_be_a_flag(model):
    for field, value in configs.flatten(configs.default_config(model)).items():
        assert isinstance(value, str | bool | int | float | tuple), field
        if isinstance(value, tuple):
            assert all(isinstance(item, str | int | float) for item in value), field


def test_the_parts_of_the_program_bring_their_own_fields():
    config = configs.default_config("lenet5", num_classes=7)
    assert config.model.to_dict() == models.config("lenet5", num_classes=7).to_dict()
    assert config.loss.to_dict() == tasks.config("classification").to_dict()
    assert Augmentation(**config.augmentation.to_dict()) == Augmentation()
    assert set(config.augmentation) == {field.name for field in dataclasses.fields(Augmentation)}


def test_the_defaults_are_valid(config):
    configs.validate(config)


def test_configs_are_independent(config):
    config.optimizer.learning_rate = 7.0
    assert configs.default_config("lenet5").optimizer.learning_rate == 0.1


def test_json_gives_the_config_back_with_its_tuples(config):
    config.data.class_names = ("cat", "dog")
    read = configs.from_json(configs.to_json(config))
    assert read.to_dict() == config.to_dict()
    assert read.data.image_size == (32, 32)
    assert isinstance(read.data.class_names, tuple)
    assert isinstance(read.optimizer.milestones, tuple)


def test_json_is_the_same_for_equal_configs(config):
    backwards = ConfigDict({key: config.to_dict()[key] for key in reversed(config.to_dict())})
    assert (
        configs.to_json(backwards)
        == configs.to_json(config)
        == configs.to_json(configs.from_json(configs.to_json(config)))
    )
    assert json.loads(configs.to_json(config))["optimizer"]["name"] == "sgd"
    assert configs.to_json(config).endswith("}\n")


def test_load_reads_the_config_of_a_run(tmp_path, config):
    (tmp_path / "config.json").write_text(configs.to_json(config))
    assert configs.load(tmp_path).to_dict() == config.to_dict()


def test_load_refuses_what_is_no_run(tmp_path):
    with pytest.raises(UserError, match="holds no run: there is no config"):
        configs.load(tmp_path)
    (tmp_path / "config.json").write_text('{"seed": ')
    with pytest.raises(UserError, match=r"config\.json is damaged: "):
        configs.load(tmp_path)


@pytest.mark.parametrize("model", ["lenet5", "unet", "localizer", "yolo", "fast_rcnn", "mask_rcnn", "rcnn"])
def test_a_run_that_is_older_than_a_field_has_its_default(model):
    """Whichever field that is; what the run has stays, and so do fields that are not known."""
    config = configs.default_config(model)
    config.optimizer.learning_rate = 7.0
    for field in configs.flatten(config).keys() - {"task", "model.name", "optimizer.learning_rate"}:
        stored = config.to_dict()
        group = stored
        *parents, name = field.split(".")
        for parent in parents:
            group = group[parent]
        del group[name]
        assert configs.complete(stored) == config, field
    for group in ("augmentation", "loss"):
        assert configs.complete({name: part for name, part in config.to_dict().items() if name != group}) == config
    config.data.colour = "blue"
    assert configs.from_json(configs.to_json(config)) == config
    assert configs.unknown_fields(config) == ["data.colour"]


def test_the_first_runs_mean_what_they_meant(config):
    """A config that the first version wrote: all that came since is off."""
    read = configs.from_json((Path(__file__).parent / "data" / "first_config.json").read_text())
    configs.validate(read)
    assert (read.batch_size, read.optimizer.learning_rate, read.data.mean) == (64, 0.05, (0.3,))
    data = read.data
    assert (data.image, data.mask, data.crop_size, data.crop_on, data.short_side) == ("image", "", (), "device", ())
    assert (data.max_objects, data.max_proposals, data.mirror, data.mask_values) == (0, 0, 0, ())
    assert (read.shard_state, read.model.bn_group, read.model.sharing) == ("off", 0, "convolution")
    assert Augmentation(**read.augmentation.to_dict()) == Augmentation()
    assert configs.flatten(read).keys() == configs.flatten(configs.default_config("lenet5_modern")).keys()


def test_regions_are_given_where_the_stored_network_proposes_none():
    config = configs.default_config("faster_rcnn", anchor_sizes=())
    del config.data.max_proposals
    assert configs.complete(config.to_dict()).data.max_proposals == 2000


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ([], "it holds no fields"),
        ({"task": "classification", "model": {"nam": "lenet5"}}, "it does not say model.name and task"),
        ({"task": "classification", "model": "lenet5"}, "it does not say model.name and task"),
        ({"model": {"name": "lenet5"}}, "it does not say model.name and task"),
        ({"task": "clasification", "model": {"name": "lenet5"}}, "task 'clasification' is unknown; did you mean"),
        ({"task": "classification", "model": {"name": "lenet5"}, "data": 3}, "data is no group of fields"),
        ({"task": "classification", "model": {"name": "lenet5"}, "seed": {}}, "seed is a group of fields"),
        (
            {"task": "classification", "model": {"name": "lenet5"}, "ema": None},
            "ema=None is of the wrong type",
        ),
        ({"task": "classification", "model": {"name": "lenet5"}, "seed": True}, "seed=True is of the wrong type"),
    ],
)
def test_a_stored_config_that_is_none_is_damaged(tmp_path, stored, message):
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=rf"config\.json is damaged: {message}"):
        configs.load(tmp_path)


def test_flatten_joins_names_by_points(config):
    flat = configs.flatten(config)
    assert flat["data.image_size"] == (32, 32)
    assert flat["optimizer.learning_rate"] == 0.1
    assert flat["seed"] == 0
    assert not any(isinstance(value, dict) for value in flat.values())


def test_the_networks_input_is_the_window(config):
    config.data.update(image_size=(40, 36), channels=1)
    assert configs.input_shape(config.data) == (40, 36, 1)
    config.data.crop_size = (40, 30)
    configs.validate(config)
    assert configs.input_shape(config.data) == (40, 30, 1)


def test_differences_are_the_fields_that_change_what_is_computed(config):
    other = configs.from_json(configs.to_json(config))
    assert configs.differences(config, other) == {}
    other.seed = 3
    other.optimizer.learning_rate = 0.2
    other.data.workers = 4
    expected = {"optimizer.learning_rate": (0.1, 0.2), "seed": (0, 3)}
    assert configs.differences(config, other) == expected


def test_differences_ignore_each_operational_field(config):
    flat = configs.flatten(config)
    assert flat.keys() >= set(configs.OPERATIONAL)
    for field in flat:
        other = config.to_dict()
        part = other
        *parents, last = field.split(".")
        for parent in parents:
            part = part[parent]
        part[last] = "another"
        found = configs.differences(config, ConfigDict(other))
        assert found == ({} if field in configs.OPERATIONAL else {field: (flat[field], "another")})


def test_differences_hold_fields_of_one_side_alone(config):
    other = config.to_dict()
    del other["ema"]
    other["more"] = 1
    assert configs.differences(config, ConfigDict(other)) == {"ema": (0.0, None), "more": (None, 1)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parallel": "pmpa"}, "parallel='pmpa' is unknown; did you mean 'pmap'"),
        ({"precision": "fp8"}, "precision='fp8' is unknown; it is auto, f32 or bf16"),
        ({"data.resident": "maybe"}, "data.resident='maybe' is unknown; it is auto, on or off"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"eval_batch_size": 0}, "eval_batch_size=0 must be at least 1"),
        ({"log_every": 0}, "log_every=0 must be at least 1"),
        ({"accumulate": -1}, "accumulate=-1 must be at least 1"),
        ({"keep_last": 0}, "keep_last=0 must be at least 1"),
        ({"keep_best": -1}, "keep_best=-1 must not be negative"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"ema": 1.0}, "ema=1.0 is a decay: at least 0, below 1"),
        ({"ema": -0.1}, "ema=-0.1 is a decay"),
        ({"batch_size": 100, "accumulate": 3}, "batch_size=100 does not divide into accumulate=3 micro-batches"),
        ({"data.mean": (0.1, 0.2)}, "data.mean=.* must be one number, or 3: one a channel"),
        ({"data.std": ()}, "data.std=.* must be one number, or 3: one a channel"),
        ({"data.std": (0.1, 0.0, 0.2)}, "data.std=.* must be above 0"),
        ({"data.crop_size": (28, 33)}, r"data.crop_size=\(28, 33\) is no window of data.image_size=\(32, 32\); give"),
        ({"data.crop_size": (0, 28)}, "data.crop_size=.* is no window"),
        ({"data.crop_size": (28,)}, "data.crop_size=.* is no window"),
        ({"data.crop_on": "hots"}, "data.crop_on='hots' is unknown; did you mean 'host'"),
        (
            {"data.crop_on": "host", "data.resident": "on"},
            "data.resident=on keeps images as they are, data.crop_on=host",
        ),
        ({"data.short_side": (40, 60)}, r"data.short_side=\(40, 60\) needs data.crop_on=host, and"),
        (
            {"data.crop_on": "host", "data.short_side": (40, 60), "augmentation.random_resized_crop": (0.08, 1.0)},
            r"data.short_side=.* needs .* augmentation.random_resized_crop=\(1.0,1.0\): that cuts by area instead",
        ),
        ({"data.crop_on": "host", "data.short_side": (31, 60)}, "data.short_side=.* in pixels, from 32, which is seen"),
        ({"data.crop_on": "host", "data.short_side": ("a", "b")}, "data.short_side=.* must hold numbers"),
        ({"data.crop_on": "host", "data.short_side": (60, 40)}, "data.short_side=.* give the smallest and the largest"),
        ({"data.crop_on": "host", "data.short_side": (60,)}, "data.short_side=.* give the smallest and the largest"),
        (
            {"data.crop_on": "host", "data.short_side": (40.5, 60.5)},
            "data.short_side=.* give the smallest and the largest",
        ),
    ],
)
def test_validate_names_the_field_and_what_would_be_right(config, changes, message):
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=f"^{message}"):
        configs.validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.mask": ""}, r"task segmentation takes a feature, such as segmentation_mask, as data\.mask; it is ''"),
        (
            {"task": "classification"},
            r"unet is a network for segmentation, task is 'classification'; give one of .*resnet50",
        ),
        ({"model.name": "vgg16"}, r"vgg16 is a network for classification, task is 'segmentation'; give one of .*unet"),
        ({"data.max_objects": 1}, r"task segmentation takes 0 as data\.max_objects; it is 1"),
        (
            {"task": "classification", "model.name": "vgg16"},
            r"task classification takes no feature, as data\.mask; it is 'segmentation_mask'",
        ),
        ({"data.mirror": -1}, r"data\.mirror=-1 must not be negative"),
    ],
)
def test_masks_and_the_task_go_together(changes, message):
    config = configs.default_config("unet", task="segmentation")
    configs.validate(config)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError, match=message):
        configs.validate(config)


def test_objects_and_the_task_go_together():
    config = configs.default_config("localizer")
    configs.validate(config)
    for number in (0, -1):
        config.data.max_objects = number
        with pytest.raises(UserError, match=rf"task localization takes 1 or more as data\.max_objects; it is {number}"):
            configs.validate(config)


def test_the_network_sees_the_mirrored_border():
    config = configs.default_config("unet", task="segmentation")
    config.data.update(image_size=(20, 30), channels=1, mirror=4)
    assert configs.input_shape(config.data) == (28, 38, 1)
    config.data.crop_size = (8, 6)
    assert configs.input_shape(config.data) == (16, 14, 1)


ODD = (None, 3, -1, 1.5, True, "x", "", [], [1], [["a"]], {}, {"a": 1}, 1e308, "nan")


@settings(max_examples=100, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_damaged_config_becomes_a_program_or_a_line(tmp_path, data):
    """Bits flipped, lines lost, values of another type: never another exception."""
    config = configs.default_config("lenet5")
    config.data.num_examples = 100
    content = configs.to_json(config).encode()
    how = data.draw(st.sampled_from(("flip", "cut", "line", "value")))
    if how == "value":
        group = stored = config.to_dict()
        while isinstance(group[name := data.draw(st.sampled_from(sorted(group)))], dict) and data.draw(st.booleans()):
            group = group[name]
        group[name] = data.draw(st.sampled_from(ODD))
        content = json.dumps(stored).encode()
    elif how == "line":
        lines = content.splitlines(keepends=True)
        del lines[data.draw(st.integers(0, len(lines) - 1))]
        content = b"".join(lines)
    else:
        where = data.draw(st.integers(0, len(content) - 1))
        flipped = bytes([content[where] ^ 1 << data.draw(st.integers(0, 7))])
        content = content[:where] + (flipped + content[where + 1 :] if how == "flip" else b"")
    (tmp_path / "config.json").write_bytes(content)
    with contextlib.suppress(UserError):
        read = configs.load(tmp_path)
        assert isinstance(configs.unknown_fields(read), list)
        if read.model.name in models.names():
            make_program(read)
