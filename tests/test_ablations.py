"""What is changed in a modern GPT is changed, and nothing else; a table is made of it."""

import importlib
import json
import subprocess
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.models import build_model
from nanogpt.training.run_lock import claimed

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture
def changed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/model_variants.py; what it changes is put back after the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("changed")
    for parts in module.CHANGES.values():
        for owner, name, _ in parts:
            monkeypatch.setattr(owner, name, getattr(owner, name))
    return module


def logits_of(
    architecture: str, ids: torch.Tensor
) -> tuple[dict[str, torch.Size], torch.Tensor, torch.Tensor]:
    """A tiny GPT's parameters; its logits as it is built, and with loud weights."""
    torch.manual_seed(1)
    net = build_model(architecture, 17, block_size=8, n_layer=2, n_head=2, n_embd=12).eval()
    new = net(ids)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
        return {name: p.shape for name, p in net.named_parameters()}, new, net(ids)


@pytest.mark.parametrize("architecture", ["modern", "shifted"])
@pytest.mark.parametrize(
    ("change", "more"),
    [
        ("rotary", {"position_embedding.weight"}),
        ("qk-norm", set()),
        ("relu", set()),
        ("gelu", set()),
        ("swiglu", set()),
        ("zero-init", set()),
        ("logit-cap", set()),
        (
            "weighted-norms",
            {f"blocks.{b}.ln_{n}.{p}" for b in (0, 1) for n in (1, 2) for p in ("weight", "bias")},
        ),
        ("rms-norm", set()),
    ],
)
def test_a_change_is_made(
    changed: ModuleType, architecture: str, change: str, more: set[str]
) -> None:
    ids = torch.arange(16).view(2, 8)
    shapes, new, logits = logits_of(architecture, ids)
    changed.change(change)
    shapes_then, new_then, logits_then = logits_of(architecture, ids)
    assert shapes_then.keys() - shapes.keys() == more
    assert shapes.items() <= shapes_then.items() or change == "swiglu"
    assert not new.any()
    assert new_then.any() == (change == "zero-init")
    same = change == "zero-init"  # the zeros are overwritten by loud weights
    assert torch.allclose(logits, logits_then, atol=1e-5) == same


@pytest.mark.parametrize("architecture", ["modern", "shifted"])
def test_stochastic_depth_is_for_training_only(changed: ModuleType, architecture: str) -> None:
    ids = torch.arange(16).view(2, 8).repeat(20, 1)
    changed.change("stochastic-depth")
    torch.manual_seed(1)
    net = build_model(architecture, 17, block_size=8, n_layer=2, n_head=2, n_embd=12)
    for p in net.parameters():
        torch.nn.init.normal_(p)
    logits, noisy = net.eval()(ids), net.train()(ids)
    assert torch.allclose(logits, logits[:2].repeat(20, 1, 1), atol=1e-5)
    of_one_window = noisy[::2].flatten(1)  # those that nothing was done to are alike
    alike = (torch.cdist(of_one_window, of_one_window) < 1e-2).sum(0)
    assert 1 < alike.max() < len(of_one_window)


def test_swiglu_has_as_many_weights_as_what_it_replaces(changed: ModuleType) -> None:
    ids = torch.arange(16).view(2, 8)
    shapes, *_ = logits_of("modern", ids)
    changed.change("swiglu")
    shapes_then, *_ = logits_of("modern", ids)
    assert sum(s.numel() for s in shapes.values()) == sum(s.numel() for s in shapes_then.values())


@pytest.mark.parametrize("name", ["ingredients", "fast"])
def test_every_change_is_measured(changed: ModuleType, name: str) -> None:
    variants = importlib.import_module("ablations").SETS[name].variants.values()
    assert {variant.change for variant in variants} == {"", *changed.CHANGES}


def test_learned_positions_are_read_through_a_cache(changed: ModuleType) -> None:
    changed.change("rotary")
    torch.manual_seed(1)
    net = build_model("shifted", 17, block_size=8, n_layer=2, n_head=2, n_embd=8).eval()
    torch.nn.init.normal_(net.lm_head.weight)
    ids, cache = torch.arange(8)[None], net.new_cache()
    logits = torch.cat([net(ids[:, :3], cache), net(ids[:, 3:], cache)], 1)
    assert torch.allclose(logits, net(ids), atol=1e-5)


def test_logits_are_not_capped_without_the_cap(changed: ModuleType) -> None:
    changed.change("logit-cap")
    net = build_model("shifted", 17, block_size=8, n_layer=1, n_head=2, n_embd=8).eval()
    torch.nn.init.constant_(net.lm_head.weight, 100.0)
    ids = torch.arange(8)[None]
    stream = changed.modern.norm(net.token_embedding(ids))  # blocks begin as the identity
    expected = changed.modern.norm(stream) @ net.lm_head.weight.T
    assert torch.allclose(net(ids), expected, rtol=1e-3, atol=1e-2)


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/ablations.py, whose runs take no time, and end at a loss of their seed / 1000."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("ablations")
    module.asked = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        module.asked.append(command[1:])
        folder = Path(next(o for o in command if "default_root_dir" in o).partition("=")[2])
        last = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
        last.parent.mkdir(parents=True)
        seed = int(folder.name)
        torch.save(
            {"run": {"history": [[0, 4.0, 4.0], [3, 2.0, seed / 1000]], "seconds": 7.0}}, last
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    return module


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_ablations_are_run_once_each_and_make_a_table(
    ablations: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    jobs: str,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    few = {"as it is": ablations.Variant(), "no rotary": ablations.Variant(["--a=b"], "rotary")}
    monkeypatch.setitem(ablations.SETS, "ingredients", ablations.Set("quickstart.yaml", few))
    options = ["--set", "ingredients", "--seeds", "2", "--steps", "3", "--jobs", jobs]
    monkeypatch.setattr("sys.argv", ["ablations.py", *options])
    for _ in range(2):
        ablations.main()
    asked = sorted(ablations.asked)
    assert len(asked) == 4
    assert asked[0][:3] == [str(BENCHMARKS / "changed.py"), "rotary", "fit"]
    assert {"--a=b", "--trainer.max_steps=3"} < set(asked[0])
    assert asked[2][:2] == [str(ROOT / "cli.py"), "fit"]
    printed = capsys.readouterr().out
    assert printed.count("| no rotary | 1.3375 ± 0.0007 | 2 | 7 |") == 2


def test_what_is_taught_learns_from_the_same_runs_with_every_seed(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {"alone": ablations.Variant(), "taught": ablations.Variant(["--a=b"], taught=True)}
    monkeypatch.setitem(ablations.SETS, "ingredients", ablations.Set("quickstart.yaml", few))
    options = ["--set", "ingredients", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", ["ablations.py", *options])
    ablations.main()
    teachers, alone, taught = (ablations.asked[a:b] for a, b in ((0, 4), (4, 6), (6, 8)))
    assert not any("--a=b" in run for run in teachers)
    (option,) = {o for run in taught for o in run if o.startswith("--teachers=")}
    paths = [Path(path) for path in json.loads(option.removeprefix("--teachers="))]
    assert [path.parts[-5:] for path in paths] == [
        (seed, "lightning_logs", "version_0", "checkpoints", "best.ckpt") for seed in "1234"
    ]
    assert all(path.parts[-6] == "teachers" for path in paths)
    assert not any("--teachers" in o for run in [*teachers, *alone] for o in run)
    assert "| teachers | 0.0025 ± 0.0013 | 4 | 7 |" in capsys.readouterr().out


def test_a_run_that_somebody_else_goes_on_with_is_not_done(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Path("out/1337/lightning_logs/version_1/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    torch.save({"run": {"history": [[0, 4.0, 4.0]], "seconds": 7.0}}, last)
    with claimed(last.parents[1]), pytest.raises(UserError) as refused, claimed(last.parents[1]):
        pass

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[-2:] == ["--ckpt_path", str(last)]
        return subprocess.CompletedProcess(command, 2, "", str(refused.value))

    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    with pytest.raises(SystemExit, match="another command trains in"):
        ablations.train("quickstart.yaml", ablations.Variant(), 1337, Path("out/1337"))
    assert not Path("out/1337/done").exists()


@pytest.mark.parametrize("code", [0, 1])
def test_nothing_begins_after_a_failure_of_a_run_or_of_the_table(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, asked = ablations.subprocess.run, list[int]()

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if asked:
            time.sleep(0.1)  # as any run does: what comes next is called off meanwhile
        asked.append(code)
        real(command)
        return subprocess.CompletedProcess(command, code, "", "no room")

    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    many = {str(n): ablations.Variant() for n in range(20)}
    results = ablations.measured(ablations.Set("quickstart.yaml", many), [], 1, 1, Path("out"))
    if code:
        with pytest.raises(SystemExit, match="no room"):
            next(results)
    else:
        assert next(results) == ("0", [(1.337, 7.0)])
        results.close()  # as where printing fails
    assert len(asked) <= 3
