import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cnn_research.errors import UserError
from experiments import sweep
from experiments.sweeps import executors
from experiments.sweeps.arms import make_arms

REPOSITORY = Path(__file__).parents[2]
DIGITS = "experiments/configs/digits.py"
METRIC = "test/accuracy"

# Stands in for training. `width` says how it is to end.
FAKE = """
import json, signal, sys, time
from pathlib import Path
fields, directory = json.loads(sys.argv[1]), Path(sys.argv[2])
width, accuracy = fields["model.width"], 0.9 + 0.01 * fields["seed"]
with (directory / "calls").open("a") as calls: calls.write("called\\n")
print("step 1")
if width == 2: print("error: width 2 is not right; take 1"), sys.exit(2)
if width == 3: sys.exit(75)
if width == 4:
    def stop(number, _):
        (directory / "told").write_text(signal.Signals(number).name)
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop); signal.signal(signal.SIGINT, stop)
    (directory / "ready").touch()
    time.sleep(60)
if width == 5: raise RuntimeError("a bug")
(directory / "metrics.jsonl").write_text(json.dumps({"step": 1, "test/accuracy": accuracy}) + "\\n")
(directory / "result.json").write_text(json.dumps({"test/accuracy": accuracy, "seconds": 1.0, "params": 7}))
"""


def fake_command(arm, directory):
    return [sys.executable, "-S", "-c", FAKE, json.dumps(arm.fields), str(directory)]


def execute(arms, workdir, jobs, requests):
    return executors.run_locally(arms, workdir, jobs, requests, command=fake_command)


def run_fake(workdir, grid, jobs=1):
    arms = make_arms(str(REPOSITORY / DIGITS), grid, {})
    summary, code = sweep.run_sweep(arms, workdir, execute, jobs, METRIC, sweep=grid)
    listed = json.loads((workdir / "sweep.json").read_text())["arms"]
    assert [entry["name"] for entry in listed] == [arm.name for arm in arms]
    return summary, code, [entry["status"] for entry in listed]


def calls(workdir):
    return {path.parent.name.rpartition("-")[0]: path.read_text().count("called") for path in workdir.glob("*/calls")}


def test_all_arms_run(tmp_path, capsys):
    summary, code, statuses = run_fake(tmp_path, "model.width=1,1.5; seed=0,1", jobs=2)
    assert (code, statuses) == (0, ["done"] * 4)
    assert summary == {"arms": 4, "done": 4, "failed": [], "table": str(tmp_path / "table.md")}
    out, err = capsys.readouterr()
    assert "0.9050 ± 0.0071" in out  # of 0.90 and 0.91
    lines = err.splitlines()
    assert [line.split("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert "test/accuracy 0.9" in lines[0]
    assert "left 00:00" in lines[3]


def test_finished_arms_are_skipped_and_a_grid_grows(tmp_path, capsys):
    run_fake(tmp_path, "model.width=1; seed=0,1")
    capsys.readouterr()
    _, code, statuses = run_fake(tmp_path, "model.width=1; seed=0,1,2")
    assert (code, statuses) == (0, ["done"] * 3)
    assert calls(tmp_path) == {"width=1.0,seed=0": 1, "width=1.0,seed=1": 1, "width=1.0,seed=2": 1}
    err = capsys.readouterr().err
    assert "2 of 3 arms are finished already and skipped" in err
    assert "[3/3] width=1.0,seed=2" in err


def test_a_failed_arm_does_not_stop_the_others(tmp_path, capsys):
    summary, code, statuses = run_fake(tmp_path, "model.width=2,5,1; seed=0")
    assert (code, statuses) == (1, ["failed", "failed", "done"])
    assert [name.rpartition("-")[0] for name in summary["failed"]] == ["width=2.0,seed=0", "width=5.0,seed=0"]
    err = capsys.readouterr().err
    assert "failed: error: width 2 is not right; take 1" in err
    assert "failed: RuntimeError: a bug" in err
    for name in summary["failed"]:
        assert f"failed: {name}; see {tmp_path / name / 'log.txt'}" in err
        assert "step 1" in (tmp_path / name / "log.txt").read_text()
    assert "Missing: " in (tmp_path / "table.md").read_text()


def test_input_that_is_never_right_ends_in_2(tmp_path):
    assert run_fake(tmp_path, "model.width=2; seed=0,1")[1] == 2
    assert run_fake(tmp_path, "model.width=2; seed=0,1")[1] == 2  # tried again
    assert set(calls(tmp_path).values()) == {2}


def test_a_preempted_arm_stops_the_sweep(tmp_path, capsys):
    summary, code, statuses = run_fake(tmp_path, "model.width=1,3,1.5; seed=0")
    assert (code, statuses, summary["done"]) == (75, ["done", "interrupted", "waiting"], 1)
    assert "1 of 3 arms done; the same command goes on" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_reach_the_arms(tmp_path, number):
    arms = make_arms(str(REPOSITORY / DIGITS), "model.width=4; seed=0,1,2", {})
    requests = []

    def ask():
        while len(list(tmp_path.glob("*/ready"))) < 2:
            time.sleep(0.05)
        requests.append(number)

    threading.Thread(target=ask).start()
    outcomes = list(execute(arms, tmp_path, 2, requests))
    assert [outcome.code for outcome in outcomes] == [75, 75]
    assert [path.read_text() for path in tmp_path.glob("*/told")] == [signal.Signals(number).name] * 2


def test_a_sweep_has_its_directory_for_itself(tmp_path):
    with sweep._locked(tmp_path), pytest.raises(UserError, match="another sweep"):
        run_fake(tmp_path, "model.width=1; seed=0")
    assert run_fake(tmp_path, "model.width=1; seed=0")[1] == 0


def test_train_command():
    (arm,) = make_arms(DIGITS, "optimizer.decay='a b'; config=lenet5", {"data.mean": (0.5,)})
    assert executors.train_command(arm, Path("runs/x"))[1:] == [
        "-m", "experiments.train", f"--config={DIGITS}:lenet5", "--config.data.mean=(0.5,)",
        "--config.optimizer.decay=a b", "--workdir=runs/x",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("devices", "jobs", "expected"),
    [
        ([], 0, [None]),
        ([], 3, [None, None, None]),
        (["0", "1"], 0, ["0", "1"]),
        (["0", "1", "2"], 1, [None]),
        (["0", "1", "2"], 2, ["0,2", "1"]),
        (["GPU-a", "GPU-b"], 3, ["GPU-a", "GPU-b", "GPU-a"]),
    ],
)
def test_arms_share_the_gpus(devices, jobs, expected):
    found = executors.shares(devices, jobs)
    assert [share.get("CUDA_VISIBLE_DEVICES") for share in found] == expected
    several = len(devices) and jobs > len(devices)
    assert [share.get("XLA_PYTHON_CLIENT_MEM_FRACTION") for share in found] == ["0.450" if several else None] * len(
        found
    )


def test_gpus(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert executors.gpus() == ["2", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert executors.gpus() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("PATH", "")
    assert executors.gpus() == []  # no nvidia-smi


def test_groups_are_what_one_program_can_train():
    arms = make_arms(DIGITS, "model.norm=none,batch; seed=0,1; optimizer.learning_rate=0.1,0.2", {})
    whole = executors.group(arms)
    assert [[arm.fields["model.norm"] for arm in group.arms] for group in whole] == [["none"] * 4, ["batch"] * 4]
    assert [len(group.arms) for group in executors.group(arms, most=3)] == [3, 1, 3, 1]
    assert len({group.name for group in executors.group(arms, most=3)}) == 4


def test_arms_of_one_program(tmp_path, capsys):
    grid = "optimizer.learning_rate=0.02,1e30; seed=0,1"
    common = {"duration": "10", "eval_every": "10", "tensorboard": "False"}
    arms = make_arms(f"{REPOSITORY / DIGITS}:mlp", grid, common)
    summary, code = sweep.run_sweep(arms, tmp_path, executors.run_together, 0, METRIC, sweep=grid)
    assert code == 1
    assert (summary["done"], len(summary["failed"])) == (2, 2)
    err = capsys.readouterr().err
    assert err.count("failed: error: not finite at step") == 2
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    assert [result["step"] for result in results] == [10, 10]
    assert len({result["test/loss"] for result in results}) == 2
    assert len(list(tmp_path.glob("together-*/log.txt"))) == 1


def start(*arguments, cwd=REPOSITORY, **environment):
    command = [sys.executable, "-m", "experiments.sweep", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, **environment})  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=x", "--report"], "holds no sweep"),
        (["--workdir=x", "--sweep=seed=0", "--executor=sllurm"], "--executor=sllurm is unknown; did you mean 'slurm'"),
        (["--workdir=x", "--sweep=seed=0", "--executor=slurm"], "--topology is missing"),
        (["--workdir=x", "--sweep=seed=0", "--dry_run"], "--dry_run are of sky, gke, slurm"),
        (["--workdir=x", "--sweep=model.nrom=batch"], "did you mean 'model.norm'"),
    ],
)
def test_faults_end_in_one_line(tmp_path, arguments, message):
    arguments = [argument.replace("=x", f"={tmp_path}/x") for argument in arguments]
    process = start(f"--config={DIGITS}", *arguments)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_end_to_end(tmp_path):
    """Trains two real arms, is stopped before the second, goes on, and reports; from another folder, too."""
    arguments = [
        f"--config={REPOSITORY / DIGITS}:mlp", "--sweep=seed=0,1", f"--workdir={tmp_path / 'sweep'}",
        "--config.duration=20", "--config.eval_every=10", "--config.tensorboard=false",
    ]  # fmt: skip
    environment = {"PYTHONPATH": str(REPOSITORY), "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}
    process = start(*arguments, cwd=tmp_path, **environment)
    for line in process.stderr:
        if line.startswith("[1/2]"):
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=300)
    assert process.returncode == 75

    process = start(*arguments, cwd=tmp_path, **environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert summary == {"arms": 2, "done": 2, "failed": [], "table": str(tmp_path / "sweep" / "table.md")}
    assert "1 of 2 arms are finished already and skipped" in err
    results = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("sweep/*/result.json"))]
    assert [result["step"] for result in results] == [20, 20]
    assert f"{sum(result[METRIC] for result in results) / 2:.4f} ±" in out
    assert len(list(tmp_path.glob("sweep/*/checkpoints"))) == 2
    assert (tmp_path / "sweep" / "curves.png").exists()
