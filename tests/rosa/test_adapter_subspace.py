"""The mathematics: which directions are sampled and how often, and that A B is made of them."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import rosa
from rosa.subspace import (
    SAMPLE_METHODS,
    choose_directions,
    seeded_generator,
    short_side_vectors,
    singular_triplets,
    split_triplets,
)
from tests.rosa.cases import FAMILIES, adapt, blocks_weights, make_model, make_optimizer, train_steps


@pytest.mark.parametrize("method", SAMPLE_METHODS)
@pytest.mark.parametrize(("q", "rank"), [(1, 1), (7, 1), (7, 6), (7, 7), (100, 29)])
def test_directions_are_distinct_ascending_and_in_range(method: str, q: int, rank: int) -> None:
    for number in range(20):
        chosen = choose_directions(q, rank, method, seeded_generator(0, number, "layer")).tolist()
        assert len(chosen) == rank and chosen == sorted(set(chosen)) and chosen[0] >= 0 and chosen[-1] < q
        if method == "top":
            assert chosen == list(range(rank))
        elif method == "bottom":
            assert chosen == list(range(q - rank, q))
        elif method == "window":
            assert chosen == list(range(chosen[0], chosen[0] + rank))
    with pytest.raises(ValueError, match="best is not one of random, window"):
        choose_directions(q, rank, "best", torch.Generator())


# Quantiles 0.0001 and 0.9999 of the chi-square distribution, by degrees of freedom (the draws are seeded: no flakes)
CHI_SQUARE = {10: (0.889, 35.564), 19: (4.149, 50.795)}


@pytest.mark.parametrize(("q", "rank"), [(20, 1), (20, 6), (20, 19), (11, 10)])
def test_random_takes_every_direction_equally_often(q: int, rank: int) -> None:
    draws = 4000
    counts = torch.zeros(q)
    for number in range(draws):
        counts[choose_directions(q, rank, "random", seeded_generator(1, number, "h.0.c_fc"))] += 1
    expected = draws * rank / q
    # Without replacement the counts vary less than independent ones: Pearson's sum averages q − R, not q − 1.
    statistic = float(((counts - expected) ** 2 / expected).sum()) * (q - 1) / (q - rank)
    low, high = CHI_SQUARE[q - 1]
    assert low < statistic < high, counts


def test_random_takes_pairs_of_directions_equally_often() -> None:
    q, rank, draws = 6, 2, 6000
    pairs = torch.zeros(q, q)
    for number in range(draws):
        first, second = choose_directions(q, rank, "random", seeded_generator(2, number, "a")).tolist()
        pairs[first, second] += 1
    seen = pairs[torch.triu(torch.ones(q, q), 1).bool()]  # 15 pairs, 14 degrees of freedom
    statistic = float(((seen - draws / 15) ** 2 / (draws / 15)).sum())
    assert 2.0 < statistic < 43.0, pairs


def test_window_takes_every_block_equally_often() -> None:
    q, rank, draws = 25, 6, 4000  # 20 blocks
    starts = torch.zeros(q)
    for number in range(draws):
        starts[choose_directions(q, rank, "window", seeded_generator(3, number, "a"))[0]] += 1
    assert starts[20:].sum() == 0
    statistic = float(((starts[:20] - draws / 20) ** 2 / (draws / 20)).sum())
    assert CHI_SQUARE[19][0] < statistic < CHI_SQUARE[19][1], starts


def test_the_choice_depends_on_seed_number_and_name_only() -> None:
    def choice(seed: int = 0, number: int = 0, name: str = "h.0.c_fc") -> list[int]:
        return choose_directions(200, 20, "random", seeded_generator(seed, number, name)).tolist()

    reference = choice()
    torch.manual_seed(123)
    torch.rand(3)
    assert choice() == reference  # the global generator is not used
    others = [choice(seed=1), choice(number=1), choice(name="h.1.c_fc"), choice(seed=1, number=1)]
    assert all(other != reference for other in others)
    assert len({tuple(other) for other in others}) == len(others)


def test_the_choice_is_the_one_of_earlier_versions() -> None:
    """A run of another version or machine resumes with the same subspaces only if these numbers stay the same."""
    chosen = choose_directions(768, 4, "random", seeded_generator(7, 2, "transformer.h.3.mlp.c_fc"))
    assert chosen.tolist() == PINNED


PINNED = [6, 191, 544, 759]


def test_the_choice_does_not_depend_on_the_order_of_layers() -> None:
    config = rosa.RosaConfig(rank=3)
    whole = rosa.adapter_layers(adapt("gpt2", config))
    name = "transformer.h.1.mlp.c_fc"
    alone = rosa.adapter_layers(adapt("gpt2", rosa.RosaConfig(rank=3, target_modules=[name])))
    assert list(alone) == [name]
    assert torch.equal(alone[name].A, whole[name].A) and torch.equal(alone[name].B, whole[name].B)
    other_seed = rosa.adapter_layers(adapt("gpt2", rosa.RosaConfig(rank=3, seed=1)))
    assert not torch.allclose(other_seed[name].A, whole[name].A)


SPLITS = ("sqrt", "left")  # those whose A B is a part of W


def factor_pair(weight: Tensor, indices: Tensor, split: str, vectors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A and B of the chosen directions, in W's dtype, by the functions that a resample calls."""
    known = short_side_vectors([weight])[0] if vectors is None else vectors
    a, b = split_triplets(*singular_triplets(weight, indices, known), split)
    return a.to(weight.dtype), b.to(weight.dtype)


def matrix(m: int, n: int, values: list[float], seed: int = 0) -> Tensor:
    """A float64 (m, n) matrix with these singular values (the rest of them zero)."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(m, m, dtype=torch.float64, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator)).Q
    middle = torch.zeros(m, n, dtype=torch.float64)
    middle[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
    return u @ middle @ v.T


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("m", "n"), [(12, 30), (30, 12), (12, 12), (1, 5), (5, 1)])
def test_the_pair_is_made_of_the_chosen_singular_directions(m: int, n: int, split: str) -> None:
    q = min(m, n)
    weight = matrix(m, n, [2.0 * 0.7**i for i in range(q)])
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    for indices in (torch.arange(q), torch.tensor([q - 1]), torch.arange(0, q, 3), torch.arange(q // 2, q)):
        a, b = factor_pair(weight, indices, split)
        assert a.shape == (m, len(indices)) and b.shape == (len(indices), n)
        torch.testing.assert_close(a @ b, (u[:, indices] * s[indices]) @ vt[indices], atol=1e-10, rtol=0)
        left = s[indices].sqrt() if split == "sqrt" else s[indices]
        torch.testing.assert_close(a.norm(dim=0), left, atol=1e-10, rtol=0)
        torch.testing.assert_close(b.norm(dim=1), s[indices] / left, atol=1e-10, rtol=0)
        # Each column of A is parallel to its own left vector, each row of B to its right one, with one common sign.
        cosines = ((a / left) * u[:, indices]).sum(0), ((b / (s[indices] / left)[:, None]) * vt[indices]).sum(1)
        torch.testing.assert_close(cosines[0].abs(), torch.ones(len(indices), dtype=torch.float64), atol=1e-9, rtol=0)
        torch.testing.assert_close(cosines[0], cosines[1], atol=1e-9, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("method", ["top", "bottom", "window"])
def test_adapted_layers_train_the_directions_that_the_sampling_names(method: str, split: str, family: str) -> None:
    rank = 5
    config = rosa.RosaConfig(rank=rank, sample_method=method, factor_split=split)
    weights = blocks_weights(make_model(family, dtype=torch.float64))
    layers = rosa.adapter_layers(adapt(family, config, torch.float64))
    assert layers.keys() == weights.keys()
    starts = set()
    for name, layer in layers.items():
        u, s, vt = torch.linalg.svd(weights[name], full_matrices=False)
        q = len(s)
        inside = (u.T @ layer.A).norm(dim=1) > 1e-8 * s[0]  # the left vectors in the span of A
        chosen = inside.nonzero().flatten().tolist()
        starts.add(chosen[0])
        first = {"top": 0, "bottom": q - rank}.get(method, chosen[0])
        assert chosen == list(range(first, first + rank))
        torch.testing.assert_close(layer.A @ layer.B, (u[:, chosen] * s[chosen]) @ vt[chosen], atol=1e-10, rtol=0)
        scale = (layer.A.T @ layer.A).diagonal(), (layer.B @ layer.B.T).diagonal()
        wanted = (s[chosen], s[chosen]) if split == "sqrt" else (s[chosen] ** 2, torch.ones_like(s[chosen]))
        for found, value in zip(scale, wanted, strict=True):
            torch.testing.assert_close(found, value, atol=1e-9, rtol=0)
    assert len(starts) > 1 or method != "window"  # each layer has its own window


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("m", "n"), [(10, 16), (16, 10)])
def test_repeated_singular_values_give_exact_singular_pairs(m: int, n: int, split: str) -> None:
    """Directions of equal values are not unique; what must hold is W v = s u, and orthogonality, for each pair."""
    weight = matrix(m, n, [3.0] * 4 + [1.0] * 6)
    a, b = factor_pair(weight, torch.tensor([1, 2, 5, 9]), split)
    s = torch.tensor([3.0, 3.0, 1.0, 1.0], dtype=torch.float64)
    u, vt = a / a.norm(dim=0), b / b.norm(dim=1)[:, None]
    torch.testing.assert_close(u.T @ u, torch.eye(4, dtype=torch.float64), atol=1e-10, rtol=0)
    torch.testing.assert_close(weight @ vt.T, u * s, atol=1e-10, rtol=0)
    torch.testing.assert_close(weight.T @ u, vt.T * s, atol=1e-10, rtol=0)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("m", "n"), [(10, 16), (16, 10), (10, 10)])
def test_rank_deficient_weights(m: int, n: int, split: str) -> None:
    weight = matrix(m, n, [2.0, 1.0, 0.5])
    a, b = factor_pair(weight, torch.arange(10), split)
    torch.testing.assert_close(a @ b, weight, atol=1e-10, rtol=0)
    a, b = factor_pair(weight, torch.tensor([4, 8, 9]), split)  # directions of the null space only
    assert a.isfinite().all() and b.isfinite().all()
    torch.testing.assert_close(a @ b, torch.zeros(m, n, dtype=torch.float64), atol=1e-10, rtol=0)
    u, _, vt = torch.linalg.svd(weight)
    assert (u[:, :3].T @ a).abs().max() < 1e-10 and (b @ vt[:3].T).abs().max() < 1e-10
    if split == "left":  # B alone is a part of an orthonormal basis, so that directions of no weight can grow
        torch.testing.assert_close(b @ b.T, torch.eye(3, dtype=torch.float64), atol=1e-10, rtol=0)
    zero = torch.zeros(m, n)
    a, b = factor_pair(zero, torch.tensor([0, 9]), split)
    assert torch.equal(a @ b, zero) and a.isfinite().all() and b.isfinite().all()


def decaying(m: int, n: int, orders: int = 4) -> Tensor:
    """A float32 (m, n) matrix with singular values over some orders of magnitude, as pretrained weights have."""
    q = min(m, n)
    return matrix(m, n, [10 ** (-orders * i / (q - 1)) for i in range(q)]).float()


def largest_sine(found: Tensor, exact: Tensor) -> float:
    """Sines of the principal angles between the column spans of ``found`` and of ``exact``, which is orthonormal."""
    basis = torch.linalg.qr(found.double()).Q
    return float(torch.linalg.matrix_norm(basis - exact @ (exact.T @ basis), 2))


@pytest.mark.parametrize("method", ["random", "top", "bottom"])
@pytest.mark.parametrize(("m", "n"), [(192, 320), (320, 192), (192, 192)])
def test_subspaces_are_those_of_a_float64_svd(m: int, n: int, method: str) -> None:
    """The sine of the largest principal angle is below 1e-5, over four orders of magnitude; that of a float32 SVD is
    larger."""
    weight = decaying(m, n)
    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    indices = choose_directions(192, 19, method, seeded_generator(0, 0, "h.0.c_fc"))
    a, b = factor_pair(weight, indices, "sqrt")
    assert a.dtype == b.dtype == torch.float32
    assert largest_sine(a, u[:, indices]) < 1e-5 and largest_sine(b.T, vt[indices].T) < 1e-5
    exact = (u[:, indices] * s[indices]) @ vt[indices]
    torch.testing.assert_close(a.double() @ b.double(), exact, atol=2e-7, rtol=0)
    if method == "random":
        plain = torch.linalg.svd(weight, full_matrices=False).U[:, indices]
        assert largest_sine(plain, u[:, indices]) > 1e-5


def test_weights_of_equal_short_sides_are_factorised_together_as_alone() -> None:
    weights = [decaying(m, n) for m, n in ((48, 96), (48, 48), (96, 48))]
    together = short_side_vectors(weights)
    for weight, vectors in zip(weights, together, strict=True):
        assert torch.equal(vectors, short_side_vectors([weight])[0])
        indices = torch.tensor([0, 7, 47])
        for found, alone in zip(
            factor_pair(weight, indices, "left", vectors), factor_pair(weight, indices, "left"), strict=True
        ):
            assert torch.equal(found, alone)


def test_a_full_svd_is_taken_only_where_the_gram_matrix_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, svd = [], torch.linalg.svd

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return svd(*args, **kwargs)

    weight = matrix(30, 40, [2.0 * 0.8**i for i in range(20)])  # ten singular values are zero
    u, s, vt = svd(weight, full_matrices=False)
    monkeypatch.setattr(torch.linalg, "svd", counted)
    live, dead = torch.tensor([0, 5, 19]), torch.tensor([0, 5, 25])
    for indices, expected in ((live, 0), (dead, 1)):
        a, b = factor_pair(weight, indices, "sqrt")
        assert len(calls) == expected
        torch.testing.assert_close(a @ b, (u[:, indices] * s[indices]) @ vt[indices], atol=1e-10, rtol=0)

    # A wrong result of the solver is noticed, whether it is a basis of other directions or no basis at all.
    other = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    scaled, undefined = short_side_vectors([weight])[0] * 1.001, torch.full((30, 30), float("nan"), dtype=torch.float64)
    for wrong in (other, scaled, undefined):
        a, b = factor_pair(weight, live, "sqrt", wrong)
        torch.testing.assert_close(a @ b, (u[:, live] * s[live]) @ vt[live], atol=1e-10, rtol=0)
    assert len(calls) == 4


@pytest.mark.parametrize("options", [{}, {"basis": "random"}, {"start": "zero"}])
def test_a_weight_of_zeros_that_cannot_train_is_a_warning(options: Any) -> None:
    """As in blocks that were added as the identity: W = 0 makes A = B = 0."""
    model = make_model("llama")
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    with pytest.warns(UserWarning, match=r"1 weights are zero \(model\.layers\.1\.mlp\.down_proj\)"):
        rosa.inject(copy.deepcopy(model), rosa.RosaConfig(rank=2, **options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rosa.inject(copy.deepcopy(model), rosa.LoraConfig(rank=2))
        split = rosa.inject(copy.deepcopy(model), rosa.RosaConfig(rank=2, factor_split="left"))
    layer = rosa.adapter_layers(split)["model.layers.1.mlp.down_proj"]
    train_steps(split, make_optimizer(split))
    assert layer.weight.abs().max() > 0
