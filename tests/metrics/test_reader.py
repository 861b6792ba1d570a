"""Reading predictions and references: files that the official scorer accepts, and files that are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.metrics.scoring.reader import read_items, read_predictions, read_references


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ("a\nb\n", ["a", "b"]),
        ("a\nb", ["a", "b"]),
        ("a\r\nb\r\n", ["a", "b"]),
        ("a\n\nb\n", ["a", "", "b"]),
        ("\n\n", ["", ""]),
        ("a\n\n", ["a", ""]),
        (" a b \u00a0\n\tc\td\n", ["a b", "c\td"]),
        ('"quoted" text\n', ['"quoted" text']),
        ("a\u2028b\x85c\x0bd\re\nf\n", ["a b c d e", "f"]),
        ("\ufeffa\nb\n", ["\ufeffa", "b"]),
        ("", []),
    ],
)
def test_plain_lines(tmp_path: Path, content: str, lines: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert read_predictions(write(tmp_path, "p.txt", content)) == lines
    assert ("byte order mark" in capsys.readouterr().err) == content.startswith("\ufeff")


@pytest.mark.parametrize("end", ["", "\n", "\n\n", "\n\n\n"])
def test_groups_of_references(tmp_path: Path, end: str) -> None:
    path = write(tmp_path, "r.txt", "a\r\nb\n\nc\n \nd" + end)
    assert read_references(path) == ([["a", "b"], ["c"], ["d"]], None)


@pytest.mark.parametrize("end", ["", "\n", "\n\n"])
def test_references_without_empty_lines_are_one_for_each_prediction(tmp_path: Path, end: str) -> None:
    references = write(tmp_path, "r.txt", "a\nb\nc" + end)
    assert read_items(write(tmp_path, "p.txt", "x\n\nz\n"), references).references == [["a"], ["b"], ["c"]]
    one = write(tmp_path, "one.txt", "x\n")  # as written by eval.py --limit 1
    assert read_items(one, references).references == [["a", "b", "c"]]
    table = write(tmp_path, "r.csv", "mr,ref\nm,a\nm,b\nm,c\n")  # the sources show that there is one item
    with pytest.raises(UserError, match=r"3 predictions.*1 groups"):
        read_items(tmp_path / "p.txt", table)


def test_tables_are_matched_by_source(tmp_path: Path) -> None:
    predictions = write(tmp_path, "p.tsv", "MR\toutput\nx, 2\tsecond\nx, 1\t\n")
    references = write(tmp_path, "r.csv", 'mr,ref\r\n"x, 1",one\r\n"x, 1","uno, ""1"""\r\n"x, 2",two\r\n')
    items = read_items(predictions, references)
    assert items.predictions == ["", "second"]
    assert items.references == [["one", 'uno, "1"'], ["two"]]
    assert items.sources == ["x, 1", "x, 2"]


def test_a_table_of_several_texts_for_each_source_is_refused(tmp_path: Path) -> None:
    """Its references would be scored against themselves: BLEU 1."""
    predictions = write(tmp_path, "p.csv", "mr,ref,Prediction\nx,good text,bad text\n")
    references = write(tmp_path, "r.csv", "mr,ref\nx,good text\n")
    with pytest.raises(UserError, match=r"p.csv, line 1.* ref, Prediction may hold the texts: keep the one"):
        read_items(predictions, references)


def test_plain_predictions_for_a_table_of_references(tmp_path: Path) -> None:
    references = write(tmp_path, "r.csv", "\ufeffmr,ref\na,1\na,2\nb,3\n")
    items = read_items(write(tmp_path, "p.txt", "first\nsecond\n"), references)
    assert (items.predictions, items.sources) == (["first", "second"], ["a", "b"])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (("p.txt", "a\n"), ("r.txt", "a\n\nb\n"), r"p\.txt has 1 predictions.*2 groups.*group 2.*'b'"),
        (("p.txt", "a\nb\nc\n"), ("r.txt", "a\n\nb\n"), "line 3 of the predictions"),
        (("p.txt", "a\nb\n"), ("r.txt", "a\nb\nc\n"), "the 3 references belong to one item, or to 3 predictions"),
        (("p.txt", ""), ("r.txt", "a\n"), "0 predictions"),
        (("p.txt", "a\n"), ("r.txt", ""), "is empty"),
        (("p.txt", "a\nb\n"), ("r.txt", "a\n\n\nb\n"), r"r\.txt, line 3"),
        (("p.txt", b"a\nb\xff\n"), ("r.txt", "a\n\nb\n"), r"p\.txt, line 2 is not UTF-8"),
        (("p.tsv", "MR\toutput\na\t1\n"), ("r.csv", "mr,ref\na,1\nb,2\n"), "no text for 1 of 2 sources, the first 'b'"),
        (("p.tsv", "MR\toutput\na\t1\na\t2\n"), ("r.csv", "mr,ref\na,1\n"), "line 3: a second text"),
        (("p.tsv", "MR\toutput\nz\t1\n"), ("r.csv", "mr,ref\na,1\n"), "line 2: the references have no source 'z'"),
        (("p.tsv", 'MR\toutput\na\t"1\nb\t2\n'), ("r.csv", "mr,ref\na,1\nb,2\n"), "line 2: a quotation mark"),
        (("p.tsv", 'MR\toutput\na\t1\nb\t"2\n'), ("r.csv", "mr,ref\na,1\nb,2\n"), "line 3: a quotation mark"),
        (("p.tsv", "MR\toutput\na\t1\t2\n"), ("r.csv", "mr,ref\na,1\n"), "line 2 has 3 columns"),
        (("p.tsv", "a\t1\n"), ("r.csv", "mr,ref\na,1\n"), "line 1: a table needs a header"),
        (("p.txt", "a\n"), ("r.csv", "mr,ref\na,\n"), "line 2: the reference is empty"),
        (("p.jsonl", '{"prediction": "a"}\n'), ("r.txt", "a\n"), r"p\.jsonl: JSON would be scored as text.*\.txt"),
        (("p.txt", "a\n"), ("r.json", '["a"]\n'), r"r\.json: JSON would be scored as text"),
    ],
)
def test_files_that_do_not_match_are_refused(
    tmp_path: Path, predictions: tuple[str, str | bytes], references: tuple[str, str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_items(write(tmp_path, *predictions), write(tmp_path, *references))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt does not exist"):
        read_predictions(tmp_path / "none.txt")
    with pytest.raises(UserError, match="cannot be read"):
        read_predictions(tmp_path)
