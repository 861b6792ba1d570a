"""Metrics of generated text, one file per metric, registered by the names of their scores.

- ``tokenizers``, ``meteor15``, ``slots``: parts of the metrics
- ``scoring``: reading files, scoring run folders, bootstrap, the cross-check with Java

A new metric is a new file here with a ``Metric`` subclass under ``@register``; no list has to be edited. Tables,
figures and comparisons read its label, decimals and better direction from the class. Importing this package imports no
metric. It may import ``utils.data``, ``runs``, ``processes`` and ``io``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rosa.registry import Registry
from utils.errors import UserError
from utils.processes.signals import never

if TYPE_CHECKING:
    import numpy as np

# The official scores of the E2E NLG Challenge, in the order its scorer prints them.
OFFICIAL = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")
LOWER, NEITHER, HIGHER = -1, 0, 1


class Metric(ABC):
    """One metric, bound to the references of one test set, so that their work is done once for many systems.

    Every metric is written as numbers per item that are added up over the test set and turned into scores at
    the end. That is all a bootstrap needs to score thousands of resampled test sets without scoring a text twice.
    """

    names: ClassVar[tuple[str, ...]]  # the scores it gives, its main one first
    labels: ClassVar[tuple[str, ...]] = ()  # what tables call the first of them; the others go by their names
    better: ClassVar[int] = NEITHER  # LOWER, HIGHER, or NEITHER for what only describes the texts
    decimals: ClassVar[int] = 4
    note: ClassVar[str] = ""  # a sentence for the caption of a table with the main score
    additive: ClassVar[bool] = True  # False: the sum over items does not decide the score; no bootstrap
    background: ClassVar[bool] = False  # True: other processes do its work, so it is made and begun before the others

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        self.references = references
        self.sources = sources

    @classmethod
    def applies(cls, sources: Sequence[str] | None) -> bool:
        """Whether the scores mean something for texts made from ``sources``; most metrics look at no source."""
        return True

    @classmethod
    def label(cls, name: str) -> str:
        """What a table calls the score ``name``, one of ``names``."""
        return dict(zip(cls.names, cls.labels, strict=False)).get(name, name.replace("_", " "))

    def begin(self, predictions: Sequence[str]) -> None:  # noqa: B027
        """Start on ``predictions``, whose ``statistics`` are asked for next, where that can run beside other work."""

    @abstractmethod
    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Sufficient statistics of each prediction, float64 of shape (items, statistics)."""

    @abstractmethod
    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        """The scores, a value for each of ``names``, from statistics summed over items, shape (statistics,)."""

    def score(self, predictions: Sequence[str]) -> dict[str, float]:
        """The scores of one system's predictions, one text for each item."""
        return self.aggregate(self.statistics(predictions).sum(axis=0))


_METRICS: Registry[type[Metric]] = Registry(__name__, "score")
MetricType = TypeVar("MetricType", bound=type[Metric])


def register(metric: MetricType) -> MetricType:
    """Class decorator: make a metric known under each score it gives."""
    _METRICS.add(metric, *metric.names)
    return metric


def metrics() -> dict[str, type[Metric]]:
    """Every registered metric by score name, the official ones first."""
    found = _METRICS.all()
    return {name: found[name] for name in (*OFFICIAL, *(name for name in found if name not in OFFICIAL))}


def applicable(sources: Sequence[str] | None, names: Iterable[str] = ()) -> tuple[str, ...]:
    """Of the scores ``names``, of all if it is empty, those that can be had for texts made from ``sources``.

    Raises UserError for an unknown name.
    """
    return tuple(name for name in tuple(names) or metrics() if _metric(name).applies(sources))


def main_scores(names: Sequence[str] = ()) -> tuple[str, ...]:
    """The scores to show of a data set that lists ``names``: those, or the main score of each metric that says which
    way is better."""
    found = metrics().items()
    return tuple(names) or tuple(n for n, metric in found if metric.better != NEITHER and n == metric.names[0])


def _metric(name: str) -> type[Metric]:
    known = metrics()
    if name not in known:
        raise UserError(f"there is no metric {name!r}. Known: {', '.join(known)}")
    return known[name]


class Scorer:
    """Scores any number of systems against the same references; the references' work is done once."""

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        sources: Sequence[str] | None = None,
        names: Iterable[str] | None = None,
        check: Callable[[], None] = never,
    ) -> None:
        """Bind metrics to a test set.

        Args:
            references: the reference texts of each item, at least one an item.
            sources: what each text was made from (E2E: the meaning representation), for metrics that need it.
            names: the scores wanted; None for the official five.
            check: called before each metric; what it raises ends the work.

        Raises:
            UserError: an unknown name, an item without references, or a number of sources that differs.
        """
        if not references:
            raise UserError("there are no references to score against")
        for number, group in enumerate(references, 1):
            if not group:
                raise UserError(f"item {number} has no reference")
        if sources is not None and len(sources) != len(references):
            raise UserError(f"{len(sources)} sources for {len(references)} groups of references")
        self.names = tuple(OFFICIAL if names is None else names)
        known = {name: _metric(name) for name in self.names}
        for name in self.names:
            if not known[name].applies(sources):
                raise UserError(f"{name} compares with inputs of another kind, or no sources were given")
        self.items, self._check = len(references), check
        classes = sorted(dict.fromkeys(known[name] for name in self.names), key=lambda metric: not metric.background)
        self.metrics = []
        for metric in classes:
            check()
            self.metrics.append(metric(references, sources))

    def check(self, predictions: Sequence[str]) -> None:
        """Raise UserError when there is not one prediction for each item."""
        if len(predictions) != self.items:
            raise UserError(f"{len(predictions)} predictions for {self.items} groups of references")

    def score(self, predictions: Sequence[str]) -> dict[str, float]:
        """The scores of one system. Raises UserError when there is not one prediction for each item."""
        self.check(predictions)
        found: dict[str, float] = {}
        for metric in self.metrics:
            metric.begin(predictions)
        for metric in self.metrics:
            self._check()
            found.update(metric.score(predictions))
        return {name: float(found[name]) for name in self.names}


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, float]:
    """Score one system's output: the official five scores, or those of ``names``.

    Args:
        predictions: one text for each item; an empty text is an empty prediction.
        references: the reference texts of each item, at least one an item.
        sources: what each text was made from, for metrics that need it.
        names: the scores wanted (``metrics()`` lists them); None for BLEU, NIST, METEOR, ROUGE_L and CIDEr.

    Returns:
        A value for each name. BLEU, METEOR and ROUGE_L lie in [0, 1], CIDEr in [0, 10], NIST has no bound.

    Raises:
        UserError: counts that differ, an item without references, an unknown name.
    """
    return Scorer(references, sources, names).score(predictions)
