"""Our variables in a `.safetensors` file: one tensor a path, `params/C1/kernel`."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from safetensors import SafetensorError, deserialize
from safetensors import numpy as format

from cnn_research.errors import UserError

# The format's names of types; the library's own table for NumPy lacks bfloat16.
DTYPES = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16, "BOOL": np.bool_,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8,
    "U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8,
}  # fmt: skip


def save(variables: dict[str, Any], path: epath.PathLike) -> None:
    """Writes a network's variables.

    Args:
      variables: nested dicts of arrays.
      path: of the file.
    """
    flat = flax.traverse_util.flatten_dict(jax.device_get(variables), sep="/")
    # The format keeps bytes in C order, whatever the array's own.
    epath.Path(path).write_bytes(format.save({name: np.asarray(value, order="C") for name, value in flat.items()}))


def load(path: epath.PathLike) -> dict[str, Any]:
    """Reads variables as nested dicts of NumPy arrays.

    Raises:
      UserError: there is no such file, it is damaged, or a tensor is of a type that NumPy lacks.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        tensors = dict(deserialize(path.read_bytes()))
    except SafetensorError as error:
        raise UserError(f"{path} is no whole .safetensors file: {error}") from error
    unknown = sorted({tensor["dtype"] for tensor in tensors.values()} - DTYPES.keys())
    if unknown:
        raise UserError(f"{path} holds numbers of type {', '.join(unknown)}; readable are {', '.join(DTYPES)}")
    flat = {
        name: np.frombuffer(tensor["data"], DTYPES[tensor["dtype"]]).reshape(tensor["shape"])
        for name, tensor in tensors.items()
    }
    return flax.traverse_util.unflatten_dict(flat, sep="/")
