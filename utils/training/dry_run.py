"""``dry_run=true``: what a run takes in memory and time, from a few trial steps that leave nothing behind.

Weights, adapters, gradients and the optimizer's state are counted. Activations are the tensors that autograd keeps for
the backward pass, counted in the largest batch of the first epoch. The peak is measured over the set-up, the steps, a
part of a validation and a resample: on a GPU what PyTorch allocates, else the memory of the process beyond its start,
which has the libraries. Time is that of batches, and validation batches, of evenly spaced sizes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import rosa
from rosa.schedule import count_resamples
from rosa.sharding import is_sharded, local_part
from utils.errors import UserError
from utils.log import log
from utils.models.losses import evaluate_losses
from utils.models.token_loss import unwrapped
from utils.runs.provenance import peak_memory_mib
from utils.text import aligned
from utils.tokens.batches import epoch_batches
from utils.tokens.encoding import Encoded
from utils.tokens.shared_prompts import row_batches
from utils.training.failures import optimizer_tensors
from utils.training.loop import train_step
from utils.training.samples import sample_texts
from utils.training.training import Training

TRIALS = 6  # batches that are timed, and validation batches
MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """What a run takes: MiB by part and at the peak, seconds by kind of work, samples per second in some trials.

    ``before`` is the memory of the process before the set-up, its libraries: the peak is beyond it.
    """

    memory: dict[str, float]
    before: float
    peak: float
    seconds: dict[str, float]
    samples_per_second: float
    trials: int


def estimate(training: Training, start: float, memory_before: float) -> Estimate:
    """Try a few steps, a part of a validation, and a resample if the run has one. The training is of no use afterwards.

    Args:
        start: when the set-up began (``time.perf_counter``).
        memory_before: ``memory_mib`` at that time.

    Raises:
        UserError: the run has no epochs.
    """
    train, data = training.config.train, training.data.train
    if not train.epochs:
        raise UserError("train.epochs=0 leaves dry_run=true no step to try: set train.epochs")
    seconds = {"set-up": time.perf_counter() - start}
    training.token_loss.train()
    if frozen := unwrapped(training.token_loss).frozen:
        frozen.file = None  # a dry run leaves nothing
    batches = sorted(
        epoch_batches(data.lengths, train.batch_size, train.sort_window, training.config.seed, 0),
        key=lambda batch: _padded_tokens(training, batch),
    )
    saved = SavedTensors(training.model)
    with saved:
        train_step(training, batches[-1], wants_norm=False)
    memory = {part: count / MIB for part, count in count_bytes(training).items()}
    train_step(training, batches[0], wants_norm=False)  # compiled code is made for the largest and the smallest shape
    trials = spread(batches, TRIALS)
    log.info("dry run: trying %d steps", len(trials))
    passes = _first_and_later(training, lambda: [train_step(training, batch, wants_norm=False) for batch in trials])
    first, step = (taken / len(trials) for taken in passes)
    seconds["training"] = len(batches) * (first + step * (train.epochs - 1))
    first, later = _validation_seconds(training)
    seconds["validation"] = first + later * math.ceil(train.epochs / train.validate_every)
    resampler = training.resampler
    if count := count_resamples(resampler, train.epochs, training.total_steps):
        seconds["resampling"] = count * _timed(training, lambda: rosa.resample(training.model, 1, resampler.optimizer))
    return Estimate(
        {**memory, "activations": saved.peak / MIB},
        memory_before,
        peak_memory_mib(training.device) - memory_before + memory.get("kept outputs", 0),
        seconds,
        len(data) * train.epochs / seconds["training"],
        len(trials),
    )


def count_bytes(training: Training) -> dict[str, int]:
    """Bytes of a training after its first epoch, on this process, by part."""
    model = training.model
    layers = rosa.adapter_layers(model).values()
    added = {id(t) for layer in layers for t in (*layer.parameters(recurse=False), *layer.buffers(recurse=False))}
    tensors = [*model.parameters(), *model.buffers()]
    data = training.data
    frozen = unwrapped(training.token_loss).frozen
    kept = {} if frozen is None else {"kept outputs": frozen.expected_bytes(data.train, data.validation)}
    return {
        "weights": _bytes(t for t in tensors if id(t) not in added),
        "adapters": _bytes(t for t in tensors if id(t) in added),
        "gradients": _bytes(training.trained_parameters()),
        "optimizer": _bytes(optimizer_tensors(training.optimizer)),
        **kept,
    }


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(tensor.nbytes for tensor in map(local_part, tensors))


def _storages(model: nn.Module) -> set[int]:
    """Where the model's values lie now: in a sharded model also those that are gathered at this moment."""
    return {local_part(t).untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


class SavedTensors(torch.autograd.graph.saved_tensors_hooks):
    """A context in which the bytes are counted that autograd keeps for a backward pass, parameters apart.

    Attributes:
        peak: the most bytes that were kept at a time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.peak = self._now = 0
        self._uses: dict[int, int] = {}  # of each storage that is kept
        fixed = None if any(map(is_sharded, model.parameters())) else _storages(model)

        def keep(tensor: Tensor) -> Any:
            tensor = tensor.detach()  # else an output that is kept would keep its own graph
            own = _storages(model) if fixed is None else fixed
            return tensor if tensor.untyped_storage().data_ptr() in own else _Kept(self, tensor)

        super().__init__(keep, lambda kept: kept.tensor if isinstance(kept, _Kept) else kept)

    def count(self, storage: Any, change: int) -> None:
        """Note that a storage is kept once more (1) or once less (-1)."""
        address = storage.data_ptr()
        before = self._uses.get(address, 0)
        self._uses[address] = before + change
        if 0 in (before, before + change):
            self._now += change * storage.nbytes()
            self.peak = max(self.peak, self._now)


class _Kept:
    """A tensor that autograd keeps. It is counted until the graph lets go of it."""

    def __init__(self, owner: SavedTensors, tensor: Tensor) -> None:
        self.owner, self.tensor = owner, tensor
        owner.count(tensor.untyped_storage(), 1)

    def __del__(self) -> None:
        self.owner.count(self.tensor.untyped_storage(), -1)


def _padded_tokens(training: Training, batch: Sequence[int]) -> int:
    """Tokens of the largest micro-batch of ``batch``, padding counted."""
    lengths, divided = training.data.train.lengths, training.micro_batches(batch)
    return max(len(part) * max((lengths[i] for i in part), default=0) for parts in divided for part in parts)


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of ``items``, evenly spaced from the first to the last."""
    count = min(count, len(items))
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def _timed(training: Training, act: Callable[[], Any]) -> float:
    """The seconds that ``act`` takes, with its work on the device."""
    start = time.perf_counter()
    act()
    if training.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _first_and_later(training: Training, act: Callable[[], Any]) -> tuple[float, float]:
    """The seconds of ``act`` in the first epoch and in later ones, which differ with train.cache_frozen only."""
    frozen = unwrapped(training.token_loss).frozen
    if frozen is None or frozen.from_file:
        return (_timed(training, act),) * 2
    frozen.kept.clear()
    return _timed(training, act), _timed(training, act)


def _validation_seconds(training: Training) -> tuple[float, float]:
    """The seconds of the first validation and of a later one, from some batches and the sample texts."""
    train, data, processes = training.config.train, training.data.validation, training.processes
    size, limit = train.samples_per_pass, train.micro_batch_tokens
    batches = row_batches(data, size, unwrapped(training.token_loss).shares(data), limit, training.device)
    chosen = spread(batches, TRIALS * processes.count)
    part = Encoded([data.samples[i] for batch in chosen for row in batch for i in row], 0, data.documents)
    first, later = _first_and_later(
        training,
        lambda: evaluate_losses(
            training.token_loss, part, training.collator.pad_id, size, processes, training.stop.check, tokens=limit
        ),
    )
    texts = 0.0
    if not training.placement.sharded:
        texts = _timed(training, lambda: processes.run_on_main(lambda: sample_texts(training)))
    share = len(batches) / len(chosen)
    return first * share + texts, later * share + texts


def report(training: Training, found: Estimate) -> str:
    """The text that a dry run prints."""
    config, train = training.config, training.config.train
    gpu = training.device.type == "cuda"
    rows = [["memory", "MiB"], *([part, f"{mib:,.1f}"] for part, mib in found.memory.items())]
    rows.append(["expected peak", f"{found.peak:,.1f}"])
    where = "allocated on the GPU" if gpu else f"of the process, beyond the {found.before:,.0f} MiB of its libraries"
    total = sum(found.seconds.values())
    kinds = ", ".join(f"{kind} {duration(seconds)}" for kind, seconds in found.seconds.items())
    return "\n".join(
        [
            f"{config.fnmodel.method} on {config.model.name}, {config.source.names[0]}",
            str(rosa.parameter_report(training.model)).splitlines()[-1],
            "",
            *aligned(rows, right=(1,)),
            f"The peak is {where}; gradients and activations are not all there at once.",
            "",
            f"{found.samples_per_second:,.4g} samples/s in {found.trials} trial steps: about {duration(total)} for "
            f"{train.epochs} epochs of {len(training.data.train):,} samples ({kinds}), without checkpoints.",
        ]
    )


def duration(seconds: float) -> str:
    """A time in two units: 3 h 20 min, 4 min 5 s; below a minute in seconds."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    unit, small, big = ("s", 1, "min") if seconds < 3600 else ("min", 60, "h")
    whole, rest = divmod(round(seconds / small), 60)
    return f"{whole} {big} {rest} {unit}" if rest else f"{whole} {big}"
