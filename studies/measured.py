"""One finished run of a study, as the study's tables need it, and the method that it trained."""

from __future__ import annotations

import dataclasses
import math
import statistics
from dataclasses import dataclass
from typing import Any, NamedTuple

from rosa.methods import method_configs
from utils.config.fnmodel import FnModelConfig
from utils.errors import UserError
from utils.io.files import read_object
from utils.results.aggregate import DECODING, RATE, settings_of
from utils.results.columns import stored_bits, training_seconds
from utils.results.methods import method_label, method_order
from utils.results.read import Result
from utils.text import as_typed


class Way(NamedTuple):
    """What was trained on what, but for the learning rate and the seed."""

    keys: int  # of the phone book; 0: other data
    method: str
    rank: int  # 0: none, or a ratio of the full rank, which is in ``others`` then
    every: int  # steps between resamples; 0: never
    others: str  # other settings of the method that are not at their defaults


@dataclass(frozen=True)
class Measured:
    """One run: what was trained, and its results.

    ``loss`` is the validation loss that chose its checkpoint, ``resampling`` the share of the training time that
    resamples took, ``memory`` the peak in MiB, ``study`` the content of study.json, {} where there is none, ``kept``
    that of draws.json, [] likewise, ``scores`` what eval.sh found.
    """

    way: Way
    lr: float
    seed: int
    trial: bool
    loss: float
    bits: float | None
    parameters: int
    resampling: float
    memory: float | None
    study: dict[str, Any]
    kept: list[float]
    scores: dict[str, Any]

    @classmethod
    def of(cls, result: Result) -> Measured:
        """Raises UserError for a run without a result."""
        settings, loss = result.settings, result.number("best", "loss")
        if loss is None:
            raise UserError(f"{result.run.path} is not a finished run of a study: it has no loss")
        keys = int(settings["dataset.size"]) if result.dataset == "phone_book" else 0
        rank = result.rank if isinstance(result.rank, int) else 0
        return cls(
            way=Way(keys, result.method, rank, *_own_settings(result)),
            lr=float(settings["train.lr"]),
            seed=int(result.seed),
            trial=result.trial,
            loss=loss,
            bits=stored_bits(result),
            parameters=int(result.number("parameters", "trainable") or 0),
            resampling=(result.number("timings", "resample_seconds") or 0) / (training_seconds(result) or math.inf),
            memory=result.number("timings", "peak_memory_mib"),
            study=_content(result, "study.json"),
            kept=_content(result, "draws.json").get("kept", []),
            scores=result.scores,
        )


def training(result: Result, way: Way) -> dict[str, Any]:
    """What the methods of one table have in common: data, base model, and how long and how each of them trains.

    Not the steps: of a part of the documents each seed has others, packed in more or fewer blocks.
    """
    data = {f"{split} data": result.data.get(f"{split}_data") for split in ("train", "validation")}
    free = ("fnmodel.", DECODING, RATE, *(["train.weight_decay"] if "decay=" in way.others else []))
    settings = {key: value for key, value in settings_of(result).items() if not key.startswith(free)}
    return {"data set": result.dataset, "model": result.model, "precision": result.precision, **data, **settings}


def _content(result: Result, name: str) -> dict[str, Any]:
    """The object in a file of the record, {} if there is none."""
    file = result.run.path / name
    return read_object(file) if file.exists() else {}


def amount(runs: list[Measured]) -> str:
    """The mean bits stored by ``runs``, or their loss if the data are no phone book, as tables show it."""
    bits = [run.bits for run in runs if run.bits is not None]
    return f"{statistics.fmean(bits):,.0f}" if bits else f"{statistics.fmean(run.loss for run in runs):.4f}"


def _own_settings(result: Result) -> tuple[int, str]:
    """The steps between resamples (0: never), and the other settings of the method that are not at their defaults."""
    if result.method not in method_configs():
        return 0, ""
    own = dataclasses.asdict(getattr(FnModelConfig(), result.method))
    prefix = f"fnmodel.{result.method}."
    given = own | {key.removeprefix(prefix): value for key, value in result.settings.items() if key.startswith(prefix)}
    level, every = given.pop("level", "never"), given.pop("every", 0)
    changed = [f"{key}={as_typed(value)}" for key, value in given.items() if value != own.get(key)]
    if isinstance(result.rank, float):
        changed = [f"rank={result.rank}", *changed]
    if level == "epoch":
        changed = ["every epoch" if every == 1 else f"every {every} epochs", *changed]
    return every if level == "step" else 0, " ".join(changed)


def label(way: Way) -> str:
    """A method as a table names it."""
    never = ", never" if way.method == "rosa" and "epoch" not in way.others else ""
    draws = f", every {way.every} steps" if way.every else never
    rank, others = f" r={way.rank}" if way.rank else "", f", {way.others}" if way.others else ""
    return method_label(way.method) + rank + draws + others


def order(way: Way) -> tuple[Any, ...]:
    """Tables are sorted by the book's size, the method, the rank, and the steps between resamples."""
    return (-way.keys, method_order(way.method), way.rank, way.every or 10**9, way.others)
