"""One training measurement in a process of its own, so that peak memory is its own: ``run(Row(...))``.

The child process builds the model, takes steps on random tokens with a loss on every position, and prints a JSON line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.runs import provenance

ROOT = Path(__file__).parent.parent
SHAPES = {"gpt2": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20)}  # width, blocks, heads
METHODS = ("plain", "peft", "full", "lora", "rosa")


@dataclass(frozen=True)
class Row:
    """What to run.

    Attributes:
        method: ``plain``, LoRA in float32 with eager attention and the model's own loss; ``peft``, PEFT's LoRA with the
            model's own loss; ``full``, ``lora`` and ``rosa``, this project. All but plain: bfloat16, fused AdamW and
            compiled on CUDA, float32 on a CPU.
        shape: a key of ``SHAPES``; weights are random.
        batch, length: samples and tokens of a step.
        steps: counted ones, after one that is not.
    """

    method: str
    batch: int
    length: int
    shape: str = "gpt2"
    checkpointing: bool = False
    steps: int = 1
    device: str = "cpu"
    rank: float = 0.1


def run(row: Row) -> dict[str, Any]:
    """Measure ``row`` in a child process.

    Returns:
        ``seconds`` of each step, ``peak_mib`` beyond the libraries, ``parameters``, ``loss`` (mean nats of the last
        step), ``setup_seconds`` (injection, which for ROSA factorises every layer); or ``error``, its last line.
    """
    command = [sys.executable, "-m", "benchmarks.row", json.dumps(dataclasses.asdict(row))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


class Memory:
    """Peak memory in MiB since it was made: allocated on CUDA, resident beyond the start on a CPU (Linux)."""

    def __init__(self, device: str) -> None:
        import torch

        self.device = torch.device(device)
        self.start = 0.0 if device == "cuda" else provenance.memory_mib(self.device)

    def restart_peak(self) -> None:
        """Forget the peak up to here, such as that of setting up."""
        provenance.reset_peak_memory()

    def peak(self) -> float:
        """MiB."""
        return provenance.peak_memory_mib(self.device) - self.start


def _model(row: Row) -> tuple[Any, Callable[[Any], Any], float]:
    """The model, the loss of a batch of tokens, and the seconds of the injection."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    import rosa
    from utils.models.fast_modules import use_faster_modules
    from utils.models.loading import recompute_activations
    from utils.models.token_loss import TokenLoss

    torch.manual_seed(0)
    width, blocks, heads = SHAPES[row.shape]
    attention = "eager" if row.method == "plain" else "sdpa"
    model: Any = GPT2LMHeadModel(
        GPT2Config(n_embd=width, n_layer=blocks, n_head=heads, attn_implementation=attention)
    ).to(row.device)
    start = time.perf_counter()
    if row.method == "peft":
        import peft

        names = ["c_attn", "c_proj", "c_fc"]
        settings = peft.LoraConfig(r=int(row.rank * width), target_modules=names, fan_in_fan_out=True)
        model = peft.get_peft_model(model, settings)
    elif row.method != "full":
        config = rosa.RosaConfig(rank=row.rank) if row.method == "rosa" else rosa.LoraConfig(rank=row.rank)
        rosa.inject(model, config, keep_base=False)
    seconds = time.perf_counter() - start
    if row.checkpointing:
        recompute_activations(model)
    model.train()
    compiled = row.device == "cuda" and row.method != "plain"
    if row.method in ("plain", "peft"):
        forward = torch.compile(model, dynamic=True) if compiled else model
        return model, lambda ids: forward(input_ids=ids, labels=ids, use_cache=False).loss, seconds

    use_faster_modules(model)
    token_loss = TokenLoss(model)
    if compiled:
        token_loss.compile()

    def loss(ids: Any) -> Any:
        inside = torch.arange(ids.numel(), device=ids.device).view(ids.shape)[:, :-1].flatten()
        total, _ = token_loss(ids, inside, ids[:, 1:].flatten())
        return total / len(inside)

    return model, loss, seconds


def measure(row: Row) -> dict[str, Any]:
    """Measure ``row`` in this process."""
    import torch

    import benchmarks.common  # noqa: F401  (the libraries, before memory is first read)

    memory = Memory(row.device)
    model, loss_of, setup = _model(row)
    trained = [p for p in model.parameters() if p.requires_grad]
    plain = row.method == "plain"
    optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=not plain)
    autocast = (
        torch.autocast("cuda", torch.bfloat16) if row.device == "cuda" and not plain else contextlib.nullcontext()
    )
    generator = torch.Generator().manual_seed(1)
    memory.restart_peak()
    seconds = []
    for _ in range(1 + row.steps):
        ids = torch.randint(50257, (row.batch, row.length), generator=generator).to(row.device)
        start = time.perf_counter()
        with autocast:
            loss = loss_of(ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = float(loss.detach())  # waits for the device
        seconds.append(round(time.perf_counter() - start, 4))
    return {
        "seconds": seconds[1:],
        "peak_mib": round(memory.peak(), 1),
        "setup_seconds": round(setup, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in trained),
        "loss": last,
    }


if __name__ == "__main__":
    print(json.dumps(measure(Row(**json.loads(sys.argv[1])))))
