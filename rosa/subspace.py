"""The mathematics of ROSA as pure functions: rank, choice of directions, factorisation.

A weight W is an (m, n) matrix, m inputs by n outputs, with q = min(m, n) singular directions:
W = U S Vᵀ, singular values in falling order. ROSA (Hameed and Rabusseau 2023) picks R of them, I, and trains
A = U_I √S_I and B = √S_I V_Iᵀ while W − A B stays fixed.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from decimal import Decimal

import torch
from torch import Tensor

SAMPLE_METHODS = ("random", "window", "top", "bottom")
FACTOR_SPLITS = ("sqrt", "left")


def check_rank(rank: int | float) -> None:
    """Raise ValueError unless ``rank`` is an int of at least 1 or a ratio in (0, 1]."""
    if isinstance(rank, bool) or not isinstance(rank, (int, float)):
        raise ValueError(f"rank={rank!r} must be a number: an int of at least 1, or a ratio in (0, 1]")
    if isinstance(rank, int) and rank < 1:
        raise ValueError(f"rank={rank} must be at least 1, or a ratio in (0, 1] such as 0.05")
    if isinstance(rank, float) and not 0 < rank <= 1:
        raise ValueError(f"rank={rank} is not a ratio in (0, 1]; write a rank itself as an int, such as 8")


def resolve_rank(rank: int | float, m: int, n: int) -> int:
    """The rank R of an (m, n) layer: an int is R itself, a ratio is floor(ratio · q), at least 1.

    The ratio counts as the decimal it is written as, so that 0.29 of 100 is 29, though 0.29 * 100 < 29 in
    binary. The ratio 1.0 is the full rank q, the int 1 is rank one.

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


def layer_generator(seed: int, number: int, name: str) -> torch.Generator:
    """A CPU generator that depends on (seed, resample number, layer name) alone.

    The choice is then the same on every process, after a resume, and whatever the order of layers.
    """
    digest = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def choose_directions(q: int, rank: int, method: str, generator: torch.Generator) -> Tensor:
    """Indices (rank,) of singular directions, ascending; 0 belongs to the largest singular value.

    Args:
        q: number of directions.
        rank: how many to choose, 1 to q.
        method: ``random``, every direction equally likely, without replacement; ``window``, a random block of
            neighbours; ``top`` or ``bottom``, the largest or the smallest singular values.
        generator: a CPU generator; drawn from for ``random`` and ``window``.
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


@dataclass(frozen=True)
class Factorisation:
    """The singular values (q,), falling, and the singular vectors of W's shorter side as columns (q, q).

    Those of the longer side, as rows (q, max(m, n)), are kept for rank-deficient weights only. Else they follow from
    W where they are needed, for the chosen directions alone.
    """

    values: Tensor
    vectors: Tensor
    long_vectors: Tensor | None = None


def factorise(weight: Tensor) -> Factorisation:
    """Singular values and short-side singular vectors of W (m, n), in float64.

    They are the eigenvectors of the Gram matrix of the shorter side, W Wᵀ (m ≤ n) or Wᵀ W, which costs a
    fraction of a full SVD. Squaring halves the digits, hence float64: directions come out as a float32 SVD's
    or better for singular values down to 1e-7 of the largest. Weights that have smaller ones (dead units, pruned or
    zero weights) take the full SVD.
    """
    weight = weight.detach()
    if weight.device.type == "mps":  # has no float64
        weight = weight.cpu()
    wide = weight.double()
    if weight.shape[0] > weight.shape[1]:
        wide = wide.T
    squares, vectors = torch.linalg.eigh(wide @ wide.T)  # rising
    values, vectors = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1)
    if values[-1] > 1e-7 * values[0]:  # waits for the device
        return Factorisation(values, vectors)
    short, values, long = torch.linalg.svd(wide, full_matrices=False)
    return Factorisation(values, short, long)


def factor_pair(weight: Tensor, factors: Factorisation, indices: Tensor, split: str) -> tuple[Tensor, Tensor]:
    """A (m, R) and B (R, n) with A B = U_I S_I V_Iᵀ, in W's dtype and on its device.

    Args:
        weight: W (m, n).
        factors: ``factorise(weight)``.
        indices: the R chosen directions.
        split: ``sqrt``: U √S and √S Vᵀ (the 2023 paper); ``left``: U S and Vᵀ (the later paper's code).
    """
    device = factors.values.device
    indices = indices.to(device)
    values, short = factors.values[indices], factors.vectors[:, indices]
    short_is_u = weight.shape[0] <= weight.shape[1]
    if factors.long_vectors is None:  # Uᵀ W = S Vᵀ, or Vᵀ Wᵀ = S Uᵀ
        wide = weight.detach().to(device, torch.float64)
        long = short.T @ (wide if short_is_u else wide.T) / values[:, None]
    else:
        long = factors.long_vectors[indices]
    u, vt = (short, long) if short_is_u else (long.T, short.T)
    left, right = (values.sqrt(), values.sqrt()) if split == "sqrt" else (values, torch.ones_like(values))
    a, b = u * left, vt * right[:, None]
    return a.to(weight.device, weight.dtype), b.to(weight.device, weight.dtype)
