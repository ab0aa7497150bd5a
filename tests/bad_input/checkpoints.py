"""Damaged and malicious model files and checkpoints, made from the bytes of valid ones."""

import io
import json
import os
import pickle
import random
import struct
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


def pickled(content: bytes, program: bytes) -> bytes:
    """The checkpoint with another pickle program."""
    return repacked(content, lambda name, old: program if name.endswith("data.pkl") else old)


def calls(module: str, name: str, arguments: bytes) -> bytes:
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


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


def damaged(good: bytes) -> dict[str, bytes]:
    """Return a file with a part missing or a bit flipped, by name."""
    generator = random.Random(1337)
    lengths = sorted({*range(0, len(good), len(good) // 10), *range(1, 9), len(good) - 1})
    found = {f"cut at {length}": good[:length] for length in lengths}
    for place in sorted(generator.sample(range(len(good)), 20)):
        flipped = bytes([good[place] ^ 1 << generator.randrange(8)])
        found[f"bit flipped at {place}"] = good[:place] + flipped + good[place + 1 :]
    found["as a zip"] = b"PK\3\4" + good
    return found


def with_header(good: bytes, change: Callable[[Any], Any]) -> bytes:
    """Return a model file with a changed header: a text, or an object that becomes JSON."""
    length = int.from_bytes(good[:8], "little")
    new = change(json.loads(good[8 : 8 + length]))
    text = new if isinstance(new, str) else json.dumps(new)
    raw = text.encode(errors="surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + good[8 + length :]


def model_cases(good: bytes) -> dict[str, Callable[[], bytes]]:  # noqa: C901
    """Return model files that have to be refused, by name."""
    length = int.from_bytes(good[:8], "little")
    first, second = "blocks.0.attn.out_proj.bias", "blocks.0.attn.out_proj.weight"
    end = len(good) - 8 - length

    def tensor(entry: str, value: Any) -> Callable[[], bytes]:
        def change(header: Any) -> Any:
            header[first][entry] = value
            return header

        return lambda: with_header(good, change)

    def metadata(value: Any) -> Callable[[], bytes]:
        return lambda: with_header(good, lambda header: {**header, "__metadata__": value})

    def header(text: str) -> Callable[[], bytes]:
        return lambda: with_header(good, lambda _: text)

    def info(name: str, value: Any) -> Callable[[], bytes]:
        def change(old: Any) -> Any:
            content = json.loads(old["__metadata__"]["nanogpt"])
            (content if name in content else content["settings"])[name] = value
            return {**old, "__metadata__": {"nanogpt": json.dumps(content)}}

        return lambda: with_header(good, change)

    text = good[8 : 8 + length].decode()
    cases: dict[str, Callable[[], bytes]] = {
        f"a header of {size} bytes": lambda size=size: struct.pack("<Q", size) + good[8:]
        for size in (0, 1, length - 1, length + 1, 10**8, 10**8 + 1, 2**31, 2**63, 2**64 - 1)
    }
    cases |= {f"header: {case[:20]!r}": header(case) for case in (
        "", "{}", "null", "[]", "{", "\0", "x", "[" * 10**5, '{"a":' * 10**5, text + text,
        text[:-1] + ',"x":{}}', text[:-1] + f',"{first}":{{}}' + "}", "\ufeff" + text,
    )}  # fmt: skip
    cases |= {f"dtype {kind!r}": tensor("dtype", kind) for kind in (
        "F64", "F16", "I64", "BOOL", "F8_E5M2", "F8_E4M3", "F4", "F6_E2M3", "C64", "odd", "", None,
        1, [], "f32",
    )}  # fmt: skip
    cases |= {f"shape {shape!r}"[:40]: tensor("shape", shape) for shape in (
        [], [-1], [7], [9], [2, 4], [8, 1], [10**9], [2**32, 2**32], [2**63], [2**64], [0], None, "8",
        [8.0], [True], [float("nan")], [1] * 10**5,
    )}  # fmt: skip
    cases |= {f"offsets {offsets!r}": tensor("data_offsets", offsets) for offsets in (
        [0, 31], [0, 33], [0, 64], [32, 64], [32, 0], [-32, 0], [end, end + 32], [0, 2**64 - 1],
        [2**64 - 32, 2**64], [0], [0, 16, 32], None, ["0", "32"], [0.0, 32.0], [0, 10**30],
    )}  # fmt: skip
    cases |= {f"metadata {value!r}"[:50]: metadata(value) for value in (
        None, [], {}, "x", {"nanogpt": 1}, {"nanogpt": {}}, {"nanogpt": ""}, {"nanogpt": "null"},
        {"nanogpt": "[" * 10**5}, {"nanogpt": "9" * 10**5}, {"nanogpt": "NaN"}, {"nanogpt": "[]"},
        {"nanogpt": "{}"}, {"nanogpt": "\ud800"}, {"other": "{}"}, {"nanogpt": " " * 2**21},
    )}  # fmt: skip
    for name in ("settings", "vocabulary", "step", "corpus", "data", "val_loss", "block_size",
                 "n_layer", "n_head", "n_embd", "head_size", "architecture"):  # fmt: skip
        for value in (True, -1, 10**30, 2.5, float("nan"), 1e999, "two", [[1]], {"a": {"b": 1}}):
            # all other entries of the data module's settings are ignored
            if (name, value) not in (("val_loss", 2.5), ("data", {"a": {"b": 1}})):
                cases[f"{name}: {value!r}"] = info(name, value)
    for name in ("block_size", "n_layer", "n_head", "n_embd", "head_size"):
        cases[f"{name}: 10^9"] = info(name, 10**9)
    cases |= {
        "a thousand tensors": lambda: with_header(good, lambda old: old | {
            f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [end, end]} for i in range(1000)
        }),
        "no tensors": lambda: with_header(good, lambda old: {"__metadata__": old["__metadata__"]}),
        "another name": header(text.replace(second, "x")),
        "NaN": lambda: good[:-4] + struct.pack("<f", float("nan")),
        "infinity": lambda: good[:-4] + struct.pack("<f", float("inf")),
        "more data": lambda: good + b"x",
        "twice": lambda: good + good,
        "a pickle": lambda: pickle.dumps(Harmful()),
        "a checkpoint": lambda: saved({"extra": Harmful()}),
        "zeros": lambda: bytes(5000),
    }  # fmt: skip
    return cases


ODD: tuple[Any, ...] = (None, -1, 1.5, float("nan"), "two", [1], {"a": 1}, torch.zeros(2), ...)
REPLACED = (
    ("state_dict",), ("hyper_parameters",), ("global_step",), ("optimizer_states",), ("callbacks",),
    ("CharDataModule",), ("hyper_parameters", "vocabulary"), ("hyper_parameters", "architecture"),
    ("optimizer_states", 0, "state"), ("optimizer_states", 0, "state", 0),
    ("optimizer_states", 0, "param_groups"), ("optimizer_states", 0, "param_groups", 0, "params"),
    ("optimizer_states", 0, "state", 0, "step"), ("optimizer_states", 0, "state", 0, "exp_avg"),
    ("callbacks", "RunState"), ("callbacks", "RunState", "history"),
    ("callbacks", "RunState", "history", 0), ("callbacks", "RunState", "history", 0, 1),
    ("callbacks", "RunState", "seconds"), ("callbacks", "EvaluationReport", "best_val_loss"),
)  # fmt: skip
# what may be so: a parameter without gradients has no state, and a loss can be NaN
VALID: dict[Any, tuple[Any, ...]] = {"seconds": (1.5,), "best_val_loss": (1.5,), "callbacks": ({"a": 1},), 1: (1.5, float("nan")),
         "CharDataModule": ({"a": 1},), "RunState": (...,), 0: (...,)}  # fmt: skip


def replaced(good: bytes, path: tuple[Any, ...], change: Callable[[Any], Any]) -> bytes:
    """Return a checkpoint with another entry at a path, or without it if it is ``...``."""
    content = part = torch.load(io.BytesIO(good), weights_only=True)
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = change(part[path[-1]])
    if part[path[-1]] is ...:
        del part[path[-1]]
    return saved(content)


def state_cases(good: bytes) -> dict[str, Callable[[], bytes]]:  # noqa: C901
    """Return checkpoints that have to be refused, by name."""
    cases: dict[str, Callable[[], bytes]] = {}
    for path in REPLACED:
        for value in ODD:
            if not any(str(value) == str(one) for one in VALID.get(path[-1], ())):
                name = f"{'.'.join(map(str, path))}: {str(value)[:20]}"
                cases[name] = lambda p=path, v=value: replaced(good, p, lambda _: v)
    moments = ("optimizer_states", 0, "state", 0, "exp_avg")
    weight = ("state_dict", "net.token_embedding.weight")
    for name, change in TENSORS.items():
        cases[f"weight: {name}"] = lambda c=change: replaced(good, weight, c)
        cases[f"moment: {name}"] = lambda c=change: replaced(good, moments, c)
    for number in (float("nan"), float("inf")):
        for path in (weight, moments, (*moments[:-1], "step")):
            cases[f"{path[-1]}: all {number}"] = lambda p=path, n=number: replaced(
                good, p, lambda old: torch.full_like(old, n)
            )
    for name, shape in {"longer": (10**4,), "one number": (1,), "empty": (0,)}.items():
        cases[f"moment: {name}"] = lambda s=shape: replaced(good, moments, lambda _: torch.zeros(s))
    for how in range(4):
        for place in (("extra",), ("hyper_parameters", "learning_rate"), ("callbacks", "x")):

            def harmful(how: int = how, place: tuple[str, ...] = place) -> bytes:
                content = part = torch.load(io.BytesIO(good), weights_only=True)
                for key in place[:-1]:
                    part = part[key]
                part[place[-1]] = Harmful(how)
                return saved(content)

            cases[f"code {how} in {place[-1]}"] = harmful
        cases[f"code {how} as a pickle"] = lambda how=how: pickle.dumps(Harmful(how))
        cases[f"code {how} in the old format"] = lambda how=how: saved(
            Harmful(how), _use_new_zipfile_serialization=False
        )
        cases[f"code {how} as data.pkl"] = lambda how=how: pickled(good, pickle.dumps(Harmful(how)))
    for name, program in PROGRAMS.items():
        cases[f"program: {name}"] = lambda program=program: pickled(good, program)
    deflated = zipfile.ZIP_DEFLATED
    cases |= {
        "a bomb": lambda: repacked(
            good, lambda n, old: bytes(2**26) if n.endswith("/data/0") else old, deflated
        ),
        "compressed": lambda: repacked(good, lambda _, old: old, deflated),
        "short storages": lambda: repacked(good, lambda n, o: o[:4] if "/data/" in n else o),
        "no storages": lambda: repacked(good, lambda n, old: None if "/data/" in n else old),
        "empty zip": lambda: repacked(good, lambda _, old: None),
        "plain dict": lambda: pickle.dumps({"state_dict": OrderedDict()}, 2),
        "zeros": lambda: bytes(5000),
    }
    return cases
