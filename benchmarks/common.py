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
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16", "i8mm", "sve")


@dataclass
class Settings:
    """What every part is told.

    ``data``: E2E's folder, ``scores``: a folder with a system's output and its references; None: the bundled sample.
    ``batch``: samples of a training step. ``command``: another trainer to time beside ours, see ``benchmarks.ways``.
    """

    device: torch.device
    quick: bool
    data: str | None
    tokenizer: str
    scores: str | None = None
    batch: int = 32
    command: str | None = None

    def synchronise(self) -> None:
        """Wait for the device, before a clock is read."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def gpt2_small(attention: str) -> Any:
    """GPT-2 small's shape with random weights (float32)."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(attn_implementation=attention))


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


def cpu_flags() -> list[str]:
    """Those of ``FLAGS`` that the CPU has, as Linux names them; they decide how fast products of matrices are."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text(encoding="utf-8").split()) if cpuinfo.exists() else set()
    return [flag for flag in FLAGS if flag in words]


def median(values: list[float]) -> float:
    """The median, rounded to six digits after the point."""
    return round(statistics.median(values), 6)


def spread(values: list[float]) -> dict[str, float]:
    """The median and the range, to five digits."""
    found = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {key: float(f"{value:.5g}") for key, value in found.items()}


def cell(value: Any, digits: str) -> str:
    """A number, or the median and range of a ``spread``, in a table; None is a dash."""
    if isinstance(value, dict):
        ends = f" ({value['min']:{digits}}–{value['max']:{digits}})" if value["min"] < value["max"] else ""
        return f"{value['median']:{digits}}{ends}"
    return "–" if value is None else f"{value:{digits}}"
