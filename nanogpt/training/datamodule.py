"""The LightningDataModule: a corpus as ids, its split, and the batches that are cut from it."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import lightning as L
import torch
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.insight.ngrams import NGram, ngrams
from nanogpt.notices import notice
from nanogpt.text import corpora
from nanogpt.text.corpora import Corpus, load_corpus
from nanogpt.text.tokenizer import Tokenizer
from nanogpt.text.batches import Draw, Windows, evaluation_windows, gather, training_batches

LARGEST_BATCH = 2**20  # so many windows fit no machine; of more, not even the offsets


class CharDataModule(L.LightningDataModule):
    """A text, tokenised by character and split in two; its batches are windows of it.

    The ids of a split lie on the training device as one tensor of small integers; what travels
    in a batch is only the offsets of its windows.

    Args:
        corpus: ``tiny_shakespeare``, ``pastiche``, or the path of any text file.
        encoding: of that file.
        val_fraction: the last part of the text, on which the model is validated.
        batch_size: windows in the batch of one optimizer step, over all devices and micro-batches.
        replacement: whether each window is drawn from anywhere; else each epoch cuts the train
            split into windows anew, and takes each of them once.
        offline_corpus: stands in for tiny Shakespeare on a machine that has neither it nor a
            network; null makes that an error.
        block_size: characters in a window: the model's.
        seed: of the choice of windows: the run's.
        vocabulary: the model's, if it has one already; else that of the text.
    """

    def __init__(
        self,
        corpus: str = corpora.TINY_SHAKESPEARE,
        encoding: str = "utf-8",
        val_fraction: float = 0.1,
        batch_size: int = 64,
        replacement: bool = True,
        offline_corpus: str | None = corpora.PASTICHE,
        block_size: int = 256,
        seed: int = 1337,
        vocabulary: str | None = None,
    ) -> None:
        super().__init__()
        if not 0 < val_fraction < 1:
            raise UserError(f"val_fraction must lie between 0 and 1, not {val_fraction}")
        if not 1 <= batch_size <= LARGEST_BATCH:
            raise UserError(
                f"batch_size must be at least 1 and at most {LARGEST_BATCH:,}, not {batch_size}"
            )
        self.corpus_name, self.encoding, self.offline_corpus = corpus, encoding, offline_corpus
        self.val_fraction, self.batch_size = val_fraction, batch_size
        self.replacement = replacement
        self.block_size, self.seed = block_size, seed
        self.vocabulary = vocabulary
        self.save_hyperparameters(logger=False, ignore="vocabulary")
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    def use(self, vocabulary: str, trained_on: dict[str, str | None]) -> None:
        """Take the vocabulary of a checkpoint, and its stand-in for the corpus, if it had one."""
        self.vocabulary = vocabulary
        self.follow(trained_on)

    def follow(self, trained_on: dict[str, str | None]) -> None:
        """Read what a checkpoint was trained on, also where it stood in for the corpus."""
        name = trained_on.get("name")
        if name and trained_on.get("stands_in_for") == self.corpus_name:
            self.corpus_name = name
        self.setup("validate")
        if trained_on.get("sha256") != self.corpus.sha256:
            notice(f"the model was trained on {name!r}, not on {self.corpus.name!r}")

    def state_dict(self) -> dict[str, str | None]:
        """What is kept in a checkpoint: which text the model was trained on."""
        corpus = self.corpus
        return {
            "name": corpus.name,
            "sha256": corpus.sha256,
            "stands_in_for": corpus.stands_in_for,
        }

    def prepare_data(self) -> None:
        """Download what is to be downloaded, on one process of a machine only."""
        if self.corpus_name == corpora.TINY_SHAKESPEARE:
            load_corpus(self.corpus_name, self.encoding, self.offline_corpus)

    def setup(self, stage: str) -> None:
        """Read, encode and split the text.

        Raises:
            UserError: if a split is shorter than one window and its targets.
        """
        if hasattr(self, "corpus"):
            return
        self.corpus: Corpus = load_corpus(self.corpus_name, self.encoding, self.offline_corpus)
        text = self.corpus.text
        self.tokenizer = (
            Tokenizer.of(text) if self.vocabulary is None else Tokenizer(self.vocabulary)
        )
        ids = self.tokenizer.encode(text)
        n_train = int((1 - self.val_fraction) * len(ids))
        self.splits = {"train": ids[:n_train], "val": ids[n_train:]}
        for name, split in self.splits.items():
            if len(split) <= self.block_size:
                raise UserError(
                    f"the {name} split has {len(split):,} characters, but one window takes "
                    f"{self.block_size + 1:,}: use a longer text, a smaller --model.block_size or "
                    "another --data.val_fraction"
                )

    @property
    def draw(self) -> Draw:
        """How the training windows are drawn."""
        high = len(self.splits["train"]) - self.block_size
        apart = None if self.replacement else self.block_size
        return Draw(self.seed, self.batch_size, high, apart)

    @cached_property
    def ngrams(self) -> list[NGram]:
        """What n-gram counts of the train split achieve."""
        return ngrams(self.splits["train"], self.splits["val"], len(self.tokenizer.vocabulary))

    def check_batch_size(self, trainer: L.Trainer) -> None:
        """Check that a global batch can be cut into equal parts.

        Raises:
            UserError: if it cannot.
        """
        devices, micro_batches = trainer.world_size, trainer.accumulate_grad_batches
        if self.batch_size % (devices * micro_batches):
            raise UserError(
                f"batch_size {self.batch_size} is that of all devices and micro-batches together, "
                f"and cannot be cut into {devices} devices x {micro_batches} micro-batches: make "
                f"it a multiple of {devices * micro_batches}"
            )

    def train_dataloader(self) -> "TrainingLoader":
        """Offsets of training windows, for ever, from the optimizer step that is next."""
        return TrainingLoader(self)

    def val_dataloader(self) -> list["EvaluationLoader"]:
        """The whole val split in consecutive windows, and as much of the train split."""
        n_targets = len(self.splits["val"]) - 1
        high = len(self.splits["train"]) - 1 - self.block_size
        n_spread = min(n_targets, len(self.splits["train"]) - 1)
        return [
            EvaluationLoader(evaluation_windows(n_targets, self.block_size)),
            EvaluationLoader(evaluation_windows(n_spread, self.block_size, high)),
        ]

    def on_after_batch_transfer(
        self, batch: Tensor | Windows, dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Turn offsets into windows of ids and targets, (B, T) each, on the device."""
        if isinstance(batch, Windows):
            return gather(self._split(("val", "train")[dataloader_idx], batch.offsets), batch)
        return gather(self._split("train", batch), Windows(batch, self.block_size))

    def _split(self, name: str, like: Tensor) -> Tensor:
        key = (name, like.device)
        if key not in self._on_device:
            self._on_device[key] = self.splits[name].to(like.device)
        return self._on_device[key]


@dataclass(frozen=True)
class EvaluationLoader:
    """Batches of evaluation windows, always the same."""

    batches: list[Windows]

    def __iter__(self) -> Iterator[Windows]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class TrainingLoader:
    """The training batches of this rank, starting at the trainer's optimizer step."""

    def __init__(self, data: CharDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Tensor]:
        data, trainer = self.data, self.data.trainer
        assert trainer is not None
        data.check_batch_size(trainer)
        return training_batches(
            data.draw,
            trainer.global_step,
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
        )
