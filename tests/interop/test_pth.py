"""PyTorch's files of weights: those of today, those of old, and those that are none.

The files in data/ are torch 2.13's: `torch.save` wrote the same nested state dict in both formats.
"""

import io
import os
import pickle
import struct
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from cnn_research.errors import UserError
from cnn_research.interop import pth

DATA = Path(__file__).parent / "data"
BASE = np.arange(24, dtype=np.float32).reshape(4, 6)
EXPECTED = {
    "transposed": BASE.T,
    "part": BASE[1:4:2, 1::2],
    "half": BASE[0].astype(np.float16),
    "bfloat16": BASE[1].astype(jnp.bfloat16),
    "double": BASE[2].astype(np.float64),
    "counter": np.array(3, np.int64),
    "int32": np.arange(3, dtype=np.int32),
    "uint8": np.arange(3, dtype=np.uint8),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "parameter": BASE[3],
}

# Opcodes of a pickle, put together by hand: the format before PyTorch 1.6, whose old files no PyTorch writes any more.
NONE, TRUE = b"N", b"\x88"


def word(text):
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def number(value):
    return b"J" + struct.pack("<i", value)


def items(*parts):
    return b"(" + b"".join(parts) + b"t"


def name(path):
    module, _, attribute = path.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(path, *arguments):
    return name(path) + items(*arguments) + b"R"


def storage(key="0", size=6, kind="torch.FloatStorage", view=NONE):
    return items(word("storage"), name(kind), word(key), word("cpu"), number(size), view) + b"Q"


def tensor(shape=(2, 3), strides=(3, 1), offset=0, source=None, function="torch._utils._rebuild_tensor"):
    numbers = (items(*map(number, each)) for each in (shape, strides))
    return call(function, storage() if source is None else source, number(offset), *numbers)


def dictionary(**values):
    return b"}(" + b"".join(word(key) + value for key, value in values.items()) + b"u"


def legacy(content, storages=None, little=True):
    """Returns a file that holds what the opcodes make, and storages {key: numbers}."""
    storages = {"0": np.arange(6, dtype=np.float32)} if storages is None else storages
    head = b"".join(pickle.dumps(each, 2) for each in (*pth.MAGIC, {"little_endian": little}))
    numbers = b"".join(struct.pack("<q", len(each)) + each.tobytes() for each in storages.values())
    return head + b"\x80\x02" + content + b"." + pickle.dumps(list(storages), 2) + numbers


def archive(content, **more):
    """Returns the zip archive of today with the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("weights/data.pkl", content)
        for key, value in more.items():
            file.writestr(f"weights/{key}", value)
    return buffer.getvalue()


def load(tmp_path, content):
    (tmp_path / "weights.pth").write_bytes(content)
    return pth.load(tmp_path / "weights.pth")


def fault(tmp_path, content):
    with pytest.raises(UserError) as caught:
        load(tmp_path, content)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/weights.pth ")
    assert "\n" not in message
    return message.removeprefix(f"{tmp_path}/weights.pth ")


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth"])
def test_every_tensor_of_both_formats(file):
    loaded = pth.load(DATA / file)
    assert list(loaded) == [f"module.{name}" for name in EXPECTED]
    for name, expected in EXPECTED.items():
        array = loaded[f"module.{name}"]
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth"])
def test_tensors_of_one_storage_share_it(file):
    loaded = pth.load(DATA / file)
    whole, part = loaded["module.transposed"], loaded["module.part"]
    assert whole.strides == (4, 24)
    assert part.strides == (48, 8)
    if file == "legacy.pth":
        assert np.shares_memory(whole, part)


def test_an_old_file(tmp_path):
    content = call("collections.OrderedDict", b"](" + b"]" + word("weight") + b"a" + tensor() + b"a" + b"e")
    loaded = load(tmp_path, legacy(content))
    np.testing.assert_array_equal(loaded["weight"], [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("nested", [("state_dict",), ("model",), ()])
def test_where_the_state_dict_may_lie(tmp_path, nested):
    content = dictionary(weight=tensor())
    for key in nested:
        content = dictionary(epoch=number(3), **{key: content})
    assert list(load(tmp_path, legacy(content))) == ["weight"]


def test_parameters_before_they_were_tensors(tmp_path):
    parameter, hooks = name("torch.nn.parameter.Parameter"), call("collections.OrderedDict")
    given = parameter + items(tensor()) + b"\x81" + items(TRUE, TRUE, hooks) + b"b"
    oldest = parameter + b")" + b"\x81" + items(tensor(), NONE, hooks, TRUE, TRUE) + b"b"
    newest = call("torch._utils._rebuild_parameter", tensor(), TRUE, hooks)
    loaded = load(tmp_path, legacy(dictionary(given=given, oldest=oldest, newest=newest)))
    assert list(loaded) == ["given", "oldest", "newest"]
    for array in loaded.values():
        np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])


def test_views_of_storages(tmp_path):
    second = tensor((2,), (1,), offset=1, source=storage(view=items(word("1"), number(3), number(3))))
    loaded = load(tmp_path, legacy(dictionary(weight=tensor(), last=second)))
    np.testing.assert_array_equal(loaded["last"], [4, 5])


def test_names_of_python_2(tmp_path):
    content = b"}(" + b"U\x06weight" + tensor() + b"u"
    assert list(load(tmp_path, legacy(content))) == ["weight"]


def test_an_archive_needs_only_its_pickle_and_numbers(tmp_path):
    content = b"\x80\x02" + dictionary(weight=tensor()) + b"."
    numbers = {"data/0": np.arange(6, dtype=np.float32).tobytes()}
    assert load(tmp_path, archive(content, **numbers))["weight"].sum() == 15
    assert load(tmp_path, archive(content, byteorder=b"little", **numbers))["weight"].sum() == 15
    assert "big-endian" in fault(tmp_path, archive(content, byteorder=b"big", **numbers))
    assert "big-endian" in fault(tmp_path, legacy(dictionary(weight=tensor()), little=False))
    assert "the numbers of weight are missing" in fault(tmp_path, archive(content))
    assert "the numbers of weight are missing" in fault(tmp_path, legacy(dictionary(weight=tensor()), storages={}))


class Malice:
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("pack", [lambda content: archive(b"\x80\x02" + content + b"."), legacy])
def test_nothing_is_called_that_a_file_names(tmp_path, pack):
    malice = Malice()
    malice.path = tmp_path / "called"
    message = fault(tmp_path, pack(pickle.dumps({"weight": malice}, 2)[2:-1]))
    assert message == f"asks for {os.name}.system, which weights do not need; save the state_dict() alone"
    assert not malice.path.exists()
    pickle.loads(pickle.dumps(malice, 2))
    assert malice.path.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (name("builtins.eval"), "asks for builtins.eval, which weights do not need"),
        (name("torch.nn.modules.linear.Linear"), "asks for torch.nn.modules.linear.Linear"),
        (name("torch._utils._rebuild_sparse_tensor"), "asks for torch._utils._rebuild_sparse_tensor"),
        (name("torch._utils.__builtins__"), "asks for torch._utils.__builtins__"),
        (name("torch.ComplexFloatStorage"), "asks for torch.ComplexFloatStorage"),
        (b"cos.path\nos.system\n", "asks for os.path.os.system"),
        (word("os") + word("system") + b"\x93", "has the opcode STACK_GLOBAL, which weights do not need"),
        (b"(ios\nsystem\n", "has the opcode INST"),
        (b"(" + name("torch.FloatStorage") + b"o", "has the opcode OBJ"),
        (b"\x82\x01", "has the opcode EXT1"),
        (b"\x8f", "has the opcode EMPTY_SET"),
        (word("eval") + items(word("1")) + b"R", "it calls what is no function"),
        (name("torch.FloatStorage") + items() + b"R", "it calls what is no function"),
        (number(1) + NONE + b"b", "it gives a state to what has none"),
        (items(word("module"), name("torch.FloatStorage"), word("0"), NONE, number(1)) + b"Q", "what is no storage"),
        (items(word("storage"), word("float"), word("0"), word("cpu"), number(1)) + b"Q", "what is no storage"),
        (tensor(source=number(3)), "a tensor lacks its numbers"),
        (b"}" + items(items()) + NONE + b"s", "a dict has other keys than words and numbers"),
        (b"]" + word("a") + NONE + b"s", "a dict has other keys than words and numbers"),
        (b"h\x07", "is no whole .pth file: 7"),
        (b"0", "has the opcode POP"),
        (b"\x86", "is no whole .pth file"),
        (b"u", "is no whole .pth file"),
        (tensor(), "holds no state dict; save the state_dict() of the module"),
        (b"]" + tensor() + b"a", "holds no state dict"),
        (b"}" + number(1) + tensor() + b"s", "holds no state dict"),
        (dictionary(weight=tensor(), epoch=number(3)), "holds epoch, which is no tensor; save the state_dict() alone"),
        (dictionary(weight=tensor(source=storage("9"))), "no tensor has the storage 0"),
        (dictionary(weight=tensor(source=storage(size=7))), "weight ends early"),
        (dictionary(weight=tensor((2, 4), (4, 1))), "weight lies outside its storage"),
        (dictionary(weight=tensor((2, 3), (4, 1))), "weight lies outside its storage"),
        (dictionary(weight=tensor(offset=1)), "weight lies outside its storage"),
        (dictionary(weight=tensor(offset=-1)), "weight lies outside its storage"),
        (dictionary(weight=tensor((2, 3), (-3, 1))), "weight lies outside its storage"),
        (dictionary(weight=tensor((2, -3), (3, 1))), "weight lies outside its storage"),
        (dictionary(weight=tensor((2, 3), (3,))), "is no whole .pth file"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, content, message):
    assert message in fault(tmp_path, legacy(content))


@pytest.mark.parametrize(
    "content", [b"", b"<html>not found</html>", b"version https://git-lfs", b"PK\3\4", pickle.dumps(3)]
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, content):
    assert fault(tmp_path, content).startswith("is no whole .pth file: ")


def test_another_archive_is_refused(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "")
    assert fault(tmp_path, buffer.getvalue()) == "is no whole .pth file: the archive is not of torch.save"


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth"])
def test_a_file_that_ends_early_is_refused(tmp_path, file):
    content = (DATA / file).read_bytes()
    for kept in range(0, len(content) - 1, 41):
        assert "is no whole .pth file" in fault(tmp_path, content[:kept])


@pytest.mark.parametrize("file", ["zip.pth", "legacy.pth"])
def test_no_damage_ends_in_anything_but_a_users_error(tmp_path, file):
    content, rng, refused = (DATA / file).read_bytes(), np.random.default_rng(0), 0
    for _ in range(400):
        damaged = bytearray(content)
        for position in rng.integers(0, len(content), 3):
            damaged[position] = rng.integers(256)
        try:
            load(tmp_path, bytes(damaged))
        except UserError:
            refused += 1
    assert refused > 100


@pytest.mark.parametrize("path", ["absent.pth", "."])
def test_an_absent_file_is_named(tmp_path, path):
    with pytest.raises(UserError, match="there is no file"):
        pth.load(tmp_path / path)
