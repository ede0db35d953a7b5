"""Arms as jobs elsewhere, against stand-ins for the targets' own programs."""

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from etils import epath

from cnn_research.errors import UserError
from experiments.sweeps import submit
from experiments.sweeps.arms import make_arms
from launch.topologies import parse

DIGITS = "experiments/configs/digits.py"
METRIC = "test/accuracy"

# Stands in for kubectl and sky: notes what is sent, fails where `refuse` is a file, and tells what `there` lists.
FAKE = f"""#!{sys.executable}
import json, os, pathlib, shutil, sys
folder = pathlib.Path(os.environ["FAKE_FOLDER"])
words = sys.argv[1:]
if words[:2] == ["get", "jobsets"]:
    states = json.loads((folder / "there").read_text())
    print(json.dumps({{"items": [
        {{"metadata": {{"name": name}}, "status": {{"terminalState": state}} if state else {{}}}}
        for name, state in states.items()]}}))
elif words[:2] == ["jobs", "queue"]:
    assert words[2:] == ["--skip-finished", "--all", "--output", "json"], words
    print(json.dumps([{{"job_name": name}} for name, state in json.loads((folder / "there").read_text()).items()]))
else:
    count = len(list(folder.glob("*.yaml")))
    if (folder / "refuse").exists() and count == int((folder / "refuse").read_text()): sys.exit(1)
    shutil.copy(words[-1], folder / f"{{count}}.yaml")
"""


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """The folder of the stand-ins."""
    for program in ("kubectl", "sky"):
        (tmp_path / program).write_text(FAKE)
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    folder = tmp_path / "sent"
    folder.mkdir()
    monkeypatch.setenv("FAKE_FOLDER", str(folder))
    return folder


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A folder that counts as a bucket."""
    monkeypatch.setattr("launch.job.Job.in_bucket", property(lambda job: True))
    return epath.Path(tmp_path / "sweeps" / "digits")


def send(workdir, on, seeds):
    target = submit.Target(on, parse("v5e:2x2"), {"image": "a/b"} if on == "gke" else {}, spot=True)
    arms = make_arms(DIGITS, f"seed={seeds}", {"duration": "5"})
    summary = submit.send_sweep(arms, workdir, target, 0, METRIC, {"sweep": "seeds"})
    return summary, json.loads((workdir / "sweep.json").read_text())["arms"]


def documents(sent):
    return [yaml.safe_load((sent / f"{index}.yaml").read_text()) for index in range(len(list(sent.glob("*.yaml"))))]


@pytest.mark.parametrize("on", ["gke", "sky"])
def test_arms_are_sent_once_and_again_where_they_failed(bucket, sent, on, capsys):
    summary, arms = send(bucket, on, "0,1,2")
    assert summary == {"arms": 3, "done": 0, "running": 0, "sent": 3, "failed": []}
    names = [arm["job"] for arm in arms]
    assert len({*names}) == 3
    for document, arm in zip(documents(sent), arms, strict=True):
        name = document["metadata"]["name"] if on == "gke" else document["name"]
        assert name == arm["job"]
        assert arm["name"].endswith(name.removeprefix("digits-"))
        for word in (f"--workdir={bucket / arm['name']}", "--config.duration=5"):
            assert word in json.dumps(document)

    # One is done, one still runs, one is gone.
    (bucket / arms[0]["name"]).mkdir()
    (bucket / arms[0]["name"] / "result.json").write_text(json.dumps({METRIC: 0.9}))
    ended = {names[2]: "Failed"} if on == "gke" else {}
    (sent / "there").write_text(json.dumps({names[1]: "", **ended}))
    summary, arms = send(bucket, on, "0,1,2,3")
    assert summary == {"arms": 4, "done": 1, "running": 1, "sent": 2, "failed": [arms[2]["name"]]}
    assert [arm["status"] for arm in arms] == ["done", "running", "sent", "sent"]
    # Kubernetes has no second job of a name.
    assert arms[2]["job"] == f"{names[2]}-2"
    assert len(documents(sent)) == 5
    assert f"gone without a result, sent again: {arms[2]['name']}" in capsys.readouterr().err


def test_what_was_sent_is_known_though_the_next_was_refused(bucket, sent):
    (sent / "refuse").write_text("1")
    with pytest.raises(UserError, match=r"kubectl apply .* ended with exit code 1"):
        send(bucket, "gke", "0,1,2")
    arms = json.loads((bucket / "sweep.json").read_text())["arms"]
    assert ["job" in arm for arm in arms] == [True, False, False]
    (sent / "refuse").unlink()
    (sent / "there").write_text(json.dumps({arms[0]["job"]: ""}))
    summary, _ = send(bucket, "gke", "0,1,2")
    assert summary == {"arms": 3, "done": 0, "running": 1, "sent": 2, "failed": []}


def test_a_directory_that_would_be_lost_is_refused(tmp_path, sent):
    with pytest.raises(UserError, match="in a bucket"):
        send(epath.Path(tmp_path / "x"), "sky", "0")
    assert not documents(sent)


def test_a_program_that_is_not_there(bucket, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="kubectl is not installed"):
        send(bucket, "gke", "0")


def test_a_target_that_speaks_another_language(bucket, sent):
    send(bucket, "sky", "0")
    (sent / "there").write_text('"x"')
    Path(sent.parent / "sky").write_text(f"#!{sys.executable}\nprint('no JSON')\n")
    with pytest.raises(UserError, match="what sky says of its jobs cannot be read"):
        send(bucket, "sky", "0")
