"""What a checkpoint file claims to hold, checked before PyTorch reads it.

``torch.load(weights_only=True)`` runs no code that a file chooses, but it takes whatever memory
the file asks for, and reads past a tensor's end where the file gives it a wrong length. So the
file is read twice: here first, with stand-ins for tensors, by a reader that knows only what
``torch.save`` writes for dicts, lists, tuples, plain values and dense tensors.
"""

import io
import math
import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, ZipFile

PICKLE_BYTES = 2**22  # of everything but the tensors: a byte can stand for a hundred in memory
VALUES = 10**6  # in all: a short pickle can name one list a million times over
DEPTH = 32
DIMENSIONS = 8
CHUNK = 2**20
FOLDER = 0x10  # in a record's attributes
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
    """Stands for a class such as ``torch.FloatStorage``."""

    item_bytes: int


@dataclass(frozen=True)
class Storage:
    """Stands for the numbers of one record of the file."""

    items: int
    item_bytes: int


@dataclass(frozen=True)
class DenseTensor:
    """Stands for a tensor: a view of a storage that is no larger than it."""

    n_bytes: int


def vet(file: BinaryIO) -> None:
    """Check a file before ``torch.load``, in memory bounded by a small multiple of its size.

    Raises:
        ValueError: if it holds anything but plain values and the tensors that it has room for.
        Exception: of other kinds, if it is broken: a file can be so in many ways.
    """
    size = file.seek(0, io.SEEK_END)
    with ZipFile(file) as archive:
        records = check_records(archive, size)
        (pickled,) = [name for name in records if name.endswith("/data.pkl")]
        if records[pickled] > PICKLE_BYTES:
            raise ValueError("too many values beside the tensors")
        folder = pickled.removesuffix("data.pkl")
        sizes = {name.removeprefix(folder): length for name, length in records.items()}
        content = PlainUnpickler(archive.read(pickled), sizes).load()
    check_values(content, 2 * size)


def check_records(archive: ZipFile, size: int) -> dict[str, int]:
    """Return the bytes of each record, once all lie in the file as they are, and unharmed.

    Nothing may be compressed, overlap or stand twice, so that all have room in the file, and
    every reader of such files sees the same.
    """
    records = archive.infolist()
    for record in records:
        if record.compress_type != ZIP_STORED or record.compress_size != record.file_size:
            raise ValueError("its records are compressed")
        if record.is_dir() or record.external_attr & FOLDER:  # PyTorch would not read it
            raise ValueError("a record is a folder")
    if sum(record.file_size for record in records) > size:
        raise ValueError("its records overlap")
    if len({record.filename.lower() for record in records}) < len(records):
        raise ValueError("a record stands twice in it")
    if archive.comment or min((r.header_offset for r in records), default=1):
        raise ValueError("there is something before or after its records")
    for record in records:
        with archive.open(record) as content:  # at its end the checksum is compared
            while content.read(CHUNK):
                pass
    return {record.filename: record.file_size for record in records}


class PlainUnpickler(pickle._Unpickler):
    """Reads what ``torch.save`` writes, and makes nothing but plain values and stand-ins.

    Written in Python, unlike ``pickle.Unpickler``: its memory is bounded by what it reads.

    Args:
        pickled: the bytes.
        sizes: of the file's records, in bytes.
    """

    def __init__(self, pickled: bytes, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(pickled))
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for one of the few names that a checkpoint needs."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return dense_tensor
        if module == "torch" and name.removesuffix("Storage") in ITEM_BYTES:
            return StorageKind(ITEM_BYTES[name.removesuffix("Storage")])
        raise ValueError(f"it asks for {f'{module}.{name}'[:60]!r}, which is no plain value")

    def persistent_load(self, pid: Any) -> Storage:
        """Return what stands for a storage, if the file holds all of it."""
        storage, kind, key, location, items = pid
        if storage != "storage" or type(kind) is not StorageKind or type(items) is not int:
            raise ValueError("a tensor's record is not described")
        if type(key) is not str or type(location) is not str:
            raise ValueError("a tensor's record is not named")
        if self.sizes.get(f"data/{key}") != items * kind.item_bytes:
            raise ValueError("a tensor's record is not of the length that it claims")
        return Storage(items, kind.item_bytes)

    def build(self) -> None:
        """Leave out the attributes of a state dict: the versions of its modules."""
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
    """Return what stands for a tensor, if all of it lies in its storage."""
    if type(storage) is not Storage or type(requires_grad) is not bool or hooks != {}:
        raise ValueError("a tensor is not described")
    numbers = (offset, *size, *stride)
    if not all(type(number) is int and 0 <= number < 2**62 for number in numbers):
        raise ValueError("a tensor's shape is not described")
    if len(size) != len(stride) or len(size) > DIMENSIONS:
        raise ValueError("a tensor has too many dimensions")
    items = math.prod(size)
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if items > storage.items or (items and end > storage.items):
        raise ValueError("a tensor claims more than its record holds")
    return DenseTensor(items * storage.item_bytes)


def check_values(content: Any, most_bytes: int) -> None:
    """Check that a value is made of dicts, lists, tuples, plain values and stand-ins for tensors.

    They may be shared, but not so often that writing them out would take for ever.

    Args:
        content: of the file.
        most_bytes: that its tensors may have between them.
    """
    waiting: list[tuple[Any, int]] = [(content, 0)]
    values = n_bytes = 0
    while waiting:
        value, depth = waiting.pop()
        values += 1
        if type(value) in (dict, OrderedDict):
            if not all(type(key) in (str, int) for key in value):
                raise ValueError("a name in it is no text")
            inner = list(value.values())
        elif type(value) in (list, tuple):
            inner = list(value)
        elif type(value) is DenseTensor:
            inner, n_bytes = [], n_bytes + value.n_bytes
        elif value is None or type(value) in (str, int, float, bool):
            inner = []
        else:
            raise ValueError("it holds what is neither a tensor nor a plain value")
        if depth > DEPTH or values + len(waiting) + len(inner) > VALUES or n_bytes > most_bytes:
            raise ValueError("its values are too many")
        waiting += [(item, depth + 1) for item in inner]
