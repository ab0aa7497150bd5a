"""The ensemble against the mean of PyTorch's softmax, in one pass and from caches."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt.generation.decoding import decode
from nanogpt.generation.sampling import SamplingRule, uniform_streams
from nanogpt.models.ensemble import Ensemble
from tests.command_lines import Run
from tests.models.oracles import random_models
from tests.training.oracles import run_folder

BLOCK = 6
IDS = torch.randint(17, (3, BLOCK), generator=torch.Generator().manual_seed(1))
MEMBERS = list(random_models(BLOCK).values())


def expected(members: list[Any], ids: Tensor) -> Tensor:
    """Return the logarithm of the mean of all probabilities."""
    return torch.stack([nn.Softmax(-1)(member(ids).float()) for member in members]).mean(0).log()


def test_log_probabilities_are_those_of_the_mean() -> None:
    logits = Ensemble(MEMBERS)(IDS)
    assert logits.allclose(expected(MEMBERS, IDS), atol=1e-5)
    assert logits.exp().sum(-1).allclose(torch.ones(3, BLOCK))


FAULTS: dict[str, Callable[[list[Any], Tensor], Tensor]] = {
    "mean of logits": lambda members, ids: torch.stack([m(ids) for m in members]).mean(0),
    "one member": lambda members, ids: expected(members[:1], ids),
    "mean of logarithms": lambda members, ids: torch.stack(
        [m(ids).float().log_softmax(-1) for m in members]
    ).mean(0),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_detected(fault: Callable[[list[Any], Tensor], Tensor]) -> None:
    difference = Ensemble(MEMBERS)(IDS) - fault(MEMBERS, IDS)
    assert difference.abs().max() > 0.01


@torch.inference_mode()
def test_cached_steps_equal_the_whole_window() -> None:
    ensemble = Ensemble(MEMBERS)
    cache = ensemble.new_cache()
    parts = [ensemble(ids, cache) for ids in IDS.split([2, 1, 3], dim=1)]
    assert torch.cat(parts, 1).allclose(ensemble(IDS), atol=1e-5)
    cache.set_length(2)
    assert cache.length == 2
    assert ensemble(IDS[:, 2:4], cache).allclose(ensemble(IDS)[:, 2:4], atol=1e-5)


def test_context_is_that_of_the_shortest_member() -> None:
    ensemble = Ensemble([random_models(BLOCK)["gpt"], random_models(3)["modern"]])
    assert ensemble.block_size == 3
    prompt, numbers = IDS[:, :2], uniform_streams(1, 3)
    assert len(list(decode(ensemble, prompt, 20, SamplingRule(), numbers))) == 20  # type: ignore[arg-type]


# commands


def loss(out: str) -> float:
    """Return the val loss that ``validate`` prints, or the loss that ``score`` prints."""
    (line,) = [line for line in out.splitlines() if line.startswith(("val ", "loss "))]
    return float(line.split()[1])


def test_commands_average_models_of_any_architecture(fit: Run, run: Run) -> None:
    for seed in (1, 2):
        assert fit(f"--seed_everything={seed}", "--model.learning_rate=0.02").code == 0
    bigram = ("--model.architecture=bigram", "--model.init=null", "--model.n_layer=null")
    assert fit(*bigram, "--model.n_head=null", "--model.n_embd=null").code == 0
    first, second, third = (str(run_folder(version)) for version in range(3))
    alone = [loss(run("validate", f"--ckpt_path={path}").out) for path in (first, second)]
    both = run("validate", f"--ckpt_path={first},{second}")
    assert both.code == 0, both.err
    assert loss(both.out) < sum(alone) / 2  # by Jensen's inequality
    files = ", ".join(f"{path}/checkpoints/best.safetensors" for path in (first, second))
    assert both.out.startswith(f"{files}, on text.txt:")
    same = run("validate", f"--ckpt_path={first},{first}")
    assert loss(same.out) == pytest.approx(alone[0], abs=1e-4)
    scored = run("score", "--text=text.txt", f"--ckpt_path={first},{third}")
    assert scored.code == 0, scored.err
    assert loss(scored.out) < math.log(2) + min(
        loss(run("score", "--text=text.txt", f"--ckpt_path={path}").out) for path in (first, third)
    )
    sampled = run("predict", f"--ckpt_path={first},{second},{third}", "--max_new_tokens=30")
    assert sampled.code == 0, sampled.err
    assert len(sampled.out) == 30 + 1
    for weights in ("bf16", "int8"):
        options = (f"--weights={weights}", "--max_new_tokens=30")
        assert run("predict", f"--ckpt_path={first},{second}", *options).code == 0


def test_windows_have_the_length_of_the_shortest_context(fit: Run, run: Run) -> None:
    fit()
    fit("--model.block_size=5")
    first, second = (str(run_folder(version)) for version in range(2))
    outcomes = [
        run("validate", f"--ckpt_path={a},{b}") for a, b in ((first, second), (second, first))
    ]
    assert [outcome.code for outcome in outcomes] == [0, 0]
    assert loss(outcomes[0].out) == pytest.approx(loss(outcomes[1].out), abs=1e-4)


def test_members_have_one_vocabulary(fit: Run, run: Run) -> None:
    fit()
    Path("other.txt").write_text("xyz" * 1000, encoding="utf-8")
    fit("--data.corpus=other.txt")
    outcome = run("predict", f"--ckpt_path={run_folder(0)},{run_folder(1)}")
    assert outcome.code == 2
    assert "cannot be in an ensemble" in outcome.err
    assert outcome.err.count("\n") == 1
    missing = run("predict", f"--ckpt_path={run_folder(0)},missing")
    assert missing.code == 2
    assert missing.err.startswith("error: no model at 'missing'")


def test_path_with_a_comma_is_one_model(fit: Run, run: Run) -> None:
    fit()
    run_folder(0).rename("a,b")
    outcome = run("predict", "--ckpt_path=a,b", "--max_new_tokens=5")
    assert outcome.code == 0, outcome.err


def test_stride_is_limited_by_the_shortest_context(fit: Run, run: Run) -> None:
    fit()
    fit("--model.block_size=5")
    both = f"--ckpt_path={run_folder(0)},{run_folder(1)}"
    outcome = run("validate", both, "--stride=7")
    assert outcome.code == 2
    assert outcome.err.endswith(
        "error: stride must be at least 1 and at most the block_size 5, not 7\n"
    )
    assert run("validate", both, "--stride=5").code == 0
