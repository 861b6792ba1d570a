"""METEOR's alignment of two texts: a beam search over the matches of their words and phrases.

An alignment uses each word at most once. The best alignment has (1) the most covered words, where an inexact match
counts half of its words on each side, rounded down; (2) the fewest chunks, which are runs of matches adjacent in both
texts; (3) the smallest distance. A match that overlaps no other match is always used.

The search reads the reference from left to right and keeps the 40 best partial alignments. A chunk counts when it
ends. Ties are frequent in real texts, so the order of the search follows the official program: matches by matcher,
then no match for the word. The distance of a match is added to the alternatives after it, not to the match itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any, NamedTuple

BEAM = 40
EXACT, STEM, SYNONYM, PARAPHRASE = range(4)  # the matchers

# The cost of a partial alignment is one integer, lower is better: coverage, then chunks, then distance.
COVERAGE, CHUNK = 1 << 44, 1 << 24
_COST = itemgetter(0)

_Path = tuple[Any, ...]  # a partial alignment


class Match(NamedTuple):
    """A word or phrase of the prediction and one of the reference: start and length in words of each."""

    start: int
    length: int
    reference_start: int
    reference_length: int
    matcher: int


def _coverage(match: Match) -> int:
    if match.matcher == EXACT:
        return match.length + match.reference_length
    return match.length // 2 + match.reference_length // 2


def align(size: int, reference_size: int, matches: Sequence[Match]) -> list[Match]:
    """The best alignment, in the order of the reference.

    Args:
        size: number of words of the prediction.
        reference_size: number of words of the reference.
        matches: all matches, in the order in which the search tries them.
    """
    fixed, choices, taken = _separate(size, reference_size, matches)
    # A partial alignment: cost, next reference word, used words (bits), end of the open chunk (-1: none), matches.
    paths: list[_Path] = [(0, 0, taken, -1, None)]
    for position in range(reference_size):
        if position in fixed:
            match, gain = fixed[position]
            end, following = match.start + match.length, position + match.reference_length
            paths = [
                path
                if path[1] > position
                else (
                    path[0] - gain + (CHUNK if path[3] not in (-1, match.start) else 0),
                    following,
                    path[2],
                    end,
                    (path[4], match),
                )
                for path in paths
            ]
        else:
            paths = _extend(paths, position, choices[position])
        if len(paths) > 1:
            paths.sort(key=_COST)
            del paths[BEAM:]
    best = min(paths, key=lambda path: path[0] + (CHUNK if path[3] != -1 else 0))
    chain, found = best[4], []
    while chain is not None:
        chain, match = chain
        found.append(match)
    return found[::-1]


def _extend(paths: list[_Path], position: int, choices: list[tuple[Match, int, int]]) -> list[_Path]:
    """Every path with each of ``choices`` at the reference word ``position``, and without a match there."""
    extended = []
    for path in paths:
        cost, following, used, chunk, chain = path
        if following > position:
            extended.append(path)
            continue
        for match, mask, gain in choices:
            if used & mask:
                continue
            start = match.start
            extended.append(
                (
                    cost - gain + (CHUNK if chunk != -1 and chunk != start else 0),
                    position + match.reference_length,
                    used | mask,
                    start + match.length,
                    (chain, match),
                )
            )
            cost += abs(start - position)
        extended.append((cost + (CHUNK if chunk != -1 else 0), position + 1, used, -1, chain))
    return extended


def _separate(
    size: int, reference_size: int, matches: Sequence[Match]
) -> tuple[dict[int, tuple[Match, int]], list[list[tuple[Match, int, int]]], int]:
    """Separate matches that overlap no other match.

    Returns:
        Those matches by reference position, the other matches by reference position, and the prediction's words that
        the former use, as bits.
    """
    users, reference_users = [0] * size, [0] * reference_size
    for start, length, reference_start, reference_length, _ in matches:
        for word in range(start, start + length):
            users[word] += 1
        for word in range(reference_start, reference_start + reference_length):
            reference_users[word] += 1
    fixed: dict[int, tuple[Match, int]] = {}
    choices: list[list[tuple[Match, int, int]]] = [[] for _ in range(reference_size)]
    taken = 0
    for match in matches:
        start, length, reference_start, reference_length, _ = match
        mask = ((1 << length) - 1) << start
        gain = _coverage(match) * COVERAGE
        alone = all(users[word] == 1 for word in range(start, start + length)) and all(
            reference_users[word] == 1 for word in range(reference_start, reference_start + reference_length)
        )
        if alone:
            fixed[reference_start] = (match, gain)
            taken |= mask
        else:
            choices[reference_start].append((match, mask, gain))
    return fixed, choices, taken


def count_chunks(alignment: Sequence[Match]) -> int:
    """Runs of matches that are adjacent in both texts."""
    chunks, end = 0, (-1, -1)
    for match in alignment:
        chunks += (match.start, match.reference_start) != end
        end = (match.start + match.length, match.reference_start + match.reference_length)
    return chunks
