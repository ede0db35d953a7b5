"""Records of images: what is said of each by itself, where a metric of a split cannot be a sum over its batches.

A compiled step gives arrays of a fixed size. `unpad` makes of them a record for each example, of as many boxes as there
are; the records of all batches, those of all processes put together by `gather`, are what `metrics.detection` takes.
"""

import io
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Bool, Int, Shaped

Record = dict[str, np.ndarray]


def unpad(
    arrays: Mapping[str, Shaped[np.ndarray, "batch *_"]],
    valid: Bool[np.ndarray, "batch boxes"],
    example_mask: Bool[np.ndarray, " batch"],
) -> list[Record]:
    """Returns a record for each example of a batch, without what pads it.

    Args:
      arrays: by name, of the shape [batch, boxes, …].
      valid: which boxes there are.
      example_mask: which examples there are.
    """
    return [
        {name: values[index][valid[index]] for name, values in arrays.items()} for index in np.flatnonzero(example_mask)
    ]


def join(found: Record, truth: Record) -> Record:
    """Returns a record of what is found in an example and what is true of it."""
    return {f"{kind}/{name}": x for kind, part in (("found", found), ("true", truth)) for name, x in part.items()}


def split(joined: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Undoes `join`: returns what is found in each example, and what is true of each."""
    found, truth = (
        [{name.removeprefix(kind): x for name, x in record.items() if name.startswith(kind)} for record in joined]
        for kind in ("found/", "true/")
    )
    return found, truth


def gather(records: Sequence[Record], indices: Int[np.ndarray, " records"]) -> list[Record]:
    """Returns the records of all processes in the order of their examples, the same list to each process.

    Every process must call it. What travels are bytes of NumPy's own format, in which nothing can be run.

    Args:
      records: this process's.
      indices: of their examples in the split; of an example that several processes have, one record stays.
    """
    parts = zip(indices.tolist(), records, strict=True)
    arrays = {f"{index}/{name}": value for index, record in parts for name, value in record.items()}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    joined: dict[int, Record] = {}
    for data in _exchange(buffer.getvalue()):
        with np.load(io.BytesIO(data), allow_pickle=False) as loaded:
            for key in loaded:
                index, name = key.split("/", 1)
                joined.setdefault(int(index), {})[name] = loaded[key]
    return [joined[index] for index in sorted(joined)]


def _exchange(data: bytes) -> list[bytes]:
    """Returns the bytes of every process."""
    if jax.process_count() == 1:
        return [data]
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = multihost_utils.process_allgather(padded)
    return [row[:size].tobytes() for row, size in zip(rows, sizes.tolist(), strict=True)]
