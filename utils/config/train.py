"""The keys of ``train``, typed, with their limits; those that depend on each other are checked together."""

from __future__ import annotations

from dataclasses import dataclass

from rosa.settings import option

OPTIMIZER_PARAMETERS = {
    "adamw": ("weight_decay", "betas", "eps"),
    "adam": ("weight_decay", "betas", "eps"),
    "sgd": ("weight_decay", "momentum"),
}
DEFAULT_DECAY = {"adamw": 0.01, "adam": 0.0, "sgd": 0.0}


@dataclass
class TrainConfig:
    """How a run trains."""

    epochs: int = option(5, minimum=0)
    """Passes over the training data; 0 records the untrained model."""
    batch_size: int = option(128, minimum=1)
    """Samples per optimizer step, over all processes."""
    micro_batch_size: int | None = option(None, minimum=1)
    """Samples per forward pass and process; None: the whole batch at once."""
    micro_batch_tokens: int | None = option(None, minimum=1)
    """Instead: tokens per forward pass and process at most, padding counted."""
    lr: float = option(1e-3, above=0)
    """Peak learning rate."""
    optimizer: str = option("adamw", choices=tuple(OPTIMIZER_PARAMETERS))
    """Which optimizer; the next four keys are its parameters."""
    weight_decay: float | None = option(None, minimum=0)
    """None: 0.01 for adamw, else 0."""
    betas: list[float] | None = None
    """Two numbers in [0, 1); None: PyTorch's."""
    eps: float | None = option(None, above=0)
    """Added to the denominator of an update; None: PyTorch's."""
    momentum: float | None = option(None, minimum=0)
    """Of sgd; None: 0."""
    scheduler: str = option("linear", choices=("linear", "cosine", "constant", "none"))
    """Course of the learning rate after the warm-up."""
    warmup_steps: int | None = option(None, minimum=0)
    """Optimizer steps; None: 500, or a tenth of a run that has no more than 500."""
    max_grad_norm: float | None = option(None, above=0)
    """The gradient is clipped to this norm; None: no clipping."""
    loss_on: str | None = option(None, choices=("target", "all"))
    """Tokens that carry loss; None: the data set's own choice."""
    fraction: float = option(1.0, above=0, maximum=1)
    """Share of the training pairs or documents, chosen by the seed."""
    validation_fraction: float = option(1.0, above=0, maximum=1)
    """Share of the validation pairs or documents, chosen by the seed."""
    seq_len: int = option(512, minimum=2)
    """Tokens per sample at most; longer samples lose the end of their target."""
    block_size: int = option(128, minimum=2)
    """Tokens per block of packed data sets."""
    sort_window: int = option(50, minimum=0)
    """Batches sorted by length together; 0: random batches."""
    precision: str = option("auto", choices=("auto", "fp32", "bf16", "fp16"))
    """The dtype of matrix products; auto: chosen by the device."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    cache_frozen: bool = False
    """Compute the blocks before the first trained one once for each sample, and keep their outputs in memory."""
    cache_folder: str | None = None
    """A folder in which ``cache_frozen`` leaves those outputs for other runs; None: in memory only."""
    device: str = option("auto", choices=("auto", "cpu", "cuda", "mps"))
    """Where to train; auto: a GPU if there is one."""
    compile: bool | str = option("auto", choices=("auto", True, False))
    """torch.compile of the model's blocks; auto: on CUDA."""
    sharding: str = option("none", choices=("none", "fsdp"))
    """With several processes: a whole model on each, or a part of it."""
    validate_every: int = option(1, minimum=1)
    """Epochs between validations, which choose the best checkpoint; the last epoch always has one."""
    save_every: int | None = option(None, minimum=1)
    """Optimizer steps between further checkpoints; None: after a validation only."""
    save_minutes: float | None = option(None, above=0)
    """Minutes between checkpoints, besides those; None: none by the clock."""
    keep_last: bool = True
    """Keep the last checkpoint once the run is finished; the best one always stays."""
    skip_nonfinite: bool = False
    """Leave out updates that are NaN or infinite, and count them; False: stop there."""

    @property
    def samples_per_pass(self) -> int:
        """Samples per forward pass and process, unless ``micro_batch_tokens`` counts tokens."""
        return self.micro_batch_size or self.batch_size


def train_problems(train: TrainConfig) -> list[str]:
    """What is wrong with keys of ``train`` that depend on each other, one sentence for each problem."""
    problems = []
    for name in ("weight_decay", "betas", "eps", "momentum"):
        takes = OPTIMIZER_PARAMETERS.get(train.optimizer, ())
        if getattr(train, name) is not None and takes and name not in takes:
            problems.append(f"train.{name} is not a parameter of {train.optimizer}, which takes {', '.join(takes)}")
    if train.betas is not None and not (len(train.betas) == 2 and all(0 <= beta < 1 for beta in train.betas)):
        problems.append(f"train.betas={list(train.betas)} must be two numbers in [0, 1)")
    if train.micro_batch_size and train.micro_batch_size > train.batch_size:
        problems.append(f"train.micro_batch_size={train.micro_batch_size} is above train.batch_size={train.batch_size}")
    if train.micro_batch_size and train.micro_batch_tokens:
        problems.append("train.micro_batch_size and train.micro_batch_tokens exclude each other: set one to null")
    if train.cache_frozen and (train.compile is True or train.sharding != "none"):
        problems.append("train.cache_frozen works with neither train.compile=true nor train.sharding: leave one out")
    if train.cache_folder is not None and not train.cache_frozen:
        problems.append("train.cache_folder is where train.cache_frozen=true leaves its outputs: set it too")
    if train.scheduler == "none" and train.warmup_steps:
        problems.append("train.warmup_steps has no effect with train.scheduler=none: use constant, or leave it out")
    return problems
