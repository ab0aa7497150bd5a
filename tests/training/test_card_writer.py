"""The report of a finished run: card, plots and TensorBoard events, and the options to omit it."""

import hashlib
from pathlib import Path

import pytest
from google.protobuf import text_format
from PIL import Image
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from nanogpt.generation.checkpoint import read_checkpoint
from nanogpt.insight import run_report
from nanogpt.insight.attention_maps import SENTENCE
from nanogpt.insight.loss_by_position import bin_means, loss_by_position
from nanogpt.insight.reference import Losses
from nanogpt.text.pastiche import pastiche
from nanogpt.training import card_writer
from tests.command_lines import CONFIGS, TINY, Outcome, Run
from tests.training.oracles import curves, events, run_folder


@pytest.fixture
def finish(fit: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Train a tiny GPT and write a card with few and short samples."""
    monkeypatch.setattr(run_report, "SAMPLES", 3)
    monkeypatch.setattr(run_report, "SAMPLE_CHARACTERS", 20)
    return lambda *options: fit("--card=true", *options)


def card() -> str:
    return (run_folder() / "card.md").read_text(encoding="utf-8")


def test_card_lists_result_corpus_settings_and_versions(finish: Run) -> None:
    done = finish()
    assert done.code == 0, done.err
    assert done.out.rstrip().endswith(f"{run_folder() / 'card.md'}, with curves.png")
    raw = Path("text.txt").read_bytes()
    losses = curves(run_folder())["loss/val"]
    best = min(losses, key=losses.__getitem__)
    for fact in (
        *(hashlib.sha256(raw).hexdigest(), "text.txt: 5,000 characters", "2,033 (gpt)"),
        *("6 steps of 4 x 8 characters, seed 1337", "torch 2.", "lightning 2.6", "Python 3."),
        *(f"{losses[best]:.4f} nats per character at step {best}", "60 characters in 3 samples"),
        *("model.n_embd: 8\n", "trainer.max_steps: 6\n", "![losses"),
        "60 characters of the val split, in such excerpts",
    ):
        assert fact in card()
    for default in ("trainer.devices", "data.seed", "data.block_size", "model.dropout", "config:"):
        assert default not in card()
    assert "reference" not in card()


@pytest.mark.parametrize("compared", [True, False])
def test_losses_are_compared_with_the_reference_if_there_is_one(
    finish: Run, monkeypatch: pytest.MonkeyPatch, compared: bool
) -> None:
    reference = [Losses(0, 4.25, 4.5)] if compared else []
    monkeypatch.setattr(card_writer, "reference_curve", lambda *_: reference)
    finish()
    titles = "train  reference      val  reference  difference" if compared else "train      val"
    table = card().split("## Losses\n\n```text\n")[1].split("\n```")[0].splitlines()
    assert table[0] == f"  step    {titles}"
    assert len(table) == (2 if compared else 1 + len(curves(run_folder())["loss/val"]))


def test_plot_is_a_valid_image(finish: Run) -> None:
    finish()
    with Image.open(run_folder() / "curves.png") as picture:
        assert picture.width > 1000
    assert not list(run_folder().glob("*partial*"))


def test_tensorboard_has_attention_maps_and_loss_by_position(finish: Run) -> None:
    finish("--model.n_layer=2")
    found = events(run_folder())
    assert found.Tags()["images"] == ["attention/layer_1", "attention/layer_2"]
    (image,) = found.Images("attention/layer_2")
    assert image.step == 6
    assert image.width > image.height > 400
    best = read_checkpoint(run_folder() / "checkpoints" / "best.safetensors")
    expected = loss_by_position(best.model, best.tokenizer.encode(pastiche()[4500:5000]))
    recorded = curves(run_folder())["loss_by_position/val"]
    assert list(recorded) == [1, 2, 3, 4, 6, 8]
    assert list(recorded.values()) == pytest.approx([mean for _, mean in bin_means(expected)])


def test_projector_has_a_labeled_point_for_each_character(finish: Run) -> None:
    finish()
    config = ProjectorConfig()
    text_format.Parse((run_folder() / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    labels = (run_folder() / embedding.metadata_path).read_text(encoding="utf-8").splitlines()
    points = (run_folder() / embedding.tensor_path).read_text(encoding="utf-8").splitlines()
    assert embedding.tensor_name.startswith("characters")
    assert labels[:2] == ["⏎", "␣"]
    assert len(labels) == len(points) == len(set(pastiche()[:5000]))


@pytest.mark.parametrize("stage", ["01_bigram", "02_average", "09_sinusoidal"])
def test_every_architecture_has_a_card(run: Run, text: str, stage: str) -> None:
    config = str(CONFIGS / "ladder" / f"{stage}.yaml")
    small = ("--trainer.max_steps=2", "--trainer.accelerator=cpu", "--data.batch_size=2")
    done = run("fit", "--config", config, f"--data.corpus={text}", *small)
    assert done.code == 0, done.err
    assert "10,000 characters in 50 samples" in card()
    assert len(events(run_folder()).Tags()["images"]) == {"0": 0, "1": 0, "2": 1, "9": 3}[stage[1]]


@pytest.mark.parametrize(
    "options",
    [
        ("--card=false",),
        ("--trainer.limit_val_batches=0",),
        ("--trainer.enable_checkpointing=false",),
    ],
)
def test_no_card_if_disabled_or_impossible(finish: Run, options: tuple[str, ...]) -> None:
    done = finish(*options)
    assert done.code == 0, done.err
    assert not list(Path().rglob("card.md"))
    assert not list(Path().rglob("curves.png"))


def test_corpus_in_another_script_has_a_card(run: Run) -> None:
    Path("text.txt").write_text("`|漢字\n```\t|" * 300, encoding="utf-8")
    config = str(CONFIGS / "quickstart.yaml")
    tiny = [option for option in TINY if option != "--card=false"]
    small = ("--trainer.max_steps=2", "--data.corpus=text.txt")
    done: Outcome = run("fit", "--config", config, *tiny, *small)
    assert done.code == 0, done.err
    assert "Glyph" not in done.err
    assert (run_folder() / "curves.png").is_file()


def test_card_shows_the_best_checkpoint_but_not_step_0(finish: Run) -> None:
    diverging = ("--model.learning_rate=3", "--model.warmup_steps=0", "--model.schedule=constant")
    done = finish("--trainer.max_steps=2", "--trainer.val_check_interval=1", *diverging)
    losses = curves(run_folder())["loss/val"]
    assert losses[0] < losses[1] < losses[2]
    assert f"best val loss {losses[1]:.4f} at step 1" in done.out
    assert f"| {losses[1]:.4f} nats per character at step 1 (" in card()
    assert curves(run_folder())["loss/best_val"][2] == losses[1]
    assert events(run_folder()).Images("attention/layer_1")[0].step == 1


def test_full_disk_loses_the_card_but_not_the_result(
    finish: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_report, "write_report", full)
    done = finish()
    assert done.code == 0
    assert "the run is complete and saved, but its card could not be written" in done.err


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("".join(sorted(set(SENTENCE))) * 30, SENTENCE[:8]), ("漢字 か\nな" * 90, "漢字 か\nな漢字")],
)
def test_attention_maps_use_the_val_split_if_the_sentence_has_unknown_characters(
    finish: Run, monkeypatch: pytest.MonkeyPatch, text: str, sentence: str
) -> None:
    shown: list[str] = []
    original = run_report.log_to_tensorboard
    monkeypatch.setattr(
        run_report, "log_to_tensorboard", lambda *given: (shown.append(given[2]), original(*given))
    )
    Path("other.txt").write_text(text, encoding="utf-8")
    assert finish("--data.corpus=other.txt").code == 0
    assert shown == [sentence]
