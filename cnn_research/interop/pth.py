"""PyTorch's files of weights, `.pth`: read without PyTorch, and without unpickling anything.

A pickle is a program that may call whatever it names. Here its opcodes run on a machine of our own that knows what a
dict of tensors takes and nothing else. The formats are those of `torch.save`: a zip archive since PyTorch 1.6, and
before, as some weights of torchvision still are, pickles followed by the numbers.
"""

import dataclasses
import functools
import io
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any, TypeAlias

import jax.numpy as jnp
import numpy as np
from etils import epath

from cnn_research.errors import UserError

Buffer: TypeAlias = bytes | memoryview

# What the first pickle of a file before PyTorch 1.6 holds, and the second.
MAGIC = (0x1950A86A20F9469CFC6C, 1001)

# The types of numbers, by the name of the storage that holds them.
STORAGES: dict[str, Any] = {
    "torch.DoubleStorage": np.float64, "torch.FloatStorage": np.float32, "torch.HalfStorage": np.float16,
    "torch.BFloat16Storage": jnp.bfloat16, "torch.LongStorage": np.int64, "torch.IntStorage": np.int32,
    "torch.ShortStorage": np.int16, "torch.CharStorage": np.int8, "torch.ByteStorage": np.uint8,
    "torch.BoolStorage": np.bool_,
}  # fmt: skip

# What reading a damaged file may raise; RuntimeError is that of an encrypted archive.
DAMAGES = (
    ValueError, TypeError, LookupError, EOFError, AttributeError, OverflowError, OSError, RuntimeError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip

# The dicts that training scripts save state dicts in, beside an optimizer's and others.
NESTED = ("state_dict", "model")


@dataclasses.dataclass(frozen=True)
class _Storage:
    """Numbers that lie elsewhere in the file; tensors may share them."""

    key: str
    dtype: Any
    size: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclasses.dataclass
class _Parameter:
    """A tensor as PyTorch's parameters were before 0.4."""

    tensor: Any = None

    def build(self, state: tuple[Any, ...]) -> None:
        """Takes what follows its creation: (requires_grad, volatile, hooks), or at first five with the tensor."""
        if len(state) == 5:
            self.tensor = state[0]


def _fill(target: Any, items: Iterable[Any]) -> dict[Any, Any]:
    """Adds items to a dict; a key of a deep or self-referring structure would be hashed without end."""
    for key, value in items:
        if not isinstance(target, dict) or not isinstance(key, str | int):
            raise ValueError("a dict has other keys than words and numbers")
        target[key] = value
    return target


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor lacks its numbers")
    return _Tensor(storage, storage.offset + offset, shape, strides)


# All that a file may call. What a tensor has beyond its numbers (requires_grad, hooks) is left.
CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": lambda pairs=(): _fill({}, pairs),
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch.nn.parameter.Parameter": _Parameter,
}


@dataclasses.dataclass(frozen=True)
class _Global:
    """A name of `CALLS` or `STORAGES`."""

    name: str


CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "BINSTRING", "SHORT_BINSTRING")
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load(path: epath.PathLike) -> dict[str, np.ndarray]:
    """Reads the tensors of a state dict; one nested in a dict, under `state_dict` or `model`, too.

    Args:
      path: of the file.

    Returns:
      Arrays by name, as they lie in the file: some may be strided views, and share memory.

    Raises:
      UserError: there is no such file, it is damaged, or it asks for more than tensors.
    """
    path = epath.Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    with path.open("rb") as file:
        try:
            zipped = file.read(4) == b"PK\3\4"
            file.seek(0)
            content, numbers = (_read_zip if zipped else _read_stream)(file)
            return {name: _array(name, value, numbers) for name, value in _state_dict(content).items()}
        except UserError as error:
            raise UserError(f"{path} {error}") from None
        except DAMAGES as error:
            raise UserError(f"{path} is no whole .pth file: {error}") from error


def _read_zip(file: IO[bytes]) -> tuple[Any, Callable[[str], Buffer]]:
    """Returns what a file since PyTorch 1.6 holds, and what gives a storage's bytes."""
    archive = zipfile.ZipFile(file)
    roots = [name.removesuffix("data.pkl") for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError("the archive is not of torch.save")
    order = f"{roots[0]}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise UserError("was written on a big-endian machine; convert it there with safetensors")
    content = _run(pickletools.genops(archive.read(f"{roots[0]}data.pkl")), {})
    return content, functools.cache(lambda key: archive.read(f"{roots[0]}data/{key}"))


def _read_stream(file: IO[bytes]) -> tuple[Any, Callable[[str], Buffer]]:
    """Returns what a file before PyTorch 1.6 holds, and what gives a storage's bytes."""
    storages: dict[str, _Storage] = {}
    stream = io.BytesIO(file.read())

    def unpickle() -> Any:
        return _run(pickletools.genops(stream), storages)

    if (unpickle(), unpickle()) != MAGIC:
        raise ValueError("it does not begin as they do")
    if not unpickle()["little_endian"]:
        raise UserError("was written on a big-endian machine; convert it there with safetensors")
    content = unpickle()
    keys, numbers = map(_word, unpickle()), {}
    rest = stream.getbuffer()[stream.tell() :]
    for key in keys:
        if key not in storages:
            raise ValueError(f"no tensor has the storage {key}")
        (size,) = struct.unpack_from("<q", rest)
        size *= np.dtype(storages[key].dtype).itemsize
        numbers[key], rest = rest[8 : 8 + size], rest[8 + size :]
    return content, numbers.__getitem__


def _run(opcodes: Iterable[tuple[Any, Any, Any]], storages: dict[str, _Storage]) -> Any:
    """Returns what a pickle holds, and adds the storages that it names.

    Args:
      opcodes: of the pickle, with their arguments and positions.
      storages: takes the storages, by key.

    Raises:
      UserError: it has an opcode, or calls a function, that weights do not need.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # what lay on the stack at each mark
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        nonlocal stack
        items, stack = stack, below.pop()
        return items

    for opcode, argument, _ in opcodes:
        match opcode.name:
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case name if name in LITERALS:
                stack.append(argument)
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case name if name in TUPLES:
                stack[-TUPLES[name] :] = [tuple(stack[-TUPLES[name] :])]
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                items = since_mark()
                stack.append(tuple(items))
            case "SETITEM":
                key, value = stack[-2:]
                del stack[-2:]
                _fill(stack[-1], [(key, value)])
            case "SETITEMS":
                items = since_mark()
                _fill(stack[-1], zip(items[::2], items[1::2], strict=True))
            case "APPEND":
                value = stack.pop()
                stack[-1].append(value)
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                name = argument.replace(" ", ".")
                if name not in CALLS and name not in STORAGES:
                    raise UserError(f"asks for {name}, which weights do not need; save the state_dict() alone")
                stack.append(_Global(name))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                if not isinstance(function, _Global) or function.name not in CALLS:
                    raise ValueError("it calls what is no function")
                stack.append(CALLS[function.name](*arguments))
            case "BUILD":
                # PyTorch's OrderedDicts have the modules' versions as their state.
                state = stack.pop()
                if isinstance(stack[-1], _Parameter):
                    stack[-1].build(state)
                elif not isinstance(stack[-1], dict):
                    raise ValueError("it gives a state to what has none")
            case "BINPERSID":
                storage = _storage(*stack.pop())
                storages.setdefault(storage.key, storage)
                stack.append(storage)
            case name:
                raise UserError(f"has the opcode {name}, which weights do not need; save the state_dict() alone")
    raise ValueError("it ends early")


def _storage(kind: Any, dtype: Any, key: Any, location: Any, size: Any, view: Any = None) -> _Storage:
    """Returns the storage that a file before PyTorch 0.4 may view from an offset on: (key, offset, size)."""
    if kind != "storage" or not isinstance(dtype, _Global) or dtype.name not in STORAGES:
        raise ValueError("it refers to what is no storage")
    return _Storage(_word(key), STORAGES[dtype.name], size, view[1] if view else 0)


def _word(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError("a storage has no name")
    return key


def _state_dict(content: Any) -> Mapping[str, Any]:
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(name, str) for name in content):
        raise UserError("holds no state dict; save the state_dict() of the module")
    return content


def _array(name: str, value: Any, numbers: Callable[[str], Buffer]) -> np.ndarray:
    """Returns a tensor's numbers as a view of its storage."""
    tensor = value.tensor if isinstance(value, _Parameter) else value
    if not isinstance(tensor, _Tensor):
        raise UserError(f"holds {name}, which is no tensor; save the state_dict() alone")
    try:
        data = np.frombuffer(numbers(tensor.storage.key), tensor.storage.dtype)
    except KeyError:
        raise ValueError(f"the numbers of {name} are missing") from None
    if len(data) < tensor.storage.size:
        raise ValueError(f"{name} ends early")
    if min((tensor.offset, *tensor.shape, *tensor.strides)) < 0:
        raise ValueError(f"{name} lies outside its storage")
    if 0 in tensor.shape:
        return np.empty(tensor.shape, data.dtype)
    sizes = zip(tensor.shape, tensor.strides, strict=True)
    if tensor.offset + sum((size - 1) * stride for size, stride in sizes) >= len(data):
        raise ValueError(f"{name} lies outside its storage")
    strides = [stride * data.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(data[tensor.offset :], tensor.shape, strides, writeable=False)
