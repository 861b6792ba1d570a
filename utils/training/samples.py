"""Sample texts that the model generates for a few prompts of the validation split."""

from __future__ import annotations

import rosa
from utils.generation.decoding import Decoding
from utils.generation.generate import generate
from utils.generation.prompts import shorten
from utils.models.loading import max_positions
from utils.processes.signals import Interrupted
from utils.training.training import Training


def sample_texts(training: Training) -> list[tuple[str, str]] | None:
    """A few validation prompts, spread over the split, each with its greedy text; None after a stop request."""
    prompts, data = training.data.prompts, training.data.validation
    count = min(training.config.logging.samples, len(prompts))
    chosen = [prompts[i * len(prompts) // count] for i in range(count)]
    limit = max_positions(training.model) or 10**9
    room = min(64, limit - max((sample.prompt_length for sample in data.samples), default=0))
    if not chosen or room < 1:
        return []
    chosen = shorten(chosen, training.tokenizer, limit - room)  # of packed data, prompt lengths are not known
    decoding = Decoding(num_beams=1, no_repeat_ngram_size=0, max_new_tokens=room)
    check = training.stop.check_here
    try:
        with rosa.merged(training.model), training.accelerator.autocast():
            texts = generate(training.model, training.tokenizer, chosen, decoding, count, check=check)
    except Interrupted:
        return None
    return list(zip(chosen, texts, strict=True))
