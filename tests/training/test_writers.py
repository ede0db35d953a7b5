"""What a run writes beside its checkpoints."""

import json
import math
import resource
import struct
import sys
import types

import jax
import pytest
from etils import epath
from tensorboardX.proto.event_pb2 import Event, SessionLog

from cnn_research.errors import UserError
from cnn_research.training import writers
from cnn_research.training.writers import Writer, environment, read_records, read_result, to_json, write_text


def events(workdir):
    """Reads TensorBoard's files, the oldest first: records of a length, its checksum, an event, its checksum."""
    for path in sorted(workdir.glob("events.out.tfevents.*")):
        yield from events_of(path)


def events_of(path):
    content = path.read_bytes()
    while content:
        length = struct.unpack("<Q", content[:8])[0]
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def scalars(workdir):
    return [(event.step, value.tag, value.simple_value) for event in events(workdir) for value in event.summary.value]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_steps(workdir, start, *steps):
    writer = Writer(workdir, start)
    for step in steps:
        writer.write(step, {"train/loss": step / 8, "images_per_second": 100.0})
    writer.close()


def test_a_record_is_a_line_and_an_event(tmp_path):
    write_steps(tmp_path, 0, 10, 20)
    found = lines(tmp_path)
    assert [{key: value for key, value in record.items() if key != "time"} for record in found] == [
        {"step": 10, "train/loss": 1.25, "images_per_second": 100.0},
        {"step": 20, "train/loss": 2.5, "images_per_second": 100.0},
    ]
    assert found[0]["time"] <= found[1]["time"]
    assert scalars(tmp_path) == [
        (10, "train/loss", 1.25),
        (10, "images_per_second", 100.0),
        (20, "train/loss", 2.5),
        (20, "images_per_second", 100.0),
    ]


def test_a_run_that_goes_on_drops_what_it_does_again(tmp_path):
    write_steps(tmp_path, 0, 10, 20, 30)
    write_steps(tmp_path, 20, 25)
    assert [record["step"] for record in lines(tmp_path)] == [10, 20, 25]
    # TensorBoard drops what an earlier file holds from this step on.
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts[-1] == 21


def test_a_run_that_begins_anew_drops_everything(tmp_path):
    write_steps(tmp_path, 0, 10, 20)
    write_steps(tmp_path, 0, 5)
    assert [record["step"] for record in lines(tmp_path)] == [5]


def test_files_are_whole_after_each_record(tmp_path):
    writer = Writer(tmp_path, 0)
    for step in range(1, 4):
        writer.write(step, {"loss": 0.5})
        assert len(lines(tmp_path)) == len(scalars(tmp_path)) == step
    writer.close()


def test_tensorboard_reads_in_order_whatever_the_clock_says(tmp_path, monkeypatch):
    """It goes by the names of files, which hold the time."""
    now = types.SimpleNamespace(time=lambda: 2e9)
    monkeypatch.setattr(writers, "time", now)
    write_steps(tmp_path, 0, 10, 20)
    now.time = lambda: 1e9
    write_steps(tmp_path, 10, 15)
    write_steps(tmp_path, 15, 18)
    names = sorted(path.name for path in tmp_path.glob("events.*"))
    assert [int(name.split(".")[3]) for name in names] == [2_000_000_000, 2_000_000_001, 2_000_000_002]
    starts = [
        event.step
        for name in names
        for event in events_of(tmp_path / name)
        if event.session_log.status == SessionLog.START
    ]
    assert starts == [1, 11, 16]


@pytest.fixture
def full_disk():
    """Files of more than 4 kB cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize(("tensorboard", "full"), [(False, "metrics.jsonl"), (True, "events.out.tfevents")])
def test_full_disk_is_named_and_what_was_written_stays(tmp_path, tensorboard, full):
    writer = Writer(tmp_path, 0, tensorboard)

    def write_on():
        for step in range(1, 100):
            writer.write(step, {"train/loss": step / 8, "train/accuracy": 0.5})

    with pytest.raises(UserError, match=rf"^cannot write .*/{full}.*: File too large$"):
        write_on()
    writer.close()
    steps = [record["step"] for record in lines(tmp_path)]
    assert steps == list(range(1, len(steps) + 1))
    assert len(steps) > 10


def test_tensorboard_can_be_off(tmp_path):
    writer = Writer(tmp_path, 0, tensorboard=False)
    writer.write(1, {"loss": 0.5})
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write_steps(tmp_path, 0, 10)
    assert list(tmp_path.iterdir()) == []


def test_latest_is_a_values_last_record(tmp_path):
    writer = Writer(tmp_path, 0, tensorboard=False)
    assert writer.latest("test/accuracy") == 0
    writer.write(1, {"test/accuracy": 0.5})
    writer.write(2, {"train/loss": 3.0})
    assert writer.latest("test/accuracy") == 0.5
    assert Writer(tmp_path, 2, tensorboard=False).latest("train/loss") == 3.0


def test_read_records_reads_what_was_written(tmp_path):
    assert read_records(tmp_path / "metrics.jsonl") == []
    write_steps(tmp_path, 0, 10)
    assert read_records(str(tmp_path / "metrics.jsonl")) == lines(tmp_path)


def test_numbers_that_json_lacks_become_strings(tmp_path):
    line = to_json({"loss": math.nan, "high": math.inf, "low": -math.inf, "step": 3, "rate": 0.1, "ok": True})
    assert json.loads(line, parse_constant=pytest.fail) == {
        "loss": "nan", "high": "inf", "low": "-inf", "step": 3, "rate": 0.1, "ok": True
    }  # fmt: skip
    writer = Writer(tmp_path, 0)
    writer.write(1, {"loss": math.nan})
    writer.close()
    write_steps(tmp_path, 1, 2)
    assert [record.get("loss") for record in lines(tmp_path)] == ["nan", None]


def test_a_file_is_replaced_as_a_whole(tmp_path, monkeypatch):
    path = epath.Path(tmp_path) / "result.json"
    write_text(path, "old")
    assert path.read_text() == "old"

    def killed(self, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_text(path, "new")
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


def test_environment_says_what_a_run_ran_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", "--workdir=x"])
    found = environment()
    assert found["command"] == ["train", "--workdir=x"]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["versions"]["jax"] == jax.__version__
    assert found["versions"].keys() == set(writers.LIBRARIES)
    assert (found["backend"], found["processes"]) == ("cpu", 1)
    assert found["devices"] == ["cpu"] * jax.device_count()
    json.dumps(found)


def test_environment_without_git_has_no_commit(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = environment()
    assert found["git_commit"] == ""
    assert found["git_dirty"] is False


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("result.json", b'{"step": 3', "is damaged: Expecting"),
        ("result.json", b"\xff\xfe", "is damaged: "),
        ("result.json", b"[]", "is damaged: it has no fields"),
        ("result.json", b"{}", "is damaged: it has no step"),
        ("result.json", b'{"step": "3"}', "is damaged: step is no number"),
        ("metrics.jsonl", b'{"step": 1}\n{"step', "is damaged: "),
        ("metrics.jsonl", b'{"step": 1}\n3\n', "is damaged: it has no fields"),
        ("metrics.jsonl", b'{"stap": 1}\n', "is damaged: it has no step"),
        ("metrics.jsonl", b'{"step": "1"}\n', "is damaged: a step is no number"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content, message):
    path = epath.Path(tmp_path / name)
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} {message}"):
        read_result(path, "step") if name == "result.json" else read_records(path)
