"""Sampling's weights: logits near float32's, a scale for each channel, and caches that fit."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.errors import UserError
from nanogpt.generation import weights as module
from nanogpt.generation.quantization import Int8Linear, cache_dtype, int8_engine, set_weights
from nanogpt.models import GPT, Bigram, Rung
from nanogpt.models.ablated_gpt import PARTS
from tests.models.oracles import loud

SIZES: dict[str, Any] = {
    "vocab_size": 33,
    "block_size": 24,
    "n_layer": 2,
    "n_head": 3,
    "n_embd": 24,
}
BOUNDS = {"fp32": 1e-5, "bf16": 0.02, "int8": 0.06}  # of the logits' norm; found: half and less
KINDS = pytest.mark.parametrize("kind", BOUNDS)
REAL = torch.quantize_per_channel
ENGINES = [
    engine
    for engine in ("x86", "onednn", "qnnpack")
    if engine in torch.backends.quantized.supported_engines
]


@pytest.fixture(autouse=True)
def inference() -> Any:
    """What is loaded outside is used inside, as the decoder does it; the engine is put back."""
    engine = torch.backends.quantized.engine
    with torch.inference_mode():
        yield
    torch.backends.quantized.engine = engine


outside = torch.inference_mode(False)


@outside
def built(model: Any, **settings: Any) -> Any:
    torch.manual_seed(1)
    return model(**settings).eval()


@outside
def gpt() -> GPT:
    """A GPT whose logits depend much on all of it, in float32."""
    return loud(GPT(**SIZES)).float().eval()


@outside
def on_cpu(model: Any, kind: Any) -> Any:
    return set_weights(model, kind, "cpu")


def some_ids() -> Tensor:
    return torch.randint(33, (8, 24), generator=torch.Generator().manual_seed(2))


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found.float() - expected).norm() / expected.norm()).item()


def by_steps(model: Any, ids: Tensor) -> Tensor:
    cache = model.new_cache(cache_dtype(model))
    return torch.cat([model(one, cache) for one in ids.split(1, dim=1)], dim=1)


def logits_error(kind: Any, model: Any, fault: Callable[[Any], None] | None = None) -> float:
    exact = model(some_ids())
    if fault:
        fault(model)
    return relative(on_cpu(model, kind)(some_ids()), exact)


@KINDS
def test_logits_are_near_those_of_float32(kind: str) -> None:
    assert logits_error(kind, gpt()) < BOUNDS[kind]


def widen_too_much(model: GPT) -> None:
    model.blocks[0].mlp.up_proj.weight *= 1.25


def forget_a_norm(model: GPT) -> None:
    model.blocks[1].ln_2.weight.fill_(1)


def forget_a_bias(model: GPT) -> None:
    model.lm_head.bias.zero_()


@KINDS
@pytest.mark.parametrize("fault", [widen_too_much, forget_a_norm, forget_a_bias])
def test_the_bounds_see_a_fault_in_one_layer(kind: str, fault: Callable[[Any], None]) -> None:
    assert logits_error(kind, gpt(), fault) > 1.4 * BOUNDS[kind]


@KINDS
def test_the_most_likely_character_is_mostly_the_same(kind: Any) -> None:
    exact = gpt()(some_ids()).argmax(-1)
    same = on_cpu(gpt(), kind)(some_ids()).argmax(-1) == exact
    assert same.float().mean() > 0.9


@KINDS
def test_position_by_position_equals_the_whole(kind: Any) -> None:
    model = on_cpu(gpt(), kind)
    assert relative(by_steps(model, some_ids()), model(some_ids()).float()) < BOUNDS[kind]


@pytest.mark.parametrize("units", [True, False])
@KINDS
def test_logits_and_caches_have_the_type_that_the_weights_ask_for(
    kind: Any, units: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: units)
    model = on_cpu(gpt(), kind)
    cache = model.new_cache(cache_dtype(model))
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    assert model(some_ids(), cache).dtype == dtype
    kept = torch.bfloat16 if kind == "int8" and units else dtype
    assert {layer.room.dtype for layer in cache.layers} == {kept}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
@pytest.mark.parametrize("gather", ["mean", "attention"])
@pytest.mark.parametrize("rest", [PARTS[2:k] for k in (2, 3, 4, 5)] + [PARTS[4:]], ids=str)
def test_every_rung_reads_them(
    kind: Any, positions: Any, gather: str, rest: tuple[str, ...]
) -> None:
    rung = built(Rung, **SIZES, parts=(gather, *rest), positions=positions)
    assert logits_error(kind, rung) < BOUNDS[kind]
    assert relative(by_steps(rung, some_ids()), rung(some_ids()).float()) < BOUNDS[kind]


@KINDS
def test_a_bigram_has_no_linear_to_replace(kind: Any) -> None:
    bigram, ids = built(Bigram, vocab_size=33, block_size=24), some_ids()
    table = bigram.table.weight.clone()
    model = on_cpu(bigram, kind)
    assert torch.equal(by_steps(model, ids), model(ids))
    assert torch.equal(model(ids), table.bfloat16()[ids] if kind == "bf16" else table[ids])


def test_int8_replaces_just_the_linears() -> None:
    model = on_cpu(gpt(), "int8")
    kinds = [type(one) for one in model.modules()]
    assert nn.Linear not in kinds
    assert kinds.count(Int8Linear) == 2 * 4 + 1
    assert kinds.count(nn.LayerNorm) == 2 * 2 + 1
    assert kinds.count(nn.Embedding) == 2


def worst_channel(engine: str, has_bias: bool = True) -> float:
    """How far off a linear is that 8 bits hold exactly; channels are up to a million times larger.

    Weights are whole numbers to ±127 times a scale and inputs fill their range, so that nothing is
    rounded; some channels and rows are as large as can be, so that sums too narrow overflow.
    """
    random = torch.Generator().manual_seed(3)
    linear = nn.Linear(96, 40, bias=has_bias)
    whole = torch.randint(-127, 128, (40, 96), generator=random).float()
    whole[:, 0], whole[0], whole[1] = 127, 127, -127
    linear.weight.copy_(whole * torch.logspace(-5, 1, 40)[:, None])
    layer = Int8Linear(linear, engine)
    assert torch.backends.quantized.engine == engine
    top = 127 if layer.narrow else 255
    x = torch.randint(top + 1, (7, 96), generator=random)
    x[0], x[1] = top, 0
    x = 0.03 * (x - top // 3)
    return ((layer(x) - linear(x)).norm(dim=0) / linear(x).norm(dim=0)).max().item()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("has_bias", [True, False])
def test_what_8_bits_hold_goes_through_unchanged(engine: str, has_bias: bool) -> None:
    assert worst_channel(engine, has_bias) < 1e-5


@pytest.mark.parametrize("engine", ENGINES)
def test_without_vnni_inputs_take_7_bits(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert Int8Linear(nn.Linear(2, 2), engine).narrow == (engine != "qnnpack")
    assert worst_channel(engine) < 1e-5
    assert logits_error("int8", gpt()) < BOUNDS["int8"]


def shared(w: Tensor, scales: Tensor, *rest: Any) -> Tensor:
    return REAL(w, scales.max().expand_as(scales).contiguous(), *rest)


def small(w: Tensor, scales: Tensor, *rest: Any) -> Tensor:
    return REAL(w, scales / 2, *rest)


def wrong(w: Tensor, scales: Tensor, *rest: Any) -> Tensor:
    return REAL(0.8 * w, scales, *rest)


@pytest.mark.parametrize("fault", [shared, small, wrong])
def test_a_wrong_scale_shows(fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "quantize_per_channel", fault)
    assert worst_channel(ENGINES[0]) > 0.02
    if fault is not shared:  # in this GPT all channels are about as large
        assert logits_error("int8", gpt()) > 1.4 * BOUNDS["int8"]


def channel_errors(engine: str) -> Tensor:
    """How far off each channel of a linear is when one is 100 times larger, and one is silent."""
    torch.manual_seed(4)
    linear, x = nn.Linear(64, 32, bias=False), torch.randn(16, 64)
    linear.weight[5] *= 100
    linear.weight[7] = 0
    difference = Int8Linear(linear, engine)(x) - linear(x)
    return difference.norm(dim=0) / linear(x).norm(dim=0).clamp_min(1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_large_channel_costs_the_others_nothing(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = channel_errors(engine)
    assert errors[7] == 0
    assert errors.max() < 0.05
    monkeypatch.setattr(torch, "quantize_per_channel", shared)
    assert channel_errors(engine).median() > 0.1


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_is_bf16_where_that_is_fast_and_never_int8(
    fast: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "fast_bf16", lambda kind: bool(asked.append(kind)) or fast)
    model = outside(set_weights)(gpt(), "auto", "meta:0")
    assert model.lm_head.weight.dtype == expected
    assert model.lm_head.weight.device.type == "meta"
    assert isinstance(model.lm_head, nn.Linear)
    assert asked == ["meta"]


@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8"])
def test_what_is_asked_for_is_done_whatever_the_machine(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "fast_bf16")
    on_cpu(gpt(), kind)


@pytest.mark.parametrize(
    ("supported", "expected"),
    [([2, 3, 4, 1], "x86"), ([2, 3], "onednn"), ([2], "qnnpack"), ([0, 2], "qnnpack")],
)
def test_the_fastest_engine_is_taken(
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
def test_what_cannot_be_is_said_in_a_line_and_the_model_left_as_it_was(
    kind: Any, device: str, supported: list[int], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch._C, "_supported_qengines", lambda: supported)
    model = gpt()
    before = model(some_ids())
    with pytest.raises(UserError) as error:
        set_weights(model, kind, device)
    assert str(error.value) == message
    assert torch.equal(model(some_ids()), before)


def test_pytorchs_warnings_stay_within() -> None:
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # else PyTorch says each thing once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            on_cpu(gpt(), "int8")(some_ids())
    finally:
        torch.set_warn_always(before)
