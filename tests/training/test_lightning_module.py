"""Training and evaluation equal a plain loop, to the last digits."""

import copy
import math
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from nanogpt.models import Model, build_model
from nanogpt.text.pastiche import pastiche
from nanogpt.training.datamodule import CharDataModule
from nanogpt.training.lightning_module import LanguageModel
from tests.command_lines import CONFIGS, Run
from tests.training.oracles import curves, distance, plain_run, run_folder, saved_weights

TEXT = pastiche()[:5000]  # that of the fixture `text`: all 65 characters occur
CONSTANT = ("--model.schedule=constant", "--model.warmup_steps=0", "--model.learning_rate=0.01")
TINY_GPT = {"block_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 12, "dropout": 0.4}


def trainer(**settings: Any) -> L.Trainer:
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return L.Trainer(accelerator="cpu", **dict.fromkeys(off, False), **settings)


def validate(model: LanguageModel, text: str) -> dict[str, float]:
    """Evaluate a model, initialized with seed 1, on a text and return the metrics that it logs."""
    torch.manual_seed(1)
    data = CharDataModule(text, block_size=model.hparams["block_size"])
    lightning = trainer()
    lightning.validate(model, data, verbose=False)
    assert len(lightning.callback_metrics) == 6
    assert all(module.training for module in model.modules())
    return {name: value.item() for name, value in lightning.callback_metrics.items()}


def naive_loss(net: nn.Module, ids: list[int], windows: list[tuple[int, int]]) -> float:
    """Return the mean loss over (start, length) windows, one character at a time in float64."""
    net, losses = copy.deepcopy(net).double().eval(), []
    for start, length in windows:
        window = torch.tensor(ids[start : start + length + 1])
        log_p = net(window[None, :-1])[0].log_softmax(-1)
        losses += [-log_p[t, window[t + 1]].item() for t in range(length)]
    return sum(losses) / len(losses)


# evaluation


def test_evaluation_losses_equal_a_naive_loop(text: str) -> None:
    model = LanguageModel(**TINY_GPT)
    found = validate(model, text)
    characters = sorted(set(TEXT))
    ids = [characters.index(character) for character in TEXT]
    T, n_train, n_targets = 7, 4500, 499
    lengths = [T] * (n_targets // T) + [n_targets % T]
    assert sum(lengths) == n_targets
    assert lengths[-1] == 2
    windows = [(T * i, length) for i, length in enumerate(lengths)]  # the whole val split
    assert found["loss/val"] == pytest.approx(naive_loss(model.net, ids[4500:], windows), abs=1e-5)
    last = n_train - T - 1
    spread = [(i * last // (len(lengths) - 1), length) for i, length in enumerate(lengths)]
    train_loss = naive_loss(model.net, ids[:4500], spread)
    assert found["loss/train"] == pytest.approx(train_loss, abs=1e-5)
    # a missing window and dropout would be detected
    assert abs(naive_loss(model.net, ids[4500:], windows[:-1]) - found["loss/val"]) > 1e-4
    model.net.eval = model.net.train  # type: ignore[method-assign]
    assert abs(naive_loss(model.net, ids[4500:], windows) - found["loss/val"]) > 1e-3


def test_perplexity_and_bits_per_character_follow_from_the_loss(text: str) -> None:
    found = validate(LanguageModel(**TINY_GPT), text)
    for split in ("train", "val"):
        loss = found[f"loss/{split}"]
        assert found[f"perplexity/{split}"] == pytest.approx(math.exp(loss), rel=1e-6)
        assert found[f"bits_per_character/{split}"] == pytest.approx(loss / 0.69314718, rel=1e-6)


@pytest.mark.parametrize(
    ("scale", "loss", "perplexity"), [(0.0, math.log(65), 65.0), (1e5, 1e5, math.exp(88))]
)
def test_uniform_logits_give_ln_vocab_size_and_large_ones_no_overflow(
    text: str, scale: float, loss: float, perplexity: float
) -> None:
    model = LanguageModel("bigram", block_size=8, vocabulary="".join(sorted(set(TEXT))))
    model.configure_model()
    # predicts that each character is repeated
    model.net.load_state_dict({"token_embedding.weight": scale * torch.eye(65)})
    found = validate(model, text)
    for split in ("train", "val"):
        assert found[f"loss/{split}"] == pytest.approx(loss, rel=0.05 if scale else 1e-6)
        assert found[f"perplexity/{split}"] == pytest.approx(perplexity, rel=1e-5)


class Modes(L.Callback):
    """Records the modes of the network's modules in training and in evaluation."""

    def __init__(self) -> None:
        self.training: dict[str, set[bool]] = {"train": set(), "val": set()}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.training["train"] |= {module.training for module in pl_module.net.modules()}

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.training["val"] |= {module.training for module in pl_module.net.modules()}


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
def test_network_is_in_eval_mode_during_evaluation_only(text: str) -> None:
    modes, model = Modes(), LanguageModel(**TINY_GPT)
    fit = trainer(max_steps=4, val_check_interval=1, check_val_every_n_epoch=None, callbacks=modes)
    fit.fit(model, CharDataModule(text, block_size=7, batch_size=4))
    assert modes.training == {"train": {True}, "val": {False}}


# training


def bigram_options(text: str) -> list[str]:
    return [
        *("fit", "--config", str(CONFIGS / "bigram.yaml"), "--trainer.accelerator=cpu"),
        *(f"--data.corpus={text}", "--data.batch_size=4", "--trainer.log_every_n_steps=1"),
    ]


def tiny_gpt() -> Model:
    torch.manual_seed(1337)
    return build_model("gpt", 65, block_size=8, n_layer=1, n_head=2, n_embd=8, init="normal")


def test_bigram_weights_are_the_first_draw_after_seeding(run: Run, text: str) -> None:
    tiny_step = ("--model.learning_rate=1e-30", "--trainer.max_steps=1")
    assert run(*bigram_options(text), *tiny_step).code == 0
    torch.manual_seed(1337)
    assert torch.equal(saved_weights()["token_embedding.weight"], torch.randn(65, 65)), (
        "the seed has changed, or random numbers are drawn between seeding and initialization: the "
        "reference's log can no longer be reproduced"
    )


def test_first_bigram_steps_equal_a_plain_loop(run: Run, text: str) -> None:
    assert run(*bigram_options(text), "--trainer.max_steps=3").code == 0
    bigram = build_model("bigram", 65)
    torch.manual_seed(1337)
    bigram.load_state_dict({"token_embedding.weight": torch.randn(65, 65)})
    losses = plain_run(bigram, TEXT, [1e-3] * 3)
    logged = curves(run_folder())["loss/batch"]
    assert list(logged.values()) == pytest.approx(losses, abs=1e-6)
    assert distance(bigram, saved_weights()) < 1e-6


HALF_ROOT = math.sqrt(0.5)
# two steps of warm-up, then half a cosine over the other four
COSINE = [1 / 3, 2 / 3, 1, 0.55 + 0.45 * HALF_ROOT, 0.55, 0.55 - 0.45 * HALF_ROOT]
VARIANTS: dict[str, tuple[list[str], list[float], dict[str, Any]]] = {
    "constant": ([], [1] * 6, {}),
    "cosine": (["--model.schedule=cosine", "--model.warmup_steps=2"], COSINE, {}),
    "only warm-up": (["--model.warmup_steps=2"], [1 / 3, 2 / 3, 1, 1, 1, 1], {}),
    "AdamW settings": (
        ["--model.betas=[0.8,0.9]", "--model.weight_decay=0.5"],
        [1] * 6,
        {"betas": (0.8, 0.9), "weight_decay": 0.5},
    ),
    "two micro-batches": (["--trainer.accumulate_grad_batches=2"], [1] * 6, {}),
    "four micro-batches, cosine": (
        [
            "--trainer.accumulate_grad_batches=4",
            "--model.schedule=cosine",
            "--model.warmup_steps=2",
        ],
        COSINE,
        {},
    ),
}


@pytest.mark.parametrize(("options", "factors", "adamw"), VARIANTS.values(), ids=VARIANTS)
def test_gpt_training_equals_a_plain_loop(
    fit: Run, options: list[str], factors: list[float], adamw: dict[str, Any]
) -> None:
    assert fit(*CONSTANT, *options).code == 0
    model = tiny_gpt()
    losses = plain_run(model, TEXT, [0.01 * factor for factor in factors], **adamw)
    assert distance(model, saved_weights()) < 1e-6
    if "accumulate" not in " ".join(options):
        logged = curves(run_folder())["loss/batch"]
        assert logged == pytest.approx({step: losses[step - 1] for step in (2, 4, 6)}, abs=1e-6)


FAULTS: dict[str, dict[str, Any]] = {
    "wrong seed": {"seed": 1338},
    "windows of the next step": {"first_step": 1},
    "learning rate of the next step": {"rates": [*COSINE[1:], 0.1]},
    "no weight decay": {"weight_decay": 0},
    "wrong betas": {"betas": (0.9, 0.95)},
}


def test_planted_faults_in_the_plain_loop_are_detected(fit: Run) -> None:
    assert fit(*CONSTANT, *VARIANTS["cosine"][0]).code == 0
    for name, fault in FAULTS.items():
        model, settings = tiny_gpt(), {"rates": COSINE, **fault}
        settings["rates"] = [0.01 * factor for factor in settings["rates"]]
        plain_run(model, TEXT, **settings)
        assert distance(model, saved_weights()) > 1e-4, name


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_micro_batches_do_not_affect_evaluations(fit: Run, micro_batches: int) -> None:
    whole, accumulated = (
        fit(f"--trainer.accumulate_grad_batches={n}", f"--trainer.val_check_interval={4 * n}")
        for n in (1, micro_batches)
    )
    evaluations = [
        [line for line in outcome.out.splitlines() if line.startswith(("step", "best"))]
        for outcome in (whole, accumulated)
    ]
    assert evaluations[0] == evaluations[1]
    assert [line.split(":")[0] for line in evaluations[0][:-1]] == ["step 0", "step 4", "step 6"]
