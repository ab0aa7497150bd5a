"""Distillation against PyTorch's own Kullback-Leibler divergence, and runs with teachers."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from nanogpt.models import build_model
from nanogpt.training.distillation import distillation_loss
from tests.command_lines import Run, is_one_line
from tests.training.oracles import curves, printed_losses, run_folder, saved_weights

IDS = torch.randint(17, (4, 7), generator=torch.Generator().manual_seed(1))
TARGETS = IDS.roll(1)
EVERY = "--trainer.log_every_n_steps=1"


def gpt(seed: int) -> nn.Module:
    """Return a GPT with large weights."""
    net = build_model("gpt", 17, block_size=8, n_layer=2, n_head=2, n_embd=12, dropout=0.4).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    return net


def divergence(net: nn.Module, expected: Tensor) -> Tensor:
    """Return the divergence from the teachers' probabilities (N, V) plus the entropy of those."""
    log_p = net(IDS).flatten(0, 1).log_softmax(-1)
    entropy = -(expected * expected.log()).sum(-1).mean()
    return F.kl_div(log_p, expected, reduction="batchmean") + entropy


def probabilities(teacher: nn.Module) -> Tensor:
    return teacher(IDS).detach().flatten(0, 1).softmax(-1)


def test_loss_equals_pytorchs_divergence_from_the_mean_of_the_teachers() -> None:
    teachers, student = [gpt(seed).eval() for seed in (1, 2, 3)], gpt(4).eval()
    loss = distillation_loss(teachers)(student, IDS, TARGETS)
    expected = torch.stack([probabilities(teacher) for teacher in teachers]).mean(0)
    assert loss.item() == pytest.approx(divergence(student, expected).item(), rel=1e-6)
    loss.backward()
    parameters = list(student.parameters())
    gradients = torch.autograd.grad(divergence(student, expected), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-6)
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())


FAULTS: dict[str, Callable[[list[nn.Module]], Tensor]] = {  # other targets
    "mean of logits": lambda teachers: (
        torch.stack([t(IDS) for t in teachers]).mean(0).flatten(0, 1).softmax(-1)
    ),
    "one teacher": lambda teachers: probabilities(teachers[0]),
    "dropout": lambda teachers: torch.stack([probabilities(t.train()) for t in teachers]).mean(0),
    "the text": lambda _: F.one_hot(TARGETS.flatten(), 17).double().clamp_min(1e-9),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_planted_faults_are_detected(fault: Callable[[list[nn.Module]], Tensor]) -> None:
    teachers, student = [gpt(seed).eval() for seed in (1, 2, 3)], gpt(4).eval()
    loss = distillation_loss(teachers)(student, IDS, TARGETS).item()
    assert abs(loss - divergence(student, fault(teachers).detach()).item()) > 1e-3


# runs


def train_teachers(fit: Run, *options: str, teachers: int = 2) -> list[str]:
    """Train some models and return the option that makes them teachers."""
    for seed in range(teachers):
        done = fit(f"--seed_everything={seed}", "--trainer.max_steps=20", *options)
        assert done.code == 0, done.err
    return [f"--teachers=[{', '.join(str(run_folder(n)) for n in range(teachers))}]"]


def test_distilled_run_learns_from_its_teachers_and_is_evaluated_on_the_text(fit: Run) -> None:
    option = train_teachers(fit)
    plain, distilled = fit(EVERY), fit(EVERY, *option)
    assert (distilled.code, distilled.err) == (0, "")
    assert printed_losses(distilled.out)[0] == printed_losses(plain.out)[0]
    assert curves(run_folder(2))["loss/batch"] != curves(run_folder(3))["loss/batch"]
    teachers = [str(run_folder(n) / "checkpoints" / "best.safetensors") for n in (0, 1)]
    assert f"\nteachers: {teachers[0]}, {teachers[1]}\n" in distilled.out
    saved = yaml.safe_load((run_folder(3) / "config.yaml").read_text())["teachers"]
    assert saved == teachers


def test_resume_of_a_distilled_run_is_bit_exact(fit: Run, run: Run) -> None:
    option = [*train_teachers(fit), "--model.dropout=0.3"]
    assert fit(EVERY, *option, "--trainer.max_steps=3", "--model.schedule=constant").code == 0
    more = ("--trainer.max_steps=6", "--model.schedule=constant")
    done = run("fit", "--ckpt_path=last", *option, *more)
    assert done.code == 0
    assert "teachers" not in done.err
    assert fit(EVERY, *option, *more).code == 0
    for name, weight in saved_weights(3).items():
        assert torch.equal(weight, saved_weights(2)[name])
    assert curves(run_folder(3))["loss/batch"] == curves(run_folder(2))["loss/batch"]


def test_trained_model_needs_no_teachers(fit: Run, run: Run) -> None:
    assert fit(*train_teachers(fit, teachers=1)).code == 0
    shutil.rmtree(run_folder(0))
    assert run("validate").code == 0
    assert run("predict", "--max_new_tokens=3").code == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--model.block_size=9"],
            "its block_size is 8; set --model.block_size, which is 9, to at most that",
        ),
        (["--data.corpus=other.txt"], "its vocabulary is not that of the corpus"),
        (["--teachers=[nowhere]"], "no teacher at 'nowhere': --teachers takes"),
        ([f"--teachers=[{'a' * 300}]"], "no teacher at 'aaa"),
        (["--teachers=[best]"], "no teacher at 'best'"),
        (["--teachers=[other.txt]"], "cannot be read as a nanogpt model"),
        (["--teachers=here"], "teachers cannot be 'here'; it takes a list: [ONE, OTHER]"),
    ],
)
def test_unsuitable_teacher_gives_a_one_line_error(
    fit: Run, options: list[str], reason: str
) -> None:
    Path("other.txt").write_text("another vocabulary " * 100)
    refused = fit(*train_teachers(fit, teachers=1), *options)
    assert refused.code == 2
    assert is_one_line(refused.err)
    assert reason in refused.err
    assert not run_folder(1).exists()


@pytest.mark.parametrize("other", ["--data.val_fraction=0.2", "--data.corpus=backwards.txt"])
def test_teacher_that_may_have_seen_the_val_split_is_named(fit: Run, text: str, other: str) -> None:
    Path("backwards.txt").write_text(Path(text).read_text()[::-1])
    option = train_teachers(fit, other, teachers=1)
    distilled = fit(*option)
    assert distilled.code == 0
    assert distilled.err.count("may have seen this val split") == 1
