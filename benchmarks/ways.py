"""One way to train, in a process of its own that ``benchmarks.training`` drives: ``python -m benchmarks.ways``.

Any other command takes part in the same table (``--command``) if it reads and writes what ``main`` does here:

1. It reads one line of JSON, the fields of ``Task``. ``model`` is a folder that ``from_pretrained`` reads.
2. It prints one line of JSON when it is ready: ``{"batches": "random"}`` or ``{"batches": "sorted"}``, the list it
   takes. It may add ``method`` (lora, rosa or full; default lora), ``precision`` (fp32 or bf16; default fp32),
   ``flop`` (of a step, where the formula for the method does not hold) and ``losses`` (see ``losses_without_dropout``).
3. It reads the number of a batch per line, takes one optimizer step on it, and prints one line of JSON:
   ``{"loss": nats per target token}``, perhaps with ``peak_mib``, its peak memory beyond the libraries. The time from
   line to line is what is measured.
4. It ends when its input ends. Lines that do not begin with ``{`` are taken for its log.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor, nn

import rosa
from benchmarks.row import Memory
from utils.config.settings import parse_config, schema
from utils.processes.devices import MIXED_DTYPE
from utils.processes.signals import StopRequest
from utils.runs import Run
from utils.tokens.encoding import Encoded, Sample

Batch = list[tuple[list[int], int]]  # samples: the tokens, and how many of them are the prompt
MATMUL = (2048, 768, 3072)  # rows, inner size and columns of the product that measures the machine's peak
PRODUCTS = {"fp32": 20, "bf16": 80}  # per step: about half a second or a second on two cores
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Task:
    """What a process has to train.

    Attributes:
        way: kind and precision, such as "expert bf16"; see ``build``.
        model: folder of the base model (GPT-2's architecture) and its tokenizer.
        device: cpu or cuda.
        rank: of the adapters, a ratio.
        dropout: of the model.
        batches: "random" and "sorted": the batches of each kind.
        check: a batch for the comparison of losses; empty where there is to be none.
    """

    way: str
    model: str
    device: str
    rank: float
    dropout: float
    batches: dict[str, list[Batch]]
    check: Batch


@dataclass
class Way:
    """A way to train: ``step`` makes one update on a batch, waits for the device, and returns the mean loss in nats."""

    step: Callable[[Batch], float]
    batches: str
    method: str = "lora"
    precision: str = "fp32"
    model: Any = None
    flop: float | None = None

    def losses_without_dropout(self, batch: Batch) -> list[float]:
        """The losses of ``batch`` before and after an update on it."""
        dropouts = [module for module in self.model.modules() if isinstance(module, nn.Dropout)]
        before = [module.p for module in dropouts]
        for module in dropouts:
            module.p = 0.0
        losses = [self.step(batch), self.step(batch)]
        for module, p in zip(dropouts, before, strict=True):
            module.p = p
        return losses


def build(task: Task) -> Way:
    """The way of the task's name.

    - plain: what the first public code and many scripts do. float32, random batches padded to their longest sample,
      an attention mask, eager attention, the model's own loss (logits at every position), products one by one, an
      optimizer that is not fused. "plain-rosa" trains ROSA like that, else LoRA.
    - documented: PEFT's LoRA as its documentation shows: ``get_peft_model``, the model's own loss, AdamW.
    - expert: PEFT's LoRA, the same mathematics at its best: sorted batches, SDPA without a mask, the head on target
      positions only, a fused optimizer; on CUDA compiled.
    - full, lora, rosa: this project, by the function that train.py's loop calls.
    - matmul: no training; products of matrices, the machine's peak.
    """
    kind, precision = task.way.split()
    if kind == "matmul":
        return _matmul(task, precision)
    if kind in ("plain", "plain-rosa"):
        model = plain_products(_adapted(task, "eager", rosa.RosaConfig if kind == "plain-rosa" else rosa.LoraConfig))
        return _loop(task, model, own_loss, "random", precision, fused=False)
    if kind == "documented":
        return _loop(task, _peft(task), own_loss, "random", precision, fused=False)
    if kind == "expert":
        return _loop(task, _peft(task), expert_loss, "sorted", precision, fused=True)
    return _project(task, kind, precision)


def padded(samples: Batch, pad_id: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, labels (-100 where there is no loss) and the attention mask, each (B, T), padded on the right."""
    width = max(len(ids) for ids, _ in samples)
    tokens = torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in samples])
    columns = torch.arange(width)
    mask = columns < torch.tensor([[len(ids)] for ids, _ in samples])
    targets = mask & (columns >= torch.tensor([[prompt] for _, prompt in samples]))
    labels = torch.where(targets, tokens, -100)
    return tokens.to(device), labels.to(device), mask.long().to(device)


def own_loss(model: Any, tokens: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """The model's own loss: logits over the vocabulary at every position."""
    loss: Tensor = model(input_ids=tokens, attention_mask=mask, labels=labels, use_cache=False).loss
    return loss


def expert_loss(model: Any, tokens: Tensor, labels: Tensor, _: Tensor) -> Tensor:
    """The same with the head at target positions only, and no mask: right padding is never seen by a real token."""
    base = model.get_base_model()
    hidden = base.transformer(input_ids=tokens, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:] != -100
    return F.cross_entropy(base.lm_head(hidden[wanted]).float(), labels[:, 1:][wanted])


def plain_products(model: Any) -> Any:
    """``model``, its adapter layers computing x W + b + (x A) B operation by operation, as the first code does."""
    for layer in rosa.adapter_layers(model).values():
        layer.forward = lambda x, layer=layer: layer.base(x) + (x @ layer.A) @ layer.B
    return model


def _gpt2(task: Task, attention: str) -> Any:
    from transformers import GPT2LMHeadModel

    options = {f"{name}_pdrop": task.dropout for name in ("attn", "embd", "resid")}
    return GPT2LMHeadModel.from_pretrained(task.model, attn_implementation=attention, dtype=torch.float32, **options)


def _adapted(task: Task, attention: str, config: type[rosa.RosaConfig] | type[rosa.LoraConfig]) -> Any:
    return rosa.inject(_gpt2(task, attention), config(rank=task.rank, bias="none"), keep_base=False)


def _peft(task: Task) -> Any:
    """PEFT's LoRA with this project's A, so that losses can be compared after an update too."""
    import peft

    starts = {name: layer.A for name, layer in rosa.adapter_layers(_adapted(task, "sdpa", rosa.LoraConfig)).items()}
    rank = next(iter(starts.values())).shape[1]
    names = ["c_attn", "c_proj", "c_fc"]
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names, fan_in_fan_out=True)
    model = peft.get_peft_model(_gpt2(task, "sdpa"), config)
    with torch.no_grad():
        for name, start in starts.items():
            model.get_submodule(f"base_model.model.{name}").lora_A["default"].weight.copy_(start.T)
    return model


def _loop(task: Task, model: Any, loss_of: Callable[..., Tensor], batches: str, precision: str, *, fused: bool) -> Way:
    model.to(task.device).train()
    if fused and task.device == "cuda":
        model.get_base_model().transformer.compile(dynamic=True)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=fused)
    dtype = MIXED_DTYPE[precision]

    def step(samples: Batch) -> float:
        with torch.autocast(task.device, dtype) if dtype else contextlib.nullcontext():
            loss = loss_of(model, *padded(samples, model.config.eos_token_id, task.device))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    method = "rosa" if task.way.startswith("plain-rosa") else "lora"
    return Way(step, batches, method, precision, model)


def _project(task: Task, method: str, precision: str) -> Way:
    """This project's training: ``set_up`` and ``train_step``, with the samples of the task in place of the data set's.

    Its data set is the bundled one, which is read only so that ``set_up`` has one.
    """
    from utils.training.loop import train_step
    from utils.training.setup import set_up

    folder = tempfile.mkdtemp(dir=task.model)  # goes when the model does
    settings = {
        "model": {"name": task.model, "dropout": task.dropout},
        "dataset": {"name": "e2e_sample"},
        "fnmodel": {"name": "none" if method == "full" else method, "params": {"rank": task.rank, "bias": "none"}},
        "train": {
            "lr": LEARNING_RATE,
            "scheduler": "none",
            "precision": precision,
            "device": task.device,
            "batch_size": max(map(len, task.batches["sorted"])),
        },
        "output": {"path": folder},
    }
    config = parse_config(OmegaConf.merge(schema(), settings))
    training = set_up(config, precision, Run(Path(folder)), StopRequest())
    training.token_loss.train()

    def step(samples: Batch) -> float:
        encoded = Encoded([Sample(ids, prompt, 1, 1) for ids, prompt in samples], 0)
        training.data = dataclasses.replace(training.data, train=encoded)
        train_step(training, list(range(len(samples))), wants_norm=False)
        training.progress.step += 1
        return training.meter.read(training.progress.step)["loss"]

    return Way(step, "sorted", method, precision, training.model)


def _matmul(task: Task, precision: str) -> Way:
    rows, inner, columns = MATMUL
    dtype = MIXED_DTYPE[precision] or torch.float32
    left, right = (torch.randn(size, device=task.device).to(dtype) for size in ((rows, inner), (inner, columns)))
    out = torch.empty(rows, columns, device=task.device, dtype=dtype)

    def step(_: Batch) -> float:
        for _product in range(PRODUCTS[precision]):
            torch.mm(left, right, out=out)
        return float(out[0, 0])

    return Way(step, "sorted", "matmul", precision, flop=2.0 * rows * inner * columns * PRODUCTS[precision])


def main() -> None:
    """Do what the module's text says, for the ways of ``build``."""
    import peft  # noqa: F401  (all libraries of all ways, before memory is first read)
    from transformers.utils import logging

    import utils.training.setup  # noqa: F401

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    task = Task(**json.loads(sys.stdin.readline()))
    memory = Memory(task.device)
    way = build(task)
    ready = {"batches": way.batches, "method": way.method, "precision": way.precision, "flop": way.flop}
    if way.model is not None and task.check:
        ready["losses"] = way.losses_without_dropout(task.check)
    memory.restart_peak()
    print(json.dumps(ready), flush=True)
    for line in sys.stdin:
        loss = way.step(task.batches[way.batches][int(line)])
        print(json.dumps({"loss": loss, "peak_mib": memory.peak()}), flush=True)


if __name__ == "__main__":
    main()
