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

MAX_PICKLE_BYTES = 2**22  # without the tensors; a byte can become a hundred in memory
MAX_VALUES = 10**6  # a short pickle can refer to one list a million times
MAX_DEPTH = 32
MAX_DIMENSIONS = 8
CHUNK = 2**20
FOLDER_FLAG = 0x10  # in a record's attributes
ITEM_BYTES = {"Double": 8, "Float": 4, "Half": 2, "BFloat16": 2}
ITEM_BYTES |= {"Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1}
OPCODES = b"".join(
    (
        *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE, pickle.BINPERSID),
        *(pickle.EMPTY_DICT, pickle.SETITEM, pickle.SETITEMS),
        *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
        *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG1, pickle.BINFLOAT),
        *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.BINUNICODE),
    )
)


@dataclass(frozen=True)
class StorageKind:
    """A placeholder for a class such as ``torch.FloatStorage``."""

    item_bytes: int


@dataclass(frozen=True)
class Storage:
    """A placeholder for the numbers in one record of the file."""

    items: int
    item_bytes: int


@dataclass(frozen=True)
class DenseTensor:
    """A placeholder for a tensor that is not larger than its storage."""

    n_bytes: int


def vet(file: BinaryIO) -> None:
    """Check a file before ``torch.load``, using memory of a small multiple of its size.

    Raises:
        ValueError: if it contains anything but plain values and tensors with all their data.
        Exception: of any kind, if it is damaged.
    """
    size = file.seek(0, io.SEEK_END)
    with ZipFile(file) as archive:
        records = check_records(archive, size)
        (pickled,) = [name for name in records if name.endswith("/data.pkl")]
        if records[pickled] > MAX_PICKLE_BYTES:
            raise ValueError("it contains too many values besides tensors")
        folder = pickled.removesuffix("data.pkl")
        sizes = {name.removeprefix(folder): length for name, length in records.items()}
        content = PlainUnpickler(archive.read(pickled), sizes).load()
    check_values(content, 2 * size)


def check_records(archive: ZipFile, size: int) -> dict[str, int]:
    """Return the size of each record in bytes, after checking its checksum.

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
    for record in records:
        with archive.open(record) as content:  # the checksum is compared at the end
            while content.read(CHUNK):
                pass
    return {record.filename: record.file_size for record in records}


class PlainUnpickler(pickle._Unpickler):
    """Unpickle what ``torch.save`` writes into plain values and placeholders.

    It extends the Python unpickler, whose memory is bounded by its input, unlike the one in C.

    Args:
        pickled: the bytes.
        sizes: of the file's records, in bytes.
    """

    def __init__(self, pickled: bytes, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        """Return the placeholder for one of the few names that a checkpoint needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return dense_tensor
        if module == "torch" and name.removesuffix("Storage") in ITEM_BYTES:
            return StorageKind(ITEM_BYTES[name.removesuffix("Storage")])
        raise ValueError(f"it contains {f'{module}.{name}'[:60]!r}, which is not a plain value")

    def persistent_load(self, pid: Any) -> Storage:
        """Return the placeholder for a storage, if all of it is in the file."""
        storage, kind, key, location, items = pid
        if storage != "storage" or type(kind) is not StorageKind or type(items) is not int:
            raise ValueError("the record of a tensor is not valid")
        if type(key) is not str or type(location) is not str:
            raise ValueError("the record of a tensor has no name")
        if self.sizes.get(f"data/{key}") != items * kind.item_bytes:
            raise ValueError("the record of a tensor has the wrong length")
        return Storage(items, kind.item_bytes)

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
    if type(storage) is not Storage or type(requires_grad) is not bool or hooks != {}:
        raise ValueError("a tensor is not valid")
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError("the shape of a tensor is not valid")
    if len(size) != len(stride) or len(size) > MAX_DIMENSIONS:
        raise ValueError("a tensor has too many dimensions")
    items = math.prod(size)
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if items > storage.items or (items and end > storage.items):
        raise ValueError("a tensor is larger than its record")
    return DenseTensor(items * storage.item_bytes)


def check_values(content: Any, max_bytes: int) -> None:
    """Check that a value consists of dicts, lists, tuples, plain values and placeholders.

    Values may be shared, but not so often that visiting all of them would take too long.

    Args:
        content: of the file.
        max_bytes: maximum size of all tensors together.
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
