"""The code of each process in ``test_sent_bytes``: it counts what a training step and a resample send and factorise.

``torchrun --nproc_per_node=2 -m tests.processes.sent_bytes FILE`` writes the bytes as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import rosa
from rosa import resampling
from tests.rosa.cases import make_model
from utils.config.settings import TrainConfig
from utils.models.token_loss import TokenLoss
from utils.processes.group import Processes, disconnect_at_end
from utils.training.placement import build_placement

PASSES = 2  # micro-batches of the step
TIMES = {  # how often a process sends its part of the whole tensor in a ring, by words in a collective's name
    "allgather": 1, "all_gather": 1, "reduce_scatter": 1, "broadcast": 1, "allreduce": 2, "all_reduce": 2,
}  # fmt: skip


class Sent(TorchDispatchMode):
    """Adds up the bytes that this process sends in collective operations."""

    bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        times = [times for word, times in TIMES.items() if word in func.name()]
        if func.namespace in ("c10d", "_c10d_functional") and times:
            tensors = [leaf for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor)]
            processes = dist.get_world_size()
            self.bytes += times[0] * (processes - 1) / processes * max(tensor.nbytes for tensor in tensors)
        return result


def build(method: str) -> Any:
    """The small model, adapted but not started."""
    model = make_model("gpt2", vocab_size=64)
    return model if method == "none" else rosa.inject(model, rosa.RosaConfig(rank=4), start=False)


def count(method: str, sharding: str, precision: str) -> dict[str, float]:
    """Bytes of a step and of a resample, and of how many layers all processes together found the singular vectors."""
    processes = Processes(dist.get_rank(), dist.get_world_size(), dist.group.WORLD)
    placement = build_placement(TrainConfig(device="cpu", sharding=sharding), precision, processes)
    model: Any = build(method)
    token_loss: Any = TokenLoss(model)
    placement.distribute(token_loss)
    if method != "none":
        rosa.start_adapters(model)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    token_loss, _ = placement.prepare(token_loss, torch.optim.SGD(trained))
    ids, positions = torch.arange(12).view(2, 6), torch.tensor([1, 2, 7])
    with Sent() as step:
        for part in range(PASSES):
            with placement.micro_batch_context(token_loss, last=part + 1 == PASSES):
                nats, _ = token_loss(ids, positions, ids.flatten()[positions + 1])
                nats.backward()
    factorised = torch.zeros(())
    with Sent() as resample, counted(factorised):
        if method != "none":
            rosa.resample(model, 1)
    dist.all_reduce(factorised)
    return {"step": step.bytes, "resample": resample.bytes, "factorised": float(factorised)}


@contextlib.contextmanager
def counted(number: Tensor) -> Iterator[None]:
    """Adds up in ``number`` of how many weights ``short_side_vectors`` is asked for."""
    vectors = resampling.short_side_vectors
    resampling.short_side_vectors = lambda weights: number.add_(len(weights)) is not None and vectors(weights)
    try:
        yield
    finally:
        resampling.short_side_vectors = vectors


def main(file: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = {}
    for method in ("none", "rosa"):
        for sharding, precision in (("fsdp", "fp32"), ("fsdp", "bf16"), ("none", "fp32")):
            found[f"{method} {sharding} {precision}"] = count(method, sharding, precision)
    if dist.get_rank() == 0:
        file.write_text(json.dumps(found))


if __name__ == "__main__":
    with disconnect_at_end():
        main(Path(sys.argv[1]))
