"""Every command on a page is one that its program takes: parsed by the program itself, without being carried out."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser

from scripts.docs.collect import ROOT
from tests.docs.blocks import Block, blocks, commands, of_language
from utils.config.settings import Config, parse_config
from utils.errors import UserError
from utils.models.loading import BUNDLED
from utils.slurm import commands as slurm
from utils.slurm.sweep.file import load_sweep

HUB = "# needs the hub"
STAND_INS = {"METHOD": "rosa"}  # a word of the pages that a user replaces
SHELL = ("source", "cd", "export", "git", "vllm", "pre-commit")  # not checked any further
BASH = of_language("bash")
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


class Parsed(BaseException):
    """A command line was right. A BaseException, so that no command takes it for an error of its own."""


@pytest.fixture(autouse=True)
def only_parsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands end after their arguments."""
    for name in ("parse_args", "parse_intermixed_args"):
        parse = getattr(argparse.ArgumentParser, name)

        def parsed(self: Any, args: Any = None, namespace: Any = None, parse: Any = parse) -> None:
            parse(self, args, namespace)
            raise Parsed

        monkeypatch.setattr(argparse.ArgumentParser, name, parsed)


@pytest.mark.parametrize("page", BASH)
def test_commands_are_those_that_programs_take(page: str) -> None:
    for block in BASH[page]:
        variables: dict[str, list[str]] = {}
        for command in commands(block):
            for words in simple_commands(command, variables):
                problem = None if block.inline and is_mention(words) else problem_of(words, page)
                assert problem is None, f"{block}: {command}\n{problem}"


@pytest.mark.parametrize("page", BASH)
def test_what_needs_the_hub_says_so(page: str) -> None:
    for block in (block for block in BASH[page] if not block.inline):
        for command in commands(block):
            trainings = [words for words in simple_commands(command, {}) if words[1:2] == ["train.py"]]
            needed = any(needs_hub(configuration(words[2:])) for words in trainings if words[2:] != ["--help"])
            assert (HUB in command) == needed, f"{block}: {command}"


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("python train.py train.lrr=1", "lrr"),
        ("python train.py fnmodel.name=rosaa", "is not one of"),
        ("python eval.py runs --splits test", "--splits"),
        ("python evaluate.py runs", "evaluate.py is no file"),
        ("python -m studies.no", "studies.no is no module"),
        ("make demoo", "demoo is no target"),
        ("python jobrunner.py --fn nowhere.yaml", "nowhere.yaml"),
        ("pip install -r no.txt", "no.txt"),
        ("nothing --help", "nothing"),
    ],
)
def test_a_wrong_command_is_found(command: str, problem: str) -> None:
    assert problem in (problem_of(shlex.split(command), "docs/index.md") or "")


def sweeps(page: str) -> list[Block]:
    """The sweep files that a page shows."""
    return [block for block in blocks(page) if block.language == "yaml" and block.text.startswith("groups:")]


@pytest.mark.parametrize("page", [page for page in of_language("yaml") if sweeps(page)])
def test_sweeps_on_a_page_can_be_sent(page: str, tmp_path: Path) -> None:
    for block in sweeps(page):
        (tmp_path / "sweep.yaml").write_text(block.text)
        assert load_sweep(tmp_path / "sweep.yaml", slurm.sending_problems).jobs


def simple_commands(line: str, variables: dict[str, list[str]]) -> Iterator[list[str]]:
    """The words of each command of a line, without comments and redirections, and with the block's variables."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("&;|<>"):
            if words:
                yield words
            words = []
        elif words or not re.match(r"\w+=", word):
            words += variables.get(word, [word])
        else:
            name, _, value = word.partition("=")
            variables[f"${name}"] = value.split()


def is_mention(words: list[str]) -> bool:
    """Whether a program that is there is only named, without arguments."""
    if words[1:2] == ["-m"]:
        return len(words) == 3 and importlib.util.find_spec(words[2]) is not None
    return len(words) == 2 and (ROOT / words[1]).is_file()


def problem_of(words: list[str], page: str) -> str | None:
    """What is wrong with a command, None if nothing is."""
    program, *rest = words
    if program in ("torchrun", "accelerate"):
        return problem_of(["python", *rest[next(i for i, word in enumerate(rest) if word.endswith(".py")) :]], page)
    if program in ("pytest", "bash"):
        paths = [word for word in rest if "/" in word or word.endswith(".sh")]
        return next((f"{path} is no file" for path in paths[:1] if not (ROOT / path).exists()), None)
    if program == "make":
        targets = [word for word in rest if "=" not in word and not word.startswith(("-", "."))]
        return next((f"{target} is no target" for target in targets if target not in TARGETS), None)
    if program == "pip":
        files = [rest[i + 1] for i, word in enumerate(rest) if word == "-r"]
        return next((f"{file} is no file" for file in files if not (ROOT / file).is_file()), None)
    if program == "python":
        return _python(rest, page)
    known = program in SHELL or importlib.util.find_spec(program) is not None
    return None if known else f"{program} is no program that this test knows"


def _python(words: list[str], page: str) -> str | None:
    if words[0] == "train.py":
        return None if words[1:] == ["--help"] else _configuration_problem(words[1:])
    if words[0] == "-m":
        found = importlib.util.find_spec(words[1])
        if found is None or found.origin is None:
            return f"{words[1]} is no module"
        file, rest = Path(found.origin), words[2:]
    else:
        file, rest = ROOT / words[0], words[1:]
        if not file.is_file():
            return f"{words[0]} is no file"
    if ".venv" in file.parts or not file.is_relative_to(ROOT):
        return None  # another project's, such as venv
    if file.name == "__init__.py":
        file = file.with_name("__main__.py")
    if words[0] == "jobrunner.py" and "--fn" in rest:
        sweep = rest[rest.index("--fn") + 1]
        if "NAME" not in sweep and not (ROOT / sweep).is_file() and not sweeps(page):
            return f"{sweep} is neither a file nor a block on the page"
    if not re.search(r"parse_(intermixed_)?args", file.read_text(encoding="utf-8")):
        return f"{words} has arguments" if rest else None
    return _argument_problem(words[1] if words[0] == "-m" else str(file), rest)


def _argument_problem(target: str, words: list[str]) -> str | None:
    """What argparse says of the arguments of a script or module."""
    run = runpy.run_path if target.endswith(".py") else runpy.run_module
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setattr(sys, "argv", [target, *words])
        try:
            run(target, run_name="__main__")
        except Parsed:
            return None
        except SystemExit as ended:
            return said.getvalue() if ended.code else None
    return None


def configuration(words: list[str]) -> Config:
    """The configuration of a command line of train.py; of a sweep over values, with the first ones."""
    overrides = []
    parser = OverridesParser.create()
    for word in words:
        if word not in ("-m", "--multirun", "--cfg", "job"):
            for name, stand_in in STAND_INS.items():
                word = word.replace(name, stand_in)
            (override,) = parser.parse_overrides([word])
            first = next(iter(override.sweep_string_iterator())) if override.is_sweep_override() else None
            overrides.append(word if first is None else f"{override.key_or_group}={first}")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return parse_config(compose("train", overrides=overrides))


def _configuration_problem(words: list[str]) -> str | None:
    try:
        configuration(words)
    except UserError as error:
        return str(error)
    except Exception as error:  # Hydra's own, of several classes
        return str(error)
    return None


def needs_hub(config: Config) -> bool:
    """Whether a training loads its model or its data from the hub."""
    local_data = config.dataset.path is not None or config.dataset.name in ("e2e_sample", "phone_book")
    return not (local_data and config.model.name in BUNDLED)
