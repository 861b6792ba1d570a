"""Metrics of generated text, one file per metric, registered by the names of their scores.

- ``tokenizers``, ``meteor15``, ``slots``: parts of the metrics
- ``scoring``: reading files, scoring run folders, bootstrap, the cross-check with Java

A new metric is a new file here with a ``Metric`` subclass under ``@register``; no list has to be edited. Tables,
figures and comparisons read its label, decimals and better direction from the class. Importing this package imports no
metric.
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
    """One metric and the references of one test set. The references are processed once for any number of systems.

    A metric computes statistics per item, and its scores from the sum of the statistics over all items. A bootstrap
    can therefore score thousands of resampled test sets without processing a text twice.
    """

    names: ClassVar[tuple[str, ...]]  # its scores, the main one first
    labels: ClassVar[tuple[str, ...]] = ()  # table headings of the first scores; the others use their names
    better: ClassVar[int] = NEITHER  # LOWER, HIGHER, or NEITHER for a score that only describes the texts
    decimals: ClassVar[int] = 4
    note: ClassVar[str] = ""  # a sentence for the caption of a table with the main score
    additive: ClassVar[bool] = True  # False: the score is not a function of the sum over items; no bootstrap
    on_request: ClassVar[bool] = False  # True: computed and shown only where a data set or a user names it
    background: ClassVar[bool] = False  # True: worker processes compute it, so it starts before the other metrics

    def __init__(self, references: Sequence[Sequence[str]], sources: Sequence[str] | None = None) -> None:
        self.references = references
        self.sources = sources

    @classmethod
    def applies(cls, sources: Sequence[str] | None) -> bool:
        """Whether the metric can score texts made from ``sources``. Most metrics do not read sources."""
        return True

    @classmethod
    def label(cls, name: str) -> str:
        """The table heading of the score ``name``, one of ``names``."""
        return dict(zip(cls.names, cls.labels, strict=False)).get(name, name.replace("_", " "))

    def begin(self, predictions: Sequence[str]) -> None:  # noqa: B027
        """Start to compute the ``statistics`` of ``predictions`` in the background, if the metric can."""

    @abstractmethod
    def statistics(self, predictions: Sequence[str]) -> np.ndarray:
        """Sufficient statistics of each prediction, float64 of shape (items, statistics)."""

    @abstractmethod
    def aggregate(self, totals: np.ndarray) -> dict[str, float]:
        """The scores by name, from statistics summed over all items, shape (statistics,)."""

    def score(self, predictions: Sequence[str]) -> dict[str, float]:
        """The scores of one system's predictions, one text per item."""
        return self.aggregate(self.statistics(predictions).sum(axis=0))


_METRICS: Registry[type[Metric]] = Registry(__name__, "score")
MetricType = TypeVar("MetricType", bound=type[Metric])


def register(metric: MetricType) -> MetricType:
    """Class decorator: register a metric under each of its scores."""
    _METRICS.add(metric, *metric.names)
    return metric


def metrics() -> dict[str, type[Metric]]:
    """Every registered metric by score name, the official ones first."""
    registered = _METRICS.all()
    return {name: registered[name] for name in (*OFFICIAL, *(name for name in registered if name not in OFFICIAL))}


def applicable(sources: Sequence[str] | None, names: Iterable[str] = ()) -> tuple[str, ...]:
    """The scores in ``names`` that can be computed for texts made from ``sources``.

    Empty ``names`` means all scores but those on request. Raises UserError for an unknown name.
    """
    wanted = tuple(names) or tuple(name for name, metric in metrics().items() if not metric.on_request)
    return tuple(name for name in wanted if _metric(name).applies(sources))


def main_scores(names: Sequence[str] = ()) -> tuple[str, ...]:
    """The scores to show for a data set that lists ``names``.

    If it lists none, the main score of each metric that has a better direction and is not on request.
    """
    scores = [(name, metric) for name, metric in metrics().items() if not metric.on_request]
    return tuple(names) or tuple(n for n, metric in scores if metric.better != NEITHER and n == metric.names[0])


def _metric(name: str) -> type[Metric]:
    known = metrics()
    if name not in known:
        raise UserError(f"there is no metric {name!r}. Known: {', '.join(known)}")
    return known[name]


class Scorer:
    """Scores any number of systems against the same references, which are processed once."""

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        sources: Sequence[str] | None = None,
        names: Iterable[str] | None = None,
        check: Callable[[], None] = never,
    ) -> None:
        """Create the metrics for a test set.

        Args:
            references: the reference texts of each item, at least one per item.
            sources: what each text was made from (E2E: the meaning representation), for metrics that need it.
            names: the scores to compute; None for the official five.
            check: called before each metric; an exception that it raises stops the scoring.

        Raises:
            UserError: an unknown name, an item without references, or a different number of sources.
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
                raise UserError(f"{name} needs the sources of the texts, in a form that it can parse")
        self.items, self._check = len(references), check
        classes = sorted(dict.fromkeys(known[name] for name in self.names), key=lambda metric: not metric.background)
        self.metrics = []
        for metric in classes:
            check()
            self.metrics.append(metric(references, sources))

    def check(self, predictions: Sequence[str]) -> None:
        """Raise UserError unless there is one prediction per item."""
        if len(predictions) != self.items:
            raise UserError(f"{len(predictions)} predictions for {self.items} groups of references")

    def score(self, predictions: Sequence[str]) -> dict[str, float]:
        """The scores of one system. Raises UserError unless there is one prediction per item."""
        self.check(predictions)
        scores: dict[str, float] = {}
        for metric in self.metrics:
            metric.begin(predictions)
        for metric in self.metrics:
            self._check()
            scores.update(metric.score(predictions))
        return {name: float(scores[name]) for name in self.names}


def score(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    sources: Sequence[str] | None = None,
    names: Iterable[str] | None = None,
) -> dict[str, float]:
    """Score one system's output with the official five scores or those in ``names``.

    Args:
        predictions: one text per item; an empty text is an empty prediction.
        references: the reference texts of each item, at least one per item.
        sources: what each text was made from, for metrics that need it.
        names: the scores to compute (``metrics()`` lists them); None for BLEU, NIST, METEOR, ROUGE_L and CIDEr.

    Returns:
        The scores by name. BLEU, METEOR and ROUGE_L are in [0, 1], CIDEr in [0, 10], NIST has no upper bound.

    Raises:
        UserError: different numbers of texts, an item without references, an unknown name.
    """
    return Scorer(references, sources, names).score(predictions)
