"""Which of Lightning's validations are evaluations of a run."""

import math

import lightning as L


def is_evaluation(trainer: L.Trainer) -> bool:
    """Return whether the current validation is an evaluation of the run.

    It is one within ``fit``, and a sanity check if that runs over all batches: step 0. Callbacks of
    Lightning ignore sanity checks, such as ``EarlyStopping``.
    """
    if trainer.sanity_checking:
        return math.isinf(trainer.num_sanity_val_steps)
    return trainer.state.fn == "fit"
