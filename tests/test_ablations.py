"""Model variants change one part and nothing else; ablations train each run once."""

import importlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from nanogpt import kernels
from nanogpt.commands.main import main
from nanogpt.errors import UserError
from nanogpt.models import ARCHITECTURES, ModernGPT, build_model
from nanogpt.models.modern import norm
from nanogpt.training.lightning_module import LanguageModel
from nanogpt.training.run_lock import lock_folder

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
IDS = torch.arange(16).view(2, 8)
TOKEN_SHIFT = pytest.mark.parametrize("shift", [False, True])


@pytest.fixture
def variants(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """benchmarks/model_variants.py, with its architectures registered during the test."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    registered = dict(ARCHITECTURES)
    module = importlib.import_module("model_variants")
    module.register()
    yield module
    ARCHITECTURES.clear()
    ARCHITECTURES.update(registered)


def build(architecture: str, shift: bool, **settings: Any) -> ModernGPT:
    """A tiny model in evaluation mode, with the initial weights of seed 1."""
    torch.manual_seed(1)
    sizes = {"block_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 12} | settings
    return build_model(architecture, 17, token_shift=shift, **sizes).eval()


def randomize(model: nn.Module) -> None:
    """Overwrite all weights by large random ones that depend on the size of the parameter only."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


@TOKEN_SHIFT
def test_modular_gpt_without_a_change_equals_modern_gpt(
    variants: ModuleType, monkeypatch: pytest.MonkeyPatch, shift: bool
) -> None:
    monkeypatch.setitem(variants.CHANGES, "modern_relu", lambda model: None)
    settings = {"dropout": 0.2, "token_noise": 0.3}
    models = [build(name, shift, **settings) for name in ("modern", "modern_relu")]
    assert models[0].state_dict().keys() == models[1].state_dict().keys()
    for name, weight in models[0].state_dict().items():
        assert torch.equal(weight, models[1].state_dict()[name])
    logits = []
    for model in models:
        randomize(model)
        cache = model.new_cache()
        with torch.no_grad():
            cached = torch.cat([model(IDS[:, :3], cache), model(IDS[:, 3:], cache)], dim=1)
        torch.manual_seed(2)
        logits.append((model(IDS), cached, model.train()(IDS)))
    for expected, actual in zip(*logits, strict=True):
        assert torch.equal(expected, actual)


def weights_and_logits(
    architecture: str, shift: bool
) -> tuple[dict[str, torch.Size], Tensor, Tensor]:
    """Shapes of the parameters; logits with the initial weights, and with random ones."""
    model = build(architecture, shift)
    initial = model(IDS)
    randomize(model)
    return {name: p.shape for name, p in model.named_parameters()}, initial, model(IDS)


@TOKEN_SHIFT
@pytest.mark.parametrize(
    ("architecture", "added"),
    [
        ("modern_learned_positions", {"position_embedding.weight"}),
        ("modern_without_qk_norm", set()),
        ("modern_relu", set()),
        ("modern_gelu", set()),
        ("modern_swiglu", set()),
        ("modern_default_init", set()),
        ("modern_without_logit_cap", set()),
        (
            "modern_weighted_norms",
            {f"blocks.{b}.ln_{n}.{p}" for b in (0, 1) for n in (1, 2) for p in ("weight", "bias")},
        ),
        ("modern_rms_norm", set()),
    ],
)
def test_variant_changes_its_part(
    variants: ModuleType, architecture: str, shift: bool, added: set[str]
) -> None:
    shapes, initial, logits = weights_and_logits("modern", shift)
    variant_shapes, variant_initial, variant_logits = weights_and_logits(architecture, shift)
    assert variant_shapes.keys() - shapes.keys() == added
    assert shapes.items() <= variant_shapes.items() or architecture == "modern_swiglu"
    assert not initial.any()
    only_init = architecture == "modern_default_init"
    assert variant_initial.any() == only_init
    assert torch.allclose(logits, variant_logits, atol=1e-5) == only_init


@TOKEN_SHIFT
def test_variants_compute_the_same_with_kernels(variants: ModuleType, shift: bool) -> None:
    for architecture in variants.CHANGES:
        model = build(architecture, shift)
        randomize(model)
        expected = model(IDS)
        torch.testing.assert_close(kernels.install(model)(IDS), expected, rtol=1e-4, atol=1e-4)


@TOKEN_SHIFT
def test_stochastic_depth_applies_in_training_only(variants: ModuleType, shift: bool) -> None:
    ids = IDS.repeat(20, 1)
    model = build("modern_stochastic_depth", shift)
    for p in model.parameters():
        nn.init.normal_(p)
    logits, noisy = model.eval()(ids), model.train()(ids)
    assert torch.allclose(logits, logits[:2].repeat(20, 1, 1), atol=1e-5)
    of_one_window = noisy[::2].flatten(1)  # equal where the same layers are dropped
    equal = (torch.cdist(of_one_window, of_one_window) < 1e-2).sum(0)
    assert 1 < equal.max() < len(of_one_window)


def test_swiglu_has_as_many_weights_as_squared_relu(variants: ModuleType) -> None:
    shapes, variant_shapes = (
        weights_and_logits(name, False)[0] for name in ("modern", "modern_swiglu")
    )
    assert sum(s.numel() for s in shapes.values()) == sum(
        s.numel() for s in variant_shapes.values()
    )


def test_learned_positions_continue_from_a_cache(variants: ModuleType) -> None:
    model = build("modern_learned_positions", shift=True)
    nn.init.normal_(model.lm_head.weight)
    ids, cache = torch.arange(8)[None], model.new_cache()
    with torch.no_grad():
        logits = torch.cat([model(ids[:, :3], cache), model(ids[:, 3:], cache)], 1)
    assert torch.allclose(logits, model(ids), atol=1e-5)


def test_logits_are_not_capped_without_the_cap(variants: ModuleType) -> None:
    model = build("modern_without_logit_cap", shift=True)
    nn.init.constant_(model.lm_head.weight, 100.0)
    ids = torch.arange(8)[None]
    stream = norm(model.token_embedding(ids))  # the initial blocks are the identity
    expected = norm(stream) @ model.lm_head.weight.T
    assert torch.allclose(model(ids), expected, rtol=1e-3, atol=1e-2)


def test_variant_trains_resumes_and_samples_through_the_command_line(
    variants: ModuleType, text: str
) -> None:
    fit = ["fit", "--config", str(ROOT / "configs" / "quickstart.yaml"), "--data.corpus", text]
    fit += ["--model.architecture=modern_learned_positions", "--card=false"]
    fit += ["--model.block_size=8", "--model.n_layer=1", "--model.n_head=2", "--model.n_embd=8"]
    fit += ["--data.batch_size=4", "--trainer.max_steps=2", "--trainer.accelerator=cpu"]
    assert main(fit) == 0
    assert main(["fit", "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    assert main(["predict", "--max_new_tokens=5"]) == 0
    ARCHITECTURES.pop("modern_learned_positions")
    assert main(["predict"]) == 2  # as in cli.py


@pytest.mark.parametrize("name", ["ingredients", "fast"])
def test_every_variant_is_in_the_sets(variants: ModuleType, name: str) -> None:
    chosen = importlib.import_module("ablation_sets").SETS[name].variants.values()
    options = {option for variant in chosen for option in variant.options}
    assert {f"--model.architecture={name}" for name in variants.CHANGES} <= options


def test_model_settings_of_all_sets_are_valid(variants: ModuleType) -> None:
    for chosen in importlib.import_module("ablation_sets").SETS.values():
        config = yaml.safe_load((ROOT / "configs" / chosen.config).read_text(encoding="utf-8"))
        for variant in chosen.variants.values():
            settings = dict(config["model"])
            for option in [*chosen.options, *variant.options]:
                name, _, value = option.partition("=")
                if name.startswith("--model."):
                    settings[name.removeprefix("--model.")] = yaml.safe_load(value)
            for name in ("learning_rate", "muon_learning_rate"):  # YAML reads 2e-3 as a string
                settings[name] = float(settings.get(name, 1e-3))
            LanguageModel(**settings)


@pytest.fixture
def ablations(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """benchmarks/ablations.py with instant runs whose val loss is their seed / 1000."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("ablations")
    module.commands = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        module.commands.append(command[1:])
        folder = Path(next(o for o in command if "default_root_dir" in o).partition("=")[2])
        write_run(folder, [[0, 4.0, 4.0], [3, 2.0, int(folder.name) / 1000]])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module, "subprocess", SimpleNamespace(run=run))
    return module


def write_run(folder: Path, history: list[list[float]], max_steps: int = 3) -> Path:
    """Write the files of a run that ablations.py reads; return the checkpoint."""
    last = folder / "lightning_logs" / "version_0" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True)
    config = yaml.safe_dump({"trainer": {"max_steps": max_steps}})
    (last.parents[1] / "config.yaml").write_text(config, encoding="utf-8")
    run = {"history": history, "seconds": 7.0}
    torch.save({"callbacks": {"RunState": run}, "global_step": history[-1][0]}, last)
    return last


def use_set(ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, **variants: object) -> None:
    """Let the set `ingredients` have the given variants."""
    chosen = ablations.Set("quickstart.yaml", variants)
    monkeypatch.setitem(ablations.SETS, "ingredients", chosen)


@pytest.mark.parametrize("jobs", ["1", "3"])
def test_runs_are_trained_once_and_printed_as_a_table(
    ablations: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    jobs: str,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    other = ablations.Variant(["--a=b"])
    use_set(ablations, monkeypatch, unchanged=ablations.Variant(), other=other)
    options = ["--set", "ingredients", "--seeds", "2", "--steps", "3", "--jobs", jobs]
    monkeypatch.setattr("sys.argv", ["ablations.py", *options])
    for _ in range(2):
        ablations.main()
    assert len(ablations.commands) == 4
    fit = [str(BENCHMARKS / "model_variants.py"), "fit"]
    assert all(command[:2] == fit for command in ablations.commands)
    changed = [command for command in ablations.commands if "--a=b" in command]
    assert len(changed) == 2
    assert all("--trainer.max_steps=3" in command for command in changed)
    seeds = sorted(o for c in ablations.commands for o in c if o.startswith("--seed_everything"))
    assert seeds == [f"--seed_everything={seed}" for seed in (1337, 1337, 1338, 1338)]
    assert capsys.readouterr().out.count("| other | 1.3375 ± 0.0007 | 2 | 7 |") == 2


def test_distilled_variants_have_the_same_teachers_for_every_seed(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled = ablations.Variant(["--a=b"], distilled=True)
    use_set(ablations, monkeypatch, alone=ablations.Variant(), distilled=distilled)
    options = ["--set", "ingredients", "--seeds", "2"]
    monkeypatch.setattr("sys.argv", ["ablations.py", *options])
    ablations.main()
    teachers, alone, taught = (ablations.commands[a:b] for a, b in ((0, 4), (4, 6), (6, 8)))
    assert not any("--a=b" in run for run in teachers)
    (option,) = {o for run in taught for o in run if o.startswith("--teachers=")}
    paths = [Path(path) for path in json.loads(option.removeprefix("--teachers="))]
    assert [path.parts[-5:] for path in paths] == [
        (seed, "lightning_logs", "version_0", "checkpoints", "best.safetensors") for seed in "1234"
    ]
    assert all(path.parts[-6] == "teachers" for path in paths)
    assert not any("--teachers" in o for run in [*teachers, *alone] for o in run)
    assert "| teachers | 0.0025 ± 0.0013 | 4 | 7 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("history", "finished"),
    [([[0, 4.0, 4.0], [3, 2.0, 1.0]], True), ([[0, 4.0, 4.0], [2, 2.0, 1.0]], False)],
)
def test_run_is_finished_at_its_last_step(
    ablations: ModuleType, history: list[list[float]], finished: bool
) -> None:
    assert ablations.is_finished(write_run(Path("out"), history)) == finished


def test_run_whose_last_evaluation_is_missing_is_not_finished(ablations: ModuleType) -> None:
    last = write_run(Path("out"), [[0, 4.0, 4.0]])
    torch.save(torch.load(last) | {"global_step": 3}, last)
    assert not ablations.is_finished(last)


def test_run_that_another_process_trains_is_an_error(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = write_run(Path("out/1337"), [[0, 4.0, 4.0]])
    with (
        lock_folder(last.parents[1], is_used=lambda: True),
        pytest.raises(UserError) as refused,
        lock_folder(last.parents[1], is_used=lambda: True),
    ):
        pass

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[-2:] == ["--ckpt_path", str(last)]
        return subprocess.CompletedProcess(command, 2, "", str(refused.value))

    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    with pytest.raises(SystemExit, match="another command is training in"):
        ablations.train("quickstart.yaml", [], 1337, Path("out/1337"))


def test_run_with_other_settings_is_an_error(ablations: ModuleType) -> None:
    assert ablations.train("quickstart.yaml", ["--a=b"], 1337, Path("out/1337")) == (1.337, 7.0)
    with pytest.raises(SystemExit, match="other settings"):
        ablations.train("quickstart.yaml", ["--a=c"], 1337, Path("out/1337"))


@pytest.mark.parametrize("code", [0, 1])
def test_no_run_starts_after_a_failure_of_a_run_or_of_the_table(
    ablations: ModuleType, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    real, started = ablations.subprocess.run, list[int]()

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if started:
            time.sleep(0.1)  # like a real run: the next one is canceled in the meantime
        started.append(code)
        real(command)
        return subprocess.CompletedProcess(command, code, "", "no space")

    monkeypatch.setattr(ablations, "subprocess", SimpleNamespace(run=run))
    many = {str(n): ablations.Variant() for n in range(20)}
    results = ablations.train_set(ablations.Set("quickstart.yaml", many), [], 1, 1, Path("out"))
    if code:
        with pytest.raises(SystemExit, match="no space"):
            next(results)
    else:
        assert next(results) == ("0", [(1.337, 7.0)])
        results.close()  # as if printing had failed
    assert len(started) <= 3
