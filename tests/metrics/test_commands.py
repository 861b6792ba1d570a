"""``python -m utils.metrics`` and ``eval.sh``: output, exit codes, and no partly written files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.data.eli5 import ELI5
from utils.errors import UserError
from utils.io.files import write_json
from utils.metrics import OFFICIAL, metrics
from utils.metrics.__main__ import main
from utils.metrics.scoring import java, score_runs
from utils.runs import Run
from utils.runs.texts import Answer, write_texts

ROOT = Path(__file__).parents[2]
MEANINGS = ["name[Aromi], eatType[pub]", "name[Cocum], area[riverside]"]
PREDICTIONS = "Aromi is a pub.\nCocum is in the city centre.\n"
REFERENCES = "Aromi is a pub.\nThe pub Aromi.\n\nCocum is by the river.\n"


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "p.txt").write_text(PREDICTIONS, encoding="utf-8")
    (tmp_path / "r.txt").write_text(REFERENCES, encoding="utf-8")
    (tmp_path / "s.txt").write_text("\n".join(MEANINGS) + "\n", encoding="utf-8")
    return [str(tmp_path / "p.txt"), str(tmp_path / "r.txt")]


def write_run(folder: Path, predictions: str | None = PREDICTIONS, status: str = "finished") -> Run:
    folder.mkdir(parents=True)
    run = Run(folder)
    run.update_record(status=status)
    if predictions is not None:
        evaluate(run, predictions, REFERENCES)
    return run


def evaluate(run: Run, predictions: str, references: str) -> None:
    """Write the files of eval.py for lines of predictions and groups of references."""
    items = zip(MEANINGS, predictions.splitlines(), references.split("\n\n"), strict=True)
    answers = [Answer(meaning, f"Input: {meaning} Output:", text, group.splitlines()) for meaning, text, group in items]
    write_texts(run, "test", answers)


def test_json_has_the_five_scores(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*files, "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(OFFICIAL)


def test_text_output_and_a_choice_of_metrics(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*files, "--metrics", "ROUGE_L,SER", "--sources", files[0].replace("p.txt", "s.txt")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["ROUGE_L", "SER"]
    assert lines[1].split()[1] == "0.2500"  # one wrong slot of four


def test_sources_in_another_order_than_the_tables_are_refused(tmp_path: Path) -> None:
    texts = zip(MEANINGS, PREDICTIONS.splitlines(), strict=True)
    rows = [f'"{meaning}","{text}"' for meaning, text in texts]
    for name, order in (("p.csv", rows), ("r.csv", rows[::-1])):
        (tmp_path / name).write_text("\n".join(["mr,ref", *order]) + "\n", encoding="utf-8")
    (tmp_path / "s.txt").write_text("\n".join(MEANINGS) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="sources of the tables in another order"):
        main([str(tmp_path / name) for name in ("p.csv", "r.csv")] + ["--sources", str(tmp_path / "s.txt")])


def test_all_metrics_are_those_that_apply(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*files, "--metrics", "all", "--json"])
    without = json.loads(capsys.readouterr().out)
    main([*files, "--metrics", "all", "--json", "--sources", files[0].replace("p.txt", "s.txt")])
    assert set(json.loads(capsys.readouterr().out)) - set(without) == {"SER", "SER_missing", "SER_added", "SER_wrong"}


def test_without_java_the_java_engine_is_an_error(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="needs Java"):
        main([*files, "--engine", "java"])


@pytest.mark.slow
@pytest.mark.tools
@pytest.mark.skipif(java.shutil.which("java") is None, reason="there is no Java to run the jars")
def test_the_java_engine_gives_the_same_scores(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*files, "--json"])
    own = json.loads(capsys.readouterr().out)
    main([*files, "--json", "--engine", "java"])
    assert json.loads(capsys.readouterr().out) == pytest.approx(own, abs=1e-10)


EVAL = ("bash", str(ROOT / "eval.sh"))


def shell(*arguments: str, cwd: Path, command: tuple[str, ...] = EVAL) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([*command, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_eval_sh_scores_each_run_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "utils").mkdir()  # must not be imported instead of the package
    good = write_run(tmp_path / "runs" / "e2e_nlg" / "good")
    waiting = write_run(tmp_path / "runs" / "e2e_nlg" / "waiting", None, "interrupted")
    trial = write_run(tmp_path / "runs" / "e2e_nlg" / "tried", None)
    trial.config_file.write_text("output: {search: true}\n", encoding="utf-8")
    broken = write_run(tmp_path / "runs" / "e2e_nlg" / "broken")
    broken.raw_predictions().unlink()
    broken.predictions().write_text("only one line\n", encoding="utf-8")
    done = shell("runs", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "good" in done.stdout and "scored" in done.stdout
    assert "waiting" in done.stdout and "same train.py command" in done.stdout
    assert "tried" not in done.stdout + done.stderr
    assert "broken" in done.stderr and "1 predictions" in done.stderr and "Traceback" not in done.stderr
    scores = good.scores()
    assert scores and set(OFFICIAL) | {"SER", "distinct_1", "length_ratio", "items"} <= set(scores)
    assert scores["SER"] == 0.25
    assert not waiting.scores_file.exists() and not broken.scores_file.exists()
    assert not [path for path in good.path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((), "usage"), (("nowhere",), "nowhere is not a folder"), (("empty",), "no runs under empty")],
)
def test_eval_sh_on_bad_input(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "empty").mkdir()
    done = shell(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr


def test_the_module_on_bad_input(tmp_path: Path) -> None:
    done = shell("a.txt", "b.txt", cwd=ROOT, command=(sys.executable, "-m", "utils.metrics"))
    assert done.returncode == 2
    assert done.stderr == "error: b.txt does not exist\n"


def test_current_scores_are_kept_until_predictions_change(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    scorer = score_runs.RunScorer()
    assert [outcome.state for outcome in scorer.score(run)] == ["scored"]
    before = run.scores_file.stat().st_mtime_ns, run.scores()
    assert [outcome.state for outcome in scorer.score(run)] == ["current"]
    assert (run.scores_file.stat().st_mtime_ns, run.scores()) == before
    assert [outcome.state for outcome in score_runs.RunScorer(force=True).score(run)] == ["scored"]
    assert run.scores() == before[1]
    evaluate(run, PREDICTIONS.replace("pub", "bar"), REFERENCES)
    assert [outcome.state for outcome in scorer.score(run)] == ["scored"]
    assert run.scores() != before[1]
    evaluate(run, PREDICTIONS, REFERENCES.replace("pub", "bar"))
    assert [outcome.state for outcome in scorer.score(run)] == ["scored"]


def test_a_split_that_fails_does_not_change_the_scores_of_another(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    score_runs.RunScorer().score(run)
    test = run.scores()
    run.predictions("validation").write_text(PREDICTIONS, encoding="utf-8")
    outcomes = score_runs.RunScorer().score(run)
    assert {outcome.split: outcome.state for outcome in outcomes} == {"validation": "failed", "test": "current"}
    assert run.scores() == test and run.scores("validation") is None
    run.references("validation").write_text(REFERENCES, encoding="utf-8")
    score_runs.RunScorer().score(run)
    validation = run.scores("validation")
    assert run.scores() == test and validation and validation["BLEU"] == test["BLEU"]


def test_scores_of_different_numbers_of_items_say_how_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "whole")
    score_runs.main([str(tmp_path)])
    assert "items" not in capsys.readouterr().out
    answer = Answer(MEANINGS[0], "Input:", "Aromi is a pub.", ["Aromi is a pub."])
    write_texts(write_run(tmp_path / "first", None), "test", [answer])
    write_run(tmp_path / "waits", None)
    score_runs.main([str(tmp_path)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if "test" in line.split()]
    assert {row[0]: row[-2:] for row in rows} == {"first": ["1", "scored"], "whole": ["2", "current"]}


def test_truncated_files_and_unreadable_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    run.scores_file.write_text("{", encoding="utf-8")
    assert [outcome.state for outcome in score_runs.RunScorer().score(run)] == ["scored"]
    scores = run.scores()
    run.raw_predictions().write_text('{"prompt": "Input: x', encoding="utf-8")
    failed = score_runs.RunScorer(force=True).score(run)[0]
    assert failed.state == "failed" and "is not JSON" in failed.reason
    assert run.scores() == scores


def test_a_failed_write_keeps_the_old_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run")
    score_runs.RunScorer().score(run)
    before = run.scores_file.read_bytes()

    def fail(source: str, target: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    assert score_runs.RunScorer(force=True).score(run)[0].state == "failed"
    assert run.scores_file.read_bytes() == before
    assert sorted(path.name for path in run.path.iterdir() if path.name.startswith(".")) == []


def test_a_warning_is_one_line_that_names_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        write_run(tmp_path / name, "A pub.\nB.\n")
    assert score_runs.main([str(tmp_path)]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["warning", str(tmp_path / name)] for name in "ab"]


def test_a_data_set_that_lists_its_scores_gets_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, other = write_run(tmp_path / "runs" / "own"), write_run(tmp_path / "runs" / "other")
    own.update_record(dataset="eli5")
    other.update_record(dataset="of a plug-in that is not installed")
    assert score_runs.main([str(tmp_path)]) == 0
    header = capsys.readouterr().out.splitlines()[0].split()
    assert header[2:] == [*OFFICIAL, "SER", "distinct_1", "distinct_2", "length_ratio"]
    scores, others = own.scores() or {}, other.scores() or {}
    assert set(scores) & set(metrics()) == set(ELI5.metrics) and set(OFFICIAL) <= set(others)
    write_json(own.scores_file, {"test": others})  # an older file: all scores that apply
    (outcome,) = score_runs.RunScorer().score(own)
    assert outcome.state == "current" and outcome.scores == {name: scores[name] for name in ELI5.metrics}
    score_runs.main([str(own.path)])
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "split", *ELI5.metrics]


@pytest.mark.parametrize("edit", ["predictions", "references"])
def test_a_line_file_that_differs_from_the_json_lines_is_refused(tmp_path: Path, edit: str) -> None:
    """The JSON lines are scored and the line files are what people read, so both must have the same texts."""
    run = write_run(tmp_path / "run")
    file = run.predictions() if edit == "predictions" else run.references()
    file.write_text(file.read_text(encoding="utf-8").replace("pub", "bar"), encoding="utf-8")
    (failed,) = score_runs.RunScorer().score(run)
    assert failed.state == "failed" and run.scores() is None
    assert (
        failed.reason
        == f"{file.name} and test_predictions.jsonl hold different texts. Run eval.py again, which writes both."
    )
    run.raw_predictions().unlink()  # as if another tool had written the line files
    (scored,) = score_runs.RunScorer().score(run)
    assert scored.state == "scored" and "SER" not in scored.scores


def test_json_lines_that_eval_wrote_are_not_replaced_by_the_line_files(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_json(run.eval_file, {"test": {"raw_predictions_sha256": "0" * 64}})
    run.raw_predictions().unlink()
    (failed,) = score_runs.RunScorer().score(run)
    assert failed.state == "failed" and failed.reason.startswith("test_predictions.jsonl is missing")


def test_json_lines_and_line_files_give_the_same_scores(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_texts(run, "test", [Answer("why?", "why?", " a\u2028pub\n here ", ["the\r\npub", "a\x0cbar "])])
    (raw,) = score_runs.RunScorer().score(run)
    run.raw_predictions().unlink()
    (lines,) = score_runs.RunScorer(force=True).score(run)
    assert raw.scores and raw.scores == lines.scores


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "p", "prediction": "x", "references": ["y"]}, "line 1 lacks source, prompt"),
        ({"source": "s", "prompt": "p", "prediction": 1, "references": ["y"]}, "different texts"),
        ({"source": "s", "prompt": "p", "prediction": "x", "references": [None]}, "lacks source, prompt"),
        ({"source": "s", "prompt": "p", "prediction": "x", "references": [" "]}, "a reference is empty"),
        ({"source": "s", "prompt": "p", "prediction": "x", "references": []}, "a reference is empty, or there is none"),
    ],
)
def test_json_lines_that_lack_a_field_are_refused(tmp_path: Path, line: dict[str, object], message: str) -> None:
    run = write_run(tmp_path / "run")
    run.raw_predictions().write_text(json.dumps(line) + "\n", encoding="utf-8")
    (failed,) = score_runs.RunScorer().score(run)
    assert failed.state == "failed" and message in failed.reason and "test_predictions.jsonl" in failed.reason


def test_a_folder_without_any_predictions_is_an_error(tmp_path: Path) -> None:
    write_run(tmp_path / "run", None)
    with pytest.raises(UserError, match=r"no run has predictions yet.*eval\.py"):
        score_runs.main([str(tmp_path)])
