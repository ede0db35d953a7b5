"""Checkpoints on disks that fail: damaged ones are found out and set aside, full disks are named."""

import gc
import os
import random
import resource
import shutil
import sys
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.training import checkpoints as checkpoints_module
from cnn_research.training.checkpoints import Checkpoints, checksums
from cnn_research.training.state import TrainState

SHARDING = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_state(step):
    generator = np.random.default_rng(step)

    def draw(*shape):
        return jnp.asarray(generator.normal(size=shape), jnp.float32)

    return TrainState(
        step=jnp.int32(step),
        rng=jax.random.key(0),
        params={"conv": {"kernel": draw(3, 3, 8, 16), "bias": draw(16)}},
        batch_stats={"norm": {"mean": draw(16)}},
        opt_state=({"trace": draw(64, 64)}, {"count": jnp.int32(step)}),
        average={},
    )


ABSTRACT = jax.eval_shape(lambda: make_state(0))
LAYOUT = jax.tree.map(lambda _: SHARDING, ABSTRACT)


def restore(workdir):
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.restore(ABSTRACT, jax.random.key(0), LAYOUT)


def same(first, second):
    first, second = ((state.variables, state.opt_state, state.step) for state in (first, second))
    return jax.tree.all(jax.tree.map(np.array_equal, first, second))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A directory with the checkpoints of steps 10 and 20."""
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir, keep_last=2, metric="test/accuracy") as checkpoints:
        for step in (10, 20):
            checkpoints.save(make_state(step), {"test/accuracy": step / 100})
            checkpoints.wait()
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_saving_leaves_no_threads_and_no_files_open(tmp_path):
    """A run of a few hundred checkpoints would come to the end of its file descriptors."""
    counts = []
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(10):
            checkpoints.save(make_state(step), {})
            checkpoints.wait()
            counts.append((threading.active_count(), len(os.listdir("/dev/fd"))))
            gc.collect()
    assert counts[-1] == counts[5]


def damage(path, how, generator):
    content = bytearray(path.read_bytes())
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        path.write_bytes(content[: generator.randrange(len(content))])
    else:
        content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        path.write_bytes(content)


def test_whole_checkpoint(workdir, capfd):
    assert same(restore(workdir), make_state(20))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("count", [4, pytest.param(300, marks=pytest.mark.slow)])
def test_damage_is_never_silent(saved, tmp_path, capfd, count):
    """Bits flipped, files cut or deleted anywhere: the values are right, or the checkpoint before is used."""
    generator = random.Random(count)
    files = sorted(path for path in (saved / "checkpoints" / "20").rglob("*") if path.is_file() and path.stat().st_size)
    fell_back = 0
    for trial in range(count):
        workdir = tmp_path / str(trial)
        shutil.copytree(saved, workdir)
        weights = [path.stat().st_size ** 0.5 for path in files]
        path = workdir / generator.choices(files, weights)[0].relative_to(saved)
        how = ("flip", "flip", "truncate", "delete")[trial % 4]
        damage(path, how, generator)
        state = restore(workdir)
        err = capfd.readouterr().err.splitlines()
        if same(state, make_state(20)):
            assert err == []
            continue
        fell_back += 1
        assert same(state, make_state(10)), (how, path)
        assert len(err) == 1
        assert f"damaged in {workdir / 'checkpoints'}, and set aside: the checkpoint of step 20 (" in err[0]
        assert sorted(found.name for found in (workdir / "checkpoints").iterdir()) == ["10", "damaged_20"]
        shutil.rmtree(workdir)
    assert fell_back >= count / 4


def test_step_after_a_damaged_one_is_saved_anew(workdir):
    (workdir / "checkpoints/20/training/manifest.ocdbt").unlink()
    with Checkpoints(workdir, keep_last=2) as checkpoints:
        assert int(checkpoints.restore(ABSTRACT, jax.random.key(0), LAYOUT).step) == 10
        assert checkpoints.steps == [10]
        checkpoints.save(make_state(20), {})
    assert same(restore(workdir), make_state(20))


def test_damaged_metrics(workdir, capfd):
    """Orbax would not even open the directory."""
    for step in (20, 10):
        (workdir / f"checkpoints/{step}/metrics/metrics").write_text('{"test/acc')
        if step == 20:
            assert same(restore(workdir), make_state(10))
            assert "set aside: the checkpoint of step 20 (metrics: " in capfd.readouterr().err
    with pytest.raises(UserError, match=r"damaged in .*: the checkpoint of step 10 \(metrics: "):
        restore(workdir)


def test_all_damaged(workdir):
    for step in (10, 20):
        (workdir / f"checkpoints/{step}/variables/manifest.ocdbt").write_bytes(b"")
    with pytest.raises(UserError, match=r"no checkpoint in .* can be read: the checkpoint of step 20 \(.*step 10 \("):
        restore(workdir)
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == ["10", "20"]  # nothing is taken away


def test_evaluation_names_a_damaged_checkpoint_and_the_others(workdir):
    (workdir / "checkpoints/20/variables/manifest.ocdbt").unlink()
    with (
        Checkpoints(workdir, read_only=True) as checkpoints,
        pytest.raises(UserError, match=r"the checkpoint of step 20 in .* is damaged: .*; there are those of steps 10"),
    ):
        checkpoints.restore_variables(20, ABSTRACT.variables, False, SHARDING)


@pytest.fixture
def full_disk(workdir):
    """Files of more than 4 kB cannot be written."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("full_disk")
def test_full_disk_is_named_and_the_last_checkpoint_stays(workdir):
    def save():
        with Checkpoints(workdir) as checkpoints:
            checkpoints.save(make_state(30), {})

    with pytest.raises(UserError, match=r"cannot write a checkpoint to .*File too large.*; the .* of step 20 stays$"):
        save()
    assert same(restore(workdir), make_state(20))


def test_checksum_changes_with_every_bit_and_not_with_devices():
    mesh = jax.make_mesh((8,), ("devices",))
    tree = {
        "float": np.linspace(-1, 1, 128, dtype=np.float32).reshape(8, 16),
        "half": np.arange(16, dtype=jnp.bfloat16),
        "step": np.int32(7),
        "mask": np.arange(8) % 3 == 0,
    }
    whole = int(checksums({"tree": tree})["tree"])
    cut = jax.device_put(tree["float"], jax.NamedSharding(mesh, jax.P("devices")))
    assert int(checksums({"tree": {**tree, "float": cut}})["tree"]) == whole
    for name in ("float", "half", "step", "mask"):
        for place in range(0, tree[name].nbytes * 8, 8 if name == "mask" else 7):
            bits = np.unpackbits(np.atleast_1d(tree[name]).view(np.uint8), bitorder="little")
            bits[place] ^= 1
            changed = np.packbits(bits, bitorder="little").view(tree[name].dtype).reshape(tree[name].shape)
            assert int(checksums({"tree": {**tree, name: changed}})["tree"]) != whole
    assert int(checksums({"tree": {**tree, "float": tree["float"][::-1]}})["tree"]) != whole


def test_reads_that_end_after_a_fault_are_passed_over(monkeypatch):
    """TensorStore's threads report them to an event loop that Orbax has closed; all else is still said."""
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    checkpoints_module._pass_over_late_reads()
    late, other = (SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "no disk"))
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert said == [other]


def test_a_cause_that_says_a_word_alone_is_named():
    assert checkpoints_module._cause(KeyError(0)) == "KeyError 0"
    assert checkpoints_module._cause(ValueError("the disk is full")) == "the disk is full"
    assert checkpoints_module._cause(StopIteration()) == "StopIteration"
