"""A value survives Hydra's grammar and the shell, and environment variables are expanded by the shell alone."""

from __future__ import annotations

import os
import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st

from utils.slurm.sweep.quoting import expand_environment, hydra_value, override_word, shell_word

PARSER = OverridesParser.create()
# What begins with $ is an environment variable or OmegaConf's; NUL is no character of a command line.
TEXTS = st.text(st.characters(exclude_characters="$\0", exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3), max_leaves=4)


@given(VALUES)
@example("null")
@example("1e-3")
@example("a b,[c]{d}='e'\\")
@example("\\'")
@example("a\\\\'b\\")
@example(["x'y", [1.5, None, True]])
def test_hydra_reads_back_what_was_given(value: object) -> None:
    found = PARSER.parse_override(f"key={hydra_value(value)}").value()
    assert found == value
    assert str(found) == str(value)  # tells 1, 1.0, True and '1' apart


def test_mappings() -> None:
    assert PARSER.parse_override(f"key={hydra_value({'a': ['b c'], 'd': None})}").value() == {"a": ["b c"], "d": None}


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])).filter(lambda t: "$" not in t))
def test_a_shell_word_is_one_word(text: str) -> None:
    assert shlex.split(shell_word(text)) == [text]


def in_bash(word: str, **environment: str) -> list[str]:
    script = f"printf '%s\\0' {word}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env={**os.environ, **environment})
    return done.stdout.split("\0")[:-1]


@pytest.mark.parametrize(
    ("value", "given"),
    [
        ("$SCRATCH/e2e data", "key='/tmp/a b/e2e data'"),
        ("${SCRATCH}x", "key='/tmp/a bx'"),
        ("${NOT_SET_HERE:-runs dir}/x", "key='runs dir/x'"),
        ("$SCRATCH", "key=/tmp/a b"),
        ("${NOT_SET_HERE:-null}", "key=null"),
        ('$SCRATCH "q" `id` $(id) \\ !x', "key='/tmp/a b \"q\" `id` $(id) \\ !x'"),
        ("${seed}-${oc.env:HOME}", "key='${seed}-${oc.env:HOME}'"),
        ("costs $5", "key='costs $5'"),
        (["$SCRATCH/a", "b"], "key=['/tmp/a b/a',b]"),
    ],
)
def test_environment_variables_are_expanded_where_the_job_runs(value: object, given: str) -> None:
    assert in_bash(override_word("key", value), SCRATCH="/tmp/a b") == [given]


def test_expansion_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/x")
    monkeypatch.delenv("NO_PLACE", raising=False)
    assert expand_environment("$PLACE/a/${PLACE}/${NO_PLACE:-y}/$5/${seed}") == "/x/a//x/y/$5/${seed}"
    with pytest.raises(KeyError, match="NO_PLACE"):
        expand_environment("${NO_PLACE}/a")
