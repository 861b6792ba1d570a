"""The values of a base module that training writes over, kept so that its function can be restored.

A layer that resamples stores W_f, not the W_0 of the base model. What is known is each change since: a merge
adds the trained pair, a new subspace takes the sampled pair away. So after K subspaces of rank R

    W_f − W_0 = change − start,    change = left right of rank ≤ 2 R (K − 1),    start = scale · A B as sampled.

``change`` is what the earlier subspaces have learned. It is cut to its numerical rank after each merge. The two pairs
take (r + R) (m + n) numbers. Once that is no less than the weight's, W_0 itself is kept instead. For weights in 16 bits
that is so from the start, because no pair holds the rounding of a resample. All of it is on the CPU, so that it takes
no memory of the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rosa.subspace import split_triplets

Pair = tuple[Tensor, Tensor]

WRITTEN_IN_PLACE = (
    "the state shares the model's memory: if it was written into before load_state_dict, as by "
    "torch.distributed.checkpoint, the base's weights are lost. rosa.disabled will refuse, and save_adapter write W_f "
    "whole. To keep them, load a copy of the state, or use rosa.save_adapter and rosa.load_adapter"
)
NOISE = 1e-14  # of float64 products: singular values of a difference of equal pairs are this small


@dataclass(frozen=True, eq=False)
class KeptBase:
    """The base's values of one layer. Each method returns the next state, and an error leaves this one as it was.

    Attributes:
        bias: b_0 (n,), if the bias trains.
        checksum: of W_0, if the method rewrites it (``rosa.checksums``).
        change: left (m, r) and right (r, n) of what earlier subspaces learned; None: nothing yet.
        start: scale · A (m, R) and B (R, n) as they were sampled; None: no pair was taken from the weight.
        whole: W_0 (m, n) itself, in the place of ``change`` and ``start``.
        unfactored: W_0 is kept because a W_f of unknown factors was loaded. They may be small (``factors_between``).
    """

    bias: Tensor | None = None
    checksum: str | None = None
    change: Pair | None = None
    start: Pair | None = None
    whole: Tensor | None = None
    unfactored: bool = False

    def started(self, weight: Tensor) -> KeptBase:
        """The state before anything is written over W_0, the ``weight`` (m, n)."""
        return replace(self, whole=_kept(weight)) if is_rounded(weight) else self

    def difference(self) -> Pair | None:
        """Two factors of W_f − W_0, (m, r) and (r, n). None if W_f is W_0, or if W_0 itself is kept."""
        pairs = [] if self.change is None else [self.change]
        if self.start is not None:
            pairs.append((-self.start[0], self.start[1]))
        return joined(pairs) if pairs else None

    def weight(self, present: Tensor) -> Tensor:
        """W_0 (m, n), given the ``present`` W_f, on its device and in its dtype.

        It is exact if W_0 is kept whole, and else up to rounding.
        """
        if self.whole is not None:
            return self.whole.to(present.device, present.dtype)
        pair = self.difference()
        if pair is None:
            return present.clone()
        dtype = torch.float64 if present.is_cuda else torch.promote_types(present.dtype, torch.float32)
        left, right = (factor.to(present.device, dtype) for factor in pair)
        return torch.addmm(present.to(dtype), left, right, alpha=-1).to(present.dtype)

    def merged(self, a: Tensor, b: Tensor, weight: Tensor) -> KeptBase:
        """The state after the trained pair a b is merged into the weight.

        Args:
            a, b: scale · A (m, R) and B (R, n).
            weight: W_f (m, n), without the pair.
        """
        if self.whole is not None:
            return self
        change, pair = None, self.difference()
        if pair is not None:  # else the first pair is not sampled yet, and zero
            left, right = (factor.to(a.device) for factor in pair)
            change = cut_to_rank(*joined([(left, right), (a, b)]))
        columns = a.shape[1] + (0 if change is None else change[0].shape[1])  # with the pair that is sampled next
        if is_rounded(weight) or columns * (len(a) + b.shape[1]) * a.element_size() >= weight.nbytes:
            return replace(self, change=None, start=None, whole=_kept(self.weight(weight)))
        return replace(self, change=change and (_kept(change[0]), _kept(change[1])), start=None)

    def sampled(self, a: Tensor, b: Tensor) -> KeptBase:
        """The state after the new pair a b is taken from the weight; see ``merged``."""
        return self if self.whole is not None else replace(self, start=(_kept(a), _kept(b)))

    def loaded(self, pair: Pair | None, weight: Tensor) -> KeptBase:
        """The state after another W_f is loaded.

        Args:
            pair: the factors of its W_f − W_0, if they are known; else W_0 itself is kept, as for 16 bits.
            weight: W_f (m, n) from before.
        """
        if pair is None or is_rounded(weight):
            return replace(self, change=None, start=None, whole=_kept(self.weight(weight)), unfactored=True)
        change = _kept(pair[0]), _kept(pair[1])
        return replace(self, change=change, start=None, whole=None, unfactored=False)


def joined(pairs: Sequence[Pair]) -> Pair:
    """One pair whose product is the sum of the products."""
    left, right = zip(*pairs, strict=True)
    return torch.cat(left, 1), torch.cat(right)


def rank_of_share(squares: Tensor, share: float) -> int:
    """The least rank that keeps this share of a squared Frobenius norm; ``squares``: of singular values, falling."""
    sums = squares.cumsum(0)
    return int((sums < share * sums[-1]).sum()) + 1


def cut_to_rank(left: Tensor, right: Tensor) -> Pair:
    """Factors of left (m, c) right (c, n) with its numerical rank r, at least 1: U √S (m, r) and √S Vᵀ (r, n).

    Singular values below the rounding of the factors' dtype are dropped. Two QR factorisations make the SVD one of
    (c, c), all in float64. So r is at most min(c, m, n).
    """
    device = "cpu" if left.device.type == "mps" else left.device  # mps has no float64
    q_left, r_left = torch.linalg.qr(left.to(device, torch.float64))
    q_right, r_right = torch.linalg.qr(right.to(device, torch.float64).T)
    u, s, vt = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    noise = NOISE * float(r_left.norm() * r_right.norm())
    rank = max(1, int((s > max(torch.finfo(left.dtype).eps * float(s[0]), noise)).sum()))
    a, b = split_triplets(u[:, :rank], s[:rank], vt[:rank], "sqrt")
    return (q_left @ a).to(left.device, left.dtype), (b @ q_right.T).to(left.device, left.dtype)


def factors_between(before: Tensor, after: Tensor) -> Pair:
    """Factors (m, r) and (r, n) of the change of a weight (m, n), by SVD in float64, with its numerical rank r.

    r is at least 1. Singular values that rounding alone explains are dropped.
    """
    u, s, vt = torch.linalg.svd(after.cpu().double() - before.cpu().double(), full_matrices=False)
    rank = max(1, int((s > rounding_bound(before, after.dtype)).sum()))
    a, b = split_triplets(u[:, :rank], s[:rank], vt[:rank], "sqrt")
    return a.to(after.dtype), b.to(after.dtype)


def rounding_bound(weight: Tensor, dtype: torch.dtype) -> float:
    """A bound of the singular values of W_K − W_0 that come from rounding alone.

    Every resample rounds each number to within ε/2 of its size. That is noise, and a random (m, n) matrix of standard
    deviation σ has singular values up to σ (√m + √n). The factor 2 leaves room for tens of resamples, whose noise grows
    with the square root of their number.
    """
    m, n = weight.shape
    deviation = torch.finfo(dtype).eps * float(weight.square().mean().sqrt())
    return 2 * deviation * (math.sqrt(m) + math.sqrt(n))


def is_rounded(values: Tensor) -> bool:
    """Whether what is written into a tensor is rounded to 16 bits or fewer."""
    return values.dtype.itemsize < 4


def _kept(values: Tensor) -> Tensor:
    """A copy on the CPU."""
    return values.detach().to("cpu", copy=True).contiguous()
