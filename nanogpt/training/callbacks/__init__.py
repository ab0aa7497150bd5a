"""The callbacks of ``fit``, one concern each; see ``docs/architecture.md``."""

from nanogpt.training.callbacks.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    LastCheckpoint,
)
from nanogpt.training.callbacks.evaluation import EvaluationReport
from nanogpt.training.callbacks.graceful_stop import GracefulStop
from nanogpt.training.callbacks.non_finite_guard import NonFiniteGuard
from nanogpt.training.callbacks.samples import SampleWriter
from nanogpt.training.callbacks.throughput import Throughput

__all__ = [
    "AtomicCheckpointIO",
    "BestCheckpoint",
    "EvaluationReport",
    "GracefulStop",
    "LastCheckpoint",
    "NonFiniteGuard",
    "SampleWriter",
    "Throughput",
]
