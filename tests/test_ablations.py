"""What is taken away from the modern GPT is gone, and nothing else; a table is made of it."""

import importlib
import subprocess
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nanogpt.models import build_model

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/without.py; what it takes away is put back after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("without")
    monkeypatch.setitem(module.ARCHITECTURES, "shifted", module.Shifted)
    for parts in module.WITHOUT.values():
        for name in parts:
            place = module.place_of(name)
            monkeypatch.setattr(place, name, getattr(place, name))
    return module


def modern(ids: torch.Tensor) -> tuple[dict[str, torch.Size], torch.Tensor, torch.Tensor]:
    """A tiny modern GPT's parameters; its logits as it is built, and with loud weights."""
    torch.manual_seed(1)
    net = build_model("shifted", 17, block_size=8, n_layer=2, n_head=2, n_embd=8).eval()
    new = net(ids)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        return {name: p.shape for name, p in net.named_parameters()}, new, net(ids)


@pytest.mark.parametrize(
    ("ingredient", "more"),
    [
        ("rotary", {"position_embedding.weight"}),
        ("qk-norm", set()),
        ("squared", set()),
        ("squared-relu", set()),
        ("zero-init", set()),
        ("logit-cap", set()),
        (
            "weightless-norms",
            {f"blocks.{b}.ln_{n}.{p}" for b in (0, 1) for n in (1, 2) for p in ("weight", "bias")},
        ),
    ],
)
def test_an_ingredient_is_taken_away(without: ModuleType, ingredient: str, more: set[str]) -> None:
    ids = torch.arange(16).view(2, 8)
    shapes, new, logits = modern(ids)
    without.take_away(ingredient)
    shapes_without, new_without, logits_without = modern(ids)
    assert shapes_without.keys() - shapes.keys() == more
    assert shapes.items() <= shapes_without.items()
    assert not new.any()
    assert new_without.any() == (ingredient == "zero-init")
    same = ingredient == "zero-init"  # the zeros are overwritten by loud weights
    assert torch.allclose(logits, logits_without, atol=1e-5) == same


def test_every_ingredient_that_can_be_taken_away_is_measured(without: ModuleType) -> None:
    variants = importlib.import_module("ablations").SETS["ingredients"].variants.values()
    assert {variant.without for variant in variants} == {"", *without.WITHOUT}


def test_learned_positions_are_read_through_a_cache(without: ModuleType) -> None:
    without.take_away("rotary")
    torch.manual_seed(1)
    net = build_model("shifted", 17, block_size=8, n_layer=2, n_head=2, n_embd=8).eval()
    torch.nn.init.normal_(net.lm_head.weight)
    ids, cache = torch.arange(8)[None], net.new_cache()
    logits = torch.cat([net(ids[:, :3], cache), net(ids[:, 3:], cache)], 1)
    assert torch.allclose(logits, net(ids), atol=1e-5)


def test_logits_are_not_capped_without_the_cap(without: ModuleType) -> None:
    without.take_away("logit-cap")
    net = build_model("shifted", 17, block_size=8, n_layer=1, n_head=2, n_embd=8).eval()
    torch.nn.init.constant_(net.lm_head.weight, 100.0)
    ids = torch.arange(8)[None]
    stream = without.modern.norm(net.token_embedding(ids))  # blocks begin as the identity
    expected = without.modern.norm(stream) @ net.lm_head.weight.T
    assert torch.allclose(net(ids), expected, rtol=1e-3, atol=1e-2)


def test_ablations_are_run_once_each_and_make_a_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    ablations = importlib.import_module("ablations")
    asked = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        asked.append(command[1:])
        folder = Path(next(o for o in command if "default_root_dir" in o).partition("=")[2])
        last = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
        last.parent.mkdir(parents=True)
        seed = int(folder.name)
        torch.save(
            {"run": {"history": [[0, 4.0, 4.0], [3, 2.0, seed / 1000]], "seconds": 7.0}}, last
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    few = {"as it is": ablations.Variant(), "no rotary": ablations.Variant(["--a=b"], "rotary")}
    monkeypatch.setitem(ablations.SETS, "ingredients", ablations.Set("quickstart.yaml", few))
    options = ["--set", "ingredients", "--seeds", "2", "--steps", "3"]
    monkeypatch.setattr("sys.argv", ["ablations.py", *options])
    for _ in range(2):
        ablations.main()
    assert len(asked) == 4
    assert asked[0][:2] == [str(ROOT / "cli.py"), "fit"]
    assert asked[2][:3] == [str(BENCHMARKS / "without.py"), "rotary", "fit"]
    assert {"--a=b", "--trainer.max_steps=3"} < set(asked[2])
    printed = capsys.readouterr().out
    assert printed.count("| no rotary | 1.3375 ± 0.0007 | 2 | 7 |") == 2
