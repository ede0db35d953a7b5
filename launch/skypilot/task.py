"""A run as a SkyPilot task. https://docs.skypilot.co/en/latest/reference/yaml-spec.html."""

import shlex
from collections.abc import Mapping
from typing import Any

from cnn_research.errors import UserError
from launch.job import TRY_AGAIN, Job, require_bucket
from launch.topologies import GPUS, TPUS

OPTIONS = {
    "infra": "cloud/region/zone, such as gcp/us-west4/us-west4-a",
    "python": "version of Python that is made there (3.11, which constraints.txt pins for)",
}

# The images of TPU VMs have an older Python.
SETUP = """\
set -e
python3 -m pip install --quiet --user uv || python3 -m pip install --quiet uv
export PATH="$HOME/.local/bin:$PATH"
[ -d .venv ] || uv venv --python {python} .venv
uv pip install --quiet --python .venv/bin/python -c constraints.txt -e '.[{extras}]'
"""


def render(job: Job, options: Mapping[str, str]) -> dict[str, Any]:
    """Returns the task.

    Args:
      job: to launch.
      options: see `OPTIONS`.

    Raises:
      UserError: SkyPilot has no such machines, or the run's directory would be lost with them.
    """
    require_bucket(job, "SkyPilot")
    topology, task = job.topology, {"name": job.name, "workdir": "."}
    resources: dict[str, Any] = {
        "use_spot": job.spot,
        # Lost machines are replaced in any case, other exit codes end the job.
        "job_recovery": {"strategy": "EAGER_NEXT_REGION", "recover_on_exit_codes": [TRY_AGAIN]},
    }
    if topology.kind in TPUS:
        if topology.slices > 1:
            raise UserError(f"SkyPilot starts one slice a job, not {topology}; use --on=gke")
        tpu = TPUS[topology.kind]
        resources["accelerators"] = f"{tpu.sky}-{topology.chips * tpu.cores}"
        resources["accelerator_args"] = {"runtime_version": tpu.runtime}
        extras = "tpu,gcs"
    elif topology.kind in GPUS:
        nodes, each = topology.shape
        resources["accelerators"] = f"{GPUS[topology.kind]}:{each}"
        if nodes > 1:
            task["num_nodes"] = nodes  # type: ignore[assignment]
            resources["network_tier"] = "best"
        extras = "gpu,gcs"
    else:
        raise UserError(f"SkyPilot starts no {topology}; give a slice, v5e:4x4, or nodes of GPUs, h100:2x8")
    if "infra" in options:
        resources["infra"] = options["infra"]
    return {
        **task,
        "resources": resources,
        "setup": SETUP.format(python=shlex.quote(options.get("python", "3.11")), extras=extras),
        # Without a shell in between, signals reach Python.
        "run": "exec " + shlex.join([".venv/bin/python", *job.module]),
    }


def command(path: str, job: Job) -> list[str]:
    """Returns the command that sends a task.

    Args:
      path: of the task's file.
      job: to launch.
    """
    return ["sky", "jobs", "launch", "--yes", "--detach-run", "--name", job.name, path]
