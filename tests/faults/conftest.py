"""The options, the lab that all tests share, and the page that is made of what they counted."""

from __future__ import annotations

import datetime
import platform
import random
import shlex
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.commands import import_everything
from tests.faults.lab import BAD_INPUT, CASES, Case, Changed, Lab, Lost

LAB = pytest.StashKey[Lab]()
BEGUN = time.monotonic()
COUNTED = ("caused", "lost", "changed", "told")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--times", type=int, default=1, help="how many of each fault (default: 1)")
    group.addoption("--page", type=Path, help="write what was counted to this file")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``number`` counts the faults of a kind, ``often`` is how many kills of a stage a chain has at most."""
    times = metafunc.config.getoption("--times", 1)
    if "number" in metafunc.fixturenames:
        metafunc.parametrize("number", range(times))
    if "often" in metafunc.fixturenames:
        metafunc.parametrize("often", [1 + times] * max(times // 3, 1))


@pytest.fixture
def lab(request: pytest.FixtureRequest, small_e2e: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """The lab of all tests; what a test that passes has made there is removed."""
    if LAB not in request.config.stash:
        import_everything()
        request.config.stash[LAB] = Lab(tmp_path_factory.mktemp("faults"), small_e2e)
    lab, failed = request.config.stash[LAB], request.session.testsfailed
    yield lab
    for folder in lab.made if failed == request.session.testsfailed else ():
        shutil.rmtree(folder)
    lab.made.clear()


@pytest.fixture
def case(number: int) -> Case:
    """The cases in turn."""
    return CASES[number % len(CASES)]


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random choices that are the same each time a test runs."""
    return random.Random(request.node.name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Count a failure in the row of the fault that the test was causing."""
    lab, error = item.config.stash.get(LAB, None), call.excinfo
    if lab and error is not None and not error.errisinstance(pytest.skip.Exception):
        lab.current["lost" if error.errisinstance(Lost) else "changed" if error.errisinstance(Changed) else "told"] += 1
    return (yield)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print what was counted, and write the page if one was asked for."""
    if lab := config.stash.get(LAB, None):
        text = page(lab, shlex.join(["pytest", *map(str, config.invocation_params.args)]), time.monotonic() - BEGUN)
        terminalreporter.write(text)
        if path := config.getoption("--page"):
            path.write_text(text, encoding="utf-8")


def page(lab: Lab, command: str, seconds: float) -> str:
    """What was caused, and what was lost, as Markdown."""
    rows = {fault: row for fault, row in lab.rows.items() if row["caused"]}
    total, given = sum(rows.values(), Counter()), lab.rows.get(BAD_INPUT, Counter())["caused"]
    faults = [(fault, *(row[name] for name in COUNTED), lab.seen[fault]) for fault, row in rows.items()]
    inputs = [(kind, count.total(), count["accepted"], count["refused"]) for kind, count in lab.inputs.items()]
    return Path(__file__).with_name("page.md").read_text(encoding="utf-8").format(
        kills=sum(row["caused"] for fault, row in rows.items() if fault.startswith("kill -9")),
        faults=total["caused"] - given, given=given, total=total,
        rows=table("fault | caused | runs lost | results changed | unclear | what a user sees", faults),
        struck=table("command: file | kills", sorted((+lab.struck).items())),
        inputs=table("kind | given | accepted, with the right result | refused, with one message", inputs),
        command=command, minutes=seconds / 60, date=datetime.date.today(),
        machine=f"{platform.machine()}, Python {platform.python_version()}, PyTorch {torch.__version__}",
    )  # fmt: skip


def table(header: str, rows: list[tuple[object, ...]]) -> str:
    """A Markdown table."""
    lines = (header.split(" | "), ["---"] * (header.count(" | ") + 1), *rows)
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
