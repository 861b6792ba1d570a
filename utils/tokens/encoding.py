"""Tokenise prompt and target apart, join them, and cut what is too long."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from utils.data import Example
from utils.errors import UserError


@dataclass(frozen=True)
class Sample:
    """A tokenised pair: prompt and target joined, and the number of characters that each loss covers.

    In packed data a sample is a block: every token after the first is a target.
    """

    ids: Any  # Sequence[int]: a list; for a block, a view of the split's int32 array
    prompt_length: int  # tokens; the first target token is predicted from position prompt_length - 1
    target_characters: int
    characters: int


@dataclass(frozen=True)
class Encoded:
    """A tokenised split, and the number of samples that were cut (``cut``).

    ``documents`` is the number of documents in the blocks of a packed data set; None if the samples are pairs.
    """

    samples: list[Sample]
    cut: int
    documents: int | None = None

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sample."""
        return [len(sample.ids) for sample in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def loss_tokens(self, index: int, loss_on: str) -> int:
        """The number of tokens of a sample that carry loss."""
        sample = self.samples[index]
        return len(sample.ids) - (sample.prompt_length if loss_on == "target" else 1)

    def loss_characters(self, index: int, loss_on: str) -> int:
        """The number of characters that the loss of a sample covers."""
        sample = self.samples[index]
        return sample.target_characters if loss_on == "target" else sample.characters

    def describe(self) -> dict[str, int]:
        """Counts for the run's record."""
        shared = 0 if self.documents is None else len(self) - 1  # neighbouring blocks share a token
        tokens, longest = sum(self.lengths) - shared, max(self.lengths, default=0)
        counts = {"samples": len(self), "tokens": tokens, "longest": longest}
        if self.documents is not None:
            return {**counts, "cut": self.cut, "documents": self.documents}
        return {**counts, "target_tokens": tokens - sum(s.prompt_length for s in self.samples), "cut": self.cut}


def first_ids(tokenizer: Any) -> list[int]:
    """The special tokens, such as bos, with which the tokenizer begins every text (Llama's, Gemma's); mostly none.

    ``tokenizer.first_ids``, where that is set, has those of a run (``utils.runs.trained.tokenizer_of``).
    """
    if (own := getattr(tokenizer, "first_ids", None)) is not None:
        return list(own)
    plain, whole = (tokenizer("a", add_special_tokens=add)["input_ids"] for add in (False, True))
    return list(whole[: whole.index(plain[0])]) if plain and plain[0] in whole else []


def prompt_ids(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """The tokens of each prompt, for training as for generation: ``first_ids`` and those of its text, without eos."""
    first = first_ids(tokenizer)
    # verbose would warn of what callers cut or refuse
    found = tokenizer(list(prompts), add_special_tokens=False, verbose=False)["input_ids"] if prompts else []
    return [[*first, *ids] for ids in found]


def spelled_tokens(texts: Iterable[str], tokenizer: Any) -> list[str]:
    """The special token, such as ``<|endoftext|>``, of each text that spells one. It is read as plain text.

    ``ending_texts`` finds the exceptions.
    """
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    names = re.compile("|".join(map(re.escape, {*added, *tokenizer.all_special_tokens})))
    return [found[0] for text in texts if (found := names.search(text))]


def ending_texts(texts: Iterable[str], tokenizer: Any) -> int:
    """The number of texts that spell eos, and in which the tokenizer reads it as eos, not as plain text.

    Unigram models (XGLM's) have their special tokens among the pieces of plain text.
    """
    spelling = [text for text in texts if tokenizer.eos_token in text]
    tokens = tokenizer(spelling, add_special_tokens=False, verbose=False)["input_ids"] if spelling else []
    return sum(tokenizer.eos_token_id in ids for ids in tokens)


def encode(examples: Sequence[Example], tokenizer: Any, seq_len: int) -> Encoded:
    """Tokenise prompts and targets apart, join them, end with eos; cut the target's end beyond ``seq_len``.

    The first token of a sample cannot be predicted, so that its characters do not count.

    Raises:
        UserError: a prompt alone fills ``seq_len``, so that nothing of its target is left.
    """
    if not examples:
        return Encoded([], 0)
    distinct = list(dict.fromkeys(example.prompt for example in examples))  # E2E has nine references for each
    tokens = dict(zip(distinct, prompt_ids(distinct, tokenizer), strict=True))
    first = first_ids(tokenizer)
    unseen = {text: 0 if first else len(tokenizer.decode(ids[:1])) for text, ids in tokens.items()}
    prompts = [tokens[example.prompt] for example in examples]
    targets = tokenizer([example.target for example in examples], add_special_tokens=False, verbose=False)["input_ids"]
    samples, cut = [], 0
    for example, prompt, target in zip(examples, prompts, targets, strict=True):
        if len(prompt) >= seq_len:
            where = f"{example.where}: " if example.where else ""
            raise UserError(
                f"{where}train.seq_len={seq_len} leaves no room for the target of a prompt of {len(prompt)} tokens "
                f"({example.prompt[:60]!r}...): raise it, if the model's positions allow, or shorten the prompt"
            )
        ids = [*prompt, *target, tokenizer.eos_token_id]
        target_text = example.target
        if len(ids) > seq_len:
            cut += 1
            ids = ids[:seq_len]
            target_text = tokenizer.decode(ids[len(prompt) :], clean_up_tokenization_spaces=False)
        characters = len(example.prompt) + len(target_text) - unseen[example.prompt]
        samples.append(Sample(ids, len(prompt), len(target_text), characters))
    return Encoded(samples, cut)
