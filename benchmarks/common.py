"""What the benchmarks share: models without downloads, data with real lengths, timing, and the record they write."""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from utils.data import get_source
from utils.models.loading import load_tokenizer
from utils.tokens.encoding import Encoded, encode

RANK = 0.1  # ratio, the largest of the published table


@dataclass
class Settings:
    """What every part is told.

    ``data``: E2E's folder, ``scores``: a folder with a system's output and its references; None: the bundled sample.
    """

    device: torch.device
    quick: bool
    data: str | None
    tokenizer: str
    scores: str | None = None

    def synchronise(self) -> None:
        """Wait for the device, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def gpt2_small(attention: str, dropout: float | None = None) -> Any:
    """GPT-2 small's shape with random weights (float32)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(attn_implementation=attention)
    if dropout is not None:
        config.attn_pdrop = config.embd_pdrop = config.resid_pdrop = dropout
    return GPT2LMHeadModel(config)


def _tokenizer(name: str) -> Any:
    """A model's tokenizer, or a bare folder with GPT-2's tokenizer.json."""
    bare = Path(name) / "tokenizer.json"
    if bare.exists() and not (Path(name) / "config.json").exists():
        from transformers import PreTrainedTokenizerFast

        end = "<|endoftext|>"
        return PreTrainedTokenizerFast(tokenizer_file=str(bare), eos_token=end, pad_token=end)
    return load_tokenizer(name)


def e2e_samples(settings: Settings, split: str = "train") -> tuple[Encoded, Any]:
    """E2E's samples as the trainer has them, from ``--data``, else the bundled sample; and the tokenizer."""
    tokenizer = _tokenizer(settings.tokenizer)
    source = get_source("e2e" if settings.data else "e2e_sample")
    examples = source.load(split, Path(settings.data) if settings.data else None, None)
    return encode(examples, tokenizer, 512), tokenizer


def median(values: list[float]) -> float:
    """The median, rounded to six digits after the point."""
    return round(statistics.median(values), 6)
