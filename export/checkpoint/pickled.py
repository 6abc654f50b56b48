"""PyTorch's own checkpoint files, read without running anything in them and without loading a tensor.

A pickle may name any function to call. Here a name is only looked up in a short table of functions that rebuild
tensors. Every other name becomes an inert stand-in, so that other objects in the file, such as training arguments, run
no code and do not stop the reading.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, NamedTuple

import torch
from torch import Tensor

PICKLE_BYTES = 8 << 20  # names and sizes, without the tensors' data; the largest published file has 0.3 MB
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # start of files written before torch 1.6
STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
    "QInt8Storage": torch.int8,  # the function that rebuilds a tensor tells whether it is quantized
    "QUInt8Storage": torch.uint8,
    "QInt32Storage": torch.int32,
}


class Stored(NamedTuple):  # not a dataclass: a pickle may set what is in an object's __dict__
    """A tensor in a file, not read yet. `read` is None for a kind without plain data, which `odd` describes."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[], Tensor] | None
    odd: str = ""


class Storage(NamedTuple):
    """The data of one or more tensors: a range of bytes in the file."""

    key: str
    dtype: torch.dtype
    items: int


class StandIn:
    """Replaces any object that is neither a tensor nor a container. It accepts every call and does nothing."""

    state: dict[Any, Any]  # attributes
    items: dict[Any, Any]  # items, if the object's class is a subclass of dict

    def __new__(cls, *args: object, **options: object) -> StandIn:  # a pickle may skip __init__
        made = super().__new__(cls)
        made.state, made.items = {}, {}
        return made

    def __call__(self, *args: object) -> StandIn:
        return StandIn()

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}

    def __setitem__(self, key: object, value: object) -> None:
        self.items[key] = value

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass

    def add(self, item: object) -> None:
        pass


def read_pickled(path: Path) -> Any:
    """Read a file that `torch.save` wrote: containers of `Stored` and plain values. Damage raises any error."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return _read_legacy(path, file)
    with zipfile.ZipFile(path) as archive:
        return _read_zip(path, archive)


Read = Callable[[str], bytes]  # the bytes of the storage with that key


def _read_zip(path: Path, archive: zipfile.ZipFile) -> Any:
    entries = {entry.filename: entry for entry in archive.infolist()}
    if packed := [name for name, entry in entries.items() if entry.compress_type != zipfile.ZIP_STORED]:
        raise ValueError(f"{packed[0]} is compressed, which torch.save never does")
    root = min((name for name in entries if name.endswith("data.pkl")), key=len, default="data.pkl")
    folder = root.removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise ValueError("a TorchScript archive: save the model's state_dict() with torch.save")
    if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("written on a big-endian machine")
    if entries[root].file_size > PICKLE_BYTES:
        raise ValueError(f"more than {PICKLE_BYTES >> 20} MiB of names")

    def raw(name: str) -> tuple[bytes, bool]:
        """Return the entry's bytes, and whether its checksum fits."""
        entry = entries[name]
        with path.open("rb") as file:
            file.seek(entry.header_offset)
            header = file.read(30)
            lengths = (int.from_bytes(header[i : i + 2], "little") for i in (26, 28))
            file.seek(sum(lengths), io.SEEK_CUR)
            data = file.read(entry.file_size)
        if header[:4] != b"PK\3\4" or len(data) != entry.file_size:
            raise ValueError(f"{name} is cut short")
        return data, zlib.crc32(data) == entry.CRC

    pickled, checked = raw(root)  # some writers leave all checksums out

    def read(key: str) -> bytes:
        data, intact = raw(f"{folder}data/{key}")
        if checked and not intact:
            raise ValueError(f"{folder}data/{key} is not what its checksum says")
        return data

    return _Unpickler(io.BytesIO(pickled), read).load()


def _read_legacy(path: Path, file: BinaryIO) -> Any:
    """Read five pickles (magic number, version, machine, tensors, keys), then the item count and items of each key."""
    file.seek(0)
    bounded = _Bounded(file)
    places: dict[str, tuple[int, int]] = {}  # offset and bytes

    def read(key: str) -> bytes:
        start, size = places[key]
        with path.open("rb") as again:
            again.seek(start)
            data = again.read(size)
        if len(data) != size:
            raise ValueError("cut short")
        return data

    unpickler = _Unpickler(bounded, read)
    if unpickler.load() != LEGACY_MAGIC:
        raise ValueError("not written by torch.save")
    for _ in ("version", "machine"):
        _Unpickler(bounded, read).load()
    tensors = _Unpickler(bounded, read)
    root = tensors.load()
    keys = _Unpickler(bounded, read).load()
    position, end = file.tell(), path.stat().st_size
    for key in keys:
        storage = tensors.storages[_text(key)]
        size = storage.items * storage.dtype.itemsize
        places[storage.key] = position + 8, size
        position += 8 + size
    if position > end:
        raise ValueError(f"cut short: expected {position} bytes, found {end}")
    return root


class _Bounded:
    """A file that limits how much its pickles may read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._left = file, PICKLE_BYTES

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ValueError(f"more than {PICKLE_BYTES >> 20} MiB of names")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(1 << 16)
        self._left -= len(line)
        return line


class _Tuple(tuple[Any, ...]):
    """A tuple hashed by identity.

    Hashing its items would overflow the stack if they nest deeply, and take exponential time if each level holds the
    level below it twice.
    """

    __slots__ = ()
    __hash__, __eq__ = object.__hash__, object.__eq__


def _packed(count: int | None) -> Callable[[Any], None]:
    """Return the opcode that makes a tuple of the last `count` items; None: of those since the last mark."""

    def load(unpickler: Any) -> None:
        items = unpickler.pop_mark() if count is None else [unpickler.stack.pop() for _ in range(count)][::-1]
        unpickler.append(_Tuple(items))

    return load


class _Unpickler(pickle._Unpickler):  # the Python one: the C one allocates memory up to any memo index in the file
    """Resolves names from a table and imports nothing."""

    dispatch: ClassVar = {
        **pickle._Unpickler.dispatch,
        pickle.TUPLE[0]: _packed(None),
        pickle.TUPLE1[0]: _packed(1),
        pickle.TUPLE2[0]: _packed(2),
        pickle.TUPLE3[0]: _packed(3),
    }

    def __init__(self, file: Any, read: Read) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self.storages: dict[str, Storage] = {}
        self._data = lru_cache(1)(lambda key: bytearray(read(key)))  # consecutive tensors may share a storage
        self._table = self._rebuilders()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("collections", "OrderedDict"), ("builtins", "dict"), ("collections", "defaultdict")):
            return OrderedDict if name == "OrderedDict" else _plain_dict
        if module in ("torch", "torch.storage"):
            if name in STORAGES:
                return STORAGES[name]
            if isinstance(dtype := getattr(torch, name, None), torch.dtype):
                return dtype
        if module in ("torch._utils", "torch._tensor") and name.startswith("_rebuild"):
            return self._table.get(name) or _odd(name)
        return type("StandIn", (StandIn,), {})  # a new class each time: a pickle may set attributes on it

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count = pid[:5]
        if kind not in ("storage", b"storage") or not isinstance(dtype, torch.dtype) or type(count) is not int:
            raise pickle.UnpicklingError("expected a storage")
        if len(pid) > 5 and pid[5] is not None:
            raise pickle.UnpicklingError("a view of a storage, as only PyTorch 0.1 wrote")
        return self.storages.setdefault(_text(key), Storage(_text(key), dtype, count))

    def _rebuilders(self) -> dict[str, Callable[..., Any]]:
        """Return the functions that replace PyTorch's, by name. Each file has new ones: a pickle may change them."""

        def plain(
            storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *others: Any
        ) -> Stored:
            if any(isinstance(other, dict) and not isinstance(other, OrderedDict) and other for other in others):
                return Stored(tuple(shape), storage.dtype, None, "with a conjugate or negative bit")
            return self._stored(storage, offset, tuple(shape), tuple(stride))

        def typed(*args: Any) -> Stored:
            storage, dtype = args[0], args[6]
            count = storage.items // dtype.itemsize
            return self._stored(Storage(storage.key, dtype, count), args[1], tuple(args[2]), tuple(args[3]))

        def parameter(data: Stored, *_: Any) -> Stored:
            return data

        def subclass(function: Callable[..., Any], kind: Any, args: Any, state: Any) -> Any:
            return function(*args)

        return {
            "_rebuild_tensor": plain,
            "_rebuild_tensor_v2": plain,
            "_rebuild_tensor_v3": typed,
            "_rebuild_parameter": parameter,
            "_rebuild_parameter_with_state": parameter,
            "_rebuild_from_type_v2": subclass,
        }

    def _stored(self, storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...]) -> Stored:
        sizes = (*shape, *stride, offset, storage.items)
        if len(shape) != len(stride) or any(type(size) is not int or size < 0 for size in sizes):
            raise ValueError("a tensor of impossible shape")
        items = math.prod(shape)
        last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
        if items and last >= storage.items:
            raise ValueError(f"a tensor of shape {shape} in a storage of {storage.items} items")
        if items > storage.items:  # possibly more than fits into memory
            return Stored(shape, storage.dtype, None, "whose items share memory")

        def read() -> Tensor:
            if not items:
                return torch.empty(shape, dtype=storage.dtype)
            data = self._data(storage.key)
            count = len(data) // storage.dtype.itemsize
            return torch.frombuffer(data, dtype=storage.dtype, count=count).as_strided(shape, stride, offset)

        return Stored(shape, storage.dtype, read)


def _text(key: object) -> str:
    """Return the name of a storage as text."""
    if type(key) not in (str, int):  # the text of other objects may be unlimited
        raise pickle.UnpicklingError("expected the name of a storage")
    return str(key)


def _plain_dict(*_: object) -> dict[Any, Any]:
    return {}


def _odd(name: str) -> Callable[..., Stored]:
    """Return a function that replaces `_rebuild_sparse_tensor` and others without plain data."""
    kinds = {"sparse": "sparse", "qtensor": "quantized", "meta": "on the meta device, so without data"}
    kind = next((text for part, text in kinds.items() if part in name), f"rebuilt by {name}")
    return lambda *args: Stored((), None, None, kind)
