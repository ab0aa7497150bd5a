"""What a GPU requires, checked without one.

Tensors on the ``meta`` device have no values: whatever reads one, or mixes it with a tensor on the
CPU, raises an error, as it would make a GPU wait or fail. MPS, moreover, has no float64.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nanogpt import kernels
from nanogpt.generation.decoding import decode
from nanogpt.generation.sampling import SamplingRule
from nanogpt.models import Model, build_model
from nanogpt.text.batches import Windows, gather
from nanogpt.training.losses import next_character_loss
from nanogpt.training.optimizer import build_optimizer, newton_schulz
from tests.command_lines import Run
from tests.training.oracles import curves, run_folder, saved_weights

SIZES = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 16, "dropout": 0.2}
MODELS = {
    "bigram": {"architecture": "bigram", "block_size": 8},
    "gpt": {"architecture": "gpt", **SIZES},
    "ablated_gpt": {"architecture": "ablated_gpt", "block_size": 8, "n_layer": 2, "n_head": 2},
    "modern": {"architecture": "modern", **SIZES},
    "token shift and noise": {
        "architecture": "modern", **SIZES, "token_shift": True, "token_noise": 0.1
    },
}  # fmt: skip


class NoFloat64(TorchDispatchMode):
    """Raises an error where a tensor on a device other than the CPU is of a type that MPS lacks."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operator, and check the type of its results."""
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple | list) else (results,):
            if isinstance(result, Tensor) and result.device.type != "cpu":
                assert result.dtype not in (torch.float64, torch.complex64, torch.complex128), func
        return results


@pytest.fixture
def types_of_mps() -> Iterator[None]:
    """Check the types of all tensors on the ``meta`` device."""
    with NoFloat64():
        yield


def build(name: str, device: str) -> Model:
    settings = dict(MODELS[name])
    architecture = str(settings.pop("architecture"))
    with torch.device(device):
        return kernels.install(build_model(architecture, 65, **settings))


@pytest.mark.usefixtures("types_of_mps")
@pytest.mark.parametrize(
    ("name", "optimizer"),
    [*((name, "adamw") for name in MODELS), ("gpt", "muon"), ("token shift and noise", "muon")],
)
def test_training_step_reads_no_value(name: str, optimizer: str) -> None:
    net = build(name, "meta")
    hparams = {
        "optimizer": optimizer,
        "learning_rate": 0.1,
        "muon_learning_rate": 0.1,
        "weight_decay": 0.1,
        "betas": (0.9, 0.99),
    }
    updates = build_optimizer(net, hparams, fused=False)
    text = torch.zeros(100, dtype=torch.uint8, device="meta")
    for _ in range(2):
        offsets = torch.zeros(4, dtype=torch.long, device="meta")
        loss = next_character_loss(net, *gather(text, Windows(offsets, 8)))
        assert loss.device.type == "meta"
        loss.backward()
        updates.step()
        updates.zero_grad()


@pytest.mark.usefixtures("types_of_mps")
@pytest.mark.parametrize("name", MODELS)
def test_sampling_reads_no_value(name: str) -> None:
    prompt = torch.zeros(3, 2, dtype=torch.long, device="meta")
    numbers = iter([torch.zeros(3, device="meta")] * 20)
    rule = SamplingRule(temperature=0.9, top_k=9, top_p=0.9)
    drawn = list(decode(build(name, "meta").eval(), prompt, 20, rule, numbers))
    assert {ids.device.type for ids in drawn} == {"meta"}


@pytest.mark.usefixtures("types_of_mps")
@torch.inference_mode()
@pytest.mark.parametrize("name", MODELS)
def test_text_can_be_read_in_parts_without_reading_a_value(name: str) -> None:
    model = build(name, "meta").eval()
    cache = model.new_cache()
    for length in (3, 2, 1):
        logits = model(torch.zeros(2, length, dtype=torch.long, device="meta"), cache)
        assert logits.device.type == "meta"


class Poisoned:
    """A loss whose calls destroy the last call's result and gradients, as replayed graphs do."""

    def __init__(self, *_: Any) -> None:
        self.last: Tensor | None = None

    def __call__(self, net: nn.Module, ids: Tensor, targets: Tensor) -> Tensor:
        for tensor in (self.last, *(weight.grad for weight in net.parameters())):
            if tensor is not None:
                tensor.detach().fill_(torch.nan)
        self.last = next_character_loss(net, ids, targets)
        return self.last


@pytest.mark.parametrize(
    "options", [(), ("--trainer.gradient_clip_val=1",), ("--model.optimizer=muon",)], ids=str
)
def test_no_step_uses_the_loss_or_the_gradients_of_an_earlier_one(
    fit: Run, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    options = (*options, "--trainer.log_every_n_steps=1", "--model.dropout=0.2")
    assert fit(*options).code == 0
    monkeypatch.setattr("nanogpt.training.compiled.CompiledLoss", Poisoned)
    outcome = fit(*options, "--compile=true")
    assert (outcome.code, outcome.err) == (0, "")
    for name in ("loss/batch", "loss/val"):
        assert curves(run_folder(0))[name] == curves(run_folder(1))[name]
    for name, weight in saved_weights(0).items():
        assert torch.equal(weight, saved_weights(1)[name]), name


def graphs_of_a_step(net: nn.Module) -> tuple[Any, Any]:
    """Return the forward and the backward graph, as the compiler gets them."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    graphs: dict[str, list[Any]] = {"forward": [], "backward": []}

    def keep(direction: str) -> Any:
        def compile(graph: Any, _: Any) -> Any:
            graphs[direction].append(graph)
            return make_boxed_func(graph)

        return compile

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    windows = torch.zeros(4, 9, dtype=torch.long)
    run = torch.compile(next_character_loss, backend=backend, fullgraph=True)
    run(net, windows[:, :-1], windows[:, 1:]).backward()
    (forward,), (backward,) = graphs["forward"], graphs["backward"]
    return forward, backward


@pytest.mark.parametrize("name", ["gpt", "modern", "token shift and noise"])
def test_step_is_two_graphs_that_cuda_graphs_can_record(name: str) -> None:
    from torch._inductor.utils import get_first_incompatible_cudagraph_node

    for graph in graphs_of_a_step(build(name, "cpu")):
        assert len(graph.graph.nodes) > 100
        assert get_first_incompatible_cudagraph_node(graph) is None


def test_masks_of_dropout_are_kept_as_bools() -> None:
    forward, backward = graphs_of_a_step(build("gpt", "cpu"))
    (output,) = (node for node in forward.graph.nodes if node.op == "output")
    kept = [node.meta["val"] for node in output.args[0] if isinstance(node.meta["val"], Tensor)]
    masks = [tensor for tensor in kept if tensor.dtype == torch.bool]
    after_parts = [mask for mask in masks if mask.shape == (4, 8, 16)]
    assert len(after_parts) == 2 * 2  # after attention and feed-forward, in both layers
    drawn = [node for node in backward.graph.nodes if "rand" in str(node.target)]
    assert drawn == []  # no mask is drawn again


def test_muon_compiles_as_one_graph() -> None:
    matrices = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    torch._dynamo.reset()
    compiled = torch.compile(newton_schulz, backend="aot_eager", fullgraph=True)
    assert torch.allclose(compiled(matrices), newton_schulz(matrices), atol=1e-6)


def test_cudnn_attention_is_off_after_set_up(fit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    fit("--trainer.max_steps=1")
    assert not torch.backends.cuda.cudnn_sdp_enabled()
