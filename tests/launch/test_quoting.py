"""Names, directories and options with whatever a shell, YAML or Kubernetes reads as its own arrive as they are."""

import contextlib
import re
import shlex
import subprocess

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cnn_research.errors import UserError
from launch import remote, submit
from launch.job import Job, make_name, parse_options
from launch.topologies import parse

NASTY = "a b;touch x$(touch y)`touch z`'\"\\|&<>*?[x]{1,2}~#!%s%j${HOME}$$ é"
TEXT = st.one_of(st.text(st.sampled_from(NASTY + "\n\t:-=@"), max_size=12), st.text(st.characters(codec="utf-8")))
TEXTS = TEXT.filter(lambda text: "\0" not in text)  # which no command line holds
QUICK = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
RECIPE = "experiments/configs/digits.py:lenet5"


def make_job(topology, text):
    arguments = (f"--config={RECIPE}", f"--config.data.name={text}")
    printable = "".join(filter(str.isprintable, text))
    return Job(make_name(printable), parse(topology), f"gs://bucket/{printable}", arguments)


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    """A folder in which Python and uv print their arguments; what else runs there would leave a file."""
    folder = tmp_path_factory.mktemp("stub")
    for name in (".venv/bin/python", "bin/uv", "bin/python3"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#!/bin/bash\nprintf "%s\\0" {name} "$@" >> {folder}/arguments\n')
        path.chmod(0o755)
    return folder


def run(script, stub):
    """Returns the arguments of each program that a script starts."""
    (stub / "arguments").write_bytes(b"")
    there = sorted(stub.rglob("*"))
    environment = {"PATH": f"{stub}/bin:/bin:/usr/bin", "HOME": str(stub)}
    subprocess.run(["/bin/bash", "-c", script], cwd=stub, env=environment, check=True, capture_output=True)
    assert sorted(stub.rglob("*")) == there
    return (stub / "arguments").read_bytes().decode().split("\0")[:-1]


@QUICK
@given(TEXTS, TEXTS)
@example(NASTY, NASTY)
def test_skypilot_runs_what_is_meant(stub, text, option):
    job = make_job("v5e:4x4", text)
    python = "".join(filter(str.isprintable, option)) or "3.12"
    document = remote.task.render(job, {"python": python})
    [sent] = yaml.safe_load_all(remote.preview("sky", [job], {"python": python}))
    assert sent == document
    assert run(sent["run"], stub) == [".venv/bin/python", *job.module]
    (stub / ".venv").rename(stub / "away")  # as on a new machine
    try:
        started = run(sent["setup"], stub)
    finally:
        (stub / "away").rename(stub / ".venv")
    assert started[started.index("--python") + 1] == python
    assert started[started.index("venv") + 3] == ".venv"


def kubernetes(word):
    """What Kubernetes makes of a word of a command, with each variable set: `$$` is `$`, and `$(NAME)` a value."""
    return re.sub(r"\$\$|\$\(([^)]*)\)", lambda found: "$" if found[0] == "$$" else "EXPANDED", word)


@QUICK
@given(TEXTS)
@example(NASTY)
def test_kubernetes_runs_what_is_meant(text):
    job = make_job("v5e:4x4", text)
    [sent] = yaml.safe_load_all(remote.preview("gke", [job], {"image": f"a/b{text}"}))
    [container] = sent["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    assert [kubernetes(word) for word in container["command"]] == ["python", *job.module]
    assert container["image"] == f"a/b{text}"
    assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", sent["metadata"]["name"])


@QUICK
@given(TEXTS, TEXTS)
@example(NASTY, "gpu\ntouch x")
def test_slurms_script_has_no_line_of_ours(text, option):
    """Its comments, which are options, are quoted by submitit; the end of a line would end them."""
    slurm = pytest.importorskip("submitit.slurm.slurm")
    job = make_job("h100:2x8", text)
    if not option or not option.isprintable():
        with pytest.raises(UserError, match=r"^option partition "):
            parse_options([f"partition={option}"], remote.OPTIONS["slurm"])
        return
    options = parse_options([f"partition={option}", f"account={option}"], remote.OPTIONS["slurm"])
    told = remote.slurm.parameters(job, options)
    own = {name.removeprefix("slurm_"): told[name] for name in ("slurm_partition", "slurm_account")}
    script = slurm._make_sbatch_string("COMMAND", folder=f"{job.workdir}/slurm", job_name=job.name, **own)
    plain = slurm._make_sbatch_string("COMMAND", folder="slurm", job_name="job", partition="gpu", account="me")
    assert len(script.splitlines()) == len(plain.splitlines())
    subprocess.run(["/bin/bash", "-n"], input=script, text=True, check=True)
    [line] = [line for line in script.splitlines() if line.startswith("#SBATCH --partition=")]
    assert shlex.split(line, comments=False)[1] == f"--partition={option}"


@pytest.mark.parametrize("workdir", ["runs/a\nb", "runs/\x1b[2J", "runs/\udcff"])
def test_a_directory_that_no_line_holds_is_refused(workdir):
    with pytest.raises(UserError, match=r"workdir .* holds characters that are not printable") as raised:
        Job("name", parse("h100:2x8"), workdir, ())
    assert str(raised.value).isprintable()


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(UserError, match=r"argument '--config.data.name=\\udcff' is not in UTF-8"):
        Job("name", parse("h100:2x8"), "runs/a", ("--config.data.name=\udcff",))


FLAGS = ("on", "config", "topology", "workdir", "name", "option", "spot", "config.seed", "x")


@settings(QUICK, max_examples=200)
@given(st.sampled_from(("sky", "gke", "slurm", "local")), st.sampled_from(FLAGS), TEXTS)
@example("sky", "config", "x" * 300)
@example("sky", "workdir", "gs://" + "x" * 300)
def test_submit_takes_anything(on, flag, text):
    """It prints what it would send, or says in a line what is wrong."""
    topology = {"slurm": "h100:2x8", "local": "local:2x4"}.get(on, "v5e:4x4")
    given = [f"--on={on}", f"--config={RECIPE}", f"--topology={topology}", "--workdir=gs://b/run", "--dry_run"]
    image = ["--option=image=a/b"] if on == "gke" else []
    with contextlib.suppress(UserError):
        assert submit.main([*given, *image, f"--{flag}={text}"]) == 0
