"""What the faults are caused on: small data of both kinds, a run of each method on it, and its three commands."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra import compose, initialize_config_dir

from utils.config import Config, parse_config
from utils.data.e2e import E2E
from utils.data.e2e_sample import E2ESample
from utils.errors import UserError
from utils.processes.group import EchoedError
from utils.runs import Run, find_runs

ROOT = Path(__file__).parent.parent.parent
METHODS = ("rosa", "lora", "none")
DATASETS = ("e2e_nlg", "eli5")
STAGES = ("train", "eval", "score")
SIZES = {"train": 96, "validation": 12, "test": 12}  # pairs or questions
FILES = {"train": "trainset", "validation": "devset", "test": "testset_w_refs"}
DECODING = {"num_beams": 2, "max_new_tokens": 12}


@dataclass(frozen=True)
class Case:
    """A method on a data set."""

    method: str
    dataset: str

    def __str__(self) -> str:
        return f"{self.method} on {self.dataset}"


CASES = [Case(method, dataset) for dataset in DATASETS for method in METHODS]


def write_data(folder: Path, e2e: Path | None, eli5: Path | None, *, quick: bool = False) -> None:
    """Small splits of both data sets: of the real ones where their folders are given, else of the bundled texts.

    Args:
        quick: ELI5 with a third of its training questions, which make many more steps than as many pairs.
    """
    for split, count in SIZES.items():
        examples = (E2E() if e2e else E2ESample()).load(split, e2e, None)[:count]
        path = folder / "e2e_nlg" / f"{FILES[split]}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("mr", "ref"), *((item.source, item.reference) for item in examples)])
        path = folder / "eli5" / f"{split}.jsonl"
        path.parent.mkdir(exist_ok=True)
        if eli5:
            with gzip.open(eli5 / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
                records = [json.loads(line) for _, line in zip(range(count), lines, strict=False)]
            kept = [{key: record[key] for key in ("title", "selftext", "answers")} for record in records]
            for record in kept:  # the first answers, cut: a block is a block, and there are enough
                record["answers"] = {"text": [text[:300] for text in record["answers"]["text"][:2]]}
        else:
            kept = [{"question": f"What is {item.source}?", "answer": item.reference} for item in examples]
        kept = kept[: count // 3] if quick and split == "train" else kept
        path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")


def overrides(case: Case, data: Path, out: Path, *more: str) -> list[str]:
    """The command line of a run of three epochs with dropout, checkpoints every other step, and two resamples."""
    return [
        f"dataset.name={case.dataset}", f"dataset.path={data / case.dataset}", f"output.path={out}",
        f"fnmodel.name={case.method}", "fnmodel.params.rank=0.1", "model.name=tiny", "model.dropout=0.1",
        "train.batch_size=16", "train.epochs=3", "train.lr=3e-3", "train.device=cpu", "train.save_every=2",
        "train.block_size=64", "logging.print_freq=2", "logging.samples=1", *more,
    ]  # fmt: skip


def config_of(words: list[str]) -> Config:
    """The configuration that these command-line overrides give."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return parse_config(compose("train", overrides=words))


def told(command: Callable[[], int | None]) -> int:
    """Run a command as its script does: a UserError is one message and exit code 2."""
    try:
        return command() or 0
    except UserError as error:
        if not isinstance(error, EchoedError):
            print(f"error: {error}", file=sys.stderr)
        return 2


def train(words: list[str]) -> int:
    """What train.py does with these overrides; its exit code."""
    from utils.training.launch import train_all

    def command() -> None:
        train_all(config_of(words), words)

    return told(command)


def evaluate(out: Path) -> int:
    """What eval.py does; its exit code."""
    from utils.evaluation import Options, evaluate_runs
    from utils.generation.generate import Decoding

    return told(lambda: evaluate_runs([str(out)], Options(decoding=Decoding(**DECODING), device="cpu")))


def score(out: Path) -> int:
    """What eval.sh does; its exit code."""
    from utils.metrics.scoring.score_runs import main

    return told(lambda: main([str(out)]))


def stage(name: str, case: Case, data: Path, out: Path) -> Callable[[], int]:
    """One of the three commands, in process."""
    if name == "train":
        return lambda: train(overrides(case, data, out))
    return (lambda: evaluate(out)) if name == "eval" else (lambda: score(out))


def command_line(name: str, case: Case, data: Path, out: Path) -> list[str]:
    """One of the three commands as a user types it."""
    if name == "train":
        return [sys.executable, "train.py", *overrides(case, data, out)]
    if name == "score":
        return ["bash", "eval.sh", str(out)]
    options = [f"--{key.replace('_', '-')}={value}" for key, value in DECODING.items()]
    return [sys.executable, "eval.py", str(out), "--device=cpu", *options]


def run_in(out: Path) -> Run:
    """The one run below ``out``, which may have been killed before it had a record."""
    found = [path.parent for path in sorted(out.glob("*/*/.train.lock"))]
    return Run(found[0]) if found else find_runs([out])[0]


def copy(source: Path, target: Path) -> None:
    """A copy with links as links, for the next fault."""
    shutil.copytree(source, target, symlinks=True)
