"""ROSA's mathematics as pure functions: rank, seeded generators, choice of directions, factorisation.

A weight W is an (m, n) matrix, m inputs by n outputs, with q = min(m, n) singular directions:
W = U S Vᵀ, singular values in falling order. ROSA (Hameed and Rabusseau 2023) picks R of them, I, and trains
A = U_I √S_I and B = √S_I V_Iᵀ while W − A B stays fixed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import get_args

import torch
from torch import Tensor

from rosa.settings import SampleMethod, check_rank

SAMPLE_METHODS = get_args(SampleMethod)


def resolve_rank(rank: int | float, m: int, n: int) -> int:
    """The rank R of an (m, n) layer: an int is R itself, a ratio is floor(ratio · q), at least 1.

    The ratio is read as the decimal that was written: 0.29 of 100 is 29, though 0.29 * 100 < 29 in binary. The ratio
    1.0 is the full rank q, the int 1 is rank one.

    Raises:
        ValueError: not a rank (see ``check_rank``), or above q.
    """
    check_rank(rank)
    q = min(m, n)
    if isinstance(rank, float):
        return max(1, math.floor(Decimal(repr(float(rank))) * q))
    if rank > q:
        raise ValueError(f"rank={rank} is above {q}, the full rank of a layer of shape {m} x {n}")
    return rank


def seeded_generator(*parts: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of ``parts``, joined by slashes.

    With the seed, the resample's number and the layer's name, a choice is the same on every process, after a resume,
    and for any order of the layers.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def choose_directions(q: int, rank: int, method: str, generator: torch.Generator) -> Tensor:
    """Indices (rank,) of singular directions, ascending; 0 belongs to the largest singular value.

    Args:
        q: number of directions.
        rank: how many to choose, 1 to q.
        method: ``random``, every direction equally likely, without replacement; ``window``, a random block of
            neighbours; ``top`` or ``bottom``, the largest or the smallest singular values.
        generator: a CPU generator, which ``random`` and ``window`` use.
    """
    if method == "random":
        return torch.randperm(q, generator=generator, device="cpu")[:rank].sort().values
    if method == "window":
        start = int(torch.randint(q - rank + 1, (1,), generator=generator, device="cpu"))
    elif method in ("top", "bottom"):
        start = 0 if method == "top" else q - rank
    else:
        raise ValueError(f"sample_method={method} is not one of {', '.join(SAMPLE_METHODS)}")
    return torch.arange(start, start + rank, device="cpu")


# The largest relative error of singular vectors from a Gram matrix: |W v − s u| / s. Vectors meet it whose singular
# value is above about 1e-6 of the largest.
TOLERANCE = 1e-5


def short_side_vectors(weights: Sequence[Tensor]) -> Tensor:
    """Singular vectors of the shorter side of each weight, as columns, by rising singular value: (len, q, q) float64.

    They are the eigenvectors of the Gram matrix of the shorter side, W Wᵀ (m ≤ n) or Wᵀ W. This costs a fraction
    of a full SVD. A Gram matrix keeps half of the digits, so it is computed in float64.

    Args:
        weights: (m, n) each, with equal q = min(m, n), on one device.
    """
    grams = torch.stack([_gram(_scaled(_wide(weight), weight.dtype)) for weight in weights])
    vectors: Tensor = torch.linalg.eigh(grams).eigenvectors
    return vectors


def singular_triplets(weight: Tensor, indices: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U_I (m, R), S_I (R,) and V_Iᵀ (R, n) of W (m, n), in float64.

    A full SVD is computed if the Gram matrix does not separate the chosen directions (dead units, pruned or zero
    weights).

    Args:
        indices: R directions; 0 belongs to the largest singular value.
        vectors: ``short_side_vectors([weight])[0]``.
    """
    wide = _wide(weight)
    indices = indices.to(wide.device)
    short = vectors[:, wide.shape[0] - 1 - indices]
    rows = short.T @ wide  # Uᵀ W = S Vᵀ, or Vᵀ Wᵀ = S Uᵀ
    values = torch.linalg.vector_norm(rows, dim=1)
    long = rows / values[:, None]
    if not _are_singular(wide, short, values, long):
        short, values, long = torch.linalg.svd(wide, full_matrices=False)
        short, values, long = short[:, indices], values[indices], long[indices]
    return (short, values, long) if weight.shape[0] <= weight.shape[1] else (long.T, values, short.T)


def random_triplets(
    weight: Tensor, rank: int, generator: torch.Generator, on_left: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """A random part of W (m, n) as U (m, R), S (R,) and Vᵀ (R, n), without a factorisation of W.

    Q is a uniformly distributed (Haar) orthonormal basis of R dimensions, from the QR of a Gaussian block. On the left,
    U = Q and S Vᵀ = Qᵀ W. On the right, Vᵀ = Qᵀ and U S = W Q. S holds lengths, so that U and V have columns of length
    1; on the side without Q they are not orthogonal to each other. Computed in the dtype of W, on CUDA in float64.
    """
    gaussian = torch.randn(
        weight.shape[0 if on_left else 1], rank, dtype=torch.float64, generator=generator, device="cpu"
    )
    basis, triangle = torch.linalg.qr(gaussian)
    basis *= triangle.diagonal().sign()  # without this the distribution depends on LAPACK's choice of signs
    weight = weight.detach().double() if weight.is_cuda else weight.detach()
    basis = basis.to(weight.device, weight.dtype)
    rows = basis.T @ weight if on_left else (weight @ basis).T
    values = torch.linalg.vector_norm(rows, dim=1)
    rows = rows / values.clamp_min(torch.finfo(rows.dtype).tiny)[:, None]
    return (basis, values, rows) if on_left else (rows.T, values, basis.T)


def split_triplets(u: Tensor, values: Tensor, vt: Tensor, split: str, adapt: str = "ab") -> tuple[Tensor, Tensor]:
    """A (m, R) and B (R, n) from U (m, R), S (R,) and Vᵀ (R, n).

    Args:
        split: ``sqrt``: U √S and √S Vᵀ (the 2023 paper); ``left``: U S and Vᵀ (the later paper's code);
            ``orthonormal``: the factor that does not train is U or Vᵀ, the other one takes S; where both train they are
            √s U and √s Vᵀ with the mean s of S, a scale in place of the singular values.
        adapt: which factors train: ``ab``, ``a`` or ``b``.
    """
    one = torch.ones_like(values)
    if split == "sqrt":
        left = right = values.sqrt()
    elif split == "orthonormal" and adapt == "ab":
        left = right = one * values.mean().sqrt()
    elif split == "orthonormal" and adapt == "b":
        left, right = one, values
    else:
        left, right = values, one
    return u * left, vt * right[:, None]


def _wide(weight: Tensor) -> Tensor:
    """W, or Wᵀ if that is wider, in float64; on the CPU if the device (mps) has no float64."""
    weight = weight.detach()
    wide = (weight.cpu() if weight.device.type == "mps" else weight).double()
    return wide if weight.shape[0] <= weight.shape[1] else wide.T


def _scaled(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """W, or a multiple of it if its squares could overflow: the singular vectors are the same."""
    if dtype != torch.float64:
        return wide
    largest = wide.abs().max()
    return wide / largest if largest > 1e140 else wide


def _gram(wide: Tensor) -> Tensor:
    """The lower triangle of W Wᵀ for W (q, n), which is all that ``eigh`` reads. Blocks above it are zero."""
    q = wide.shape[0]
    gram = wide.new_zeros(q, q)
    step = -(-q // 4)  # four blocks of columns: 5/8 of the full product
    for first in range(0, q, step):
        columns = slice(first, first + step)
        gram[first:, columns] = wide[first:] @ wide[columns].T
    return gram


def _are_singular(wide: Tensor, short: Tensor, values: Tensor, long: Tensor) -> bool:
    """Whether these (q, R), (R,), (R, n) are singular triplets of W (q, n), given that shortᵀ W = values · long.

    It remains to check that W longᵀ = short · values. The check adds up all directions, each divided by its value, so
    that all count equally. Waits for the device.
    """
    residual = wide @ (long.T @ (1 / values)) - short.sum(1)
    overlap = short.T @ short
    overlap.diagonal().sub_(1)
    return bool(torch.maximum(residual.abs().max(), overlap.abs().max()) <= TOLERANCE)  # False for NaN
