import json
import os
import shutil
import signal
import threading
import time

import filelock
import jax
import numpy as np
import pytest

from cnn_research import analysis, training
from cnn_research.errors import UserError
from cnn_research.training import config as configs
from cnn_research.training.checkpoints import Checkpoints
from cnn_research.training.writers import read_records


def train(config, workdir):
    return training.train(config, workdir, jax.devices()[:1])


def params(workdir, step=None):
    return jax.device_get(analysis.load_run(workdir, step).variables)


def assert_equal(first, second):
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.fixture(scope="module")
def config(digits_config):
    config = digits_config(norm="batch", dropout_rate=0.2)
    config.augmentation.update(pad_crop=2, mixup=0.2)
    config.ema = 0.9
    return config


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """A run that nothing disturbed: its directory and its result."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, train(config, workdir)


def test_directory(whole, config):
    workdir, result = whole
    assert json.loads((workdir / "result.json").read_text()) == result
    assert result["step"] == 12
    assert result["test/examples"] == 360
    assert 0 < result["test/accuracy"] <= 1
    # Norms follow C1, C3 and C5: two numbers a channel in place of one bias.
    assert result["params"] == 61_706 + 6 + 16 + 120
    saved = configs.load(workdir)
    assert not configs.differences(saved, configs.from_json(configs.to_json(saved)))
    assert saved.data.num_examples == 1437
    assert saved.data.class_names == tuple("0123456789")
    records = read_records(workdir / "metrics.jsonl")
    assert [record["step"] for record in records if "train/loss" in record] == [4, 6, 8, 12]
    assert [record["step"] for record in records if "test/accuracy" in record] == [6, 12]
    assert {"jax", "flax"} <= json.loads((workdir / "environment.json").read_text())["versions"].keys()
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["12", "6"]


def test_the_host_does_not_run_too_far_ahead(digits_config, tmp_path):
    """XLA's CPU client hangs when several devices have 32 steps to do."""
    config = digits_config("mlp")
    config.update(duration="100", log_every=100, eval_every="100", checkpoint_every="100")
    assert training.train(config, tmp_path)["step"] == 100


def test_second_start_changes_nothing(whole, config):
    workdir, result = whole
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*")}
    assert train(config, workdir) == result
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob("*")} == before


def test_another_config_is_refused(whole, config):
    workdir, _ = whole
    other = config.copy_and_resolve_references()
    other.optimizer.learning_rate = 0.5
    with pytest.raises(UserError, match=r"another config \(optimizer.learning_rate: 0.02 there, 0.5 here\)"):
        train(other, workdir)
    other = config.copy_and_resolve_references()
    other.log_every = 7  # how a run is watched may change
    train(other, workdir)


def test_stopped_anywhere_and_resumed_is_the_same(whole, config, tmp_path):
    """SIGTERM in the middle of the run, between checkpoints."""
    workdir, result = whole
    reached = threading.Event()

    def terminate():
        while not (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)
        reached.set()

    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(training.Stopped) as stop:
        train(config, tmp_path)
    thread.join()
    assert reached.is_set()
    assert 4 <= stop.value.step <= 12
    assert stop.value.signal == signal.SIGTERM
    assert not (tmp_path / "result.json").exists()
    again = train(config, tmp_path)
    assert_equal(params(tmp_path), params(workdir))
    assert {key: again[key] for key in again if "/" in key and key != "train/loss"} == {
        key: result[key] for key in result if "/" in key and key != "train/loss"
    }


def test_a_run_that_is_older_than_fields_goes_on(whole, config, tmp_path):
    """It was interrupted when these did not exist, and ends as it would have; one that was turned on is still named."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "12")
    stored = json.loads((workdir / "config.json").read_text())
    del (
        stored["shard_state"],
        stored["augmentation"]["mosaic"],
        stored["model"]["sharing"],
        stored["optimizer"]["beta1"],
    )
    for field in ("image", "crop_size", "crop_on", "mask", "max_objects", "max_proposals", "mirror"):
        del stored["data"][field]
    (workdir / "config.json").write_text(json.dumps(stored))
    assert_equal(params(workdir), params(whole[0], 6))
    other = config.copy_and_resolve_references()
    other.augmentation.mosaic = 0.5
    with pytest.raises(UserError, match=r"another config \(augmentation.mosaic: 0.0 there, 0.5 here\)"):
        train(other, workdir)
    assert train(config, workdir)["step"] == 12
    assert_equal(params(workdir), params(whole[0]))


def test_fields_of_a_run_that_are_not_known_are_named(whole, tmp_path, capsys):
    shutil.copytree(whole[0], tmp_path / "run")
    path = tmp_path / "run" / "config.json"
    stored = json.loads(path.read_text())
    stored["data"]["colour"] = "blue"
    path.write_text(json.dumps(stored))
    assert_equal(params(tmp_path / "run"), params(whole[0]))
    assert "fields of its config are not known here and do nothing: data.colour\n" in capsys.readouterr().err
    stored["augmentation"]["hues"] = 0.1
    path.write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"augmentation\.hues is no field; did you mean 'hue'"):
        params(tmp_path / "run")


def test_resumed_on_other_devices(config, tmp_path):
    half = config.copy_and_resolve_references()
    train(config, tmp_path)
    # Back to the checkpoint in the middle, as if the run had been killed there.
    (tmp_path / "result.json").unlink()
    for path in sorted((tmp_path / "checkpoints" / "12").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "checkpoints" / "12").rmdir()
    half.parallel = "pmap"
    result = train(half, tmp_path)
    assert result["step"] == 12
    records = read_records(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if "train/loss" in record] == [4, 6, 8, 12]


def test_unfinished_run_writes_its_result(whole, config):
    """Killed between the last checkpoint and the result."""
    workdir, result = whole
    before = read_records(workdir / "metrics.jsonl")
    (workdir / "result.json").unlink()
    again = train(config, workdir)
    assert again["test/accuracy"] == result["test/accuracy"]
    assert again["step"] == 12
    after = read_records(workdir / "metrics.jsonl")
    assert [record["step"] for record in after] == [record["step"] for record in before]


def test_one_process_at_a_time(config, tmp_path):
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="another process is training in"):
        train(config, tmp_path)


def test_best_checkpoint_is_kept(config, tmp_path):
    """And the steps that `profile` names are traced."""
    other = config.copy_and_resolve_references()
    other.update(eval_every="3", checkpoint_every="3", keep_last=1, keep_best=1, profile="4:6")
    train(other, tmp_path)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    records = [record for record in read_records(tmp_path / "metrics.jsonl") if "test/accuracy" in record]
    best = max(records, key=lambda record: (record["test/accuracy"], record["step"]))["step"]
    with Checkpoints(tmp_path, metric="test/accuracy", read_only=True) as checkpoints:
        assert checkpoints.steps == sorted({best, 12})
        assert checkpoints.best == best


@pytest.mark.parametrize("profile", ["4:8", "10:99"])
def test_profiled_steps_may_begin_or_end_outside_the_run(whole, config, tmp_path, profile):
    """It goes on in the middle of them, or ends before their last."""
    workdir = tmp_path / "run"
    shutil.copytree(whole[0], workdir)
    (workdir / "result.json").unlink()
    shutil.rmtree(workdir / "checkpoints" / "12")
    other = config.copy_and_resolve_references()
    other.profile = profile
    assert train(other, workdir)["step"] == 12
    assert list((workdir / "profile").rglob("*.xplane.pb"))


class TestNotFinite:
    def test_divergence_is_named_and_explained(self, digits_config, tmp_path):
        config = digits_config(activation="identity")
        config.update(duration="40", log_every=10, checkpoint_every="10", eval_every="40")
        # After one step weights are about 1e29: C1's outputs are still finite, C3's are not.
        config.optimizer.update(learning_rate=1e30, warmup="0", schedule="constant")
        with pytest.raises(UserError, match=r"not finite at step 1: .* first in the output of layer 'C3'"):
            train(config, tmp_path)
        report = json.loads((tmp_path / "postmortem" / "report.json").read_text())
        assert report["step"] == 1
        assert report["first"] == {"kind": "output", "layer": "C3"}
        batch = np.load(tmp_path / "postmortem" / "batch.npz")
        assert batch["image"].shape == (32, 32, 32, 1)
        assert len(report["examples"]) == 32

    def test_last_good_checkpoint_stays(self, digits_config, tmp_path):
        config = digits_config()
        config.update(duration="40", log_every=5, checkpoint_every="5", eval_every="40")
        # The rate is multiplied by 1e20 at step 13.
        config.optimizer.update(schedule="step", milestones=("13",), factor=1e20, warmup="0", learning_rate=0.01)
        with pytest.raises(UserError, match="the checkpoint of step 10 stays"):
            train(config, tmp_path)
        run = analysis.load_run(tmp_path)
        assert run.step == 10
        report = json.loads((tmp_path / "postmortem" / "report.json").read_text())
        assert report["replayed_from"] == 10
        # The update of step 13 ruins the parameters, which step 14 sees.
        assert report["step"] in (13, 14)
        np.testing.assert_array_equal(
            run.batch(report["step"])["image"], np.load(tmp_path / "postmortem/batch.npz")["image"]
        )


def test_train_error_falls_to_nothing_on_few_examples(digits_config, tmp_path):
    """The loop learns: LeNet-5 of 1998, with its own loss, overfits 64 digits."""
    config = digits_config("lenet5")
    config.update(duration="150", batch_size=64, log_every=50, eval_every="150", checkpoint_every="150")
    config.data.update(train="train[:64]", test="train[:64]")
    config.loss.criterion = "map"
    config.optimizer.update(learning_rate=0.01, clip_norm=10.0)
    assert train(config, tmp_path)["train[:64]/accuracy"] == 1.0
