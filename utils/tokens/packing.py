"""Join documents into a token stream and cut it into blocks; each token but the first is a label once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from utils.data import Example
from utils.errors import UserError
from utils.tokens.cache import cached_encoding
from utils.tokens.encoding import Encoded, Sample, encode, first_ids

CHUNK = 1000  # documents tokenised at a time, since the tokenizer's own records are far larger than the ids


def encode_units(
    units: Sequence[Sequence[Example]], tokenizer: Any, *, packed: bool, seq_len: int, block_size: int
) -> Encoded:
    """Tokenise documents (lists of examples of equal source) into blocks, or the examples one by one, with a cache."""
    if packed:
        settings, build = {"block_size": block_size}, lambda: pack(units, tokenizer, block_size)
    else:
        examples = [example for unit in units for example in unit]
        settings, build = {"seq_len": seq_len}, lambda: encode(examples, tokenizer, seq_len)
    return cached_encoding(units, tokenizer, settings, build)


def pack(documents: Sequence[Sequence[Example]], tokenizer: Any, block_size: int) -> Encoded:
    """Join documents into a stream and cut it into blocks of ``block_size`` tokens.

    A document is the prompt of its examples (after ``first_ids``), their targets and eos, tokenised apart as for
    generation. The first token of a block cannot be predicted, because no token comes before it. So neighbouring blocks
    share a token: it is the last label of one block and the first input of the next. With block_size 4::

        stream   a b c d e f g h        block 1   a b c d      labels b c d
                                        block 2   d e f g      labels e f g
                                        block 3   g h          labels h       (kept, padded in its batch)

    The characters of a block are those of its labels. Each character belongs to the first token that reaches its end;
    eos has none. In a whole split these are all characters but those of the very first token.

    Raises:
        UserError: the tokenizer cannot tell which characters its tokens come from.
    """
    if not tokenizer.is_fast:
        raise UserError(
            f"model.name={tokenizer.name_or_path}: a packed data set needs a fast tokenizer, which knows the "
            "characters of each token"
        )
    parts = [*_tokens(documents, tokenizer)]
    ids = np.concatenate([part for part, _ in parts]) if parts else np.zeros(0, np.int32)
    # sums[i]: characters of the first i tokens
    sums = np.concatenate([np.zeros(1, np.int64), *(part for _, part in parts)]).cumsum()
    samples = []
    for start in range(0, len(ids) - 1, block_size - 1):
        stop = min(start + block_size, len(ids))
        characters = int(sums[stop] - sums[start + 1])
        samples.append(Sample(ids[start:stop], 1, characters, characters))
    return Encoded(samples, 0, documents=len(documents))


def _tokens(documents: Sequence[Sequence[Example]], tokenizer: Any) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids and the number of characters of each, both (tokens,), for ``CHUNK`` documents at a time."""
    first = first_ids(tokenizer)
    for begin in range(0, len(documents), CHUNK):
        chunk = documents[begin : begin + CHUNK]
        texts = [text for document in chunk for text in (document[0].prompt, *(e.target for e in document))]
        # verbose would warn of texts that are longer than the model's positions: they are cut into blocks
        tokens = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        ends = np.cumsum([1 + len(document) for document in chunk]).tolist()
        begins, lasts = {0, *ends}, {i - 1 for i in ends}
        ids: list[int] = []
        characters = []
        for i, text in enumerate(texts):
            own, offsets = tokens["input_ids"][i], tokens["offset_mapping"][i]
            # tokens of a split character share its end; blanks before a token are left out of its offsets
            reached = np.maximum.accumulate(np.fromiter((end for _, end in offsets), np.int64, len(offsets)))
            reached[-1:] = len(text)
            if i in begins:
                ids += first
                characters.append(np.zeros(len(first), np.int64))
            ids += own
            characters.append(np.diff(reached, prepend=0))
            if i in lasts:
                ids.append(tokenizer.eos_token_id)
                characters.append(np.zeros(1, np.int64))
        yield np.array(ids, np.int32), np.concatenate(characters)
