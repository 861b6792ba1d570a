"""Generation for E2E's test MRs: prompts one by one in float32 with eager attention against this project.

Random weights in GPT-2 small's shape never end a text, so both ways do the same work, 64 tokens a text; the bundled
model, a small trained one, ends its texts where a text ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Settings, e2e_samples, gpt2_small, median
from utils.data import get_source, group_by_source
from utils.generation.generate import Decoding, generate_tokens, plain_generate
from utils.models.fast_modules import use_faster_modules
from utils.models.loading import load_model, load_tokenizer

TIE = 1e-4  # texts whose scores differ by less, in nats per token ** length penalty, are a tie


@dataclasses.dataclass(frozen=True)
class Size:
    """How much to generate: ``prompts`` by this project, of which ``plain`` the plain way, scaled to all."""

    prompts: int
    plain: int
    beams: int
    batch: int


SIZES = {"cpu": Size(64, 64, 4, 64), "cuda": Size(630, 60, 10, 128)}
QUICK = {"cpu": Size(8, 4, 4, 8), "cuda": Size(128, 8, 10, 128)}


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds of both ways, their ratio, and whether they give the same texts, for either model."""
    size = (QUICK if settings.quick else SIZES)[settings.device.type]
    decoding = Decoding(num_beams=size.beams, max_new_tokens=64)
    _, tokenizer = e2e_samples(settings, "test")
    rows = {}
    for name in ("gpt2", "tiny"):
        if name == "tiny":
            plain, project, tokenizer = load_model("tiny"), load_model("tiny"), load_tokenizer("tiny")
            plain.set_attn_implementation("eager")
        else:
            plain, project = gpt2_small("eager"), gpt2_small("sdpa")
            use_faster_modules(project)
        models = [model.to(settings.device).eval() for model in (plain, project)]
        rows[name] = _compare(settings, *models, tokenizer, _prompts(settings, size.prompts), decoding, size)
    return {
        "decoding": dataclasses.asdict(decoding),
        **dataclasses.asdict(size),
        "precision": "bf16" if settings.device.type == "cuda" else "fp32",
        "methods": rows,
    }


def _prompts(settings: Settings, count: int) -> list[str]:
    """Prompts spread evenly over the test split, over and over where it has fewer."""
    source = get_source("e2e" if settings.data else "e2e_sample")
    examples = source.load("test", Path(settings.data) if settings.data else None, None)
    found = [group[0].prompt for group in group_by_source(examples)]
    return [found[i * len(found) // count] for i in range(count)]


def _compare(
    settings: Settings, plain: Any, project: Any, tokenizer: Any, prompts: list[str], decoding: Decoding, size: Size
) -> dict[str, Any]:
    on_gpu = settings.device.type == "cuda"
    chosen = [i * len(prompts) // size.plain for i in range(size.plain)]
    _plain(settings, plain, tokenizer, prompts[chosen[0]], decoding)  # warm-up
    start = time.perf_counter()
    expected = [_plain(settings, plain, tokenizer, prompts[i], decoding) for i in chosen]
    plain_seconds = (time.perf_counter() - start) * len(prompts) / len(chosen)

    seconds = []
    generate_tokens(project, tokenizer, prompts[: size.batch if on_gpu else 2], decoding, size.batch)  # warm-up
    for _ in range(3 if on_gpu else 2):
        settings.synchronise()
        start = time.perf_counter()
        with torch.autocast("cuda", torch.bfloat16) if on_gpu else contextlib.nullcontext():
            found = generate_tokens(project, tokenizer, prompts, decoding, size.batch)
        seconds.append(round(time.perf_counter() - start, 4))
    timed = [_text(found[i], tokenizer) for i in chosen]
    if on_gpu:  # equality is a matter of float32: in bfloat16 many candidates tie
        found = generate_tokens(project, tokenizer, [prompts[i] for i in chosen], decoding, size.batch)
    compared = [_text(tokens, tokenizer) for tokens in found] if on_gpu else timed
    gaps = [
        abs(_score(plain, tokenizer, prompts[i], one, decoding) - _score(plain, tokenizer, prompts[i], two, decoding))
        for i, one, two in zip(chosen, expected, compared, strict=True)
        if one != two
    ]
    return {
        "plain_seconds": round(plain_seconds, 3),
        "project_seconds": seconds,
        "speedup": round(plain_seconds / median(seconds), 2),
        "tokens_per_text": statistics.mean(len(text) for text in expected),
        "ended_early": sum(len(text) < decoding.max_new_tokens for text in expected) / len(expected),
        "equal_texts": 1 - len(gaps) / len(chosen),
        "equal_texts_as_timed": sum(map(list.__eq__, expected, timed)) / len(chosen),
        "largest_score_gap": max(gaps, default=0.0),
        "predictions_equal": max(gaps, default=0.0) < TIE,
    }


@torch.no_grad()
def _plain(settings: Settings, model: Any, tokenizer: Any, prompt: str, decoding: Decoding) -> list[int]:
    """One text by transformers' own generate."""
    inputs = tokenizer([prompt], add_special_tokens=False, return_tensors="pt").to(settings.device)
    new = plain_generate(model, inputs, decoding, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return _text(new[0].tolist(), tokenizer)


def _text(tokens: list[int], tokenizer: Any) -> list[int]:
    """Up to eos, with it."""
    eos = tokenizer.eos_token_id
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


@torch.no_grad()
def _score(model: Any, tokenizer: Any, prompt: str, text: list[int], decoding: Decoding) -> float:
    """What beam search maximises: the text's log-probability over its length to the power of the penalty."""
    start = tokenizer([prompt], add_special_tokens=False)["input_ids"][0]
    ids = torch.tensor([start + text], device=model.device)
    scores = model(input_ids=ids, use_cache=False).logits[0, len(start) - 1 : -1].double().log_softmax(-1)
    total = scores.gather(1, ids[0, len(start) :, None]).sum()
    return float(total) / len(text) ** decoding.length_penalty


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table."""
    names = {"gpt2": "GPT-2 small, random weights", "tiny": "bundled model"}
    lines = [["model", "tokens a text", "plain way (s)", "project (s)", "times as fast", "equal texts"]]
    for name, row in figures["methods"].items():
        equal = f"{row['equal_texts']:.0%}"
        if row["equal_texts"] < 1:
            equal += " (the others tie)" if row["predictions_equal"] else " (DIFFER)"
        seconds = f"{row['plain_seconds']:,.1f}", f"{median(row['project_seconds']):,.2f}"
        lines.append([names[name], f"{row['tokens_per_text']:.0f}", *seconds, f"{row['speedup']:.1f}", equal])
    return lines
