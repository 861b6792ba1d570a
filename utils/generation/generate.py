"""Generate text from prompts, in batches that are sorted by length and padded on the left."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.generation.decoding import Decoding
from utils.log import log, work_bar
from utils.models.loading import max_positions
from utils.models.modes import evaluation_mode
from utils.processes.signals import never
from utils.tokens.batches import length_batches
from utils.tokens.encoding import prompt_ids


def check_beams(model: Any, decoding: Decoding) -> None:
    """Raise UserError if the search has more beams than candidates for the first token."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if decoding.num_beams > vocabulary:
        raise UserError(
            f"--num-beams {decoding.num_beams} is above {vocabulary}, the size of the model's vocabulary, which is the "
            "number of candidates for the first token"
        )


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[str], decoding: Decoding, batch_size: int, **options: Any
) -> list[str]:
    """Generated continuations in the order of ``prompts``; see ``generate_tokens`` and ``decoded``."""
    return decoded(tokenizer, generate_tokens(model, tokenizer, prompts, decoding, batch_size, **options))


def decoded(tokenizer: Any, new: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence of tokens, without special tokens and without blanks at its ends."""
    # what a tokenizer's own setting would clean up, as "a , b" to "a, b", may be as the targets have it
    texts = tokenizer.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


@torch.no_grad()
def generate_tokens(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    decoding: Decoding,
    batch_size: int,
    *,
    bar: bool = False,
    check: Callable[[], None] = never,
) -> list[list[int]]:
    """The new tokens of each prompt, eos among them where it was reached, perhaps followed by padding.

    They are those of transformers' ``generate``, which also does the work for models that
    ``utils.generation.tree`` cannot serve.

    Args:
        bar: show a progress bar.
        check: called after each batch, and by ``utils.generation.tree`` after each token; an error it raises ends this.

    Raises:
        UserError: a prompt and max_new_tokens together exceed the model's positions.
    """
    from utils.generation.padding import padding_counts
    from utils.generation.tree.support import why_not

    encoded = prompt_ids(prompts, tokenizer)
    limit = max_positions(model)
    lengths = [len(ids) for ids in encoded]
    longest = max(lengths, default=0)
    if limit is not None and longest + decoding.max_new_tokens > limit:
        lower = f"lower --max-new-tokens to at most {limit - longest}" if longest < limit else "shorten the prompt"
        raise UserError(
            f"a prompt of {longest} tokens ({prompts[lengths.index(longest)][:60]!r}...) and {decoding.max_new_tokens} "
            f"new ones exceed the model's {limit} positions: {lower}"
        )
    found: list[list[int]] = [[]] * len(encoded)
    with _inference(model), work_bar(len(encoded), "texts", "text", main=bar) as shown:
        reason = why_not(model, decoding.num_beams, decoding.no_repeat_ngram_size, longest, decoding.max_new_tokens)
        if reason:
            log.info("generating by transformers' own generate, which is slower: for ours, %s", reason)
        run = functools.partial(tree_generate, check=check) if reason is None else plain_generate
        batches = length_batches(lengths, batch_size)
        if reason and len(set(lengths)) > 1 and padding_counts(model):
            log.info("prompts of one length are generated together, because padding would change this model's texts")
            batches = [list(part) for batch in batches for _, part in itertools.groupby(batch, key=lengths.__getitem__)]
        for chosen in batches:
            inputs = tokenizer.pad(
                {"input_ids": [encoded[i] for i in chosen]}, padding_side="left", return_tensors="pt"
            ).to(model.device)
            new = run(model, inputs, decoding, tokenizer.eos_token_id, tokenizer.pad_token_id).tolist()
            for i, tokens in zip(chosen, new, strict=True):
                found[i] = tokens
            shown.update(len(chosen))
            check()
    return found


def tree_generate(
    model: Any, inputs: Any, decoding: Decoding, eos: int, pad: int, check: Callable[[], None] = never
) -> Tensor:
    """New tokens (items, at most max_new_tokens) of a batch padded on the left, as one tree of tokens for each item."""
    from utils.generation.tree.loop import Trees, decode
    from utils.generation.tree.search import BeamSearch, Greedy

    prompts, padding = inputs["input_ids"], (inputs["attention_mask"] == 0).sum(1)
    beams, ngram, new = decoding.num_beams, decoding.no_repeat_ngram_size, decoding.max_new_tokens
    if beams == 1:
        search: Any = Greedy(prompts, padding, beams, ngram, new, eos, pad)
    else:
        search = BeamSearch(prompts, padding, beams, ngram, new, eos, pad, decoding.length_penalty)
    return decode(Trees(model, prompts, padding, beams), search, check)


def plain_generate(model: Any, inputs: Any, decoding: Decoding, eos: int, pad: int) -> Tensor:
    """The same for any model that can generate."""
    beams = {"length_penalty": decoding.length_penalty, "early_stopping": False} if decoding.num_beams > 1 else {}
    output: Tensor = model.generate(
        **inputs,
        do_sample=False,
        num_beams=decoding.num_beams,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        max_new_tokens=decoding.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=eos,
        **beams,
    )
    return output[:, inputs["input_ids"].shape[1] :]


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Switch off dropout, and what only training needs."""
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    set_stance = getattr(torch.compiler, "set_stance", None)  # since PyTorch 2.6
    try:
        for parameter in frozen:  # autocast converts a weight once, instead of at each use, only if it is trainable
            parameter.requires_grad_(parameter.is_floating_point())
        # blocks that were compiled for training would be compiled again for a cache
        with evaluation_mode(model), set_stance("force_eager") if set_stance else contextlib.nullcontext():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
