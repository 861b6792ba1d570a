"""Formats of a table: any name stays text in CSV, Markdown, LaTeX and on the terminal."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.records import csv_of, file_name, latex_rows, markdown_rows, write_run
from utils.results.read import read_results
from utils.tables import compile_results
from utils.tables.latex import escape
from utils.tables.layout import make_table
from utils.tables.render import to_text

NASTY = r"\input{x}%$&#_^~{}|<b>*`[y](javascript:1)" + "\n\r\x1b[31m\u2028\\end{tabular} 中é"


def test_the_terminal_table_fits_the_width_and_has_all_columns(tmp_path: Path) -> None:
    write_run(tmp_path, method="none")
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, loss=0.9 + seed / 5, config={"fnmodel.rosa.sample_method": "bottom"})
        write_run(tmp_path, seed=seed)
        write_run(tmp_path, method="lora", seed=seed, loss=0.5)
    for width in (60, 80, 100):
        text = to_text(make_table("e2e_nlg", read_results([tmp_path])[0]), width)
        assert max(map(len, text.splitlines())) <= width
        main = text.split("\n\ndifference")[0]
        for header in ("val loss ↓", "test ppl ↓", "BLEU ↑", "memory (MiB) ↓", "sample method"):
            assert header in main
        blocks = [block.splitlines() for block in main.split("\n\n")]
        rows = [[line.split() for line in block[-4:]] for block in blocks]
        assert all([row[0] for row in block] == ["full", "LoRA", "ROSA", "ROSA"] for block in rows)
        assert all("bottom" in block[2] and "random" in block[3] for block in rows)  # in every block
        assert "params" in main and main.count("params") == main.count("biases") == 1
        assert "0.5000±.0000" in main and "1.0000±.1414" in main


def test_hostile_names_stay_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, model=NASTY, method="=cmd()|x", dataset="e2e_nlg", record={"bias": "@SUM(A1)"})
    write_run(tmp_path, model="[b]", method="*m", record={"hardware": {"name": NASTY}})
    write_run(tmp_path, seed=3, status="failed", record={"error": NASTY})
    compile_results([tmp_path])
    assert "\x1b" not in capsys.readouterr().out
    latex = (tmp_path / "e2e_nlg" / "results.tex").read_text(encoding="utf-8")
    typeset, comments = latex.split("% Not in the table")
    assert typeset.count(r"\end{tabular}") == 2 and r"\input{" not in typeset
    assert all(line.startswith("%") for line in comments.splitlines()[1:])
    assert all(len(row) == len(latex_rows(tmp_path)[0]) for row in latex_rows(tmp_path))
    assert not any(row[0].startswith(("[", "*")) for row in latex_rows(tmp_path))
    markdown = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert "<b>" not in markdown.replace("\\<b\\>", "") and len(markdown_rows(tmp_path)) == 2
    frame = csv_of(tmp_path)
    assert "'=cmd()|x" in set(frame.method) and "'@SUM(A1)" in set(frame.bias)


def test_control_characters_are_escaped_in_every_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = "x\x1b]0;t\x07\x9b\u202ey"
    finished = write_run(
        tmp_path, seed=0, record={"seed": odd, "loss_on": odd}, scores={odd: 1.0}, config={f"z{odd}": 1}
    )
    failed = write_run(tmp_path, seed=1, status="failed", record={"error": odd})
    write_run(tmp_path, seed=2, config={f"z{odd}": odd})
    for run in (finished, failed):
        run.rename(run.with_name(run.name + file_name(odd)))
    out = tmp_path / file_name(odd)
    compile_results([tmp_path], out=out)
    outputs = [capsys.readouterr().out, *(file.read_text(encoding="utf-8") for file in out.rglob("results.*"))]
    assert len(outputs) == 4
    for text in outputs:
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        assert all(escape in text for escape in ("x1b", "x07", "x9b", "u202e"))


def test_a_percent_sign_in_a_number_is_no_comment(tmp_path: Path) -> None:
    for method, loss in (("lora", 1.5), ("rosa", 1.2), ("none", 1.0)):
        write_run(tmp_path, method=method, loss=loss)
    compile_results([tmp_path], formats=["tex"])
    latex = (tmp_path / "e2e_nlg" / "results.tex").read_text(encoding="utf-8").split(r"\label{tab:e2e-nlg-gap}")[1]
    assert r"& 60 \% &" in latex and not re.search(r"[^\\{]%", latex)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_escaped_latex_has_no_active_character(text: str) -> None:
    escaped = escape(text)
    for command in ("textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater", "textbar"):
        escaped = escaped.replace(f"\\{command}{{}}", "")
    escaped = re.sub(
        r"\\textasciigrave\{\}|\$\\(pm|times|Delta|uparrow|downarrow)\$|\$-\$|\{[\[\]*-]\}|\\[{}$&#%_]", "", escaped
    )
    assert not set(escaped) & set('\\{}$&#%_~^\n\r"')


@pytest.mark.tools
def test_latex_compiles(tmp_path: Path) -> None:
    if not shutil.which("pdflatex"):
        pytest.skip("pdflatex is not installed")
    write_run(
        tmp_path, model=NASTY, method="[*" + NASTY, record={"hardware": {"name": "".join(map(chr, range(32, 256)))}}
    )
    write_run(tmp_path, model=NASTY, method="lora", seed=1)
    write_run(tmp_path, model=NASTY, method="none")
    write_run(tmp_path, seed=3, status="failed", record={"error": NASTY})
    compile_results([tmp_path], formats=["tex"])
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs,graphicx}\\begin{document}\\input{e2e_nlg/results.tex}\\end{document}"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "main.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "Missing character" not in (tmp_path / "main.log").read_text(errors="replace")
