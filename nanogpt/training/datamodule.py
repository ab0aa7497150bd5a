"""The LightningDataModule: a corpus as token ids, its splits, and batches of windows."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Timer
from torch import Tensor

from nanogpt.errors import UserError
from nanogpt.insight.ngrams import NGram, evaluate_ngrams
from nanogpt.notices import notice
from nanogpt.text import corpora
from nanogpt.text.batches import Draw, Windows, evaluation_windows, gather, training_batches
from nanogpt.text.corpora import Corpus, load_corpus
from nanogpt.text.tokenizer import Tokenizer

MAX_BATCH_SIZE = 2**20  # beyond it not even the offsets may fit into memory


class CharDataModule(L.LightningDataModule):
    """A corpus, tokenized by character, and its train and val splits.

    The ids of a split are kept on the training device as one tensor of small integers. A batch
    that is transferred there consists only of the offsets of its windows.

    Args:
        corpus: ``tiny_shakespeare``, ``pastiche``, or the path of a text file.
        encoding: text encoding of the corpus file.
        val_fraction: fraction of the text, at its end, that is the val split.
        batch_size: number of windows in an optimizer step, over all devices and micro-batches.
        replacement: draw windows independently, at any offset; if false, each epoch divides the
            train split into windows anew and uses each once.
        offline_corpus: replaces tiny Shakespeare if that is not on disk and cannot be downloaded;
            null raises an error instead.
        block_size: number of characters in a window, set from the block size of the model.
        seed: random seed of the windows, set from the seed of the run.
        vocabulary: the distinct characters, in order; null takes those of the corpus.
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
        if not 1 <= batch_size <= MAX_BATCH_SIZE:
            raise UserError(
                f"batch_size must be at least 1 and at most {MAX_BATCH_SIZE:,}, not {batch_size}"
            )
        self.corpus_name, self.encoding, self.offline_corpus = corpus, encoding, offline_corpus
        self.val_fraction, self.batch_size = val_fraction, batch_size
        self.replacement = replacement
        self.block_size, self.seed = block_size, seed
        self.known_vocabulary = vocabulary
        self.save_hyperparameters(logger=False, ignore="vocabulary")
        self.corpus: Corpus  # from setup or restore_corpus
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def vocabulary(self) -> str:
        """The distinct characters, in order. The corpus is loaded if that has not been done."""
        self.prepare_data()
        self.setup("fit")
        return self.tokenizer.vocabulary

    def restore_corpus(
        self,
        saved: Mapping[str, str | None],
        vocabulary: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Load the corpus of a run; a notice says if the text differs.

        Args:
            saved: the ``state_dict`` of the data module in training. If a built-in corpus replaced
                the configured one, it replaces it again.
            vocabulary: replaces that of the corpus.
            folder: where the run was started, in which a relative path is found too.
        """
        self.known_vocabulary = vocabulary or self.known_vocabulary
        name = saved.get("name")
        replaced = saved.get("stands_in_for") == self.corpus_name
        if name and replaced and name in (*corpora.BUILT_IN, self.offline_corpus):
            self.corpus_name = name
        self.corpus = load_corpus(self.corpus_name, self.encoding, self.offline_corpus, folder)
        differs = saved.get("sha256") != self.corpus.sha256
        if differs and name == self.corpus.name:
            notice(f"the corpus {name!r} has changed since the model was trained on it")
        self.setup("validate")  # which may not know a character of the changed text
        if differs and name != self.corpus.name:
            notice(f"the model was trained on {name!r}, not on {self.corpus.name!r}")

    def state_dict(self) -> dict[str, str | None]:
        """Return the identity of the corpus, for checkpoints."""
        corpus = self.corpus
        identity = {"name": corpus.name, "sha256": corpus.sha256}
        return identity | {"stands_in_for": corpus.stands_in_for}

    def prepare_data(self) -> None:
        """Download the corpus if needed; Lightning calls this on one process per machine."""
        if self.corpus_name == corpora.TINY_SHAKESPEARE:
            load_corpus(self.corpus_name, self.encoding, self.offline_corpus)

    def setup(self, stage: str) -> None:
        """Load, tokenize and split the corpus.

        Raises:
            UserError: if the corpus cannot be loaded, or a split is too short for one window.
        """
        if hasattr(self, "splits"):
            return
        if not hasattr(self, "corpus"):  # not restored from a checkpoint
            self.corpus = load_corpus(self.corpus_name, self.encoding, self.offline_corpus)
        text = self.corpus.text
        known = self.known_vocabulary
        self.tokenizer = Tokenizer.from_text(text) if known is None else Tokenizer(known)
        ids = self.tokenizer.encode(text)
        n_train = int((1 - self.val_fraction) * len(ids))
        self.splits = {"train": ids[:n_train], "val": ids[n_train:]}
        for name, split in self.splits.items():
            if len(split) <= self.block_size:
                raise UserError(
                    f"the {name} split has {len(split):,} characters, but a window and its "
                    f"targets need {self.block_size + 1:,}: use a longer text, a smaller "
                    "--model.block_size or another --data.val_fraction"
                )

    @property
    def draw(self) -> Draw:
        """The parameters of drawing training windows."""
        num_offsets = len(self.splits["train"]) - self.block_size
        stride = None if self.replacement else self.block_size
        return Draw(self.seed, self.batch_size, num_offsets, stride)

    @cached_property
    def ngrams(self) -> list[NGram]:
        """The losses of n-gram counts of the train split."""
        vocab_size = len(self.tokenizer.vocabulary)
        return evaluate_ngrams(self.splits["train"], self.splits["val"], vocab_size)

    def check_batch_size(self, trainer: L.Trainer) -> None:
        """Raise a ``UserError`` if devices and micro-batches do not divide the batch size."""
        devices, micro_batches = trainer.world_size, trainer.accumulate_grad_batches
        if self.batch_size % (devices * micro_batches):
            raise UserError(
                f"batch_size {self.batch_size}, the total over all devices and micro-batches, is "
                f"not divisible by {devices} devices x {micro_batches} micro-batches: make it a "
                f"multiple of {devices * micro_batches}"
            )

    def train_dataloader(self) -> "TrainingLoader":
        """Return the offsets of training windows, indefinitely, from the next optimizer step."""
        return TrainingLoader(self)

    def val_dataloader(self) -> list["EvaluationLoader"]:
        """Return the whole val split, and evenly spaced windows of the train split, as many."""
        n_targets = len(self.splits["val"]) - 1
        n_train = len(self.splits["train"])
        last_offset, n_train_targets = n_train - 1 - self.block_size, min(n_targets, n_train - 1)
        trainer = self.trainer
        rank, processes = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        return [
            EvaluationLoader(batches, rank, processes)
            for batches in (
                evaluation_windows(n_targets, self.block_size),
                evaluation_windows(n_train_targets, self.block_size, last_offset),
            )
        ]

    def on_after_batch_transfer(
        self, batch: Tensor | Windows, dataloader_idx: int
    ) -> tuple[Tensor, Tensor]:
        """Gather the windows at the offsets: ids and targets, (B, T) each, on the device."""
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
    """Batches of evaluation windows, the same in every evaluation.

    Each process gets its part of each batch, which may be empty.
    """

    batches: list[Windows]
    rank: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[Windows]:
        for offsets, length in self.batches:
            yield Windows(offsets[self.rank :: self.processes], length)

    def __len__(self) -> int:
        return len(self.batches)


class TrainingLoader:
    """Training batches of this process, from the next optimizer step.

    With ``overfit_batches``, each of Lightning's epochs starts at step 0: the same batches again.
    """

    def __init__(self, data: CharDataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Tensor]:
        data, trainer = self.data, self.data.trainer
        assert trainer is not None
        data.check_batch_size(trainer)
        endless = trainer.max_steps == -1 and isinstance(trainer.limit_train_batches, float)
        if endless and not any(isinstance(c, Timer) for c in trainer.callbacks):  # type: ignore[attr-defined]
            raise UserError(
                "training is counted in optimizer steps, not in epochs: use Trainer(max_steps=N)"
            )
        return training_batches(
            data.draw,
            0 if trainer.overfit_batches else trainer.global_step,  # type: ignore[attr-defined]
            trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
        )
