"""The prompts of an evaluation: cut to leave room for the text after them, with warnings of what decoding cannot do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from utils.data import DataSource, Example
from utils.generation.decoding import Decoding
from utils.log import log
from utils.tokens.encoding import first_ids, prompt_ids

MANY = 0.05  # share of targets out of reach that is worth a word where texts need not equal them
FEW = 8  # tokens that a cut prompt loses at most to begin with a word; a text without blanks begins anywhere


def prepare(
    source: DataSource, examples: Sequence[Example], tokenizer: Any, decoding: Decoding, positions: int | None
) -> list[str]:
    """The prompts of ``examples``, cut to fit where the data set is packed. What that or decoding loses is a warning.

    Args:
        positions: the model's largest number of tokens; None: no limit.
    """
    prompts = [example.prompt for example in examples]
    if source.packed:  # other prompts are never cut: generate raises if they are too long
        return fitted(prompts, tokenizer, decoding, positions)
    size = decoding.no_repeat_ngram_size
    lost = out_of_reach(examples, tokenizer, size)
    if lost > (0 if "exact_match" in source.metrics else MANY * len(examples)):
        log.warning(
            "%d of %d targets repeat a sequence of %d tokens, of the prompt or their own: only "
            "--no-repeat-ngram-size 0 can generate them. On E2E this is normal: published results are decoded so",
            lost, len(examples), size,
        )  # fmt: skip
    return prompts


def fitted(prompts: list[str], tokenizer: Any, decoding: Decoding, positions: int | None) -> list[str]:
    """The prompts of packed data, cut to leave room for new tokens, with a warning of how many are; see ``prepare``."""
    if positions is None:
        return prompts
    found = shorten(prompts, tokenizer, positions - decoding.max_new_tokens)
    if cut := sum(short != prompt for short, prompt in zip(found, prompts, strict=True)):
        log.warning("%d of %d questions are cut at the beginning to fit the model", cut, len(prompts))
    return found


def shorten(prompts: Sequence[str], tokenizer: Any, room: int) -> list[str]:
    """Cut prompts to at most ``room`` tokens. A longer prompt loses its beginning, if possible up to a blank.

    Its end stays, because the text continues from there. If ``room`` is not positive, nothing is cut.
    """
    if room < 1:
        return list(prompts)
    own = max(1, room - len(first_ids(tokenizer)))
    return [
        prompt if len(ids) <= room else _end_of(prompt, tokenizer, own)
        for prompt, ids in zip(prompts, prompt_ids(prompts, tokenizer), strict=True)
    ]


def out_of_reach(examples: Sequence[Example], tokenizer: Any, size: int) -> int:
    """How many targets have, with their prompt, a sequence of ``size`` tokens twice: with ``no_repeat_ngram_size`` no
    model generates them.
    """
    if not size:
        return 0
    every = tokenizer([example.prompt + example.target for example in examples], verbose=False)["input_ids"]
    sequences = ([tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)] for ids in every)
    return sum(len(set(found)) < len(found) for found in sequences)


def _end_of(prompt: str, tokenizer: Any, room: int) -> str:
    offsets = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
    end = prompt
    for count in range(room, 0, -1):  # without its context the first word may need more tokens
        start = offsets[-count][0]
        blank = prompt.find(" ", start, offsets[-max(1, count - FEW)][1])
        end = prompt[blank + 1 :] if 0 <= blank < len(prompt) - 1 else prompt[start:]
        if len(tokenizer(end, add_special_tokens=False, verbose=False)["input_ids"]) <= room:
            break
    return end
