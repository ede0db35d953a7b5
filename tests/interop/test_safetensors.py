"""Variables in `.safetensors` files."""

import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.interop import safetensors

VARIABLES = {
    "params": {
        "stage1": {"conv1": {"kernel": jnp.arange(36.0).reshape(3, 3, 2, 2)}},
        "head": {"bias": jnp.array([0.5, -1.0], jnp.bfloat16)},
    },
    "batch_stats": {"norm": {"count": jnp.array(3)}},
}


def content(path):
    """Reads the format as it is documented: the header's length, the header in JSON, the tensors' bytes."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def test_load_gives_back_what_save_was_given(tmp_path):
    safetensors.save(VARIABLES, tmp_path / "weights.safetensors")
    loaded = safetensors.load(tmp_path / "weights.safetensors")
    kernel = loaded["params"]["stage1"]["conv1"]["kernel"]
    np.testing.assert_array_equal(kernel, np.arange(36.0).reshape(3, 3, 2, 2))
    assert kernel.dtype == np.float32
    assert loaded["params"]["head"]["bias"].dtype == jnp.bfloat16
    assert loaded["params"]["head"]["bias"].tolist() == [0.5, -1.0]
    assert loaded["batch_stats"]["norm"]["count"].shape == ()
    assert loaded["batch_stats"]["norm"]["count"] == 3


def test_a_tensor_is_named_by_its_path(tmp_path):
    safetensors.save(VARIABLES, tmp_path / "weights.safetensors")
    header, _ = content(tmp_path / "weights.safetensors")
    assert header.keys() == {"params/stage1/conv1/kernel", "params/head/bias", "batch_stats/norm/count"}
    assert header["params/head/bias"]["dtype"] == "BF16"


def test_a_transposed_array_keeps_its_values(tmp_path):
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    safetensors.save({"params": {"kernel": matrix.T}}, tmp_path / "weights.safetensors")
    header, data = content(tmp_path / "weights.safetensors")
    begin, end = header["params/kernel"]["data_offsets"]
    np.testing.assert_array_equal(np.frombuffer(data[begin:end], np.float32).reshape(3, 2), matrix.T)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no file .*weights\.safetensors"):
        safetensors.load(tmp_path / "weights.safetensors")


@pytest.mark.parametrize("kept", [0, 0.1, 0.5, 0.99])
def test_a_damaged_file_is_refused(tmp_path, kept):
    path = tmp_path / "weights.safetensors"
    safetensors.save(VARIABLES, path)
    raw = path.read_bytes()
    path.write_bytes(raw[: int(kept * len(raw))])
    with pytest.raises(UserError, match=r"weights\.safetensors is no whole \.safetensors file"):
        safetensors.load(path)


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        safetensors.load(tmp_path)


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]
)
def test_every_type_of_numbers_comes_back(tmp_path, dtype):
    array = np.array([0, 1, 1], dtype)
    safetensors.save({"params": {"x": array}}, tmp_path / "weights.safetensors")
    loaded = safetensors.load(tmp_path / "weights.safetensors")["params"]["x"]
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


def test_numbers_that_numpy_lacks_are_refused(tmp_path):
    header = json.dumps({"params/x": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "weights.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(UserError, match="holds numbers of type F8_E4M3; readable are F64, F32"):
        safetensors.load(tmp_path / "weights.safetensors")
