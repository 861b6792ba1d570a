"""All kinds of bad inputs, each in a process of its own, and their count."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from scripts.faults.attempts import attempt
from scripts.faults.faults import interrupted
from scripts.faults.inputs import records, settings, texts
from scripts.faults.inputs.judge import GOOD, Input, judge
from scripts.faults.ledger import Laboratory, say
from scripts.faults.material import STAGES, Case

Kind = Callable[[Path, random.Random], Iterator[Input]]
SHARES = {  # of all inputs; those that need a model are few
    "E2E's CSV": 14, "ELI5's JSON lines": 14, "ELI5 compressed": 8, "own CSV files": 6,
    "predictions and references": 14, "overrides": 16, "sweep files": 12, "files of runs": 12,
    "evaluation of damaged runs": 2, "resume of damaged runs": 2,
}  # fmt: skip


def run_all(lab: Laboratory, count: int, seed: int, *, quick: bool = False) -> dict[str, Counter[str]]:
    """``count`` bad inputs and all attacks (``quick``: some); verdicts by kind. Bad ones are noted in the table."""
    kinds = _kinds(lab)
    counts = {name: max(round(count * share / sum(SHARES.values())), 1) for name, share in SHARES.items()}
    counts["folders from elsewhere"] = 15 if quick else 10_000  # as many as there are
    row = lab.row("a bad input", "a correct result, or one message that names the file, the line or the key")
    verdicts: dict[str, Counter[str]] = {}
    for name, make in kinds.items():
        start = time.monotonic()
        folder = lab.place("inputs").parent
        done = folder / "verdicts.jsonl"
        chance = random.Random(f"{seed} {name}")
        number = counts[name]
        ended = attempt(
            lambda d=done, m=make, f=folder, c=chance, n=number: _judge_all(d, m(f, c), n), folder, timeout=3000
        )
        found = [json.loads(line) for line in done.read_text(encoding="utf-8").splitlines()] if done.exists() else []
        verdicts[name] = Counter(verdict for verdict, *_ in found)
        row.caused += len(found)
        for verdict, what, text in found:
            if verdict not in GOOD:
                row.note("other", f"{name}: {verdict}: {what}: {text}")
        if ended.code != 0:
            row.note("other", f"{name}: the process ends with {ended.code}: {ended.output[-1500:]}")
        say(f"{name}: {dict(verdicts[name])} in {time.monotonic() - start:.0f} s")
    return verdicts


def _judge_all(done: Path, inputs: Iterator[Input], count: int) -> int:
    with done.open("w", encoding="utf-8") as file:
        for _, item in zip(range(count), inputs, strict=False):
            verdict, text = judge(item)
            file.write(json.dumps([verdict, item.what[:200], "" if verdict in GOOD else text]) + "\n")
            file.flush()
    return 0


def _kinds(lab: Laboratory) -> dict[str, Kind]:
    """Name → inputs of that kind, made from the runs that they need."""
    data, hurt, other = lab.data, records.HURT, Case("lora", records.HURT.dataset)
    whole = [lab.undisturbed(case, STAGES) for case in (hurt, other)]
    base = lab.place("bases").parent
    light = records.prepare(base / "light", whole, whole=False)
    finished = records.prepare(base / "finished", whole[:1], whole=True)
    steps = lab.whole[hurt, "train"].entered["step"]
    stopped = records.prepare(base / "stopped", [interrupted(lab, hurt, steps * 2 // 3)[0]], whole=True)
    expected = lab.facts[hurt, "train"]
    return {
        "E2E's CSV": lambda folder, chance: texts.e2e(folder, data, chance),
        "ELI5's JSON lines": lambda folder, chance: texts.eli5(folder, data, chance),
        "ELI5 compressed": lambda folder, chance: texts.eli5_gzip(folder, data, chance),
        "own CSV files": lambda folder, chance: texts.pairs(folder, data, chance),
        "predictions and references": lambda folder, chance: texts.predictions(folder, data, chance),
        "overrides": lambda folder, chance: settings.overrides(folder, data, chance),
        "sweep files": lambda folder, chance: settings.sweeps(folder, data, chance),
        "files of runs": lambda folder, chance: records.reading(folder, light, chance),
        "evaluation of damaged runs": lambda folder, chance: records.evaluating(folder, finished, chance),
        "resume of damaged runs": lambda folder, chance: records.resuming(folder, stopped, data, expected, chance),
        "folders from elsewhere": lambda folder, chance: records.hostile(folder, finished, stopped, data, chance),
    }
