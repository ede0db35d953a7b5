import json
import socket
import subprocess
import sys

import numpy as np
import pytest

from cnn_research.metrics import records
from cnn_research.metrics.records import gather, unpad


def test_unpad_leaves_what_is_there():
    arrays = {"boxes": np.arange(24.0).reshape(3, 2, 4), "classes": np.arange(6).reshape(3, 2)}
    valid = np.array([[True, False], [False, False], [True, True]])
    first, second = unpad(arrays, valid, np.array([True, True, False]))
    assert first["boxes"].tolist() == [[0, 1, 2, 3]]
    assert first["classes"].tolist() == [0]
    assert (second["boxes"].shape, second["classes"].shape) == ((0, 4), (0,))


def of_process(process, processes, total=7):
    """Every n-th example's record, and in the last process example 0 once more, as padding makes it."""
    mine = [*range(process, total, processes)] + [0] * (process == processes - 1)
    made = [{"boxes": np.full((i, 4), i, np.float32), "masks": np.array([b"ab"] * i, np.bytes_)} for i in mine]
    return made, np.array(mine)


def check(joined, total=7):
    assert [len(record["boxes"]) for record in joined] == [*range(total)]
    for index, record in enumerate(joined):
        assert (record["boxes"] == index).all()
        assert record["boxes"].dtype == np.float32
        assert record["masks"].tolist() == [b"ab"] * index


def test_records_of_one_process_are_put_in_order():
    mine, indices = of_process(0, 1)
    check(gather(mine[::-1], indices[::-1]))
    with pytest.raises(ValueError, match="longer"):
        gather(mine, indices[1:])


def test_records_of_all_processes_are_put_in_order(monkeypatch):
    sent = []
    monkeypatch.setattr(records, "_exchange", lambda data: sent.append(data) or sent)
    for process in range(3):
        joined = gather(*of_process(process, 3))
    check(joined)


PROCESS = """
import json, sys
import jax
import numpy as np
process, port = map(int, sys.argv[1:])
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(f"localhost:{port}", 2, process)
from cnn_research.metrics.records import gather
indices = np.array([[3, 0], [2, 1]][process])
joined = gather([{"boxes": np.full((index, 4), index, np.float32)} for index in indices], indices)
print(json.dumps([record["boxes"][:, 0].tolist() for record in joined]))
"""


@pytest.mark.slow
def test_processes_exchange_records():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    commands = [[sys.executable, "-c", PROCESS, str(process), str(port)] for process in range(2)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [process.communicate(timeout=120)[0] for process in running]
    for output in outputs:
        assert json.loads(output.splitlines()[-1]) == [[], [1.0], [2.0] * 2, [3.0] * 3]
