"""Time of a resample of GPT-2 small: a full SVD layer by layer against this project's factorisation."""

from __future__ import annotations

from typing import Any

import torch

import rosa
from benchmarks.common import RANK, Settings, gpt2_small, median, timed
from rosa.inject import adapter_layers
from rosa.subspace import choose_directions, factor_pair, factorise, layer_generator, resolve_rank


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds for all 48 layers, or for one block's four with ``--quick``, and the angle between the subspaces."""
    model = rosa.inject(gpt2_small("sdpa"), rosa.RosaConfig(rank=RANK)).to(settings.device)
    layers = list(adapter_layers(model).values())
    if settings.quick:
        layers = layers[:4]
    repeats = 2 if settings.quick else 3
    count = iter(range(1, 1000))

    def svd() -> None:
        with torch.no_grad():
            for layer in layers:
                torch.linalg.svd(layer.weight_mn + layer.A @ layer.B, full_matrices=False)

    def project() -> None:
        number = next(count)
        for layer in layers:
            layer.resample(number)

    plain, ours = timed(svd, settings, repeats), timed(project, settings, repeats)
    return {
        "layers": len(layers),
        "seconds": {"svd": plain, "project": ours},
        "speedup": round(median(plain) / median(ours), 3),
        "largest_sine_to_float64_svd": max(_sine(layer.weight_mn) for layer in layers[:4]),
    }


def _sine(weight: torch.Tensor) -> float:
    """Largest sine of the principal angles between random directions and the float64 SVD's, both sides."""
    u, _, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    rank = resolve_rank(RANK, *weight.shape)
    indices = choose_directions(min(weight.shape), rank, "random", layer_generator(0, 0, "x")).to(weight.device)
    a, b = factor_pair(weight, factorise(weight), indices, "sqrt")
    worst = 0.0
    for found, exact in ((a.double(), u[:, indices]), (b.double().T, vt[indices].T)):
        basis = torch.linalg.qr(found).Q
        worst = max(worst, float(torch.linalg.matrix_norm(basis - exact @ (exact.T @ basis), 2)))
    return worst
