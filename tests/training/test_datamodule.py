"""The data module: token ids, splits, and the characters that training and evaluation read."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from nanogpt.errors import UserError
from nanogpt.text.batches import Draw, Windows, batch_offsets
from nanogpt.text.pastiche import pastiche
from nanogpt.training.datamodule import CharDataModule
from tests.command_lines import Run

TEXT = pastiche()[:1003]  # 10% of it is not a whole number

Make = Callable[..., CharDataModule]


@pytest.fixture
def data(tmp_path: Path) -> Make:
    """Set up a data module on TEXT as the Trainer does."""

    def make(
        content: str = TEXT, step: int = 0, accumulate: int = 1, rank: int = 0, world_size: int = 1,
        **settings: Any,
    ) -> CharDataModule:  # fmt: skip
        (tmp_path / "corpus.txt").write_text(content, encoding="utf-8", newline="")
        data = CharDataModule("corpus.txt", **{"block_size": 8, "batch_size": 4, **settings})
        data.prepare_data()
        data.setup("fit")
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_step=step,
            max_steps=1000,
            overfit_batches=0.0,
            accumulate_grad_batches=accumulate,
            global_rank=rank,
            world_size=world_size,
        )
        return data

    return make


def read(data: CharDataModule, batch: Any, loader: int = 0) -> list[tuple[str, str]]:
    """Return the texts of the windows of a batch and of their targets."""
    inputs, targets = data.on_after_batch_transfer(batch, loader)
    decode = data.tokenizer.decode
    return [(decode(x), decode(y)) for x, y in zip(inputs, targets, strict=True)]


@pytest.mark.parametrize(("val_fraction", "n_train"), [(0.1, 902), (0.25, 752), (0.5, 501)])
def test_first_part_is_train_split_and_rest_is_val_split(
    data: Make, val_fraction: float, n_train: int
) -> None:
    made = data(val_fraction=val_fraction)
    decoded = {name: made.tokenizer.decode(ids) for name, ids in made.splits.items()}
    assert decoded == {"train": TEXT[:n_train], "val": TEXT[n_train:]}
    assert made.tokenizer.vocabulary == "".join(sorted(set(TEXT)))
    assert {ids.dtype for ids in made.splits.values()} == {torch.uint8}


def test_text_of_the_length_of_tiny_shakespeare_is_split_as_by_the_reference(data: Make) -> None:
    made = data("ab" * (1_115_394 // 2))
    assert [len(made.splits[name]) for name in ("train", "val")] == [1_003_854, 111_540]


def test_training_windows_follow_from_seed_and_step_with_shifted_targets(data: Make) -> None:
    made = data(seed=7, step=300)
    for step, batch in enumerate(islice(made.train_dataloader(), 3), 300):
        starts = batch_offsets(Draw(7, 4, 902 - 8), step).tolist()
        expected = [(TEXT[i : i + 8], TEXT[i + 1 : i + 9]) for i in starts]
        assert read(made, batch) == expected


def test_each_epoch_without_replacement_reads_each_character_once(data: Make) -> None:
    made = data(replacement=False)
    per_epoch = (902 - 8) // 8
    batches = islice(made.train_dataloader(), 3 * per_epoch // 4 + 1)
    offsets = torch.cat(list(batches))[: 3 * per_epoch].view(3, per_epoch)
    seen = (offsets[..., None] + torch.arange(8)).flatten(1)
    assert all(len(set(epoch.tolist())) == 8 * per_epoch for epoch in seen)


def test_training_reads_exactly_the_train_split(data: Make) -> None:
    made = data(batch_size=1024)
    starts = torch.cat(list(islice(made.train_dataloader(), 20)))
    assert set(starts.tolist()) == set(range(902 - 8))  # the last target is character 901


def test_evaluation_reads_the_whole_val_split_once_in_order(data: Make) -> None:
    made = data()
    val, train = made.val_dataloader()
    windows = [window for batch in val for window in read(made, batch, 0)]
    assert (
        "".join(target for _, target in windows) == TEXT[903:]
    )  # the first character has no context
    assert "".join(inputs for inputs, _ in windows) == TEXT[902:-1]
    windows = [window for batch in train for window in read(made, batch, 1)]
    assert sum(len(target) for _, target in windows) == 100
    assert windows[0] == (TEXT[:8], TEXT[1:9])
    assert windows[-1][1] == TEXT[902 - 8 : 902 - 4]  # at the last offset, the remainder of 100 / 8
    assert all(inputs in TEXT[:902] and target in TEXT[:902] for inputs, target in windows)


def test_evaluation_windows_are_the_same_in_every_evaluation(data: Make) -> None:
    def offsets(made: CharDataModule) -> list[list[int]]:
        return [batch.offsets.tolist() for loader in made.val_dataloader() for batch in loader]

    first = data()
    assert offsets(first) == offsets(first) == offsets(data(seed=5, step=30))
    assert [len(loader) for loader in first.val_dataloader()] == [2, 2]


def test_each_split_is_copied_to_the_device_once(data: Make) -> None:
    made = data()
    loader = made.val_dataloader()[0]
    for batch in [*loader, *loader, *islice(made.train_dataloader(), 3)]:
        made.on_after_batch_transfer(batch, 0)
    assert {name for name, _ in made._on_device} == {"train", "val"}
    assert len(made._on_device) == 2


@pytest.mark.parametrize(("accumulate", "world_size"), [(1, 2), (2, 1), (2, 2)])
def test_devices_and_micro_batches_divide_one_batch(
    data: Make, accumulate: int, world_size: int
) -> None:
    ranks = [
        iter(data(rank=rank, world_size=world_size, accumulate=accumulate).train_dataloader())
        for rank in range(world_size)
    ]
    parts = [next(rank) for _ in range(accumulate) for rank in ranks]
    assert torch.cat(parts).equal(batch_offsets(Draw(1337, 4, 902 - 8), 0))


def test_indivisible_batch_is_refused(data: Make) -> None:
    made = data(world_size=3, accumulate=2)
    with pytest.raises(UserError, match=r"batch_size 4, .* 3 devices x 2 micro-batches.*of 6"):
        next(iter(made.train_dataloader()))


@pytest.mark.parametrize(
    ("length", "block_size", "short"), [(80, 8, "val"), (90, 9, "val"), (22, 20, "train")]
)
def test_text_shorter_than_a_window_is_refused(
    data: Make, length: int, block_size: int, short: str
) -> None:
    with pytest.raises(UserError, match=f"the {short} split has .* need {block_size + 1}"):
        data(TEXT[:length], block_size=block_size)


def test_shortest_possible_text_is_read(data: Make) -> None:
    made = data(TEXT[:81])  # 72 and 9 characters
    assert read(made, next(iter(made.val_dataloader()[0]))) == [(TEXT[72:80], TEXT[73:81])]
    read(made, next(iter(made.train_dataloader())))


@pytest.mark.parametrize(
    "setting",
    [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"val_fraction": float("nan")},
     {"batch_size": 0}],
)  # fmt: skip
def test_setting_out_of_range_is_refused(setting: dict[str, Any]) -> None:
    ((name, value),) = setting.items()
    with pytest.raises(UserError, match=f"{name} must .*not {value}"):
        CharDataModule(**setting)


def test_state_identifies_the_corpus(data: Make) -> None:
    state = data().state_dict()
    assert state.keys() == {"name", "sha256", "stands_in_for"}
    assert (state["name"], state["stands_in_for"]) == ("corpus.txt", None)
    assert len(str(state["sha256"])) == 64


def test_vocabulary_of_a_checkpoint_is_used_and_its_text_compared(
    data: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = data().state_dict()
    vocabulary = "".join(sorted(set(TEXT), reverse=True)) + "é"
    same = CharDataModule("corpus.txt", block_size=8, vocabulary=vocabulary)
    same.restore_corpus(saved)
    assert same.tokenizer.vocabulary == vocabulary
    assert same.tokenizer.decode(same.splits["train"]) == TEXT[:902]
    assert capsys.readouterr().err == ""
    other = CharDataModule("corpus.txt", block_size=8, vocabulary=vocabulary)
    other.restore_corpus({**saved, "name": "faust.txt", "sha256": "0" * 64})
    assert "trained on 'faust.txt', not on 'corpus.txt'" in capsys.readouterr().err


def test_replaced_corpus_is_replaced_again_for_evaluation() -> None:
    data = CharDataModule(block_size=8)  # tiny Shakespeare, which is not available
    saved = {"name": "pastiche", "sha256": "", "stands_in_for": "tiny_shakespeare"}
    data.restore_corpus(saved)
    assert (data.corpus.name, data.corpus.stands_in_for) == ("pastiche", None)


def test_training_and_evaluation_batches_are_distinguished(data: Make) -> None:
    made = data()
    starts = torch.tensor([0, 5])
    assert read(made, starts) == read(made, Windows(starts, 8), 1)
    assert read(made, Windows(starts, 3), 0)[1] == (TEXT[907:910], TEXT[908:911])


@pytest.mark.parametrize(("seed", "expected"), [("false", 0), ("7", 7)])
def test_windows_use_the_seed_of_the_run(fit: Run, seed: str, expected: int) -> None:
    assert fit("--trainer.max_steps=0", f"--seed_everything={seed}").code == 0
    hparams = Path("lightning_logs/version_0/hparams.yaml").read_text(encoding="utf-8")
    assert f"\nseed: {expected}\n" in hparams
