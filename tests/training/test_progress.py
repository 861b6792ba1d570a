"""The progress of long work: bars with the time left in a terminal, lines at intervals in a file."""

from __future__ import annotations

import io
import re
import sys
from typing import Any

from utils import log as logging_lines
from utils.evaluation import Options, evaluate_runs
from utils.generation.decoding import Decoding

FAST = Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu", batch_size=5)


class Terminal(io.StringIO):
    """A text stream that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_bars(train: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    run = train("train.epochs=1")
    assert re.search(r"validation: +0%.* 0/1 \[00:00<\?", sys.stderr.getvalue())
    assert re.search(r"100%.* 5/5 \[", sys.stderr.getvalue())
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert evaluate_runs([str(run.path)], FAST) == 0
    assert re.search(r"losses: +0%.* 0/3 \[00:00<\?", sys.stderr.getvalue())
    assert re.search(r"texts: +0%.* 0/3 \[00:00<\?", sys.stderr.getvalue())


def test_a_file_gets_a_line_at_intervals(train: Any, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(logging_lines, "LINE_EVERY", 0.0)
    run = train("train.epochs=1", "train.micro_batch_size=6")
    assert run.log_file.read_text().count("validation: batch 1 of 2, about 00:") == 2
    capsys.readouterr()
    assert evaluate_runs([str(run.path)], FAST) == 0
    stderr = capsys.readouterr().err
    assert "losses: batch 1 of 2, about 00:" in stderr and "texts: text 3 of 3, about 00:00 left" in stderr
    assert "\r" not in stderr
