"""Single rules of the tokenizers, lines whose tokens depend on the next line, and properties of any output."""

from __future__ import annotations

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.metrics.scoring import java
from utils.metrics.tokenizers import mteval
from utils.metrics.tokenizers.ptb import PUNCTUATION, tokenize, tokenize_groups, tokenize_lines

WORDS = ["it's", "can't", "£20", "£20-25", "5/5", "Dr.", "U.S.", "no.", "cannot", "(a)", "“b”", "‘c’", "d...", "e-f"]
WORDS += ["www.a.com", "http://a.b/c", "5.x", "A$", "a.m.,", "l'a", "‘s", "AT&T", "#a", "70's", "'90s", "mid-price"]
WORDS += ["g–h", "i—j", "&amp;", ":)", "é", "O'Neil", "no.5", "a,b-c"]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Less than £20.", "less than # 20"),
        ("It costs £20-25", "it costs # 20-25"),
        ("£20 – £25", "# 20 # 25"),
        ("(family-friendly)", "-lrb- family-friendly -rrb-"),
        ("the centre.,", "the centre."),
        ("cheap,family-friendly", "cheap,family-friendly"),
        ("good.The", "good.the"),
        ("cannot don't Cotto's", "can not do n't cotto 's"),
        ("it’s don’t", "it 's do n't"),
        ("5/5 3.5/5 1,000", "5/5 3.5 / 5 1,000"),
        ("rated 5 5/5", "rated 5\u00a05/5"),
        ("a _ b __ c_d", "a _ b __ c_d"),
        ("\ufeffx\u200by z", "x y z"),
        ("soft\u00adhyphen", "softhyphen"),
        ("hi 😀 there", "hi there"),
        ("Ave. x", "ave. x"),
        ("wash. Wash. x", "wash wash. x"),
        ("rock'n'roll", "rock 'n' roll"),
        ("wait... now ... ok…", "wait now ok"),
        ("what?! no!!", "what ?! no !!"),
        ("½ café", "1/2 café"),
        ("at http://a.bc/d, www.a-b.co.uk. Or a.com/xy", "at http://a.bc/d www.a-b.co.uk or a.com/xy"),
        ("AT&T AT&amp;T at&amp;t", "at&t at&t at & t"),
        ("HK$20 PRICE$", "hk$ 20 price$"),
        ("rated 5.x, 5.a", "rated 5.x 5 a"),
        ("the bar e.g., centrea.m., x", "the bar e.g. centrea.m. x"),
        ("O'20 l'a l'ami", "o'20 l' a l'ami"),
        ("caf:(é #été", "caf :-lrb- é #été"),
        ("", ""),
        (" \u00a0 ", ""),
    ],
)
def test_ptb_tokens(text: str, tokens: str) -> None:
    assert tokenize(text) == tokens


def test_some_tokens_depend_on_the_next_line_as_in_the_official_tokenizer() -> None:
    assert tokenize_lines(["It is point B.", "The end"]) == ["it is point b", "the end"]
    assert tokenize_lines(["It is point B.", "No end"]) == ["it is point b.", "no end"]
    assert tokenize_lines(["It is point B.", "5 ends"]) == ["it is point b.", "5 ends"]
    assert tokenize_lines(["Is it cheap? no.", "5 stars"]) == ["is it cheap no.", "5 stars"]
    assert tokenize_lines(["Is it cheap? no.", "Five stars"])[0] == "is it cheap no"
    assert tokenize_lines(["The riverside’s e.", "The end"])[0] == "the riverside 's e"
    assert tokenize_groups([["b."], ["The", "x"]]) == [["b"], ["the", "x"]]


def test_mteval_lowers_ascii_only() -> None:
    assert mteval.tokenize("ÉCLAIR Café, 5.5!") == ["Éclair", "café", ",", "5.5", "!"]


@given(st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join))
@settings(deadline=None)
def test_ptb_tokens_are_lower_case_without_punctuation(text: str) -> None:
    line = tokenize(text)
    assert line == line.lower()
    assert not PUNCTUATION & set(line.split(" ")) or line == ""


@given(st.text(max_size=40))
@settings(deadline=None)
def test_any_text_is_tokenized_into_one_line(text: str) -> None:
    line = tokenize(" ".join(text.splitlines()))
    assert "\n" not in line
    assert "  " not in line


@pytest.mark.slow
@pytest.mark.tools
@pytest.mark.skipif(shutil.which("java") is None, reason="there is no Java to run the official tokenizer")
@given(st.lists(st.lists(st.sampled_from([*WORDS, "The", "a", ",", ".", ";"]), max_size=9).map(" ".join), max_size=300))
@settings(deadline=None, max_examples=20)
def test_ptb_tokens_against_the_jar(lines: list[str]) -> None:
    texts = ["start", *(line or "x" for line in lines), "end"]
    assert tokenize_lines(texts) == java.tokenize("java", texts)
