"""The sets of variants that ``benchmarks/ablations.py`` trains.

The architectures ``modern_…`` are those of ``benchmarks/model_variants.py``.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Variant:
    """The options of ``fit`` by which a variant differs from the config of its set.

    Args:
        options: the options.
        distilled: whether it learns from the set's teachers, the same ones for every seed.
    """

    options: list[str] = field(default_factory=list)
    distilled: bool = False


@dataclass(frozen=True)
class Set:
    """Variants of a config.

    Args:
        config: name of a file in ``configs/``.
        variants: by the name of their row in the table.
        options: of all variants.
        train_share: share of the train split to train on.
    """

    config: str
    variants: dict[str, Variant]
    options: list[str] = field(default_factory=list)
    train_share: float = 1.0


def architecture(name: str) -> Variant:
    """Return the variant of another architecture."""
    return Variant([f"--model.architecture={name}"])


GPT = ["--model.architecture=gpt", "--model.init=normal", "--model.token_shift=null"]
ADAMW = ["--model.optimizer=adamw", "--model.learning_rate=2e-3"]
TOKEN_SHIFT = ["--model.token_shift=true"]
WITH_REPLACEMENT = ["--data.replacement=true"]
# nanoGPT's small GPT for a CPU: 2,000 steps of 12 x 64 characters
NANOGPT_CPU = [
    *(*GPT, "--model.optimizer=adamw", "--model.learning_rate=1e-3", "--model.schedule=cosine"),
    *("--model.warmup_steps=100", "--model.betas=[0.9,0.99]", "--model.weight_decay=0.1"),
    *("--data.batch_size=12", *WITH_REPLACEMENT),
    *("--trainer.max_steps=2000", "--trainer.val_check_interval=2000"),
]
# gpt10m.yaml with a learning rate for this size; each character is seen 65 times, as in the 4,000
# steps after which the reference has its lowest val loss
GPT10M = [
    *("--model.architecture=gpt", "--model.init=default", "--model.optimizer=adamw"),
    *("--model.learning_rate=1e-3", "--model.betas=[0.9,0.999]", "--model.weight_decay=0.01"),
    *("--model.schedule=constant", "--model.dropout=0.2", *WITH_REPLACEMENT),
    *("--model.token_noise=null", "--trainer.max_steps=1920"),
]
# gpt10m_best.yaml at a thirtieth of its size: as many characters per parameter, each seen as often
THIRTIETH = [
    *("--model.n_layer=3", "--model.n_head=3", "--model.n_embd=96", "--model.block_size=64"),
    *("--model.muon_learning_rate=0.03", "--data.batch_size=16"),
    *("--trainer.max_steps=720", "--trainer.val_check_interval=72"),
]
DISTILLED = Variant(["--model.dropout=0.0", "--model.token_noise=0.0"], distilled=True)
AVERAGED = [
    "--trainer.callbacks+=EMAWeightAveraging",
    "--trainer.callbacks.init_args.decay=0.97",
]
DROPOUTS = {
    "dropout 0.0": Variant(["--model.dropout=0.0"]),
    "dropout 0.2": Variant(["--model.dropout=0.2"]),
}
# parts that stabilize the training of a modern GPT
STABILIZERS = {
    "no norm on queries and keys": architecture("modern_without_qk_norm"),
    "PyTorch's init instead of zeros": architecture("modern_default_init"),
    "no cap on logits": architecture("modern_without_logit_cap"),
}
INGREDIENTS = {
    "plain GPT": Variant(GPT),
    "AdamW 2e-3 instead of Muon": Variant(ADAMW),
    "plain GPT, AdamW 2e-3": Variant([*GPT, *ADAMW]),
    "learned positions instead of rotary": architecture("modern_learned_positions"),
    "ReLU instead of squared ReLU": architecture("modern_relu"),
    "GELU instead of squared ReLU": architecture("modern_gelu"),
    "SwiGLU instead of squared ReLU": architecture("modern_swiglu"),
    **STABILIZERS,
    "block norms with weights": architecture("modern_weighted_norms"),
    "RMSNorm instead of LayerNorm": architecture("modern_rms_norm"),
    "with replacement": Variant(WITH_REPLACEMENT),
    "cosine instead of linear": Variant(["--model.schedule=cosine"]),
    "constant instead of linear": Variant(["--model.schedule=constant"]),
    "warmup of 50 steps": Variant(["--model.warmup_steps=50"]),
    "token noise 5%": Variant(["--model.token_noise=0.05"]),
    "weight decay 0.3": Variant(["--model.weight_decay=0.3"]),
    "stochastic depth, 10%": architecture("modern_stochastic_depth"),
}

SETS = {
    "quickstart": Set(
        "quickstart.yaml",
        {
            "plain GPT, 2,000 steps of 12 windows": Variant(NANOGPT_CPU),
            "quickstart": Variant(),
        },
    ),
    "ingredients": Set(
        "quickstart.yaml",
        {
            "quickstart": Variant(),
            "no token shift": Variant(["--model.token_shift=false"]),
            **INGREDIENTS,
        },
        ["--trainer.max_steps=300", "--trainer.val_check_interval=300"],
    ),
    "rates": Set(  # at three times the config's learning rates
        "quickstart.yaml",
        {"quickstart": Variant(), **STABILIZERS},
        [
            *("--trainer.max_steps=300", "--trainer.val_check_interval=300"),
            *("--model.muon_learning_rate=0.09", "--model.learning_rate=9e-3"),
        ],
    ),
    "fast": Set(
        "gpt10m_fast.yaml",
        {
            "gpt10m_fast": Variant(),
            "token shift": Variant(TOKEN_SHIFT),
            **DROPOUTS,
            **INGREDIENTS,
        },
    ),
    "best": Set(
        "gpt10m_best.yaml",
        {
            "as gpt10m.yaml, 1,920 steps": Variant(GPT10M),
            "gpt10m_best": Variant(),
            "taught by four others": DISTILLED,
        },
        THIRTIETH,
        train_share=0.03,
    ),
    "regularizers": Set(
        "gpt10m_best.yaml",
        {
            "gpt10m_best": Variant(),
            **DROPOUTS,
            "no token noise": Variant(["--model.token_noise=0.0"]),
            "token noise 10%": Variant(["--model.token_noise=0.1"]),
            "no weight decay": Variant(["--model.weight_decay=0.0"]),
            "stochastic depth, 10%": architecture("modern_stochastic_depth"),
            "averaged weights, 0.97": Variant(AVERAGED),
            "token shift": Variant(TOKEN_SHIFT),
            "1,080 steps": Variant(["--trainer.max_steps=1080"]),
            "with replacement": Variant(WITH_REPLACEMENT),
            "AdamW 2e-3 instead of Muon": Variant(ADAMW),
            **STABILIZERS,
        },
        THIRTIETH,
        train_share=0.03,
    ),
    "full": Set(
        "gpt10m_best.yaml",
        {
            "gpt10m_best": Variant(),
            "dropout 0.2": DROPOUTS["dropout 0.2"],
            "taught by four others": DISTILLED,
        },
    ),
}
