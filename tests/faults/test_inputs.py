"""Bad inputs: a correct result or one message; never a traceback or half a file. Data files: tests/test_fuzz.py."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.faults.commands import Command, Ended
from tests.faults.lab import BAD_INPUT, CASES, Changed, Lab, differences, facts, run_in
from tests.mutations import changed, damaged, replace

pytestmark = pytest.mark.faults
HURT, OTHER = CASES[:2]  # the run that is damaged, another one beside it
TEXTS = ("test_predictions.txt", "test_predictions.jsonl", "test_references.txt", "metrics.jsonl", "config.yaml")
JSON = ("run.json", "eval.json", "scores.json")
COMMANDS = {  # how many examples of each, and which files of a run it reads
    "table": (10, (*TEXTS, *JSON)),
    "figures": (4, (*TEXTS, *JSON)),
    "score": (6, (*TEXTS, *JSON)),
    "eval": (2, ("config.yaml", "run.json", "eval.json", "checkpoints/best/*")),
    "train": (2, ("metrics.jsonl", "config.yaml", "run.json", "train.log", "checkpoints/step-*/*")),
}
HOSTILE = (
    "-1", "0", "1e999", "nan", "-inf", "null", "true", "''", "x", "[]", "[1,2,3]", "{}", "{a:1}", "1.5", "9" * 400,
    "'a\nb'", "${oc.env:HOME}", "${nowhere}", "${..}", "../../x", "/etc/passwd", "'; rm -rf x'", "1e-3", "01", "0x10",
    "rosa,lora", "\x00", "é", "!!python/none", "[", "{", "'", "\\", "$(touch canary)", "a=b", " ",
)  # fmt: skip
SWEEP = """\
{state: x/.jobs, resources: {time: "01:00:00", mem: 4G}, preamble: [module load python],
 overrides: {dataset.name: e2e_sample, model.name: tiny}, groups: [
 {name: rosa, max_jobs: 2, resources: {cpus-per-task: 2}, overrides: {fnmodel.name: rosa},
  matrix: {seed: [0, 1], train.lr: [0.001, 1e-4], fnmodel.params.rank: [0.05, 4]}},
 {name: lora, after: [rosa], matrix: [{fnmodel.name: [lora], seed: [0, 1]}], array: false},
 {name: after, after: lora, paralleljobs: [python eval.py runs, bash eval.sh runs]}]}
"""
Examples = Callable[[st.SearchStrategy[Any], int], list[Any]]


@pytest.fixture
def examples(pytestconfig: pytest.Config) -> Examples:
    """Draw so many values of a strategy, or with ``--times`` more, the same ones each time."""
    common: Any = dict(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    times = pytestconfig.getoption("--times", 1)

    def draw(strategy: st.SearchStrategy[Any], count: int) -> list[Any]:
        found: list[Any] = []
        options = settings(max_examples=count * times, phases=[Phase.generate], **common)
        options(given(strategy)(lambda value: found.append(value)))()
        return found

    return draw


def judge(lab: Lab, kind: str, words: list[str], names: tuple[str, ...], watch: Path) -> Ended | None:
    """Run a command on a bad input and count it: None where it refuses, naming one of ``names`` (a file, a key), and
    leaves the files below ``watch`` as they were."""
    before = contents(watch)
    lab.row(BAD_INPUT, "a correct result, or one message that names the file, the line or the key")
    ended = Command(words, watch).wait()
    said = f"{kind}: {words} ends with {ended.code}: {ended.output[-1500:]}"
    assert ended.code >= 0, said
    if ended.code:
        assert any(name in ended.output for name in names), f"names none of {names}: {said}"
        assert contents(watch) == before, f"something is written: {said}"
    lab.inputs.setdefault(kind, Counter())["refused" if ended.code else "accepted"] += 1
    return None if ended.code else ended


def contents(folder: Path) -> dict[Path, str]:
    """Hashes of all files; locks and logs are left out."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".lock", ".log"))
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_predictions_and_references(lab: Lab, examples: Examples) -> None:
    """A line each, and as tables."""
    run, folder = run_in(lab.undisturbed(HURT, "eval").out), lab.out()
    items = [json.loads(line) for line in (run / "test_predictions.jsonl").read_text().splitlines()]
    plain = {name: (run / name).read_text() for name in ("test_predictions.txt", "test_references.txt")}
    predictions = "".join(f"{item['source']}\t{item['prediction']}\n" for item in items)
    references = "".join(f"{item['source']}\t{text}\n" for item in items for text in item["references"])
    tables = {"predictions.tsv": f"MR\toutput\n{predictions}", "references.tsv": f"mr\tref\n{references}"}
    bad = [
        damaged(text.encode()).map(lambda content, files=files, name=name: {**files, name: content})
        for files in (plain, tables) for name, text in files.items()
    ]  # fmt: skip
    for files in examples(st.one_of(bad), 20):
        for name, content in files.items():
            replace(folder / name, content if isinstance(content, bytes) else content.encode())
        paths = [str(folder / name) for name in files]
        words = ["utils.metrics", *paths, "--json", "--metrics", "BLEU,ROUGE_L"]
        if ended := judge(lab, "predictions and references", words, tuple(paths), folder):
            scores = json.loads(ended.output[ended.output.index("{") :])
            assert all(0 <= value < 1 + 1e-9 for value in scores.values()), scores


def test_overrides(lab: Lab, examples: Examples) -> None:
    """Keys that there are, and misspelt ones, with values that they do not take and some that they do.

    The data set's folder does not exist, so that a good override is refused too: for that.
    """
    config = (run_in(lab.undisturbed(HURT, "train").out) / "config.yaml").read_text()
    out, keys = lab.out(), st.sampled_from(flat_keys(yaml.safe_load(config)))
    words = ["train.py", "dataset.name=e2e", f"dataset.path={out / 'nowhere'}", "model.name=tiny", f"output.path={out}"]
    for key, value, at, kind in examples(
        st.tuples(keys, st.sampled_from(HOSTILE), st.integers(0, 30), st.integers(0, 25)), 20
    ):
        misspelt = [key[:at] + key[at + 1 :], f"{key}s", f"{key}.more", f"+{key}", f"~{key}", key.upper()]
        key = [*[key] * 20, *misspelt][kind]
        plain = key.lstrip("+~")
        group, last = plain.partition(".")[0], plain.rpartition(".")[2]
        # of what is no override at all Hydra's own message shows where to read on
        names = (plain, last, f"{group} is not a key", value, "override_grammar", "nowhere does not exist")
        assert judge(lab, "overrides", [*words, f"{key}={value}"], names, out) is None
        assert not [*out.rglob("*.json")], "a run is left"


def flat_keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """``group``, ``group.key`` ... of a nested configuration."""
    inner = (flat_keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [] for key, value in values.items())
    return [f"{prefix}{key}" for key in values] + [key for keys in inner for key in keys]


def test_sweep_files(lab: Lab, examples: Examples) -> None:
    """A sweep file, its text damaged or one of its values replaced."""
    path = lab.out() / "jobs.yaml"
    documents = changed(yaml.safe_load(SWEEP)).map(lambda document: yaml.safe_dump(document).encode())
    for content in examples(st.one_of(documents, damaged(SWEEP.encode())), 20):
        path.write_bytes(content)
        words = ["jobrunner.py", "--fn", str(path), "--dry-run"]
        if ended := judge(lab, "sweep files", words, (str(path),), path.parent):
            assert ended.output.count("#!/bin/bash") == ended.output.count("\njobs=(") > 0, ended.output


def spoiled(path: Path) -> st.SearchStrategy[tuple[Path, bytes]]:
    """A file, and its content damaged as bytes or, where it is JSON, in one of its values."""
    content = path.read_bytes()
    kinds = [damaged(content)]
    if path.suffix == ".json":
        kinds.append(changed(json.loads(content)).map(lambda document: json.dumps(document).encode()))
    return st.tuples(st.just(path), st.one_of(kinds).filter(lambda found: found != content))


class Copies:
    """A results folder of a good run and one to damage, and the command that reads it."""

    def __init__(self, lab: Lab, command: str, chance: Any) -> None:
        self.lab, self.command, self.runs = lab, command, lab.out() / "runs"
        hurt = lab.stopped(HURT, chance)[0] if command == "train" else lab.undisturbed(HURT, "score").out
        alone = command in ("train", "eval")  # which take their time
        self.bases = [hurt] if alone else [hurt, lab.undisturbed(OTHER, "score").out]
        self.words = {
            "table": ["compile_results.py", str(self.runs)],
            "figures": ["figures.py", "--fn", str(self.runs / HURT[1]), "--only", "validation_curves"],
        }.get(command) or lab.words(command, HURT, self.runs)

    def fresh(self) -> Path:
        """Copy again; the folder of the run to damage."""
        shutil.rmtree(self.runs, ignore_errors=True)
        for base in self.bases:
            shutil.copytree(base, self.runs, symlinks=True, dirs_exist_ok=True)
        run = self.runs / run_in(self.bases[0]).relative_to(self.bases[0])
        for path in run.glob("test_*") if self.command == "eval" else ():
            path.unlink()
        return run

    def check(self, ended: Ended, run: Path, path: Path) -> None:
        """What an accepted run with a damaged ``path`` must have come to."""
        if self.command == "table":
            text = (self.runs / HURT[1] / "results.csv").read_text(encoding="utf-8")
            methods = [row["method"] for row in csv.DictReader(text.splitlines())]
            assert OTHER[0] in methods, "the unharmed run is gone"
            assert len(methods) > 1 or run.name in ended.output, "the damaged run is dropped in silence"
        stage = {"train": "train", "eval": "score"}.get(self.command)
        if stage and not (stage == "score" and path.name in ("config.yaml", "run.json")):  # other settings
            different = {*differences(self.lab.undisturbed(HURT, stage).facts, facts(run))}
            if different - ({path.name} & {"metrics.jsonl"}):  # whose points may be gone
                raise Changed(f"{self.command} after damage to {path}: {different}")


@pytest.mark.parametrize("command", COMMANDS)
def test_damaged_runs(lab: Lab, examples: Examples, command: str, chance: Any) -> None:
    """One file of a run is damaged; another run beside it is not."""
    copies, (count, names) = Copies(lab, command, chance), COMMANDS[command]
    run = copies.fresh()
    paths = [path for name in names for path in sorted(run.glob(name))]
    for path, content in examples(st.sampled_from(paths).flatmap(spoiled), count):
        replace(copies.fresh() / path.relative_to(run), content)
        watch = copies.runs if command in ("table", "figures") else run / ".hydra"
        named = (run.name, path.name, str(copies.runs) if command == "figures" else run.name)
        if ended := judge(lab, f"files of runs: {command}", copies.words, named, watch):
            copies.check(ended, run, path)


def attacks(outside: Path) -> list[tuple[str, Any]]:
    """What leads out of a folder or runs when it is read: a run's files, and what takes their place, as ``replace``
    takes it, or values that replace some of a JSON file."""
    step, canary = "checkpoints/step-*", outside / "canary"
    bomb = f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode()  # a pickle
    tags = f"!!python/object/apply:os.system ['touch {canary}']\n".encode()
    files = (*TEXTS, *JSON, "train.log", ".train.lock", ".eval.lock", ".score.lock")
    return [
        *((name, outside / "kept") for name in files),
        *((name, outside) for name in ("checkpoints", ".hydra", "checkpoints/best", "checkpoints/last")),
        *((name, bomb) for name in (f"{step}/state.pt", f"{step}/*.safetensors")),
        *((name, tags) for name in ("config.yaml", ".hydra/overrides.yaml")),
        ("config.yaml", b"model: {name: '${oc.env:HOME}'}\n"),
        (f"{step}/state.json", {"sha256": {str(outside / "kept"): "0" * 64}}),
        (f"{step}/state.json", {"checksum": None, "best": str(outside)}),
        ("run.json", {"dataset": f"../../../{outside.parent.name}/runs"}),
        ("run.json", {"model": "\\input{/etc/passwd}|<script>x</script>"}),
        ("run.json", {"group": "\x1b]0;x\x07", "method": "\x1b[2J"}),
        ("run.json", {"method": f"../../../{outside.parent.name}/runs/kept"}),
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_folders_from_elsewhere(lab: Lab, examples: Examples, command: str, chance: Any) -> None:
    """Nothing outside of the folder may change, and nothing in it may run."""
    copies, outside = Copies(lab, command, chance), lab.out()
    (outside / "kept").write_text("kept")
    before = contents(outside)
    for name, what in examples(st.sampled_from(attacks(outside)), 3):
        run = copies.fresh()
        for path in [*run.glob(name)] or [run / name]:
            values = isinstance(what, dict) and json.loads(path.read_text()) | what
            replace(path, json.dumps(values).encode() if values else what)
        # a refusal needs no words of the run's: what is asked is that nothing outside changes
        judge(lab, "folders from elsewhere", copies.words, ("",), outside)
        assert contents(outside) == before, f"{name}: {what}: {command}: {[*outside.iterdir()]}"
        for path in copies.runs.rglob("results.[mt]*"):
            text = path.read_text(encoding="utf-8")
            assert not [sign for sign in ("\x1b", "<script>", "\\input{/") if sign in text], f"{what}: {path}"
