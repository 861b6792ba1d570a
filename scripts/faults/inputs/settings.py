"""Overrides of train.py, and sweep files."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import HydraException
from omegaconf import OmegaConf

from scripts.faults.inputs.judge import Input
from scripts.faults.inputs.mutate import damaged, deranged
from scripts.faults.material import ROOT, config_of
from utils.config import Config, config_problems, schema
from utils.errors import UserError
from utils.slurm.sweep.file import load_sweep
from utils.slurm.sweep.overrides import override_problems

HOSTILE = (
    "-1", "0", "1e999", "nan", "-inf", "null", "true", "''", "x", "[]", "[1,2,3]", "{}", "{a:1}", "1.5", "9" * 400,
    "'a\nb'", "${oc.env:HOME}", "${nowhere}", "${..}", "../../x", "/etc/passwd", "'; rm -rf x'", "1e-3", "01", "0x10",
    "rosa,lora", "\x00", "é", "!!python/none", "[", "{", "'", "\\", "$(touch canary)", "a=b", " ",
)  # fmt: skip


def overrides(folder: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """Keys that there are, and misspelt ones, with values that they do not take (and some that they do)."""
    keys = _keys(OmegaConf.to_container(schema()))
    while True:
        key = chance.choice(keys)
        if chance.random() < 0.2:
            at = chance.randrange(len(key))
            key = chance.choice([key[:at] + key[at + 1 :], f"{key}s", f"{key}.more", f"+{key}", f"~{key}", key.upper()])
        value = chance.choice(HOSTILE)
        words = ["dataset.name=e2e_sample", "model.name=tiny", f"{key}={value}"]

        def check(config: Any, _printed: str) -> str | None:
            problems = config_problems(config) if isinstance(config, Config) else ["no configuration"]
            return "; ".join(problems) or None

        plain = key.lstrip("+~")
        # what is no override at all is Hydra's own message, which shows where to read on
        names = (plain, plain.rpartition(".")[2], value, "override_grammar")
        yield Input(
            f"{key}={value[:30]!r}", lambda words=words: config_of(words), names, check=check,
            errors=(UserError, HydraException),
        )  # fmt: skip


def _keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += [name, *_keys(value, f"{name}.")] if isinstance(value, dict) else [name]
    return found


SWEEP = {
    "state": "x/.jobs",
    "resources": {"time": "01:00:00", "mem": "4G"},
    "preamble": ["module load python"],
    "overrides": {"dataset.name": "e2e_sample", "model.name": "tiny"},
    "groups": [
        {
            "name": "rosa", "max_jobs": 2, "resources": {"cpus-per-task": 2}, "overrides": {"fnmodel.name": "rosa"},
            "matrix": {"seed": [0, 1], "train.lr": [1e-3, "1e-4"], "fnmodel.params.rank": [0.05, 4]},
        },
        {"name": "lora", "after": ["rosa"], "matrix": [{"fnmodel.name": ["lora"], "seed": [0, 1]}], "array": False},
        {"name": "after", "after": "lora", "paralleljobs": ["python eval.py runs", "bash eval.sh runs"]},
    ],
}  # fmt: skip


def sweeps(folder: Path, data: Path, chance: random.Random) -> Iterator[Input]:
    """A sweep file, its text damaged or one of its values replaced."""
    path = folder / "jobs.yaml"
    real = (ROOT / "jobs.yaml").read_bytes()
    while True:
        if chance.random() < 0.6:
            what, document = deranged(SWEEP, chance)
            path.write_text(yaml.safe_dump(document, allow_unicode=True), encoding="utf-8")
        else:
            what, content = damaged(chance.choice([real, yaml.safe_dump(SWEEP).encode()]), chance)
            path.write_bytes(content)

        def call() -> Any:
            sweep = load_sweep(path)
            return load_sweep(path, override_problems) if len(sweep.jobs) < 400 else sweep

        def check(sweep: Any, _printed: str) -> str | None:
            ids = [job.id for job in sweep.jobs]
            if not ids or len(set(ids)) != len(ids):
                return f"{len(ids)} jobs, {len(set(ids))} different"
            return None if all(dataclasses.asdict(job)["command"].strip() for job in sweep.jobs) else "an empty command"

        yield Input(what, call, (str(path),), watch=folder, check=check)
