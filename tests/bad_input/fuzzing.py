"""Hypothesis strategies that build hostile model files, checkpoints and run folders from a grammar.

Each takes a valid file as bytes and draws ``(kind, bytes)``: what was changed, and the file.
"""

import gzip
import io
import json
import pickle
import struct
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import yaml
from hypothesis import strategies as st

from tests.bad_input.checkpoints import PROGRAMS, SAME, TENSORS, Harmful, pickled, repacked, saved

Changed = tuple[str, bytes]
EVIL = "evil"  # the module that must not be imported
SIZES = (0, 1, -1, 2, 7, 10**3, 10**5, 10**9, 2**31, 2**53, 2**62, 2**63, 2**64 - 1, 10**30)
NUMBERS = st.sampled_from(SIZES) | st.floats() | st.booleans()
TEXTS = st.sampled_from(
    ["", "gpt", "bigram", "modern", "ablated_gpt", "os.system", f"{EVIL}.Callback", "/dev/zero",
     "text.txt", "nan", "aa", "\ud800", "\x1b[31m", "x" * 10**5, "../..", "${model}", "é\0"]
)  # fmt: skip
SCALARS = st.none() | NUMBERS | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def paths(tree: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all entries of nested dictionaries and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in items:
        found.append((*prefix, key))
        if isinstance(value, dict | list):
            found += paths(value, (*prefix, key))
    return found


def with_entry(tree: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> None:
    """Replace the entry at a path, or remove it if the change is ``...``."""
    for key in path[:-1]:
        tree = tree[key]
    value = change(tree[path[-1]])
    if value is ...:
        del tree[path[-1]]
    else:
        tree[path[-1]] = value


@st.composite
def edited(draw: st.DrawFn, tree: Any, odd: st.SearchStrategy[Any]) -> Any:
    """Draw a copy of a tree in which one to three entries are replaced, removed or added."""
    tree = deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        if not (places := paths(tree)):
            break
        how, value = draw(st.sampled_from(("replace", "remove", "wrap"))), draw(odd)
        changes = {"replace": lambda _, v=value: v, "remove": lambda _: ...,
                   "wrap": lambda old, v=value: {"class_path": v, "init_args": old}}  # fmt: skip
        with_entry(tree, draw(st.sampled_from(places)), changes[how])
    return tree


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Draw a file with bytes flipped, inserted or missing."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(good)) | st.integers(0, min(200, len(good))))
        end = draw(st.sampled_from((start, start + 1, start + 8, len(good))))
        good = good[:start] + draw(st.binary(max_size=9)) + good[end:]
    return good


# model files


def unpacked(good: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Return the header, the settings and the weights of a model file."""
    (length,) = struct.unpack("<Q", good[:8])
    header = json.loads(good[8 : 8 + length])
    return header, json.loads(header["__metadata__"]["nanogpt"]), good[8 + length :]


def packed(header: Any, data: bytes, length: int | None = None) -> bytes:
    """Return a model file; by default with the right length of its header."""
    try:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
    except ValueError:  # an entry that contains itself
        text = b'{"a":' * 1000
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def layouts(header: dict[str, Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Draw headers whose tensors overlap, leave holes, or have other types, shapes or names."""
    names = sorted(set(header) - {"__metadata__"})
    size = max(header[name]["data_offsets"][1] for name in names)
    offset = st.integers(0, size) | st.sampled_from(SIZES) | SCALARS
    value = st.one_of(
        st.sampled_from(("F64", "F16", "BF16", "I64", "BOOL", "F8_E5M2", "F4", "F6_E2M3", "C64",
                         "U64", "odd")),
        st.lists(offset, max_size=4),
        st.sampled_from([header[name]["data_offsets"] for name in names]),
        st.sampled_from([header[name]["shape"] for name in names]),
        VALUES,
    )  # fmt: skip
    places = {name: header[name] for name in names}
    return edited(places, value).map(lambda new: {**new, "__metadata__": header["__metadata__"]})


@st.composite
def model_files(draw: st.DrawFn, good: bytes) -> Changed:
    """Draw a model file."""
    header, info, data = unpacked(good)
    text = json.dumps(header)
    kind = draw(st.sampled_from(
        ("bytes", "length", "header", "layout", "metadata", "settings", "vocabulary", "weights",
         "tensors", "container")
    ))  # fmt: skip
    if kind == "bytes":
        return kind, draw(damaged(good))
    if kind == "length":
        return kind, packed(text.encode(), data, draw(st.sampled_from(
            [size for size in SIZES if 0 <= size < 2**64] + [len(text) - 1, len(text) + 1, 10**8]
        )))  # fmt: skip
    if kind == "header":
        number = draw(st.sampled_from(("NaN", "Infinity", "1e999", "9" * 5000, "-0", "1.5")))
        return kind, packed(draw(st.sampled_from((
            "[" * 10**5, '{"a":' * 10**5, text + text, text[:-1], "\ufeff" + text, "{}", "", "null",
            text.replace("[0,", f"[{number},"), text[:-1] + "," + text[1:], " " * 10**6 + text,
            text.replace('"F32"', number), text.replace('"nanogpt"', '"\\ud800"'),
        ))).encode(errors="surrogatepass"), data)  # fmt: skip
    if kind == "layout":
        return kind, packed(draw(layouts(header)), data)
    if kind == "metadata":
        metadata = draw(st.one_of(
            VALUES,
            st.fixed_dictionaries({"nanogpt": VALUES}),
            st.fixed_dictionaries({"nanogpt": VALUES.map(json.dumps)}),
            st.sampled_from(("[" * 10**5, '{"a":' * 10**5, "[" + "[]," * 3 * 10**5 + "[]]",
                             "9" * 10**5, " " * 2**21)).map(lambda text: {"nanogpt": text}),
        ))  # fmt: skip
        return kind, packed({**header, "__metadata__": metadata}, data)
    if kind in ("settings", "vocabulary"):
        if kind == "settings":
            info = draw(edited(info, VALUES))
        else:
            info["vocabulary"] = draw(st.sampled_from((
                info["vocabulary"] + "a", info["vocabulary"][1:],
                info["vocabulary"][:-1] + "\ud800",
                "".join(map(chr, range(32))) + info["vocabulary"][32:], "x" * 10**6,
                info["vocabulary"][::-1], "".join(map(chr, range(2**16 + 1))),
            )))  # fmt: skip
        return kind, packed({**header, "__metadata__": {"nanogpt": json.dumps(info)}}, data)
    if kind == "weights":
        value = struct.pack("<f", draw(st.sampled_from((float("nan"), float("inf"), 3e38, -0.0))))
        start = 4 * draw(st.integers(0, len(data) // 4 - 1))
        return kind, packed(header, data[:start] + value + data[start + 4 :])
    if kind == "tensors":
        count = draw(st.sampled_from((1, 1000, 10**5)))
        empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
        return kind, packed(header | {f"x{i}": empty for i in range(count)}, data)
    return kind, draw(st.sampled_from((
        b"", b"PK\3\4", pickle.dumps(Harmful()), saved({"extra": Harmful()}), gzip.compress(good),
        bytes(5000), good + b"x", good + good, saved(torch.zeros(3)), text.encode(),
    )))  # fmt: skip


# checkpoints


def odd_tensors() -> st.SearchStrategy[Callable[[torch.Tensor], Any]]:
    """Draw a change of a tensor."""
    others: list[Callable[[torch.Tensor], Any]] = [
        lambda tensor: torch.full_like(tensor, float("nan")),
        lambda tensor: torch.full_like(tensor, 3e38),
        lambda tensor: tensor.flatten()[:1].clone(),
        lambda tensor: tensor[..., None],
        lambda tensor: tensor.double(),
        lambda tensor: tensor.half(),
        lambda tensor: tensor.to(torch.float8_e5m2),
    ]
    return st.sampled_from([*TENSORS.values(), *SAME.values(), *others])


@st.composite
def states(draw: st.DrawFn, good: bytes) -> Changed:
    """Draw a checkpoint to resume from."""
    kind = draw(st.sampled_from(
        ("bytes", "entries", "optimizer", "callbacks", "tensors", "code", "program", "records")
    ))  # fmt: skip
    if kind == "bytes":
        return kind, draw(damaged(good))
    if kind == "program":
        program = draw(st.sampled_from(sorted(PROGRAMS.values())))
        return kind, program if draw(st.booleans()) else pickled(good, program)
    if kind == "records":
        size = draw(st.sampled_from((0, 1, 4, 10**6, 10**8)))
        method = 8 if size == 10**8 else draw(st.sampled_from((0, 8)))  # stored, or compressed
        return kind, repacked(
            good,
            lambda name, old: bytes(size) if "/data/" in name else old,
            8 if size > 10**6 else method,
        )
    content = torch.load(io.BytesIO(good), weights_only=True)
    if kind == "code":
        place = draw(st.sampled_from([path for path in paths(content) if len(path) < 4]))
        harm = Harmful(draw(st.integers(0, 3)))
        with_entry(content, place, lambda _: harm)
        return kind, saved(content, _use_new_zipfile_serialization=draw(st.booleans()))
    if kind == "tensors":
        tensors = [
            path for path in paths(content) if isinstance(entry(content, path), torch.Tensor)
        ]
        for _ in range(draw(st.integers(1, 3))):
            change = draw(odd_tensors())
            with_entry(
                content, draw(st.sampled_from(tensors)), lambda old, f=change: attempt(f, old)
            )
        return kind, saved(content)
    part = {"optimizer": "optimizer_states", "callbacks": "callbacks"}.get(kind)
    value = VALUES | st.sampled_from((torch.zeros(2), torch.tensor(float("nan")), (1, 2)))
    if part:
        content[part] = draw(edited(content[part], value))
    else:
        content = draw(edited(content, value))
    return kind, saved(content)


def entry(tree: Any, path: tuple[Any, ...]) -> Any:
    """Return the entry at a path."""
    for key in path:
        tree = tree[key]
    return tree


def attempt(change: Callable[[torch.Tensor], Any], tensor: torch.Tensor) -> Any:
    """Change a tensor, or replace it by a number if it cannot be changed so."""
    try:
        changed = change(tensor)
        saved(changed)
    except (RuntimeError, IndexError, TypeError, NotImplementedError, AttributeError):
        return 1.0
    return changed


# configs of run folders

CLASSES = (
    f"{EVIL}.Callback", EVIL, "os.system", "builtins.exec", "subprocess.Popen", "nanogpt.atomic.os",
    "torch.os.system", "lightning.pytorch.callbacks.LambdaCallback", "LambdaCallback",
    "lightning.pytorch.callbacks.Timer", "torch.hub.load", "Callback", "nanogpt", "lightning.evil",
    "./evil.yaml", "evil.yaml", "evil_config", "/dev/zero", "torch.nn.Linear",
)  # fmt: skip
CLASS = st.sampled_from(CLASSES)
HOOK = st.fixed_dictionaries({
    "class_path": st.sampled_from(("lightning.pytorch.callbacks.LambdaCallback", "LambdaCallback")),
    "init_args": st.fixed_dictionaries({"on_fit_start": CLASS}),
})  # fmt: skip
PARTS = st.one_of(
    CLASS,
    HOOK,
    st.fixed_dictionaries({"class_path": CLASS}, optional={"init_args": VALUES}),
    st.lists(CLASS | HOOK, max_size=2),
)
LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(12)
)
TEXT_CONFIGS = (
    LAUGHS, LAUGHS + "model: *m\n", "model: &a {b: *a}\n", "&a [*a]", "[" * 10**4, "{a: " * 10**4,
    "!!python/object/apply:os.system ['touch harm']", "model: !!python/name:os.system ''",
    "callbacks: !!python/module:evil ''", "", "null", "- 1", "\0", "\ufeff", "a: b: c", "%YAML 9",
    "model: {<<: {n_layer: 9}}", "? {a: 1}\n: 2", "1: 2", "x" * 10**6, "- a\n" * 10**5,
    "!!binary x", "a: !!binary 'AA=='", "a: 2026-02-30", "a: 1e999", "---\na: 1\n---\nb: 2\n",
)  # fmt: skip


@st.composite
def configs(draw: st.DrawFn, good: bytes) -> Changed:
    """Draw the ``config.yaml`` of a run folder."""
    content = yaml.safe_load(good)
    kind = draw(st.sampled_from(("bytes", "yaml", "values", "classes", "sections")))
    if kind == "bytes":
        return kind, draw(damaged(good))
    if kind == "yaml":
        return kind, draw(st.sampled_from(TEXT_CONFIGS)).encode()
    if kind == "values":
        content = draw(edited(content, VALUES))
    elif kind == "sections":
        content[draw(st.sampled_from([*sorted(content), "config", "x", "fit"]))] = draw(PARTS)
    else:
        places = [("trainer", name) for name in ("callbacks", "logger", "plugins", "strategy",
                  "profiler", "accelerator", "precision", "default_root_dir")]  # fmt: skip
        places += [("callbacks", name) for name in content["callbacks"]]
        section, name = draw(st.sampled_from(places))
        content[section][name] = draw(PARTS)
    return kind, yaml.safe_dump(content, allow_unicode=False).encode(errors="surrogatepass")
