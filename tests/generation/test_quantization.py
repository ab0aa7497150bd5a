"""Quantized weights: logits close to those of float32, and one scale per channel."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.errors import UserError
from nanogpt.generation import quantization as module
from nanogpt.generation.quantization import Int8Linear, cache_dtype, int8_engine, set_weights
from nanogpt.models import GPT, build_model
from nanogpt.models.ablated_gpt import PARTS
from tests.models.oracles import random_gpt

SIZES: dict[str, Any] = {
    "vocab_size": 33,
    "block_size": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_embd": 24,
}
# relative errors of the logits; measured errors are at most half
BOUNDS = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.06}
KINDS = pytest.mark.parametrize("kind", BOUNDS)
REAL = torch.quantize_per_channel
ENGINES = [
    engine
    for engine in ("x86", "onednn", "qnnpack")
    if engine in torch.backends.quantized.supported_engines
]


@pytest.fixture(autouse=True)
def inference() -> Any:
    """Run tests in inference mode, as ``decode`` does, and restore the engine."""
    engine = torch.backends.quantized.engine
    with torch.inference_mode():
        yield
    torch.backends.quantized.engine = engine


outside = torch.inference_mode(False)  # models are built and converted in normal mode


@outside
def built(architecture: str, **settings: Any) -> Any:
    torch.manual_seed(1)
    return kernels.install(build_model(architecture, **settings)).eval()


@outside
def gpt() -> GPT:
    """Return a GPT in float32 whose logits depend on all weights."""
    return random_gpt(SIZES, installed=True).float().eval()


@outside
def converted(model: Any, kind: Any) -> Any:
    return set_weights(model, kind, "cpu")


def some_ids() -> Tensor:
    return torch.randint(33, (8, 24), generator=torch.Generator().manual_seed(2))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def by_steps(model: Any, ids: Tensor) -> Tensor:
    cache = model.new_cache(cache_dtype(model))
    return torch.cat([model(column, cache) for column in ids.split(1, dim=1)], dim=1)


def logits_error(kind: Any, model: Any, fault: Callable[[Any], None] | None = None) -> float:
    exact = model(some_ids())
    if fault:
        fault(model)
    return relative(converted(model, kind)(some_ids()), exact)


@KINDS
def test_logits_are_close_to_those_of_float32(kind: str) -> None:
    assert logits_error(kind, gpt()) < BOUNDS[kind]


def scale_a_weight(model: GPT) -> None:
    model.blocks[0].mlp.up_proj.weight *= 1.25


def reset_a_norm(model: GPT) -> None:
    model.blocks[1].ln_2.weight.fill_(1)


def remove_a_bias(model: GPT) -> None:
    model.lm_head.bias.zero_()


@KINDS
@pytest.mark.parametrize("fault", [scale_a_weight, reset_a_norm, remove_a_bias])
def test_a_fault_in_one_layer_exceeds_the_bounds(kind: str, fault: Callable[[Any], None]) -> None:
    assert logits_error(kind, gpt(), fault) > 1.4 * BOUNDS[kind]


@KINDS
def test_most_likely_character_is_mostly_the_same(kind: Any) -> None:
    exact = gpt()(some_ids()).argmax(-1)
    same = converted(gpt(), kind)(some_ids()).argmax(-1) == exact
    assert same.float().mean() > 0.9


@KINDS
def test_steps_with_a_cache_are_close_to_one_pass(kind: Any) -> None:
    model = converted(gpt(), kind)
    assert relative(by_steps(model, some_ids()), model(some_ids()).float()) < BOUNDS[kind]


@pytest.mark.parametrize("supported", [True, False])
@KINDS
def test_dtypes_of_logits_and_caches(
    kind: Any, supported: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: supported)
    model = converted(gpt(), kind)
    cache = model.new_cache(cache_dtype(model))
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    assert model(some_ids(), cache).dtype == dtype
    cached = torch.bfloat16 if kind == "int8" and supported else dtype
    assert {layer.buffer.dtype for layer in cache.layers if layer.buffer is not None} == {cached}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("gather", ["mean", "attention"])
@pytest.mark.parametrize("rest", [PARTS[2:k] for k in (2, 3, 4, 5)] + [PARTS[4:]], ids=str)
def test_logits_of_every_ablated_gpt_are_close_to_those_of_float32(
    kind: Any, positions: Any, gather: str, rest: tuple[str, ...]
) -> None:
    parts = (gather, *rest)
    model = built("ablated_gpt", **SIZES, parts=parts, positions=positions)
    assert logits_error(kind, model) < BOUNDS[kind]
    assert relative(by_steps(model, some_ids()), model(some_ids()).float()) < BOUNDS[kind]


@KINDS
def test_bigram_only_changes_in_bf16(kind: Any) -> None:
    bigram, ids = built("bigram", vocab_size=33, block_size=24), some_ids()
    table = bigram.token_embedding.weight.clone()
    model = converted(bigram, kind)
    assert torch.equal(by_steps(model, ids), model(ids))
    assert torch.equal(model(ids), table.bfloat16()[ids] if kind == "bf16" else table[ids])


def test_int8_only_replaces_linears() -> None:
    model = converted(gpt(), "int8")
    kinds = [type(part) for part in model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 2 * 4 + 1
    assert kinds.count(nn.LayerNorm) == 2 * 2 + 1
    assert kinds.count(nn.Embedding) == 2


def worst_channel(engine: str, has_bias: bool = True) -> float:
    """Return the largest relative error of a channel for weights and inputs that are exact in int8.

    Weights are integers up to ±127 times a scale, which differs by a factor of up to a million, and
    inputs fill their range, so that nothing is rounded. Some channels and rows have the largest
    possible values, so that accumulators that are too small overflow.
    """
    generator = torch.Generator().manual_seed(3)
    linear = nn.Linear(96, 40, bias=has_bias)
    integers = torch.randint(-127, 128, (40, 96), generator=generator).float()
    integers[:, 0], integers[0], integers[1] = 127, 127, -127
    linear.weight.copy_(integers * torch.logspace(-5, 1, 40)[:, None])
    layer = Int8Linear(linear, engine)
    assert torch.backends.quantized.engine == engine
    top = 127 if layer.reduce_range else 255
    x = torch.randint(top + 1, (7, 96), generator=generator)
    x[0], x[1] = top, 0
    x = 0.03 * (x - top // 3)
    return ((layer(x) - linear(x)).norm(dim=0) / linear(x).norm(dim=0)).max().item()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_int8_is_exact_for_values_without_rounding(engine: str, has_bias: bool) -> None:
    assert worst_channel(engine, has_bias) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_without_vnni_inputs_have_7_bits(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert Int8Linear(nn.Linear(2, 2), engine).reduce_range == (engine != "qnnpack")
    assert worst_channel(engine) < 1e-5
    assert logits_error("int8", gpt()) < BOUNDS["int8"]


def shared_scale(w: Tensor, scales: Tensor, *rest: Any) -> Tensor:
    return REAL(w, scales.max().expand_as(scales).contiguous(), *rest)


def small_scale(w: Tensor, scales: Tensor, *rest: Any) -> Tensor:
    return REAL(w, scales / 2, *rest)


def wrong_weights(w: Tensor, scales: Tensor, *rest: Any) -> Tensor:
    return REAL(0.8 * w, scales, *rest)


@pytest.mark.parametrize("fault", [shared_scale, small_scale, wrong_weights])
def test_a_wrong_scale_is_detected(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "quantize_per_channel", fault)
    assert worst_channel(ENGINES[0]) > 0.02
    if fault is not shared_scale:  # the channels of this GPT are of similar size
        assert logits_error("int8", gpt()) > 1.4 * BOUNDS["int8"]


def channel_errors(engine: str) -> Tensor:
    """Return the relative error per channel if one is 100 times larger and one is zero."""
    torch.manual_seed(4)
    linear, x = nn.Linear(64, 32, bias=False), torch.randn(16, 64)
    linear.weight[5] *= 100
    linear.weight[7] = 0
    difference = Int8Linear(linear, engine)(x) - linear(x)
    return difference.norm(dim=0) / linear(x).norm(dim=0).clamp_min(1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_large_channel_does_not_affect_the_others(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = channel_errors(engine)
    assert errors[7] == 0
    assert errors.max() < 0.05
    monkeypatch.setattr(torch, "quantize_per_channel", shared_scale)
    assert channel_errors(engine).median() > 0.1


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_if_it_is_fast_and_never_int8(
    fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[str] = []
    monkeypatch.setattr(module, "fast_bf16", lambda device: bool(devices.append(device)) or fast)
    model = outside(set_weights)(gpt(), "auto", "meta:0")
    assert model.lm_head.weight.dtype == expected
    assert model.lm_head.weight.device.type == "meta"
    assert isinstance(model.lm_head, nn.Linear)
    assert devices == ["meta"]


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_explicit_weights_do_not_depend_on_the_machine(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "fast_bf16")
    converted(gpt(), kind)


@pytest.mark.parametrize(
    ("supported", "expected"),
    [([2, 3, 4, 1], "x86"), ([2, 3], "onednn"), ([2], "qnnpack"), ([0, 2], "qnnpack")],
)
def test_fastest_engine_is_used(
    supported: list[int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: supported)
    assert int8_engine("cpu") == expected


@pytest.mark.parametrize(
    ("kind", "device", "supported", "message"),
    [
        ("int8", "cuda", [4], "int8 weights run on a CPU only, not on cuda: choose bf16 or fp32"),
        ("int8", "cpu", [0], "this PyTorch has no int8 kernels for this CPU: choose bf16 or fp32"),
        ("int4", "cpu", [4], "weights must be auto, fp32, bf16 or int8, not int4"),
    ],
)
def test_unsupported_weights_are_refused_before_the_model_is_changed(
    kind: Any, device: str, supported: list[int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: supported)
    model = gpt()
    before = model(some_ids())
    with pytest.raises(UserError) as error:
        set_weights(model, kind, device)
    assert str(error.value) == message
    assert torch.equal(model(some_ids()), before)


def test_warnings_of_pytorch_are_suppressed() -> None:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # by default, each warning is shown once per process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            converted(gpt(), "int8")(some_ids())
    finally:
        torch.set_warn_always(before)
