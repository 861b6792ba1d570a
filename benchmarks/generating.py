"""Beam search for E2E's test MRs: this project against transformers' ``generate`` with the same prompts and rules.

Transformers gets the prompts in the batches that this project makes (sorted by length, padded on the left), and one
by one as well, as the first public code does. Random weights in GPT-2 small's shape never end a text, so all do the
same work; the bundled model, a small trained one, ends its texts where a text ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Settings, cell, e2e_samples, gpt2_small, spread
from utils.data import get_source, group_by_source
from utils.generation.decoding import Decoding
from utils.generation.generate import generate_tokens, plain_generate
from utils.models.fast_modules import use_faster_modules
from utils.models.loading import BUNDLED, load_model, load_tokenizer
from utils.processes.devices import MIXED_DTYPE
from utils.tokens.batches import length_batches
from utils.tokens.encoding import prompt_ids

TIE = 1e-4  # texts whose scores differ by less, in nats per token ** length penalty, are a tie
LABELS = {
    "batched": "transformers' `generate`, in batches",
    "project": "this project",
    "one by one": "transformers' `generate`, one by one",
}
MODELS = {"gpt2": "GPT-2 small, random weights", "tiny": "bundled model"}
Texts = list[list[int]]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much to generate: ``prompts``, of which ``alone`` one by one, in time scaled to all."""

    prompts: int
    alone: int
    tokens: int
    rounds: int
    batch: int = 64
    beams: int = 10


SIZES = {
    "cpu": {"gpt2": Size(24, 3, 32, 3), "tiny": Size(128, 16, 64, 5)},
    "cuda": {"gpt2": Size(630, 60, 64, 3, 128), "tiny": Size(630, 60, 64, 5, 128)},
}
QUICK = {
    "cpu": {"gpt2": Size(2, 1, 8, 1), "tiny": Size(8, 2, 32, 2)},
    "cuda": {"gpt2": Size(128, 4, 32, 1, 128), "tiny": Size(128, 8, 32, 2, 128)},
}


def measure(settings: Settings) -> dict[str, Any]:
    """For either model: seconds of each way, their ratios, and whether the texts are equal."""
    from transformers import AutoModelForCausalLM

    sizes = (QUICK if settings.quick else SIZES)[settings.device.type]
    rows = {}
    for name, size in sizes.items():
        if name == "tiny":
            theirs = AutoModelForCausalLM.from_pretrained(BUNDLED["tiny"], dtype=torch.float32)  # stored in 16 bits
            ours = load_model("tiny")
            tokenizer = load_tokenizer("tiny")
        else:
            theirs, ours, tokenizer = gpt2_small("sdpa"), gpt2_small("sdpa"), e2e_samples(settings, "test")[1]
            use_faster_modules(ours)
        generation = Generation(settings, theirs, ours, tokenizer, prompts(settings, size.prompts), size)
        decoding = dataclasses.asdict(generation.decoding)
        rows[name] = {**dataclasses.asdict(size), "decoding": decoding, **generation.measure()}
    return {"models": rows}


def prompts(settings: Settings, count: int) -> list[str]:
    """Prompts spread evenly over the test split, over and over where it has fewer."""
    source = get_source("e2e" if settings.data else "e2e_sample")
    examples = source.load("test", Path(settings.data) if settings.data else None, None)
    found = [group[0].prompt for group in group_by_source(examples)]
    return [found[i * len(found) // count] for i in range(count)]


class Generation:
    """The same prompts by each way, with the same weights: ``theirs`` for transformers, ``ours`` for this project."""

    def __init__(
        self, settings: Settings, theirs: Any, ours: Any, tokenizer: Any, prompts: list[str], size: Size
    ) -> None:
        self.settings, self.tokenizer, self.prompts, self.size = settings, tokenizer, prompts, size
        self.theirs, self.ours = (model.to(settings.device).eval() for model in (theirs, ours))
        self.decoding = Decoding(num_beams=size.beams, max_new_tokens=size.tokens)
        self.alone = [i * len(prompts) // size.alone for i in range(size.alone)]

    def measure(self) -> dict[str, Any]:
        """Seconds of each round by way and precision, in turn; what was generated in float32 is compared."""
        seconds: dict[str, list[float]] = {}
        texts: dict[str, Texts] = {}
        ways = [(way, precision) for precision in ("fp32", "bf16") for way in ("batched", "project")]
        for number in range(1 + self.size.rounds):  # the first is a warm-up
            for way, precision in ways if number % 2 else ways[::-1]:
                found, spent = self._timed(way, precision, self.prompts[:1] if number == 0 else self.prompts)
                if number:
                    seconds.setdefault(f"{way} {precision}", []).append(spent)
                    texts[f"{way} {precision}"] = found
        chosen = [self.prompts[i] for i in self.alone]
        parts = [self._timed("batched", "fp32", [prompt]) for prompt in chosen]
        seconds["one by one fp32"] = [sum(spent for _, spent in parts) * len(self.prompts) / len(parts)]
        own = texts["project fp32"]
        alone = self._compared(chosen, [found[0] for found, _ in parts], [own[i] for i in self.alone])
        batched = self._compared(self.prompts, texts["batched fp32"], own)
        return {
            "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
            "times_as_fast": ratios(seconds),
            "tokens_per_text": statistics.mean(len(text) for text in own),
            "against_batched": batched,
            "against_one_by_one": alone,
        }

    def _timed(self, way: str, precision: str, prompts: list[str]) -> tuple[Texts, float]:
        """What a way generates for ``prompts``, each up to eos, and the seconds of it."""
        dtype = MIXED_DTYPE[precision]
        self.settings.synchronise()
        start = time.perf_counter()
        with torch.autocast(self.settings.device.type, dtype) if dtype else contextlib.nullcontext():
            if way == "project":
                found = generate_tokens(self.ours, self.tokenizer, prompts, self.decoding, self.size.batch)
            else:
                found = self._theirs(prompts)
        self.settings.synchronise()
        spent = time.perf_counter() - start
        eos = self.tokenizer.eos_token_id
        return [text[: text.index(eos) + 1] if eos in text else text for text in found], spent

    @torch.no_grad()
    def _theirs(self, prompts: list[str]) -> Texts:
        """By transformers' own generate, in batches sorted by length and padded on the left."""
        encoded = prompt_ids(prompts, self.tokenizer)
        found: Texts = [[]] * len(prompts)
        for chosen in length_batches([len(ids) for ids in encoded], self.size.batch):
            inputs = self.tokenizer.pad(
                {"input_ids": [encoded[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(self.settings.device)
            eos, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
            new = plain_generate(self.theirs, inputs, self.decoding, eos, pad).tolist()
            for i, tokens in zip(chosen, new, strict=True):
                found[i] = tokens
        return found

    def _compared(self, prompts: list[str], expected: Texts, own: Texts) -> dict[str, Any]:
        """The share of equal texts, and the largest difference of score of the others, which may tie."""
        gaps = [
            abs(self._score(prompt, one) - self._score(prompt, two))
            for prompt, one, two in zip(prompts, expected, own, strict=True)
            if one != two
        ]
        return {
            "equal_texts": 1 - len(gaps) / len(prompts),
            "largest_score_gap": max(gaps, default=0.0),
            "predictions_equal": max(gaps, default=0.0) < TIE,
        }

    @torch.no_grad()
    def _score(self, prompt: str, text: list[int]) -> float:
        """What beam search maximises: the text's log-probability over its length to the power of the penalty."""
        start = prompt_ids([prompt], self.tokenizer)[0]
        ids = torch.tensor([start + text], device=self.theirs.device)
        scores = self.theirs(input_ids=ids, use_cache=False).logits[0, len(start) - 1 : -1].double().log_softmax(-1)
        total = scores.gather(1, ids[0, len(start) :, None]).sum()
        return float(total) / len(text) ** self.decoding.length_penalty


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """How many times as fast this project is as each other way of the same precision: median and range of the rounds.

    Where the other was measured once, that is taken for every round.
    """
    found = {}
    for name, values in seconds.items():
        way, _, precision = name.rpartition(" ")
        own = seconds[f"project {precision}"]
        if way != "project":
            theirs = values * len(own) if len(values) == 1 else values
            found[name] = spread([their / our for their, our in zip(theirs, own, strict=True)])
    return found


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table: medians, and ranges in brackets."""
    lines = [["model", "generated by", "precision", "prompts", "seconds", "this project is faster", "equal texts"]]
    for name, row in figures["models"].items():
        for key, seconds in row["seconds"].items():
            way, _, precision = key.rpartition(" ")
            compared = row.get(f"against_{way.replace(' ', '_')}") if precision == "fp32" else None
            equal = "–" if compared is None else f"{compared['equal_texts']:.0%}"
            if compared and compared["equal_texts"] < 1:
                equal += " (the others tie)" if compared["predictions_equal"] else " (DIFFER)"
            times = [cell(spread(seconds), ",.2f"), cell(row["times_as_fast"].get(key), ".2f")]
            lines.append([MODELS[name], LABELS[way], precision, str(row["prompts"]), *times, equal])
    return lines
