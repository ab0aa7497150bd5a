"""Checks a checkpoint file before PyTorch reads it.

``torch.load(weights_only=True)`` runs no code from a file, but it allocates any amount of memory
that the file asks for, and reads past the end of a tensor whose length is wrong. The file is
therefore read twice: first here, with placeholders for tensors, by an unpickler that only supports
what ``torch.save`` writes for dicts, lists, tuples, plain values and dense tensors.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile

import torch

MAX_PICKLE_BYTES = 2**22  # without the tensors; a byte can become a hundred in memory
MAX_VALUES = 10**6  # a short pickle can refer to one list a million times
MAX_DEPTH = 32
MAX_DIMENSIONS = 8
FOLDER_FLAG = 0x10  # in a record's attributes
DTYPES = {"Double": torch.double, "Float": torch.float, "Half": torch.half, "Long": torch.long}
DTYPES |= {"BFloat16": torch.bfloat16, "Int": torch.int, "Short": torch.short, "Bool": torch.bool}
DTYPES |= {"Char": torch.int8, "Byte": torch.uint8}
OPCODE_NAMES = (
    "PROTO STOP MARK GLOBAL REDUCE BINPERSID NONE NEWTRUE NEWFALSE BINUNICODE LONG1 BINFLOAT "
    "BININT BININT1 BININT2 EMPTY_DICT SETITEM SETITEMS EMPTY_LIST APPEND APPENDS "
    "EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 BINPUT LONG_BINPUT BINGET LONG_BINGET"
)
OPCODES = [getattr(pickle, name)[0] for name in OPCODE_NAMES.split()]


@dataclass(frozen=True)
class Storage:
    """A placeholder for the numbers in one record of the file."""

    items: int
    dtype: torch.dtype


@dataclass(frozen=True)
class DenseTensor:
    """A placeholder for a tensor that is not larger than its storage."""

    n_bytes: int


def vet(file: BinaryIO) -> None:
    """Check a file before ``torch.load``, using memory of a small multiple of its size.

    It raises ValueError if the file contains anything but plain values and tensors with all their
    data, and an exception of any kind if it is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    with ZipFile(file) as archive:
        check_records(archive, size)
        # PyTorch takes names ignoring case, so no other record may look like one of its own
        (pickled,) = [name for name in archive.namelist() if name.lower().endswith("/data.pkl")]
        folder = pickled.removesuffix("data.pkl")
        if folder.count("/") != 1 or not all(n.startswith(folder) for n in archive.namelist()):
            raise ValueError("its records are not in one folder")
        sizes = {r.filename.removeprefix(folder): r.file_size for r in archive.infolist()}
        if sizes["data.pkl"] > MAX_PICKLE_BYTES:
            raise ValueError("it contains too many values besides tensors")
        content = PlainUnpickler(archive.read(pickled), sizes).load()
    check_values(content, 2 * size)


def check_records(archive: ZipFile, size: int) -> None:
    """Check the records of a file of ``size`` bytes, and their checksums.

    Records must not be compressed, overlap or share a name, so that the size of the file bounds
    theirs, and all readers of zip files read the same.
    """
    records = archive.infolist()
    for record in records:
        if record.compress_type != ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError("its records are compressed")
        if record.is_dir() or record.external_attr & FOLDER_FLAG:  # which PyTorch would not read
            raise ValueError("a record is a folder")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records overlap")
    if len({record.filename.lower() for record in records}) < len(records):
        raise ValueError("two of its records have the same name")
    if archive.comment or min((r.header_offset for r in records), default=1):
        raise ValueError("there is data before or after its records")
    if archive.testzip():  # reads all records, piece by piece
        raise ValueError("the checksum of a record is wrong")


class PlainUnpickler(pickle._Unpickler):
    """Unpickle what ``torch.save`` writes into plain values and placeholders.

    It extends the Python unpickler, whose memory is bounded by its input, unlike the one in C.
    """

    def __init__(self, pickled: bytes, record_bytes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.record_bytes = record_bytes

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few classes that a checkpoint needs; for storages, their dtype."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return dense_tensor
        if module == "torch" and name.removesuffix("Storage") in DTYPES:
            return DTYPES[name.removesuffix("Storage")]
        raise ValueError(f"it contains {f'{module}.{name}'[:60]!r}, which is not a plain value")

    def persistent_load(self, pid: Any) -> Storage:
        """Return the placeholder for a storage, if all of it is in the file."""
        _, dtype, key, _, items = pid
        if type(dtype) is not torch.dtype or type(key) is not str or type(items) is not int:
            raise ValueError("the record of a tensor is not valid")
        if self.record_bytes.get(f"data/{key}") != items * dtype.itemsize:
            raise ValueError("the record of a tensor has the wrong length")
        return Storage(items, dtype)

    def build(self) -> None:
        """Ignore the attributes of a state dict, which are the versions of its modules."""
        attributes, target = self.stack.pop(), self.stack[-1]  # type: ignore[attr-defined]
        if type(target) is not OrderedDict or attributes.keys() != {"_metadata"}:
            raise ValueError("it sets attributes")
        check_values(attributes, 0)

    dispatch: dict[int, Callable[[Any], None]] = {  # type: ignore[misc]  # noqa: RUF012
        **{code: pickle._Unpickler.dispatch[code] for code in OPCODES},
        pickle.BUILD[0]: build,
    }


def dense_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any
) -> DenseTensor:
    """Return the placeholder for a tensor, if all of it is in its storage."""
    numbers = (offset, *size, *stride)
    if type(storage) is not Storage or hooks != {} or len(size) > MAX_DIMENSIONS:
        raise ValueError("a tensor is not valid")
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError("the shape of a tensor is not valid")
    items = math.prod(size)
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if items > storage.items or (items and end > storage.items):
        raise ValueError("a tensor is larger than its record")
    return DenseTensor(items * storage.dtype.itemsize)


def check_values(content: Any, max_bytes: int) -> None:
    """Check that a value consists of dicts, lists, tuples, plain values and placeholders.

    Values may be shared, but not so often that visiting all of them would take too long. All
    tensors together may have ``max_bytes``.
    """
    pending: list[tuple[Any, int]] = [(content, 0)]
    values = n_bytes = 0
    while pending:
        value, depth = pending.pop()
        values += 1
        if type(value) in (dict, OrderedDict):
            if not all(type(key) in (str, int) for key in value):
                raise ValueError("a key in it is neither a string nor an integer")
            inner = list(value.values())
        elif type(value) in (list, tuple):
            inner = list(value)
        elif type(value) is DenseTensor:
            inner, n_bytes = [], n_bytes + value.n_bytes
        elif value is None or type(value) in (str, int, float, bool):
            inner = []
        else:
            raise ValueError("it contains a value that is neither a tensor nor plain")
        n_values = values + len(pending) + len(inner)
        if depth > MAX_DEPTH or n_values > MAX_VALUES or n_bytes > max_bytes:
            raise ValueError("it contains too many values")
        pending += [(item, depth + 1) for item in inner]
