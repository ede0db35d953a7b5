"""What each target is sent, offline: against SkyPilot's own schema, the JobSet's structure and submitit itself."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import yaml

from cnn_research.errors import UserError
from launch import submit
from launch.job import Job, make_name, parse_options
from launch.slurm import job as slurm
from launch.topologies import parse

REPOSITORY = Path(__file__).parents[2]
RUN = ("--config=experiments/configs/digits.py:lenet5", "--workdir=gs://bucket/runs/digits_lenet5")
TRAIN = ["-m", "experiments.train", RUN[0], "--config.seed=3", RUN[1]]


def dry_run(capsys, *arguments):
    """Returns what `--dry_run` prints, and the document in it."""
    assert submit.main([*RUN, "--config.seed=3", "--dry_run", *arguments]) == 0
    printed = capsys.readouterr().out
    return printed, yaml.safe_load(printed)


SKY = [
    (("--topology=v5e:4x4", "--spot"), "tpu-v5litepod-16", "v2-alpha-tpuv5-lite", None),
    (("--topology=v4:2x2x2",), "tpu-v4-16", "tpu-ubuntu2204-base", None),
    (("--topology=v6e:16x16", "--option=infra=gcp/us-east5/us-east5-b"), "tpu-v6e-256", "v2-alpha-tpuv6e", None),
    (("--topology=h100:2x8",), "H100:8", None, 2),
    (("--topology=l4:1x1", "--option=python=3.12"), "L4:1", None, None),
]


@pytest.mark.parametrize(("arguments", "accelerators", "runtime", "nodes"), SKY)
def test_a_task_for_skypilot(capsys, arguments, accelerators, runtime, nodes):
    printed, task = dry_run(capsys, "--on=sky", *arguments)
    assert printed.startswith("# sky jobs launch --yes --detach-run --name digits-lenet5 FILE\n")
    resources = task["resources"]
    assert resources["accelerators"] == accelerators
    assert resources.get("accelerator_args", {}).get("runtime_version") == runtime
    assert task.get("num_nodes") == nodes
    assert resources["use_spot"] == ("--spot" in arguments)
    assert resources["job_recovery"]["recover_on_exit_codes"] == [75]
    assert "max_restarts_on_errors" not in resources["job_recovery"]  # which would start a wrong run again
    assert task["run"] == "exec .venv/bin/python " + " ".join(TRAIN)
    assert ("tpu" if runtime else "gpu") + ",gcs]" in task["setup"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [arguments for arguments, *_ in SKY])
def test_skypilots_own_schema(capsys, arguments):
    schemas = pytest.importorskip("sky.utils.schemas")
    import jsonschema

    _, task = dry_run(capsys, "--on=sky", *arguments)
    jsonschema.validate(task, schemas.get_task_schema())
    jsonschema.validate(task["resources"], schemas.get_resources_schema())


@pytest.mark.parametrize(
    ("topology", "spot", "slices", "vms", "chips", "accelerator"),
    [
        ("v5e:16x16", False, 1, 64, 4, "tpu-v5-lite-podslice"),
        ("2xv5e:2x4", True, 2, 1, 8, "tpu-v5-lite-podslice"),
        ("4xv5p:4x4x4", False, 4, 16, 4, "tpu-v5p-slice"),
    ],
)
def test_a_jobset(capsys, topology, spot, slices, vms, chips, accelerator):
    """Fields and types of jobset.x-k8s.io/v1alpha2, batch/v1 and v1 that a multi-host slice of TPUs needs."""
    flags = ["--on=gke", f"--topology={topology}", "--option=image=registry/image", *(["--spot"] if spot else [])]
    printed, jobset = dry_run(capsys, *flags)
    assert printed.startswith("# kubectl apply --filename FILE\n# The nodes of a slice, once: gcloud container ")
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert jobset["metadata"]["name"] == "digits-lenet5"
    assert set(jobset["metadata"]["annotations"]) == {"alpha.jobset.sigs.k8s.io/exclusive-topology"}
    spec = jobset["spec"]
    assert set(spec) == {"failurePolicy", "replicatedJobs"}
    assert spec["failurePolicy"]["maxRestarts"] == 100
    [replicated] = spec["replicatedJobs"]
    assert replicated["replicas"] == slices
    job = replicated["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (vms, vms, 0)
    pod = job["template"]["spec"]
    assert (pod["restartPolicy"], pod["hostNetwork"], pod["dnsPolicy"]) == ("Never", True, "ClusterFirstWithHostNet")
    selector = pod["nodeSelector"]
    assert selector["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert selector["cloud.google.com/gke-tpu-topology"] == topology.split(":")[1]
    assert selector.get("cloud.google.com/gke-spot") == ("true" if spot else None)
    assert {toleration["key"] for toleration in pod["tolerations"]} >= {"google.com/tpu"}
    [container] = pod["containers"]
    assert container["command"] == ["python", *TRAIN]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert all(isinstance(value, str) for value in selector.values())


def test_a_jobset_never_restarts_what_is_wrong(capsys):
    """Exit code 2 fails the job for a reason by which the JobSet fails; any other reason starts it again."""
    _, jobset = dry_run(capsys, "--on=gke", "--topology=v5e:4x4", "--option=image=a/b", "--option=max_restarts=7")
    policy = jobset["spec"]["failurePolicy"]
    assert policy == {
        "maxRestarts": 7,
        "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
    }
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    assert rule["action"] == "FailJob"
    codes = rule["onExitCodes"]
    assert (codes["operator"], codes["values"]) == ("In", [2])
    assert codes["containerName"] == job["template"]["spec"]["containers"][0]["name"]


def test_a_job_for_slurm(capsys):
    options = ("--option=partition=gpu", "--option=hours=4", "--option=cpus=16")
    _, document = dry_run(capsys, "--on=slurm", "--topology=h100:2x8", *options)
    assert document["command"] == [sys.executable, *TRAIN]
    parameters = document["parameters"]
    assert (parameters["nodes"], parameters["tasks_per_node"], parameters["gpus_per_node"]) == (2, 8, 8)
    assert (parameters["timeout_min"], parameters["cpus_per_task"], parameters["slurm_partition"]) == (240, 16, "gpu")


@pytest.fixture
def submitit(monkeypatch):
    """submitit without its logging, which would close the handlers of others, and pytest's output with absl's."""
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    return pytest.importorskip("submitit")


def test_submitit_takes_the_parameters(submitit, capsys, tmp_path, monkeypatch):
    _, document = dry_run(capsys, "--on=slurm", "--topology=h100:2x8", "--option=partition=gpu")
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 2))
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    executor = submitit.AutoExecutor(tmp_path, cluster="slurm", slurm_max_num_timeout=1000)
    executor.update_parameters(**document["parameters"])
    script = executor._executor._make_submission_file_text("COMMAND", "uid")
    for line in ("--nodes=2", "--ntasks-per-node=8", "--gpus-per-node=8", "--partition=gpu", "--requeue",
                 "--signal=USR2@180", "--time=1440", "--job-name=digits-lenet5"):  # fmt: skip
        assert f"#SBATCH {line}\n" in script


TWICE = """
import os, pathlib, signal, sys, time
began = pathlib.Path(sys.argv[1])
runs = began.read_text() if began.exists() else ""
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
began.with_suffix(".parent").write_text(str(os.getppid()))
began.write_text(runs + "x")
if runs: sys.exit(0)
if sys.argv[2] == "wait": time.sleep(60)
sys.exit(int(sys.argv[2]))
"""


@pytest.fixture
def executor(submitit, tmp_path, monkeypatch):
    """submitit's own executor without Slurm, which runs jobs as processes."""
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return submitit.AutoExecutor(tmp_path / "slurm", cluster="local")


def test_submitit_runs_a_job_until_it_is_done(executor, tmp_path):
    """Exit code 75 is run again, 2 never, and a job whose time is over saves, ends and is queued again."""
    from submitit.core.utils import FailedJobError

    files = {how: tmp_path / how for how in ("75", "2", "wait")}
    jobs = {
        how: executor.submit(slurm.Command([sys.executable, "-c", TWICE, str(file), how]))
        for how, file in files.items()
    }
    while not files["wait"].exists():
        time.sleep(0.05)
    # The signal that Slurm sends before the end.
    os.kill(int(files["wait"].with_suffix(".parent").read_text()), signal.SIGUSR2)
    assert jobs["75"].result() == 0
    with pytest.raises(FailedJobError, match="ended with exit code 2"):
        jobs["2"].result()
    assert jobs["wait"].result() == 0
    assert {how: file.read_text() for how, file in files.items()} == {"75": "xx", "2": "x", "wait": "xx"}


def test_several_jobs_for_slurm_are_an_array(submitit, tmp_path, monkeypatch):
    """As submitit's own executor without Slurm takes them; they end at once, for there is no such recipe."""
    made = []

    def local(folder, cluster, **_):
        made.append(real(folder, cluster="local"))
        return made[0]

    real = submitit.AutoExecutor
    monkeypatch.setattr(submitit, "AutoExecutor", local)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    jobs = [Job(f"arm-{index}", parse("h100:1x1"), str(tmp_path / str(index)), ("--config=no.py",)) for index in "ab"]
    first, second = slurm.submit(jobs, {}, at_once=1)
    assert first != second
    made[0].update_parameters(timeout_min=1)  # still of the local kind
    for number in (first, second):
        job = submitit.LocalJob(folder=tmp_path / "a" / "slurm", job_id=number)
        assert "ended with exit code 2" in str(job.exception())


@pytest.mark.parametrize(("code", "runs"), [(75, "xx"), (2, "x"), (0, "x")])
def test_a_local_run_is_started_again_on_75_alone(tmp_path, code, runs):
    file = tmp_path / "runs"
    assert submit.run_until_done([sys.executable, "-c", TWICE, str(file), str(code)]) == (0 if code == 75 else code)
    assert file.read_text() == runs


def test_the_command_on_this_machine(capsys):
    printed, _ = dry_run(capsys, "--on=local", "--topology=local:2x4")
    train = " ".join([sys.executable, *TRAIN])
    assert printed == f"{sys.executable} -m launch.local --processes=2 --devices=4 -- {train}\n"
    assert dry_run(capsys, "--on=local", "--topology=local")[0] == train + "\n"


@pytest.mark.slow
def test_a_run_on_this_machine_really_trains(tmp_path, data_dir):
    fields = ["duration=2", "tensorboard=False", "data.workers=0"]
    arguments = ["--config=experiments/configs/digits.py:lenet5_modern", *(f"--config.{field}" for field in fields)]
    assert submit.main(["--on=local", "--topology=local", f"--workdir={tmp_path / 'run'}", *arguments]) == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["step"] == 2


def test_names():
    assert make_name("gs://bucket/runs/ImageNet_resnet50/") == "imagenet-resnet50"
    assert make_name("runs/2026_11") == "run-2026-11"
    assert make_name("x" * 60) == "x" * 40


def test_options():
    assert parse_options(["a=b=c"], {"a": "a letter"}) == {"a": "b=c"}
    with pytest.raises(UserError, match="option a has no value; write --option=a=…: a letter"):
        parse_options(["a"], {"a": "a letter"})


SLICE, BUCKET = "--topology=v5e:4x4", "--workdir=gs://bucket/run"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--on=sky", SLICE, "--workdir=runs/a"], "workdir runs/a would be lost with SkyPilot's machines; give one in"),
        (["--on=gke", SLICE, "--workdir=runs/a"], "workdir runs/a would be lost with GKE's machines; give one in a"),
        (["--on=sky", "--topology=2xv5e:4x4", BUCKET], "SkyPilot starts one slice a job, not 2xv5e:4x4; use --on=gke"),
        (["--on=sky", "--topology=local", BUCKET], "SkyPilot starts no local; give a slice"),
        (["--on=gke", "--topology=h100:2x8", BUCKET], "a JobSet here wants TPUs, not h100:2x8; give v5e:4x4"),
        (["--on=gke", SLICE, BUCKET], "--option=image=… is missing: of a container with this repository"),
        (["--on=gke", SLICE, BUCKET, "--option=imag=a"], "option 'imag' is unknown here; did you mean 'image'?"),
        (["--on=gke", SLICE, BUCKET, "--option=image=a", "--option=max_restarts=x"], "--option=max_restarts=x is no"),
        (["--on=slurm", SLICE, BUCKET], "Slurm starts nodes of GPUs, not v5e:4x4; give h100:2x8 for 2 nodes of 8"),
        (["--on=slurm", "--topology=l4:1x1", BUCKET, "--option=hours=0"], "--option=hours=0 is no number: after which"),
        (["--on=local", SLICE, BUCKET], "v5e:4x4 is not on this machine; give local:2x4, 2 processes of 4 devices"),
        (["--on=local", "--topology=v5e:3x3", BUCKET], "v5e comes in no slice 3x3; there are 1x1"),
        (["--on=local", "--topology=local", BUCKET, "--seed=3"], "unexpected argument '--seed=3'; the run's own flags"),
        (["--on=here", SLICE, BUCKET], "argument --on: invalid choice: 'here'"),
    ],
)  # fmt: skip
def test_what_is_not_right_is_refused(arguments, message):
    with pytest.raises(UserError) as raised:
        submit.main(["--config=experiments/configs/digits.py:lenet5", "--dry_run", *arguments])
    assert str(raised.value).startswith(message)


def test_a_recipe_that_is_not_there():
    with pytest.raises(UserError, match=r"there is no recipe 'digits\.py'; recipes are in experiments/configs"):
        submit.main(["--on=local", "--topology=local", "--config=digits.py:lenet5", "--workdir=runs/a"])
