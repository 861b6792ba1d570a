"""Choose the next tokens: greedy and beam search as in transformers' ``generate``, on the device alone."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from utils.generation.tree.candidates import ban, likeliest

NEVER = -1.0e9  # the score of a beam that must not win; finite, as in transformers


class Search(ABC):
    """The state of a batch: the tokens of each beam, and the items that are still open.

    Attributes:
        history: (items, beams, prompt + new tokens), prompts padded on the left.
        open: (items,) bool; the result of a closed item does not change any more.
    """

    def __init__(self, prompts: Tensor, padding: Tensor, beams: int, ngram: int, new: int, eos: int, pad: int) -> None:
        """Start from prompts.

        Args:
            prompts: (items, prompt length), padded on the left.
            padding: (items,), how many tokens of each are padding.
            ngram: size of the n-grams that may not occur twice, the prompt included; 0 allows all.
            new: most tokens to generate.
        """
        items, self.prompt_length = prompts.shape
        self.beams, self.ngram, self.new, self.eos, self.pad = beams, ngram, new, eos, pad
        self.padding = padding
        self.history = prompts.new_full((items, beams, self.prompt_length + new), pad)
        self.history[:, :, : self.prompt_length] = prompts[:, None]
        self.open = torch.ones(items, dtype=torch.bool, device=prompts.device)
        self.length = 0  # tokens generated

    @abstractmethod
    def advance(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step.

        Args:
            logits: (items, beams, vocabulary) of each beam's last token, or of the prompt's (items, 1, vocabulary)
                in the first step; overwritten.

        Returns:
            The new token of each beam and the beam that it continues, both (items, beams).
        """

    @abstractmethod
    def result(self) -> Tensor:
        """The best text of each item: (items, new), padded on the right."""

    def state(self) -> tuple[str, ...]:
        """The attributes that have a row for each item."""
        return ("padding", "history", "open")

    def keep(self, items: Tensor) -> None:
        """Keep these items only."""
        for name in self.state():
            setattr(self, name, getattr(self, name).index_select(0, items))

    def _repeats(self, beams: int) -> Tensor | None:
        """Tokens that would complete an n-gram that their beam already has: (items, beams, any), see ``ban``."""
        end = self.prompt_length + self.length
        if not self.ngram or end < self.ngram:
            return None
        written = self.history[:, :beams, :end]
        windows = written.unfold(-1, self.ngram, 1)  # (items, beams, windows, ngram)
        begun = written[:, :, None, end + 1 - self.ngram :]
        start = torch.arange(windows.shape[2], device=written.device)
        repeats = (windows[..., :-1] == begun).all(-1) & (start >= self.padding[:, None])[:, None]
        return windows[..., -1].where(repeats, torch.iinfo(written.dtype).max)


class Greedy(Search):
    """The likeliest token at each step, until eos."""

    def advance(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Search``; an item that has ended gets padding."""
        banned = self._repeats(1)
        tokens = (
            (logits if banned is None else ban(logits, banned)).argmax(-1).masked_fill_(~self.open[:, None], self.pad)
        )
        self.history[:, :, self.prompt_length + self.length] = tokens
        self.length += 1
        self.open = self.open & (tokens[:, 0] != self.eos)
        return tokens, torch.zeros_like(tokens)

    def result(self) -> Tensor:
        return self.history[:, 0, self.prompt_length :]


class BeamSearch(Search):
    """Beam search with transformers' ``early_stopping=False``.

    An item is closed when it has as many ended texts as beams, and its best open beam, if it ended now, would not
    beat the worst of them.
    """

    def __init__(
        self, prompts: Tensor, padding: Tensor, beams: int, ngram: int, new: int, eos: int, pad: int,
        length_penalty: float,
    ) -> None:  # fmt: skip
        super().__init__(prompts, padding, beams, ngram, new, eos, pad)
        items, device = len(prompts), prompts.device
        self.length_penalty = length_penalty
        self.scores = torch.zeros(items, beams, device=device)  # sums of log-probabilities
        self.ended = torch.zeros(items, beams, dtype=torch.bool, device=device)
        self.ended_scores = torch.full((items, beams), NEVER, device=device)  # divided by length ** length_penalty
        self.ended_texts = prompts.new_full((items, beams, new), pad)

    def state(self) -> tuple[str, ...]:
        return (*super().state(), "scores", "ended", "ended_scores", "ended_texts")

    def advance(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """See ``Search``. Twice as many candidates as beams: if all beams end, as many others go on."""
        scores, parents, tokens = self._candidates(logits, 2 * self.beams)
        position = self.prompt_length + self.length
        self.length += 1
        ends = (tokens == self.eos) if self.length < self.new else torch.ones_like(tokens, dtype=torch.bool)
        self._collect_ended(scores, parents, tokens, ends)

        self.scores, chosen = (scores + ends * NEVER).topk(self.beams)
        parents, tokens = parents.gather(1, chosen), tokens.gather(1, chosen)
        self.history = self.history.gather(1, parents[:, :, None].expand_as(self.history))
        self.history[:, :, position] = tokens
        worst = torch.where(self.ended.all(1), self.ended_scores.amin(1), NEVER)
        self.open = self.open & (self.scores[:, 0] / self.length**self.length_penalty > worst)
        return tokens, parents

    def result(self) -> Tensor:
        return self.ended_texts[:, 0]

    def _candidates(self, logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations over all beams of each item: scores, beams and tokens, each (items, count)."""
        beams = logits.shape[1]
        best, tokens = likeliest(logits, count, self._repeats(beams))  # of each beam: the best of all are among them
        scores, flat = (best + self.scores[:, :beams, None]).flatten(1).topk(count)
        return scores, flat // count, tokens.flatten(1).gather(1, flat)

    def _collect_ended(self, scores: Tensor, parents: Tensor, tokens: Tensor, ends: Tensor) -> None:
        """Keep the best ended texts, of those so far and of the candidates that end here."""
        rank = torch.arange(scores.shape[1], device=scores.device)
        valid = ends & (rank < self.beams) & self.open[:, None]
        texts = self.history[:, :, self.prompt_length :]
        texts = texts.gather(1, parents[:, :, None].expand(-1, -1, self.new))
        texts[:, :, self.length - 1] = tokens
        final = torch.where(valid, scores / self.length**self.length_penalty, 2 * NEVER)
        self.ended_scores, chosen = torch.cat((self.ended_scores, final), 1).topk(self.beams)
        self.ended = torch.cat((self.ended, valid), 1).gather(1, chosen)
        texts = torch.cat((self.ended_texts, texts), 1)
        self.ended_texts = texts.gather(1, chosen[:, :, None].expand(-1, -1, self.new))
