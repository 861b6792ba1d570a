"""Messages: nothing that a file or folder is called can steer the terminal that shows it."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ROOT
from utils.errors import UserError, printable, run_cli


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x07", r"a\x1b[31mred\x07"),
        ("two\nlines\ttab\r", r"two\nlines\ttab\r"),
        ("\x9b31m \u202egnp.exe \u2028 \x00", r"\x9b31m \u202egnp.exe \u2028 \x00"),
        ("half \udc9b", r"half \udc9b"),  # a file name that is not UTF-8
        ("Zürich, 東京\u3000x\u00a0y, 🙂, $\\alpha$", "Zürich, 東京\u3000x\u00a0y, 🙂, $\\alpha$"),
    ],
)
def test_control_characters_are_shown_as_escapes_and_all_else_as_it_is(text: str, shown: str) -> None:
    assert printable(text) == shown


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_what_is_printable_has_no_control_character_and_can_be_written(text: str) -> None:
    shown = printable(text)
    shown.encode("utf-8")
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    assert printable(shown) == shown


def test_an_error_message_keeps_its_lines_but_no_other_control_character(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise UserError("no runs:\n  a\x1b]0;title\x07b")

    with pytest.raises(SystemExit) as end:
        run_cli(main)
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no runs:\n  a\\x1b]0;title\\x07b\n"


def test_a_terminal_without_unicode_gets_every_line(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with pytest.raises(SystemExit) as end:
        run_cli(lambda: print("1.00 ± 0.10\n\udcff – 2"))
    sys.stdout.flush()
    assert raw.getvalue() == b"1.00 ? 0.10\n? ? 2\n"
    assert not end.value.code


def test_a_command_whose_reader_has_left_ends_quietly() -> None:
    plain = {**os.environ, "PYTHONUNBUFFERED": ""}  # the text is then written at the end only
    words = [sys.executable, "compile_results.py", "--help"]
    process = subprocess.Popen(words, cwd=ROOT, env=plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.communicate()[1], process.returncode) == ("", 141)


@pytest.mark.parametrize("command", ["train.py --help", "-c 'import utils.errors as e; e.run_cli(lambda: print(1))'"])
@pytest.mark.parametrize(("redirect", "code"), [(">&-", 0), ("> /dev/full", 2)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_closed_stdout_is_no_error_and_a_full_disk_under_it_is_one(
    command: str, redirect: str, code: int, unbuffered: str
) -> None:
    line, variables = f"{sys.executable} {command} {redirect}", {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(line, shell=True, cwd=ROOT, capture_output=True, text=True, env=variables)
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (1 if code else 0), done.stderr
