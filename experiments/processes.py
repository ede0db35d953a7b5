"""The flags by which a script of several processes finds the others."""

from absl import flags

from cnn_research.training import distributed

_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "several processes: host:port of the first; found by itself on Cloud TPU, Slurm, SkyPilot"
)
_PROCESSES = flags.DEFINE_integer("processes", 0, "several processes: how many", lower_bound=0)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "several processes: which one this is, from 0")
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat", distributed.HEARTBEAT, "several processes: seconds without a sign of life that end the run"
)


def join() -> None:
    """Joins the other processes that the flags or the environment name; to be called first."""
    distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS_ID.value, _HEARTBEAT.value)
