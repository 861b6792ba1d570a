"""The table of adapter settings for the generic tests, two tiny model families, and helpers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import rosa

VOCABULARY = 61
# Every weight of the blocks is non-square somewhere: GPT-2 24 x 72, 24 x 24, 24 x 96, 96 x 24 (Conv1D, biases, tied
# head); Llama 24 x 24, 24 x 12 (grouped keys and values), 24 x 40, 40 x 24 (Linear, no biases, own head).
FAMILIES = ("gpt2", "llama")
LAYERS_PER_BLOCK = {"gpt2": 4, "llama": 7}
BLOCKS = 2


@dataclass(frozen=True)
class Case:
    """One row: a name, the adapter's settings, and the families of models that it fits."""

    name: str
    config: rosa.AdapterConfig
    families: tuple[str, ...] = FAMILIES

    def __str__(self) -> str:
        return self.name


CASES = [
    Case("rosa-random", rosa.RosaConfig(rank=4)),
    Case("rosa-random-left", rosa.RosaConfig(rank=0.29, factor_split="left", bias="none")),
    Case("rosa-window", rosa.RosaConfig(rank=3, sample_method="window", seed=5)),
    Case("rosa-top", rosa.RosaConfig(rank=1, sample_method="top")),
    Case("rosa-bottom-left", rosa.RosaConfig(rank=5, sample_method="bottom", factor_split="left")),
    Case("rosa-full-rank", rosa.RosaConfig(rank=1.0)),
    Case("rosa-below-full", rosa.RosaConfig(rank=11, optimizer_state="keep")),
    Case("rosa-b", rosa.RosaConfig(rank=4, adapt="b", optimizer_state="keep")),
    Case("rosa-a-orthonormal", rosa.RosaConfig(rank=0.3, adapt="a", factor_split="orthonormal")),
    Case("rosa-zero", rosa.RosaConfig(rank=4, start="zero", factor_split="orthonormal")),
    Case("rosa-random-basis", rosa.RosaConfig(rank=4, basis="random", bias="none")),
    Case("rosa-random-basis-b-zero", rosa.RosaConfig(rank=6, basis="random", adapt="b", start="zero")),
    Case("rosa-random-basis-a-full", rosa.RosaConfig(rank=1.0, basis="random", adapt="a", factor_split="left")),
    Case("lora", rosa.LoraConfig(rank=4)),
    Case("lora-alpha", rosa.LoraConfig(rank=0.1, alpha=16)),
    Case("lora-bias", rosa.LoraConfig(rank=2, alpha=3.0, bias="adapted")),
    Case("lora-rslora", rosa.LoraConfig(rank=4, alpha=3.0, scale="rslora", lr_ratio_b=4.0)),
    Case("lora-dropout", rosa.LoraConfig(rank=12, dropout=0.3)),
    Case("lora-full-rank", rosa.LoraConfig(rank=1.0)),
    Case("dora", rosa.DoraConfig(rank=4)),
    Case("dora-alpha-bias", rosa.DoraConfig(rank=2, alpha=3.0, bias="adapted")),
    Case("dora-dropout", rosa.DoraConfig(rank=0.25, dropout=0.3)),
    Case("relora", rosa.ReloraConfig(rank=4, alpha=6.0)),
    Case("relora-dropout-bias", rosa.ReloraConfig(rank=0.25, dropout=0.3, pruned=1.0, bias="adapted")),
    Case("ia3", rosa.IA3Config()),
    Case("ia3-outputs-bias", rosa.IA3Config(feedforward_modules=[], bias="adapted")),
    Case("bitfit", rosa.BitFitConfig(), families=("gpt2",)),  # Llama has no biases to train
]
FAMILY_CASES = [(family, case) for family in FAMILIES for case in CASES if family in case.families]
ROSA_CASES = [case for case in CASES if case.config.method == "rosa"]


def make_model(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A tiny random causal model in evaluation mode, without dropout, with biases that are not zero."""
    torch.manual_seed(seed)
    if family == "gpt2":
        settings = dict(vocab_size=VOCABULARY, n_positions=32, n_embd=24, n_layer=BLOCKS, n_head=2)
        dropout = dict(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
        ends = dict(bos_token_id=0, eos_token_id=0)
        config = GPT2Config(**{**settings, **dropout, **ends, "initializer_range": 0.2, **changes})
        model: Any = GPT2LMHeadModel(config)
    else:
        settings = dict(vocab_size=VOCABULARY, hidden_size=24, intermediate_size=40, num_hidden_layers=BLOCKS)
        heads = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32)
        ends = dict(bos_token_id=0, eos_token_id=0)
        own = dict(tie_word_embeddings=False, initializer_range=0.2)
        model = LlamaForCausalLM(LlamaConfig(**{**settings, **heads, **ends, **own, **changes}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1)
    return model.to(dtype).eval()


def adapt(family: str, config: rosa.AdapterConfig, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    return rosa.inject(make_model(family, dtype=dtype, **changes), config)


def tokens(rows: int = 4, length: int = 12, seed: int = 7) -> Tensor:
    return torch.randint(VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Logits of a fixed batch in evaluation mode, (4, 12, vocabulary)."""
    training = model.training
    model.eval()
    out: Tensor = model(input_ids=tokens()).logits
    model.train(training)
    return out


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def make_optimizer(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trained(model), lr=lr)


def train_steps(model: Any, optimizer: torch.optim.Optimizer, steps: int = 3, *, autocast: bool = False) -> list[float]:
    """Some steps on one batch, with a forward pass in bfloat16 if asked for. Returns the loss before each step."""
    batch, losses = tokens(), []
    model.train()
    for _ in range(steps):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = model(input_ids=batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def trained_model(family: str, config: rosa.AdapterConfig, resamples: int = 2, **changes: Any) -> Any:
    """An adapted model after some steps, and as many more after each resample."""
    model = adapt(family, config, **changes)
    optimizer = make_optimizer(model)
    train_steps(model, optimizer)
    for number in range(1, resamples + 1):
        rosa.resample(model, number, optimizer)
        train_steps(model, optimizer)
    return model


def digests(model: nn.Module) -> dict[str, str]:
    """A hash of the bits of each parameter and buffer."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        name: hashlib.sha256(t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, t in state.items()
    }


def blocks_weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each weight of the default targets in a model without adapters, as (m, n) in float64."""
    return {
        name: (module.weight.T if isinstance(module, nn.Linear) else module.weight).detach().double().clone()
        for name, module in model.named_modules()
        if (".h." in name or ".layers." in name) and getattr(module, "weight", torch.zeros(0)).dim() == 2
    }
