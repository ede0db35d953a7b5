"""Several processes as one run: how they find each other, and how one that fails ends the others.

A process that dies or hangs without a word is noticed by JAX's own heartbeat, which ends the others and names it.
"""

import atexit
import importlib.util
import os
import sys
import threading
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cnn_research.errors import UserError

HEARTBEAT = 60  # seconds without a sign of life after which a process counts as dead
MEETING = 300  # seconds that processes wait for each other at first
PORT = 8476  # of the first node's coordinator, where the environment names only nodes

_FAILED = "cnn_research/failed"  # key of what the first process that failed says
_LEFT = "cnn_research/left"  # barrier of those who have heard of it
_POLL = 1.0  # seconds


def initialize(coordinator: str = "", processes: int = 0, process_id: int = -1, heartbeat: int = HEARTBEAT) -> None:
    """Joins the other processes of the run, if there are any; to be called before anything touches a device.

    Args:
      coordinator: address and port of the first process; "" leaves all three to the environment: `launch.local`'s
        variables, SkyPilot's, or what JAX detects (Cloud TPU, Slurm, Open MPI).
      processes: how many there are.
      process_id: which one this is, from 0.
      heartbeat: seconds without a sign of life after which a process counts as dead.

    Raises:
      UserError: some of this is missing, or the others cannot be reached.
    """
    place = _given(coordinator, processes, process_id) or _from_environment(os.environ)
    if not place and not _detectable(os.environ):
        return
    if place.get("num_processes") == 1:
        return
    try:
        jax.distributed.initialize(
            **place,
            cluster_detection_method="deactivate" if place else None,
            heartbeat_timeout_seconds=heartbeat,
        )
    except (ValueError, RuntimeError) as error:
        where = place.get("coordinator_address", "the cluster that JAX detected")
        raise UserError(f"cannot join the other processes at {where}: {error}") from error
    if jax.process_count() > 1:
        _start_watch()
        _meet()


def _meet() -> None:
    """Adds over all devices once, while all processes are here.

    Gloo, which connects CPUs then, gives up after 30 seconds; a process may compile longer than another by more.
    """
    _client().wait_at_barrier("cnn_research/joined", timeout_in_ms=1000 * MEETING)
    mesh = Mesh(np.array(jax.devices()), ("devices",))
    ones = jax.make_array_from_callback(
        (mesh.size,), NamedSharding(mesh, PartitionSpec("devices")), lambda _: np.ones(1, np.float32)
    )
    jax.block_until_ready(jax.jit(jnp.sum, out_shardings=NamedSharding(mesh, PartitionSpec()))(ones))


def _given(coordinator: str, processes: int, process_id: int) -> dict[str, Any]:
    """Returns what was given as arguments, for `jax.distributed.initialize`; {} if nothing was."""
    if not coordinator and processes == 0 and process_id < 0:
        return {}
    if ":" not in coordinator or not 0 <= process_id < processes:
        raise UserError(
            f"coordinator={coordinator!r}, processes={processes} and process_id={process_id} are no place in a run of"
            " several processes; give host:port of the first, their number, and this one's, from 0"
        )
    return {"coordinator_address": coordinator, "num_processes": processes, "process_id": process_id}


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Returns what `launch.local` or SkyPilot say, for `jax.distributed.initialize`; {} if they say nothing."""
    if "JAX_NUM_PROCESSES" in environment:
        return _given(
            environment.get("JAX_COORDINATOR_ADDRESS", ""),
            int(environment["JAX_NUM_PROCESSES"]),
            int(environment.get("JAX_PROCESS_ID", -1)),
        )
    # On TPUs SkyPilot runs the pod's own machines, which JAX detects.
    if int(environment.get("SKYPILOT_NUM_NODES", 1)) > 1 and not _on_tpu(environment):
        first = environment["SKYPILOT_NODE_IPS"].split()[0]
        port = environment.get("JAX_COORDINATOR_PORT", PORT)
        return _given(f"{first}:{port}", int(environment["SKYPILOT_NUM_NODES"]), int(environment["SKYPILOT_NODE_RANK"]))
    return {}


def _on_tpu(environment: Mapping[str, str]) -> bool:
    """Returns whether TPUs are to be used; asks no server."""
    wanted = environment.get("JAX_PLATFORMS", "")
    # JAX sets TPU_SKIP_MDS_QUERY when it is imported on a machine without TPUs.
    there = "TPU_SKIP_MDS_QUERY" not in environment or "TPU_WORKER_HOSTNAMES" in environment
    return there and (not wanted or "tpu" in wanted) and importlib.util.find_spec("libtpu") is not None


def _detectable(environment: Mapping[str, str]) -> bool:
    """Returns whether JAX should look for other processes by itself, which takes long where there are none."""
    slurm = int(environment.get("SLURM_NTASKS", 1)) if "SLURM_STEP_NODELIST" in environment else 1
    return _on_tpu(environment) or max(slurm, int(environment.get("OMPI_COMM_WORLD_SIZE", 1))) > 1


def end(code: int, message: str = "") -> NoReturn:
    """Ends this process because it failed, and the others with it, whatever they are doing.

    What several processes complain of at once is only said by the first.

    Args:
      code: the exit code, of all of them.
      message: why, for stderr.
    """
    client = _client()
    if client is None:
        print(message, file=sys.stderr)
        sys.exit(code)
    try:
        client.key_value_set(_FAILED, f"{code} {jax.process_index()}", allow_overwrite=False)
    except jax.errors.JaxRuntimeError:  # another one was first
        _follow(client)
    print(message, file=sys.stderr)
    _leave(client, code)


def _client() -> Any:
    """Returns the client of the coordinator that `jax.distributed` keeps, or None with a single process."""
    from jax._src import distributed  # it has no public name; Orbax and Flax take it from there too

    return distributed.global_state.client if jax.distributed.is_initialized() else None


def _leave(client: Any, code: int) -> NoReturn:
    """Ends this process when all know, or soon: if the coordinator left first, the others would not hear why."""
    try:
        client.wait_at_barrier(_LEFT, timeout_in_ms=int(5 * _POLL * 1000))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # the usual way out waits for the others


def _follow(client: Any) -> None:
    """Ends this process if another one has failed."""
    try:
        code, index = client.key_value_try_get(_FAILED).split()
    except jax.errors.JaxRuntimeError:  # there is no such key
        return
    if int(index) != jax.process_index():
        print(f"ended, since process {index} failed with exit code {code}", file=sys.stderr)
        _leave(client, int(code))


def _start_watch() -> None:
    """Follows, in the background, the first process that fails."""
    client, leaving = _client(), threading.Event()

    def watch() -> None:
        while not leaving.wait(_POLL):
            _follow(client)

    def stop() -> None:  # Python cannot end while a thread is inside the client
        leaving.set()
        thread.join()

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    atexit.register(stop)
