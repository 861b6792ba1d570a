"""E2E files and hub cache, the user's own files, strict reading, grouping by source."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ROOT, data_folder, write_csv
from utils.data import Example, get_source, pair, sources
from utils.data.e2e import E2E
from utils.data.pairs import Pairs
from utils.errors import UserError
from utils.evaluation import group_by_source, write_predictions
from utils.io.rows import read_csv
from utils.runs import Run
from utils.text import one_line

ROW = ("name[The Eagle]", "The Eagle is here.")


def e2e_folder(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / "devset.csv").write_bytes(content)
    return tmp_path


def test_prompt_and_target_are_laid_out_as_published(tmp_path: Path) -> None:
    write_csv(tmp_path / "devset.csv", [ROW])
    (example,) = E2E().load("validation", tmp_path, None)
    assert example.prompt == "Input: name[The Eagle] Output:"
    assert example.target == " The Eagle is here."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"meaning,ref\na,b\n", "devset.csv has no column mr; its columns: meaning, ref"),
        (b"", "has no column mr or ref; its columns: none"),
        (b"mr,ref\n", "devset.csv has no records"),
        (b"mr,ref\nname[A],A.\nname[B],\n", "line 3 (ref): empty or not a text (1 of 2 rows)"),
        (
            b"mr,ref\n ,A.\n" + 9 * b",\n" + b"name[A],A.\n",
            "line 9 (mr and ref), ...: empty or not a text (10 of 11 rows)",
        ),
        (b"mr,ref\nname[A]\n", "line 2 has fewer fields"),
        (b"mr,ref\nname[A], area[x],A.\n", "line 2 has more fields"),
        ("mr,ref\nname[Café],A.\n".encode("latin1"), "line 2 is not UTF-8: convert the file, e.g. iconv -f latin1"),
        ("mr,ref\nname[A],A.\n".encode("utf-16"), "is not UTF-8: convert the file, e.g. iconv -f utf-16"),
        (b'mr,ref\n"name[A],A.\n', "line 2: no CSV from here on"),
        (b"mr,ref\nname[A],A\0.\n", "line 2 has a NUL"),
    ],
)
def test_bad_files_are_named_with_their_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UserError) as refused:
        E2E().load("validation", e2e_folder(tmp_path, content), None)
    assert message in str(refused.value)


def test_bom_crlf_quotes_and_newlines_inside_fields_are_read(tmp_path: Path) -> None:
    content = '\ufeff"mr","ref"\r\n"name[A, ""B""]","One\nline, ""two""."\r\n'.encode()
    (example,) = E2E().load("validation", e2e_folder(tmp_path, content), None)
    assert example.source == 'name[A, "B"]'
    assert example.reference == 'One\nline, "two".'


def test_missing_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        E2E().load("train", tmp_path / "nowhere", None)
    with pytest.raises(UserError, match=r"holds none of trainset\.csv"):
        E2E().load("train", tmp_path, None)
    write_csv(tmp_path / "trainset.csv", [ROW])
    with pytest.raises(UserError, match="is a file: give the folder"):
        E2E().load("train", tmp_path / "trainset.csv", None)


def test_without_network_the_error_gives_two_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.load_dataset", _unreachable)
    with pytest.raises(UserError, match=r"(?s)dataset\.path.*e2e_sample"):
        E2E().load("train", None, str(tmp_path))


def _unreachable(*_arguments: object, **_options: object) -> None:
    raise ConnectionError("no route to host")


def test_a_filled_cache_works_offline(tmp_path: Path) -> None:
    """An offline process reads a cache like the one that the hub's parquet conversion leaves."""
    import os
    import subprocess
    import sys

    import pandas
    from datasets.packaged_modules.parquet.parquet import Parquet

    rows = pandas.DataFrame({"meaning_representation": ["name[A]", "name[B]"], "human_reference": ["A.", "B."]})
    rows.to_parquet(tmp_path / "test.parquet")
    Parquet(
        cache_dir=str(tmp_path / "cache"), dataset_name="e2e_nlg", hash="0" * 40,
        data_files={"test": [str(tmp_path / "test.parquet")]},
    ).download_and_prepare()  # fmt: skip
    # files from the hub are cached under the repository's name and a configuration name without a hash
    folder = (tmp_path / "cache" / "e2e_nlg").rename(tmp_path / "cache" / "tuetschek___e2e_nlg")
    next(folder.glob("default-*")).rename(folder / "default")
    code = (
        "from utils.data.e2e import E2E\n"
        f"print([e.reference for e in E2E().load('test', None, {str(tmp_path / 'cache')!r})])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.stdout.strip() == "['A.', 'B.']", result.stderr


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "jsonl.gz"])
def test_own_files(tmp_path: Path, suffix: str) -> None:
    records = [{"prompt": "2 + 2 =", "target": "4"}, {"prompt": "Say hi:", "target": "hi, there"}]
    path = tmp_path / f"test.{suffix}"
    if suffix == "csv":
        path.write_text('prompt,target\n2 + 2 =,4\nSay hi:,"hi, there"\n', encoding="utf-8")
    else:
        text = "".join(json.dumps(record) + "\n" for record in records).encode()
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    assert Pairs().load("test", tmp_path, None) == [
        Example("2 + 2 =", "2 + 2 =", " 4", "4"),
        Example("Say hi:", "Say hi:", " hi, there", "hi, there"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"prompt": true, "target": "x"}', "line 1 .*empty or not a text .1 of 1 rows"), ("[1]", "not a JSON object"),
     ("{", "line 1 is not JSON"), ('{"prompt": "x"}', "no field target"),
     ('{"target": "x", "prompt": "y", "target": "z"}', "line 1 is .*: the field target is there twice")],
)  # fmt: skip
def test_bad_json_lines(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        Pairs().load("test", tmp_path, None)


def test_every_file_in_the_folder_registers_a_data_set() -> None:
    import pkgutil

    import utils.data

    files = {module.name for module in pkgutil.iter_modules(utils.data.__path__) if module.name[0] != "_"}
    assert {source.__module__.rpartition(".")[2] for source in sources().values()} == files
    with pytest.raises(UserError, match=r"Did you mean e2e_nlg\?"):
        get_source("e2e_nlq")


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.text(min_size=1)), max_size=40))
def test_grouping_keeps_every_reference_once_in_order(rows: list[tuple[str, str]]) -> None:
    groups = group_by_source([pair(source, reference) for source, reference in rows])
    assert [group[0].source for group in groups] == list(dict.fromkeys(source for source, _ in rows))
    for group in groups:
        assert [e.reference for e in group] == [text for source, text in rows if source == group[0].source]


@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    assert len(one_line(text).splitlines()) <= 1
    assert one_line(text).split() == text.split()


def test_prediction_files_have_one_line_per_item(tmp_path: Path) -> None:
    groups = [[pair("a", "A\u2028one."), pair("a", "A two.")], [pair("b", "B.")]]
    write_predictions(Run(tmp_path), "test", groups, [group[0].prompt for group in groups], ["one\ntwo\x85three", ""])
    assert (tmp_path / "test_predictions.txt").read_bytes() == b"one two three\n\n"
    assert (tmp_path / "test_references.txt").read_bytes() == b"A one.\nA two.\n\nB.\n"
    raw = [
        json.loads(line) for line in (tmp_path / "test_predictions.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    ]
    assert [item["prediction"] for item in raw] == ["one\ntwo\x85three", ""]
    assert raw[0]["references"] == ["A\u2028one.", "A two."]


def test_the_real_e2e_data() -> None:
    folder = data_folder("E2E_DIR")
    counts = {}
    for split in ("train", "validation", "test"):
        examples = E2E().load(split, folder, None)
        counts[split] = (len(examples), len(group_by_source(examples)))
    assert counts == {"train": (42061, 4862), "validation": (4672, 547), "test": (4693, 630)}


def test_a_row_that_spans_lines_is_named_by_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('mr,ref\n"a\nb",c\n"d",e\n', encoding="utf-8")
    assert [where.rpartition(", ")[2] for where, _ in read_csv(tmp_path / "x.csv", ("mr", "ref"))] == [
        "line 3",
        "line 4",
    ]


def test_numbers_are_texts_in_json_as_in_csv(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("prompt,target\n1,2.50\n", encoding="utf-8")
    (tmp_path / "test.jsonl").write_text('{"prompt": 1, "target": 2.50}\n', encoding="utf-8")
    assert (
        Pairs().load("test", tmp_path, None)
        == Pairs().load("train", tmp_path, None)
        == [Example("1", "1", " 2.50", "2.50")]
    )


def test_a_split_has_one_file(tmp_path: Path) -> None:
    """A second file for the split, a folder or a broken link under its name is an error, not skipped."""
    (tmp_path / "train.csv").write_text("prompt,target\na,b\n", encoding="utf-8")
    (tmp_path / "train.jsonl").write_text('{"prompt": "other", "target": "one"}\n', encoding="utf-8")
    (tmp_path / "validation.csv").mkdir()
    (tmp_path / "test.csv").symlink_to("nowhere")
    for split, message in (
        ("train", r"holds train\.csv and train\.jsonl, and only one"),
        ("validation", r"validation\.csv is a folder"),
        ("test", r"test\.csv is a link to nothing"),
    ):
        with pytest.raises(UserError, match=message):
            Pairs().load(split, tmp_path, None)
