"""Resample GPT-2 small's 48 layers: a full SVD layer by layer against this project, and both against float64.

The plain way is the first public code's: for each layer in turn merge the pair, take the whole float32 SVD, and
split off the chosen directions. A third way is this project's with random bases, which factorises nothing.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

import rosa
from benchmarks.common import RANK, Settings, gpt2_small, median
from rosa.injection import adapter_layers
from rosa.layers import AdapterLayer
from rosa.subspace import (
    choose_directions,
    resolve_rank,
    seeded_generator,
    short_side_vectors,
    singular_triplets,
    split_triplets,
)

TOLERANCE = 1e-5  # sine of the largest principal angle to the float64 SVD's directions
ORDERS = (3, 4)  # of magnitude between the largest and smallest singular value, as in pretrained weights


def measure(settings: Settings) -> dict[str, Any]:
    """Seconds for all 48 layers (one block's four with ``--quick``), angles, and the change of the function."""
    model = gpt2_small("sdpa").to(settings.device)
    start = time.perf_counter()
    rosa.inject(model, rosa.RosaConfig(rank=RANK), keep_base=False)
    settings.synchronise()
    injection = time.perf_counter() - start
    on_random_bases = rosa.inject(
        gpt2_small("sdpa").to(settings.device), rosa.RosaConfig(rank=RANK, basis="random"), keep_base=False
    )
    if settings.quick:
        model, on_random_bases = model.transformer.h[0], on_random_bases.transformer.h[0]
    layers = list(adapter_layers(model).values())
    ways: dict[str, list[float]] = {"svd": [], "project": [], "random": []}
    for number in range(1, 3 if settings.quick else 5):  # turn about, so that a slow spell of the machine meets both
        for way, seconds in ways.items():
            settings.synchronise()
            start = time.perf_counter()
            if way == "svd":
                for layer in layers:
                    plain_resample(layer, number)
            else:
                rosa.resample(model if way == "project" else on_random_bases, number)
            settings.synchronise()
            if number > 1:  # the first is warm-up
                seconds.append(round(time.perf_counter() - start, 4))
    angles = _angles(settings, layers[:4])
    return {
        "layers": len(layers), "rank": RANK, "inject_seconds": round(injection, 3),
        "seconds": ways, "median_seconds": {way: median(seconds) for way, seconds in ways.items()},
        "speedup": round(median(ways["svd"]) / median(ways["project"]), 3),
        "largest_sine_to_float64_svd": angles,
        "tolerance": TOLERANCE,
        "subspaces_equal": all(row["project"] < TOLERANCE for row in angles.values()),
        "relative_change_of_function": max(_function_change(layer) for layer in layers[:4]),
    }  # fmt: skip


@torch.no_grad()
def plain_resample(layer: AdapterLayer, number: int) -> None:
    """One layer, the plain way."""
    weight = layer.weight_mn + layer.A @ layer.B
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    indices = choose_directions(len(s), layer.rank, "random", seeded_generator(0, number, layer.name)).to(s.device)
    root = s[indices].sqrt()
    layer.A.copy_(u[:, indices] * root)
    layer.B.copy_(root[:, None] * vt[indices])
    layer.weight_mn.copy_(weight - layer.A @ layer.B)


def _angles(settings: Settings, layers: list[AdapterLayer]) -> dict[str, dict[str, float]]:
    """The sine of the largest principal angle to the float64 SVD, over both sides, of both ways."""
    weights = {layer.name: (layer.weight_mn + layer.A @ layer.B).detach() for layer in layers}
    for orders in ORDERS:
        for shape in ((768, 768), (768, 3072)):
            weights[f"{shape[0]}x{shape[1]}, {orders} orders of magnitude"] = decaying(*shape, orders).to(
                settings.device
            )
    rows = {}
    for name, weight in weights.items():
        indices = choose_directions(
            min(weight.shape), resolve_rank(RANK, *weight.shape), "random", seeded_generator(0, 0, name)
        ).to(weight.device)
        exact_u, _, exact_vt = torch.linalg.svd(weight.double(), full_matrices=False)
        plain_u, _, plain_vt = torch.linalg.svd(weight, full_matrices=False)
        exact = exact_u[:, indices], exact_vt[indices].T
        (vectors,) = short_side_vectors([weight])
        parts = split_triplets(*singular_triplets(weight, indices, vectors), "sqrt")
        a, b = (part.to(weight.device, weight.dtype) for part in parts)
        rows[name] = {
            "svd": _sine((plain_u[:, indices], plain_vt[indices].T), exact),
            "project": _sine((a, b.T), exact),
        }
    return rows


def _sine(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> float:
    worst = 0.0
    for columns, reference in zip(found, exact, strict=True):
        basis = torch.linalg.qr(columns.double()).Q
        outside = basis - reference @ (reference.T @ basis)
        worst = max(worst, float(torch.linalg.matrix_norm(outside, 2)))
    return worst


def decaying(m: int, n: int, orders: float) -> Tensor:
    """A float32 (m, n) matrix whose singular values fall evenly in logarithm, from 1 to 10^-orders."""
    generator = torch.Generator().manual_seed(m + n)
    q = min(m, n)
    u = torch.linalg.qr(torch.randn(m, q, dtype=torch.float64, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, q, dtype=torch.float64, generator=generator)).Q
    values = torch.logspace(0, -orders, q, dtype=torch.float64)
    return ((u * values) @ v.T).float()


@torch.no_grad()
def _function_change(layer: AdapterLayer) -> float:
    """Largest change of a weight's element over one resample, relative to the largest element."""
    before = layer.weight_mn.double() + layer.A.double() @ layer.B.double()
    rosa.resample(layer, 100)
    after = layer.weight_mn.double() + layer.A.double() @ layer.B.double()
    return float((after - before).abs().max() / before.abs().max())


def table(figures: dict[str, Any]) -> list[list[str]]:
    """Header and rows for a Markdown table."""
    sines = figures["largest_sine_to_float64_svd"].values()
    rows = [
        [label, f"{figures['median_seconds'][way]:.3f}", f"{max(row[way] for row in sines):.1e}"]
        for way, label in (("svd", "full SVD, layer by layer"), ("project", "this project"))
    ]
    rows.append(["this project, `basis=random`", f"{figures['median_seconds']['random']:.3f}", "–"])
    return [[f"resample of {figures['layers']} layers", "seconds", "largest sine to the float64 SVD"], *rows]
