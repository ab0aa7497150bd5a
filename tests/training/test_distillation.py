"""A model that learns from others minimises PyTorch's own divergence from them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from nanogpt.models import GPT
from nanogpt.training.distillation import distilled_loss
from tests.command_lines import Run, is_one_line
from tests.training.oracles import curves, kept_weights, printed_losses, run_folder

IDS = torch.randint(17, (4, 7), generator=torch.Generator().manual_seed(1))
TARGETS = IDS.roll(1)
EVERY = "--trainer.log_every_n_steps=1"


def gpt(seed: int) -> nn.Module:
    """A GPT with loud weights."""
    net = GPT(17, block_size=8, n_layer=2, n_head=2, n_embd=12, dropout=0.4).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(0.4 * torch.randn(p.shape, generator=generator))
    return net


def divergence(net: nn.Module, expected: Tensor) -> Tensor:
    """Kullback-Leibler's from the teachers' (N, V), and the entropy of those, a character."""
    log_p = net(IDS).flatten(0, 1).log_softmax(-1)
    entropy = -(expected * expected.log()).sum(-1).mean()
    return F.kl_div(log_p, expected, reduction="batchmean") + entropy


def probabilities(teacher: nn.Module) -> Tensor:
    return teacher(IDS).detach().flatten(0, 1).softmax(-1)


def test_the_loss_is_pytorchs_divergence_from_the_mean_of_the_teachers() -> None:
    teachers, student = [gpt(seed).eval() for seed in (1, 2, 3)], gpt(4).eval()
    loss = distilled_loss(teachers)(student, IDS, TARGETS)
    expected = torch.stack([probabilities(teacher) for teacher in teachers]).mean(0)
    assert loss.item() == pytest.approx(divergence(student, expected).item(), rel=1e-6)
    loss.backward()
    gradients = [p.grad for p in student.parameters()]
    theirs = torch.autograd.grad(divergence(student, expected), list(student.parameters()))
    for ours, other in zip(gradients, theirs, strict=True):
        assert ours is not None
        assert torch.allclose(ours, other, atol=1e-6)
    assert all(p.grad is None for teacher in teachers for p in teacher.parameters())


FAULTS: dict[str, Callable[[list[nn.Module]], Tensor]] = {
    "mean of logits": lambda each: sum(t(IDS) for t in each).flatten(0, 1).div(3).softmax(-1),  # type: ignore[union-attr]
    "one of them": lambda each: probabilities(each[0]),
    "with dropout": lambda each: sum(probabilities(t.train()) for t in each) / 3,  # type: ignore[return-value]
    "the text": lambda _: F.one_hot(TARGETS.flatten(), 17).double().clamp_min(1e-9),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_any_fault_would_be_seen(fault: Callable[[list[nn.Module]], Tensor]) -> None:
    teachers, student = [gpt(seed).eval() for seed in (1, 2, 3)], gpt(4).eval()
    loss = distilled_loss(teachers)(student, IDS, TARGETS).item()
    assert abs(loss - divergence(student, fault(teachers).detach()).item()) > 1e-3


# runs


def teach(fit: Run, *options: str, teachers: int = 2) -> list[str]:
    """Train some models; return the option that makes them teachers."""
    for seed in range(teachers):
        done = fit(f"--seed_everything={seed}", "--trainer.max_steps=20", *options)
        assert done.code == 0, done.err
    return [f"--teachers=[{', '.join(str(run_folder(n)) for n in range(teachers))}]"]


def test_a_taught_run_learns_from_its_teachers_and_is_judged_by_the_text(fit: Run) -> None:
    option = teach(fit)
    plain, taught = fit(EVERY), fit(EVERY, *option)
    assert (taught.code, taught.err) == (0, "")
    assert printed_losses(taught.out)[0] == printed_losses(plain.out)[0]
    assert curves(run_folder(2))["loss/batch"] != curves(run_folder(3))["loss/batch"]
    each = [str(run_folder(n) / "checkpoints" / "best.ckpt") for n in (0, 1)]
    assert f"\ntaught by {each[0]}, {each[1]}\n" in taught.out
    saved = yaml.safe_load((run_folder(3) / "config.yaml").read_text())["teachers"]
    assert saved == each


def test_a_taught_run_goes_on_with_its_teachers_to_the_bit(fit: Run, run: Run) -> None:
    option = [*teach(fit), "--model.dropout=0.3"]
    assert fit(EVERY, *option, "--trainer.max_steps=3", "--model.schedule=constant").code == 0
    more = ("--trainer.max_steps=6", "--model.schedule=constant")
    done = run("fit", "--ckpt_path=last", *option, *more)
    assert done.code == 0
    assert "teachers" not in done.err
    assert fit(EVERY, *option, *more).code == 0
    for name, weight in kept_weights(3).items():
        assert torch.equal(weight, kept_weights(2)[name])
    assert curves(run_folder(3))["loss/batch"] == curves(run_folder(2))["loss/batch"]


def test_a_taught_run_needs_no_teachers_once_it_is_trained(fit: Run, run: Run) -> None:
    assert fit(*teach(fit, teachers=1)).code == 0
    shutil.rmtree(run_folder(0))
    assert run("validate").code == 0
    assert run("predict", "--max_new_tokens=3").code == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--model.block_size=9"], "it reads 8 characters, and --model.block_size is 9"),
        (["--data.corpus=other.txt"], "it knows other characters than this text has"),
        (["--teachers=[nowhere]"], "no teacher at 'nowhere': --teachers takes"),
        ([f"--teachers=[{'a' * 300}]"], "no teacher at 'aaa"),
        (["--teachers=[best]"], "no teacher at 'best'"),
        (["--teachers=[other.txt]"], "is not a checkpoint of this project"),
        (["--teachers=here"], "teachers cannot be 'here'; it takes a list: [ONE, OTHER]"),
    ],
)
def test_who_cannot_teach_is_said_in_one_line(fit: Run, options: list[str], reason: str) -> None:
    Path("other.txt").write_text("what is not in it " * 100)
    refused = fit(*teach(fit, teachers=1), *options)
    assert refused.code == 2
    assert is_one_line(refused.err)
    assert reason in refused.err
    assert not run_folder(1).exists()


@pytest.mark.parametrize("other", ["--data.val_fraction=0.2", "--data.corpus=backwards.txt"])
def test_who_may_know_the_val_split_is_named(fit: Run, text: str, other: str) -> None:
    Path("backwards.txt").write_text(Path(text).read_text()[::-1])
    option = teach(fit, other, teachers=1)
    taught = fit(*option)
    assert taught.code == 0
    assert taught.err.count("may know this val split") == 1
