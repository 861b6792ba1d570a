"""``python -m utils.prompt``: texts of one's own, as the run's evaluation would write them."""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from utils import prompt
from utils.data import get_source
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.generation.decoding import Decoding
from utils.generation.prompts import fitted
from utils.models.loading import load_tokenizer
from utils.runs import Run
from utils.runs.texts import read_texts

SHORT = ("--num-beams", "2", "--max-new-tokens", "8", "--device", "cpu")


@pytest.fixture(scope="module")
def answers(rosa_run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The evaluation's text for each source."""
    copy = Run(Path(shutil.copytree(rosa_run.path, tmp_path_factory.mktemp("run") / "run", symlinks=True)))
    evaluate_run(copy, Options(decoding=Decoding(num_beams=2, max_new_tokens=8), device="cpu"))
    return {answer.source: " ".join(answer.prediction.splitlines()).strip() for answer in read_texts(copy, "test")}


def test_texts_of_arguments(rosa_run: Run, answers: dict[str, str], capfd: Any) -> None:
    """The same as eval.py's, and nothing else on standard output."""
    assert prompt.main([str(rosa_run.path), *SHORT, *answers, "--batch-size", "2"]) == 0
    assert capfd.readouterr().out.splitlines() == list(answers.values()) and len(set(answers.values())) > 1


def test_lines_of_standard_input_are_answered_as_they_come(
    rosa_run: Run, answers: dict[str, str], capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = list(answers)[:2]
    seen = []

    class Input(io.StringIO):
        def __iter__(self) -> Any:
            for line in (f"{first}\n", "\n", f"{second}\r\n"):
                seen.append(capfd.readouterr().out)
                yield line

    monkeypatch.setattr(sys, "stdin", Input())
    assert prompt.main([str(rosa_run.path), *SHORT]) == 0
    seen.append(capfd.readouterr().out)
    assert seen == ["", f"{answers[first]}\n", "\n", f"{answers[second]}\n"]


def test_blanks_at_the_ends_are_a_part_of_a_prompt_without_template(
    rosa_run: Run, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in evaluation, where such a data set's prompts are given as they are."""
    from utils.data.e2e import E2E

    monkeypatch.setattr(E2E, "prompt", lambda self, source: source)
    text = "Describe Alimentum:\n"
    assert (
        prompt.main([str(rosa_run.path), text, *SHORT]) == prompt.main([str(rosa_run.path), text, "--raw", *SHORT]) == 0
    )
    own, raw = capfd.readouterr().out.splitlines()
    assert own == raw


def test_a_raw_text_has_no_template(rosa_run: Run, answers: dict[str, str], capfd: Any) -> None:
    source = next(iter(answers))
    assert prompt.main([str(rosa_run.path), f"Input: {source} Output:", source, "--raw", *SHORT]) == 0
    same, other = capfd.readouterr().out.splitlines()
    assert same == answers[source] != other


def test_a_packed_text_that_loses_its_beginning_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer, decoding = load_tokenizer("tiny"), Decoding(max_new_tokens=8)
    long, short = "Why? " * 99, "Why?"
    found = fitted([long, short], tokenizer, decoding, 64)
    assert long.endswith(found[0]) and 0 < len(found[0]) < len(long) and found[1] == short
    assert "1 of 2 questions are cut at the beginning to fit the model" in caplog.text
    assert fitted([long], tokenizer, decoding, None) == [long]


def test_templates_of_the_data_sets() -> None:
    for name in ("e2e", "e2e_sample", "phone_book"):
        source = get_source(name)
        example = (
            source.load("test", None, None)[0]
            if name != "e2e"
            else get_source("e2e_sample").load("test", None, None)[0]
        )
        assert source.prompt(example.source) == example.prompt != example.source
    assert {get_source(name).prompt("Why?") for name in ("eli5", "pairs")} == {"Why?"}


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--num-beams", "0"], "--num-beams 0 must be at least 1"), (["--batch-size", "0"], "--batch-size 0"),
     (["--num-beams", "99999"], "size of the model's vocabulary"), (["--length-penalty", "nan"], "finite"),
     (["--max-new-tokens", "999"], "lower --max-new-tokens to at most")],
)  # fmt: skip
def test_bad_options(rosa_run: Run, options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        prompt.main([str(rosa_run.path), "text", *options])


def test_bad_input(rosa_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        prompt.main([str(tmp_path / "nowhere"), "text"])
    with pytest.raises(UserError, match="is the folder of a second run, not a text"):
        prompt.main([str(rosa_run.path), str(rosa_run.path), "text"])
    monkeypatch.chdir(rosa_run.path)
    prompt.check_texts(["", "x" * 9999, "a\0b", "name[Blue Spice]"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff\n"), encoding="utf-8"))
    with pytest.raises(UserError, match="standard input is not UTF-8"):
        prompt.main([str(rosa_run.path), *SHORT])
