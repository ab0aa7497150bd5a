"""Damaged and malicious checkpoints, as functions from the bytes of a valid one to others."""

import io
import os
import pickle
import random
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HARM = "harm was done"  # the file that malicious code creates


class Harmful:
    """Creates a file when it is unpickled by the standard unpickler."""

    def __init__(self, how: int = 0) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return (
            (Path.touch, (Path(HARM),)),
            (os.system, (f"touch '{HARM}'",)),
            (eval, (f"open({HARM!r}, 'w')",)),
            (getattr(torch, "load"), (HARM,)),  # noqa: B009
        )[self.how]


def saved(value: Any, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **settings)
    return buffer.getvalue()


def repacked(
    content: bytes, change: Callable[[str, bytes], bytes | None], method: int = zipfile.ZIP_STORED
) -> bytes:
    """The same records, each changed, or omitted if ``change`` returns None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            if (record := change(name, old.read(name))) is not None:
                new.writestr(name, record)
    return buffer.getvalue()


def hidden(content: bytes) -> bytes:
    """A checkpoint whose pickle PyTorch finds under another case, beside a harmless decoy."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            new.writestr(name.replace("data.pkl", "DATA.PKL"), old.read(name))
        (name,) = [name for name in old.namelist() if name.endswith("/data.pkl")]
        new.writestr(name.replace("data.pkl", "b/data.pkl"), pickle.dumps({}, 2))
    return buffer.getvalue()


def pickled(content: bytes, program: bytes) -> bytes:
    """The checkpoint with another pickle program."""
    return repacked(content, lambda name, old: program if name.endswith("data.pkl") else old)


def tarred(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def calls(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


def laughs() -> list[Any]:
    nested: list[Any] = ["x"] * 9
    for _ in range(12):
        nested = [nested] * 9
    return nested


def deep(times: int) -> list[Any]:
    nested: list[Any] = []
    for _ in range(times):
        nested = [nested]
    return nested


BIG = (0, -1, 9, 10**3, 10**5, 10**9, 2**31, 2**63, 10**30)
ODD: dict[str, Any] = {
    "null": None, "bool": True, "text": "two", "empty": "", "float": 1.5, "nan": float("nan"),
    "list": [1], "dict": {"a": 1}, "tuple": (8,), "tensor": torch.zeros(2), "deep": deep(40),
}  # fmt: skip
SETTINGS = ("architecture", "block_size", "n_layer", "n_head", "n_embd", "head_size", "vocabulary")
PARTS = ("state_dict", "hyper_parameters", "global_step", "CharDataModule")
GIB = 2**30
LONG = b"J" + struct.pack("<i", 2**31 - 1)  # an int, pushed
# programs that request memory, code, or objects other than plain values
PROGRAMS: dict[str, bytes] = {
    "bytearray": calls("__builtin__", "bytearray", LONG + b"\x85"),
    "bytearray copied": calls(
        "__builtin__", "bytearray", b"c__builtin__\nbytearray\n" + LONG + b"\x85R\x85"
    ),
    "torch.Tensor": calls("torch", "Tensor", LONG + b"\x85"),
    "torch.FloatStorage": calls("torch", "FloatStorage", LONG + b"\x85"),
    "torch.load": calls("torch", "load", b"X\x01\0\0\0x\x85"),
    "storage of bytes": calls("torch.storage", "_load_from_bytes", b"U\x01x\x85"),
    "os.system": calls("os", "system", b"X\x05\0\0\0touch\x85"),
    "posix.system": calls("posix", "system", b"X\x05\0\0\0touch\x85"),
    "eval": calls("__builtin__", "eval", b"X\x01\0\0\x001\x85"),
    "exec": calls("__builtin__", "exec", b"X\x01\0\0\x001\x85"),
    "getattr": calls("__builtin__", "getattr", b"X\x01\0\0\x001\x85"),
    "a model class": calls("nanogpt.models", "GPT", LONG + b"\x85"),
    "parameter": calls("torch.nn.parameter", "Parameter", LONG + b"\x85"),
    "quantised": calls("torch._utils", "_rebuild_qtensor", b")"),
    "sparse": calls("torch._utils", "_rebuild_sparse_tensor", b")"),
    "meta": calls("torch._utils", "_rebuild_meta_tensor_no_storage", b")"),
    "a set": b"\x80\x04\x8f.",
    "a class by name": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
    "an instance": b"(ios\nsystem\n.",
    "an extension": b"\x80\x02\x82\x01.",
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "text": b"\x80\x02X\xff\xff\xff\x7fabc.",
    "bytes": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b".",
    "attributes": b"\x80\x02ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb.",
    "attributes of the class": b"\x80\x02ccollections\nOrderedDict\n}X\x05\0\0\0itemsK\x01sb.",
    "attributes of a function": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}b.",
    "nothing": b"", "stop": b".", "mark": b"(.", "pop": b"0.", "empty stack": b"\x80\x02R.",
    "a number": b"\x80\x02K\x01.", "unknown opcode": b"\x80\x02\xff.",
}  # fmt: skip
TENSORS: dict[str, Callable[[torch.Tensor], Any]] = {
    "sparse": lambda weight: weight.to_sparse(),
    "sparse rows": lambda weight: weight.to_sparse_csr(),
    "quantised": lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
    "meta": lambda weight: weight.to("meta"),
    "ints": lambda weight: weight.int(),
    "bools": lambda weight: weight.bool(),
    "complex": lambda weight: weight.to(torch.complex64),
    "transposed": lambda weight: weight.T,
    "one number, expanded": lambda weight: torch.zeros(1).expand(weight.shape),
    "a giant, expanded": lambda _: torch.zeros(1).expand(10**6, 10**6),
    "flat": lambda weight: weight.flatten(),
    "a number": lambda _: 1.0,
    "a list": lambda weight: weight.tolist(),
    "nested": lambda weight: torch.nested.nested_tensor([weight]),
}
SAME: dict[str, Callable[[torch.Tensor], Any]] = {
    "parameter": lambda weight: torch.nn.Parameter(weight),
    "doubles": lambda weight: weight.double(),
    "other strides": lambda weight: weight.T.contiguous().T,
    "a view": lambda weight: torch.cat([weight, weight])[: len(weight)],
}


def cases(good: bytes) -> dict[str, Callable[[], bytes]]:  # noqa: C901
    """Return all cases by name."""
    found: dict[str, Callable[[], bytes]] = {}

    whole = torch.load(io.BytesIO(good), weights_only=True)

    def changed(where: str | None, name: str, value: Any) -> bytes:
        content = dict(whole)
        if where is not None:
            content[where] = dict(whole[where])
        inside = content if where is None else content[where]
        if value is ...:
            del inside[name]
        else:
            inside[name] = value
        return saved(content)

    def add(name: str, make: Callable[[], bytes]) -> None:
        assert name not in found
        found[name] = make

    generator = random.Random(1337)
    for length in sorted({*range(0, len(good), len(good) // 40), *range(1, 5), len(good) - 1}):
        add(f"cut at {length}", lambda length=length: good[:length])
    for place in sorted(generator.sample(range(len(good)), 80)):
        bit = 1 << generator.randrange(8)
        add(
            f"bit {bit} flipped at {place}",
            lambda p=place, b=bit: good[:p] + bytes([good[p] ^ b]) + good[p + 1 :],
        )
    for part in PARTS:
        add(f"no {part}", lambda part=part: changed(None, part, ...))
        for kind, value in ODD.items():
            add(f"{part}: {kind}", lambda part=part, v=value: changed(None, part, v))
    for name in SETTINGS:
        add(f"no {name}", lambda name=name: changed("hyper_parameters", name, ...))
        for kind, value in [*ODD.items(), *((str(size), size) for size in BIG)]:
            add(f"{name}: {kind}", lambda n=name, v=value: changed("hyper_parameters", n, v))
    add("billion laughs", lambda: changed("hyper_parameters", "n_layer", laughs()))
    add("billion laughs in an extra entry", lambda: changed(None, "extra", laughs()))
    for how in range(4):
        add(
            f"code {how} in the settings",
            lambda how=how: changed("hyper_parameters", "learning_rate", Harmful(how)),
        )
        add(f"code {how} in an extra entry", lambda how=how: changed(None, "extra", [Harmful(how)]))
        add(f"code {how} as a pickle", lambda how=how: pickle.dumps(Harmful(how)))
        add(f"code {how} in a tar", lambda how=how: tarred(pickle.dumps(Harmful(how))))
        add(
            f"code {how} in the old format",
            lambda how=how: saved({"extra": Harmful(how)}, _use_new_zipfile_serialization=False),
        )
        add(f"code {how} as data.pkl", lambda how=how: pickled(good, pickle.dumps(Harmful(how))))
    for name, program in PROGRAMS.items():
        add(f"program: {name}", lambda program=program: pickled(good, program))
        add(f"bare program: {name}", lambda program=program: program)
    for name, of in (TENSORS | SAME).items():

        def tensor(of: Callable[[torch.Tensor], Any] = of) -> bytes:
            content = torch.load(io.BytesIO(good), weights_only=True)
            weight = "net.token_embedding.weight"
            content["state_dict"][weight] = of(content["state_dict"][weight])
            return saved(content)

        add(f"tensor: {name}", tensor)
    add(
        "bomb",
        lambda: repacked(
            good,
            lambda n, old: bytes(GIB // 4) if n.endswith("/data/0") else old,
            zipfile.ZIP_DEFLATED,
        ),
    )
    add("compressed", lambda: repacked(good, lambda _, old: old, zipfile.ZIP_DEFLATED))
    add("short storages", lambda: repacked(good, lambda n, old: old[:4] if "/data/" in n else old))
    add("no storages", lambda: repacked(good, lambda n, old: None if "/data/" in n else old))
    add("no byte order", lambda: repacked(good, lambda n, old: None if "byteorder" in n else old))
    add("odd byte order", lambda: repacked(good, lambda n, o: b"odd" if "byteorder" in n else o))
    entry = good.index(b"PK\1\2")  # of the first record, with its attributes 38 bytes on
    folder = bytes([good[entry + 38] | 16])
    add("a folder", lambda: good[: entry + 38] + folder + good[entry + 39 :])
    add("before it", lambda: b"PK\3\4 something" + good)
    add("after it", lambda: good + b"something")
    add("twice", lambda: good + good)
    add("hidden pickle", lambda: hidden(good))
    weights = {name.removeprefix("net."): weight for name, weight in whole["state_dict"].items()}
    add("weights without net.", lambda: saved({**whole, "state_dict": weights}))
    add("zeros", lambda: bytes(5000))
    add("empty zip", lambda: repacked(good, lambda _, old: None))
    add("plain dict", lambda: pickle.dumps({"state_dict": OrderedDict()}, 2))
    return found
