"""compile_results.py --diff: the keys whose values differ between two runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.records import write_run
from utils.errors import UserError
from utils.results.diff import diff_runs

ROOT = Path(__file__).parents[2]


def sections(first: Path, second: Path) -> list[dict[str, list[str]]]:
    """For each section, the values of A and B by key."""
    found = []
    for section in diff_runs(first, second).split("\n\n")[1:]:
        lines = section.splitlines()
        assert len(lines) > 2 or lines[0].endswith("no difference")
        found.append({line.split()[0]: line.split()[1:] for line in lines[2:]})
    return found


def test_settings_are_listed_by_dotted_key_and_by_whether_they_change_the_result(tmp_path: Path) -> None:
    one = write_run(tmp_path, config={"train.lr": 1e-3, "output.path": "x", "fnmodel.lora.alpha": 3})
    two = write_run(tmp_path, config={"train.lr": 1e-5, "output.path": "y"}, rank=0.1, seed=3)
    changing, others, recorded = sections(one, two)
    assert changing == {"seed": ["0", "3"], "train.lr": ["0.001", "1e-05"], "fnmodel.params.rank": ["0.05", "0.1"]}
    assert others == {"output.path": ["x", "y"], "fnmodel.lora.alpha": ["3", "null"]}  # ROSA has no alpha
    assert set(recorded) == {"parameters.trainable"}


def test_of_the_starts_only_earlier_ones_on_other_code_or_hardware_are_compared(tmp_path: Path) -> None:
    def run(seed: int, *commits: str) -> Path:
        starts = [{"time": f"{seed}{step}", "step": step, "git_commit": name} for step, name in enumerate(commits)]
        return write_run(tmp_path, seed=seed, record={"starts": starts, "git_commit": commits[-1]})

    first, resumed, changed = run(0, "new"), run(1, "new", "new"), run(2, "old", "new")
    assert sections(first, resumed)[2] == {}
    assert sections(first, changed)[2] == {"earlier_starts": ["–", '[{"git_commit":', '"old"}]']}


def test_a_key_that_only_one_run_has_is_a_difference(tmp_path: Path) -> None:
    one, two = write_run(tmp_path, config={"train.new": None}), write_run(tmp_path)
    assert sections(one, two)[0] == {"train.new": ["null", "–"]}
    assert sections(two, one)[0] == {"train.new": ["–", "null"]}


def test_data_versions_and_commit_are_compared_and_measurements_are_not(tmp_path: Path) -> None:
    records = [
        {
            "versions": {"torch": version, "numpy": "2.0"},
            "git_commit": commit,
            "data": {"train": {"samples": 5, "sha256": 8 * digest}},
        }
        for version, commit, digest in (("2.1", "a" * 40, "0123456a"), ("2.2", "b" * 40 + "+changes", "0123456b"))
    ]
    one = write_run(tmp_path, record=records[0], loss=1.0)
    two = write_run(tmp_path, record=records[1], loss=2.0, seed=0, evaluation={"limit": 5})
    changing, others, recorded = sections(one, two)
    assert not changing and not others
    assert recorded["versions.torch"] == ["2.1", "2.2"] and "versions.numpy" not in recorded
    assert recorded["git_commit"] == ["a" * 12 + "…", "b" * 12 + "…+changes"]
    assert recorded["evaluation.limit"] == ["null", "5"]
    assert set(recorded) == {"versions.torch", "git_commit", "data.train.sha256", "evaluation.limit"}


def test_decoding_is_a_setting_and_a_run_equals_itself(tmp_path: Path) -> None:
    one, two = write_run(tmp_path), write_run(tmp_path, seed=1, evaluation={"decoding": {"num_beams": 2}})
    assert sections(one, two)[0]["decoding.num_beams"] == ["10", "2"]
    assert sections(one, one) == [{}, {}, {}]


def test_control_characters_are_escaped(tmp_path: Path) -> None:
    one = write_run(tmp_path, config={"train.\x1bkey": "\x1b[31m"}, record={"data": "\x9b"})
    one = one.rename(one.with_name("\x1b[2J"))
    text = diff_runs(one, write_run(tmp_path))
    assert not {"\x1b", "\x9b"} & set(text) and r"train.\x1bkey" in text and r"\x1b[31m" in text


def test_a_folder_that_is_not_one_run_is_refused_by_name(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    write_run(tmp_path, seed=1)
    (tmp_path / "empty").mkdir()
    without = write_run(tmp_path / "other")
    (without / "config.yaml").unlink()
    broken = write_run(tmp_path / "broken")
    (broken / "run.json").write_text("{", encoding="utf-8")
    for folder, message in (
        (tmp_path / "absent", "absent is not a folder"),
        (tmp_path / "empty", r"no runs under .*empty"),
        (tmp_path / "e2e_nlg", "has 2 runs"),
        (without, r"config\.yaml: No such file"),
        (broken, r"run\.json cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            diff_runs(run, folder)


@pytest.mark.parametrize(
    "arguments", [["--diff", "a"], ["--diff", "a", "b", "c"], ["--diff", "a", "b", "--compare", "a", "b"], []]
)
def test_the_number_of_arguments_is_checked(arguments: list[str]) -> None:
    command = [sys.executable, "compile_results.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "RUN_A RUN_B" in done.stderr and "Traceback" not in done.stderr
    assert "expected 2 arguments" in done.stderr or "give RUNS" in done.stderr
