"""Text from prompts: batches padded on the left, sorted by length, results in the order of the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from utils.batching import length_batches
from utils.errors import UserError
from utils.logs import progress_bar
from utils.models import max_positions


@dataclass(frozen=True)
class Decoding:
    """How text is generated; the defaults are the published ones.

    Attributes:
        num_beams: beams of the beam search; 1 is greedy.
        length_penalty: exponent of the length that a beam's score is divided by.
        no_repeat_ngram_size: no n-gram of this size occurs twice, prompt included (as published); 0: off.
        max_new_tokens: longest output.
    """

    num_beams: int = 10
    length_penalty: float = 0.8
    no_repeat_ngram_size: int = 4
    max_new_tokens: int = 128


@torch.no_grad()
def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], decoding: Decoding, batch_size: int, *, bar: bool = False
) -> list[str]:
    """Generated continuations, special tokens removed, in the order of ``prompts``.

    Raises:
        UserError: a prompt and max_new_tokens together exceed the model's positions.
    """
    encoded = tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
    limit = max_positions(model)
    longest = max((len(ids) for ids in encoded), default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        raise UserError(
            f"a prompt of {longest} tokens and {decoding.max_new_tokens} new ones exceed the model's {limit} "
            f"positions: lower --max-new-tokens to at most {max(limit - longest, 0)}"
        )
    training = model.training
    model.eval()
    beams = {"length_penalty": decoding.length_penalty, "early_stopping": False} if decoding.num_beams > 1 else {}
    texts = [""] * len(encoded)
    with progress_bar(len(encoded), unit="text", main=bar) as shown:
        for chosen in length_batches([len(ids) for ids in encoded], batch_size):
            inputs = tokenizer.pad(
                {"input_ids": [encoded[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            )
            output = model.generate(
                **inputs.to(model.device),
                do_sample=False,
                num_beams=decoding.num_beams,
                no_repeat_ngram_size=decoding.no_repeat_ngram_size,
                max_new_tokens=decoding.max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **beams,
            )
            new = output[:, inputs["input_ids"].shape[1] :]
            for i, text in zip(chosen, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True):
                texts[i] = text.strip()
            shown.update(len(chosen))
    model.train(training)
    return texts
