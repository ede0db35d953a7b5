"""How processes find each other, and how one that fails ends the others."""

import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from cnn_research.errors import UserError
from cnn_research.training import distributed

REPOSITORY = Path(__file__).parents[2]
CLUSTERS = ("JAX_", "SKYPILOT_", "SLURM_", "OMPI_", "TPU_")


@pytest.fixture
def joined(monkeypatch):
    """Keeps the arguments that JAX would be given, in an environment that says nothing."""
    for name in [name for name in os.environ if name.startswith(CLUSTERS)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")  # what JAX sets where there is no TPU
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **arguments: calls.append(arguments))
    return calls


def place(coordinator, processes, process_id):
    return {
        "coordinator_address": coordinator,
        "num_processes": processes,
        "process_id": process_id,
        "cluster_detection_method": "deactivate",
        "heartbeat_timeout_seconds": distributed.HEARTBEAT,
    }


DETECTED = {"cluster_detection_method": None, "heartbeat_timeout_seconds": distributed.HEARTBEAT}
LAUNCHED = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:5000", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
SKYPILOT = {"SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1"}
SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "node[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, []),
        (LAUNCHED, [place("127.0.0.1:5000", 2, 1)]),
        ({**LAUNCHED, "JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, []),
        (SKYPILOT, [place("10.0.0.7:8476", 2, 1)]),
        ({**SKYPILOT, "JAX_COORDINATOR_PORT": "99"}, [place("10.0.0.7:99", 2, 1)]),
        ({**SKYPILOT, "SKYPILOT_NUM_NODES": "1", "SKYPILOT_NODE_RANK": "0"}, []),
        (SLURM, [DETECTED]),
        ({**SLURM, "SLURM_NTASKS": "1"}, []),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, []),  # allocated, but not started by srun
        ({"OMPI_COMM_WORLD_SIZE": "4"}, [DETECTED]),
    ],
)
def test_environment_says_where_the_others_are(joined, monkeypatch, variables, expected):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert joined == expected


def test_pod_of_tpus_is_left_to_jax(joined, monkeypatch):
    """Even where SkyPilot counts its machines."""
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu")
    monkeypatch.delenv("TPU_SKIP_MDS_QUERY")
    for name, value in SKYPILOT.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # one machine of the pod is to work alone
    monkeypatch.delenv("SKYPILOT_NUM_NODES")
    distributed.initialize()
    assert joined == [DETECTED]


def test_arguments_come_before_the_environment(joined, monkeypatch):
    for name, value in SKYPILOT.items():
        monkeypatch.setenv(name, value)
    distributed.initialize("host:1", 4, 3, heartbeat=9)
    assert joined == [{**place("host:1", 4, 3), "heartbeat_timeout_seconds": 9}]


@pytest.mark.parametrize("given", [("host:1", 0, -1), ("", 2, 0), ("host", 2, 0), ("host:1", 2, 2)])
def test_half_a_place_is_refused(joined, given):
    with pytest.raises(UserError, match="are no place in a run of several processes; give host:port of the first"):
        distributed.initialize(*given)
    assert joined == []


SCRIPT = """
import os, signal, sys, time
import jax
from jax.experimental import multihost_utils
from cnn_research.errors import UserError
from cnn_research.training import distributed
from experiments import command_line
index = int(os.environ["JAX_PROCESS_ID"])
def main():
    distributed.initialize(heartbeat=3)
    assert jax.process_count() == 2
    multihost_utils.sync_global_devices("both are there")
    {then}
    time.sleep(60)
command_line.run(main)
"""


def rehearse(then):
    """Returns the exit code, stderr and the seconds that it took."""
    began = time.monotonic()
    code = SCRIPT.format(then=then)
    command = [sys.executable, "-m", "launch.local", "--processes=2", "--devices=1", "--grace=1", "--", sys.executable]
    process = subprocess.run([*command, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=100)
    return process.returncode, process.stderr, time.monotonic() - began


@pytest.mark.parametrize(
    ("then", "code", "message"),
    [
        ("if index == 1: raise UserError('no data here')", 2, "[1] error: no data here\n"),
        ("if index == 0: raise UserError('no data here')", 2, "[0] error: no data here\n"),
        ("raise UserError('no data here')", 2, "] error: no data here\n"),
        ("if index == 1: 1 / 0", 1, "[1] ZeroDivisionError: division by zero\n"),
    ],
)
def test_one_that_fails_ends_the_other_and_says_why(then, code, message):
    result, err, _ = rehearse(then)
    assert result == code, err
    assert err.count(message) == 1
    assert "ended, since process" in err


def test_one_that_hangs_is_named():
    """By JAX's heartbeat, which ends the other one."""
    code, err, _ = rehearse("if index == 1: os.kill(os.getpid(), signal.SIGSTOP)")
    assert code == 128 + 6
    assert "(stopped sending heartbeats):\n[0] 1\n" in err
    assert "launch.local: process 0 was ended by SIGABRT; ending the others" in err
