"""Runs whose files are damaged or come from an attacker, under each command that reads them."""

from __future__ import annotations

import csv
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts.faults.compare import differences, facts, half_written
from scripts.faults.inputs.judge import Input
from scripts.faults.inputs.mutate import damaged, deranged
from scripts.faults.material import Case, evaluate, overrides, run_in, score, train
from utils.plots import draw_figures
from utils.runs import Run
from utils.tables import compile_results

JSON = ("run.json", "eval.json", "scores.json")
TEXTS = (*JSON, "config.yaml", "metrics.jsonl", "test_predictions.txt", "test_predictions.jsonl", "test_references.txt")
RECORDS = (*JSON, "config.yaml", "metrics.jsonl")
ALIASES = "\n".join(
    ["b0: &b0 [x]", *(f"b{n}: &b{n} [{', '.join([f'*b{n - 1}'] * 9)}]" for n in range(1, 10))]
).encode()  # 9 to the power of 9 values
HURT = Case("rosa", "e2e_nlg")  # the run that is damaged; another one beside it is not


def spoil(path: Path, chance: random.Random) -> str:
    """Damage a file as bytes or, where it is JSON, in one of its values; what was done."""
    if path.suffix == ".json" and chance.random() < 0.6:
        what, document = deranged(json.loads(path.read_text(encoding="utf-8")), chance)
        path.write_text(json.dumps(document), encoding="utf-8")
    else:
        what, content = damaged(path.read_bytes(), chance)
        path.write_bytes(content)
    return f"{path.name}: {what}"


def _fresh(folder: Path, base: Path) -> Path:
    """A copy of the runs in ``base`` to damage, and the damaged one's folder."""
    shutil.rmtree(folder / "runs", ignore_errors=True)
    shutil.copytree(base, folder / "runs", symlinks=True)
    return next(path for path in (folder / "runs" / HURT.dataset).iterdir() if f"-{HURT.method}-" in path.name)


def _told_of_all(written: list[Path], printed: str) -> str | None:
    """The tables have the unharmed run, and a row for the other or a line that says why it has none."""
    rows = [row for path in written if path.suffix == ".csv" for row in csv.DictReader(path.open(encoding="utf-8"))]
    if not any(row["method"] == "lora" for row in rows):
        return "the unharmed run is gone"
    return None if len(rows) > 1 or f"-{HURT.method}-" in printed else "the damaged run is dropped in silence"


def reading(folder: Path, base: Path, chance: random.Random) -> Iterator[Input]:
    """Tables, figures and scores of a results folder with one damaged file."""
    runs = folder / "runs"
    while True:
        run = _fresh(folder, base)
        what = spoil(run / chance.choice(TEXTS), chance)
        kind = chance.random()
        if kind < 0.7:
            yield Input(what, lambda: compile_results([runs]), (run.name,), runs, _told_of_all)
        elif kind < 0.9:
            yield Input(what, lambda: score(runs), (run.name,))
        else:
            draw = lambda: draw_figures(runs / HURT.dataset, only=["validation_curves"]) and None  # noqa: E731
            yield Input(what, draw, (run.name, str(runs)), runs)


def evaluating(folder: Path, base: Path, chance: random.Random) -> Iterator[Input]:
    """eval.py on a finished run with one damaged file."""
    runs = folder / "runs"
    while True:
        run = _fresh(folder, base)
        expected = (run / "test_predictions.txt").read_bytes()
        weights = [path.relative_to(run) for path in (run / "checkpoints" / "best").iterdir()]
        for path in run.glob("test_*"):
            path.unlink()
        if chance.random() < 0.6:
            name = chance.choice(weights)
            what = f"{name}: {damage_file(run / name, chance)}"
        else:
            name = Path(chance.choice(("config.yaml", "run.json", "eval.json")))
            what = spoil(run / name, chance)

        def check(
            _code: Any, _printed: str, run: Path = run, name: Path = name, expected: bytes = expected
        ) -> str | None:
            if name.parent == Path() and name.name != "eval.json":
                return None  # another setting is another prediction
            same = (run / "test_predictions.txt").read_bytes() == expected
            return None if same else "other predictions, without a word"

        yield Input(what, lambda: evaluate(runs), (run.name,), check=check)


def damage_file(path: Path, chance: random.Random) -> str:
    """Damage a file's bytes in a copy of its own, until they differ."""
    before = path.read_bytes()
    what, content = damaged(before, chance)
    while content == before:
        what, content = damaged(before, chance)
    path.unlink()
    path.write_bytes(content)
    return what


def resuming(folder: Path, base: Path, data: Path, expected: dict[str, str], chance: random.Random) -> Iterator[Input]:
    """train.py on an interrupted run with one damaged file: it goes on to the same result, or says why not."""
    runs = folder / "runs"
    while True:
        run = _fresh(folder, base)
        checkpoint = [path.relative_to(run) for path in (run / "checkpoints").glob("step-*/*")]
        names = [*checkpoint, Path("run.json"), Path("config.yaml"), Path("metrics.jsonl"), Path("train.log")]
        name = chance.choice(names)
        if name.suffix == ".json" and chance.random() < 0.5:
            what = f"{name.parent}/{spoil(run / name, chance)}"
        else:
            what = f"{name}: {damage_file(run / name, chance)}"

        def check(_code: Any, _printed: str, run: Path = run, name: Path = name) -> str | None:
            found, wanted = facts(Run(run)), dict(expected)
            if name.name == "metrics.jsonl":  # what was in it is gone
                found.pop(name.name), wanted.pop(name.name)
            return "; ".join(differences(wanted, found) + half_written(Run(run))) or None

        words = overrides(HURT, data, runs)
        yield Input(what, lambda words=words: train(words), (name.name, run.name), check=check)


# -- from elsewhere ------------------------------------------------------------------------------------------


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def _edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def _link(path: Path, target: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _own(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def _hole(path: Path) -> None:
    """20 GB that take no room."""
    _own(path, b"")
    os.truncate(path, 20 << 30)


def attacks(outside: Path) -> dict[str, Callable[[Run], None]]:
    """What a results folder from elsewhere may hold: name → what to plant in a run."""
    canary, bomb = outside / "canary", pickle.dumps(Touch(outside / "canary"))
    tags = f"!!python/object/apply:os.system ['touch {canary}']\n"
    links = (*TEXTS, "train.log", ".train.lock", ".eval.lock", ".score.lock")

    def summary(run: Run, **values: Any) -> None:
        for folder in run.checkpoints.glob("step-*"):
            _edit(folder / "state.json", checksum=None, **values)

    return {
        **{f"{name} is a link": lambda run, name=name: _link(run.path / name, outside / "kept") for name in links},
        **{f"{name} is a pipe": lambda run, name=name: _pipe(run.path / name) for name in links},
        **{f"{name} never ends": lambda run, name=name: _link(run.path / name, Path("/dev/zero")) for name in TEXTS},
        **{f"{name} is too large": lambda run, name=name: _hole(run.path / name) for name in TEXTS},
        **{f"{name} is too deep": lambda run, name=name: _own(run.path / name, b"[" * 20_000) for name in RECORDS},
        "aliases to aliases in config.yaml": lambda run: _own(run.config_file, ALIASES),
        "checkpoints is a link": lambda run: _link(run.checkpoints, outside),
        ".hydra is a link": lambda run: _link(run.path / ".hydra", outside),
        "best and last lead outside": lambda run: (_link(run.best, outside), _link(run.last, outside)),
        "a pickle for state.pt": lambda run: [_own(p / "state.pt", bomb) for p in run.checkpoints.glob("step-*")],
        "a pickle for weights": lambda run: [_own(p, bomb) for p in run.checkpoints.glob("step-*/*.safetensors")],
        "YAML tags in config.yaml": lambda run: _own(run.config_file, tags.encode()),
        "YAML tags in overrides": lambda run: _own(run.path / ".hydra" / "overrides.yaml", tags.encode()),
        "the environment in config.yaml": lambda run: _own(run.config_file, b"model: {name: '${oc.env:HOME}'}\n"),
        "files outside in state.json": lambda run: summary(run, sha256={"../../../../outside/kept": "0" * 64}),
        "best outside in state.json": lambda run: summary(run, best="../../../../outside"),
        "a data set outside": lambda run: _edit(run.record_file, dataset=f"../../../{outside.name}"),
        "a model with LaTeX": lambda run: _edit(run.record_file, model="\\input{/etc/passwd}|<script>x</script>"),
        "a group with control characters": lambda run: _edit(run.record_file, group="\x1b]0;x\x07", method="\x1b[2J"),
        "a file name for a method": lambda run: _edit(run.record_file, method=f"../../{outside.name}/kept"),
    }


def hostile(folder: Path, finished: Path, stopped: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """Each attack under each command; nothing outside may change, and nothing of it may run."""
    outside, runs = folder / "outside", folder / "runs"
    outside.mkdir()
    (outside / "kept").write_text("kept", encoding="utf-8")
    words = overrides(HURT, data, runs)

    def nothing_ran(_result: Any, _printed: str) -> str | None:
        found = sorted(path.name for path in outside.iterdir())
        same = found == ["kept"] and (outside / "kept").read_bytes() == b"kept"
        return None if same else f"outside now: {found}"

    def table() -> None:
        compile_results([runs])
        text = "".join(next(runs.rglob(f"results.{suffix}")).read_text(encoding="utf-8") for suffix in ("tex", "md"))
        assert "\x1b" not in text and "\\input{/" not in text and "<script>" not in text

    def draw() -> None:
        draw_figures(runs / HURT.dataset, only=["validation_curves"])

    commands: dict[str, Callable[[], Any]] = {
        "table": table, "figures": draw, "score": lambda: score(runs), "eval": lambda: evaluate(runs),
        "train": lambda: train(words),
    }  # fmt: skip
    both = [(attack, command) for attack in attacks(outside) for command in commands]
    chance.shuffle(both)
    for attack, command in both:
        run = _fresh(folder, stopped if command == "train" else finished)
        attacks(outside)[attack](Run(run))
        # a refusal needs no words of the run's: what is asked is that nothing outside changes
        yield Input(f"{attack}: {command}", commands[command], ("",), watch=outside, check=nothing_ran)


def prepare(folder: Path, runs: list[Path], *, whole: bool) -> Path:
    """A results folder of copies of these runs, without checkpoints if they need not be ``whole``."""
    ignore = None if whole else shutil.ignore_patterns("checkpoints", "events*")
    for out in runs:
        run = run_in(out).path
        shutil.copytree(run, folder / run.parent.name / run.name, symlinks=True, ignore=ignore)
    return folder
