"""Ranks: an int is the rank itself, a ratio is a share of each layer's full rank."""

from __future__ import annotations

import math
import re
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rosa.settings import check_rank
from rosa.subspace import resolve_rank

SIZE = st.integers(1, 5000)


@given(st.integers(1, 6000), SIZE, SIZE)
def test_an_int_is_the_rank_itself_or_an_error(rank: int, m: int, n: int) -> None:
    if rank <= min(m, n):
        assert resolve_rank(rank, m, n) == rank
    else:
        with pytest.raises(ValueError, match=re.escape(f"rank={rank} is above {min(m, n)}")):
            resolve_rank(rank, m, n)


@given(st.integers(1, 10_000), SIZE, SIZE)
@example(2900, 100, 100)  # 0.29 * 100 is 28.999999999999996
def test_a_ratio_is_floored_in_decimals(ten_thousandths: int, m: int, n: int) -> None:
    rank = resolve_rank(ten_thousandths / 10_000, m, n)
    assert rank == max(1, math.floor(Fraction(ten_thousandths, 10_000) * min(m, n)))


@given(st.floats(min_value=0, max_value=1, exclude_min=True), SIZE, SIZE)
def test_every_ratio_gives_a_legal_rank(ratio: float, m: int, n: int) -> None:
    rank = resolve_rank(ratio, m, n)
    assert type(rank) is int and 1 <= rank <= min(m, n) and rank == resolve_rank(ratio, n, m)


@given(st.one_of(st.integers(max_value=0), st.floats(max_value=0), st.floats(min_value=1, exclude_min=True)))
@example(float("nan"))
@example(float("inf"))
def test_what_is_no_rank_is_refused(rank: int | float) -> None:
    with pytest.raises(ValueError, match="rank="):
        check_rank(rank)


def test_rank_examples() -> None:
    assert resolve_rank(1, 768, 3072) == 1 and resolve_rank(1.0, 768, 3072) == 768
    assert resolve_rank(0.29, 100, 100) == 29 and resolve_rank(0.0125, 768, 768) == 9
    assert resolve_rank(1e-9, 768, 768) == 1
    for bad in ("8", None, True, [8]):
        with pytest.raises(ValueError, match="rank="):
            check_rank(bad)  # type: ignore[arg-type]
