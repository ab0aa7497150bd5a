"""Which of Lightning's validations are evaluations of a run."""

import math

import lightning as L


def is_evaluation(trainer: L.Trainer) -> bool:
    """Return whether the current validation is an evaluation of the run.

    It is one within ``fit``, or a sanity check over all batches, which is the evaluation at step 0.
    Lightning's own callbacks, such as ``EarlyStopping``, ignore sanity checks.
    """
    if trainer.sanity_checking:
        return math.isinf(trainer.num_sanity_val_steps)
    return trainer.state.fn == "fit"
