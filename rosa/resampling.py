"""``SubspaceLayer``, the contract of layers that resample, and the resample of many layers at once.

The choice of directions and its seeds are in ``subspace.py``.

A single eigendecomposition keeps neither two cores nor a GPU busy, because half of it is matrix times vector. Several
at a time do. On a CPU each runs on one core, so that the result is the same to the bit for any number of threads.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self, TypeVar

import torch
from torch import Tensor

from rosa.errors import AdapterError
from rosa.layers import AdapterLayer, LowRankLayer
from rosa.sharding import gather, gathered, is_sharded, max_abs
from rosa.subspace import short_side_vectors

Item = TypeVar("Item")
Result = TypeVar("Result")
Pair = tuple[Tensor, Tensor]

IN_THREADS = ("cpu", "mps")  # mps has no float64: its layers are factorised on the CPU
# Limits of the memory used beside the model, in float64 numbers; a single layer may take more.
CPU_NUMBERS = 2**27  # 1 GiB over all threads; GPT-2 small takes 42 MiB per thread
# 128 MiB for the Gram matrices of a batch, 28 layers of GPT-2 small. Eigenvectors and work space take 3 times that.
BATCH_NUMBERS = 2**24


class SubspaceLayer(LowRankLayer):
    """An adapter layer whose pair can be merged into the weight and sampled again.

    ``initialise`` sets the pair to zero; ``initialise_all`` does that and then samples subspace 0 of all layers.

    Attributes:
        rounding: for 16-bit weights, two Frobenius norms: of the last resample's rounding error, and of the trained
            change before it (since the previous resample, or since an adapter was loaded). Else None.
    """

    rounding: tuple[float, float] | None = None

    @property
    @abstractmethod
    def merged_mn(self) -> Tensor:
        """The weight (m, n) to factorise, between ``merge_pair`` and ``set_factors``; at least float32."""

    @abstractmethod
    def merge_pair(self) -> None:
        """W ← W + A B and A = B = 0, in place. The function stays the same, also if a later step fails."""

    @property
    @abstractmethod
    def needs_vectors(self) -> bool:
        """Whether ``sample`` reads the singular vectors of the weight. If not, nothing is factorised."""

    @abstractmethod
    def sample(self, number: int, vectors: Tensor | None) -> Pair:
        """The pair of subspace ``number``, for a layer whose pair is merged. Writes nothing.

        Args:
            vectors: ``rosa.subspace.short_side_vectors`` of ``merged_mn``, (q, q); None unless ``needs_vectors``.
        """

    @abstractmethod
    def set_factors(self, a: Tensor, b: Tensor) -> None:
        """A, B ← a, b and W ← W − A B, in place. The function stays the same."""

    @classmethod
    def initialise_all(cls, layers: Sequence[Self]) -> None:
        super().initialise_all(layers)
        try:
            resample_layers(layers, 0)
        except BaseException:  # out of memory, interrupted: restore the base weights
            for layer in layers:
                with gathered(layer):
                    layer.merge_pair()
            raise


@torch.no_grad()
def resample_layers(layers: Sequence[SubspaceLayer], number: int) -> None:
    """Merge the pair of each layer and sample subspace ``number``, in place.

    Every process gathers and resamples sharded layers, one after another.

    Raises:
        RuntimeError: a layer is merged; nothing is written then.
        AdapterError: a layer's weight or pair is not finite, or their sum is too large; nothing is written then.
    """
    for layer in layers:
        if layer.merged:
            raise RuntimeError(f"{layer.name} is merged: unmerge before a resample")
    check_finite(layers)
    for layer in layers:
        if is_sharded(layer.base.weight):
            with gathered(layer):
                _resample([layer], number)
    _resample([layer for layer in layers if not is_sharded(layer.base.weight)], number)


def check_finite(layers: Iterable[LowRankLayer]) -> None:
    """Raise AdapterError with the layer's name unless W, A, B and W + A B are finite in every layer."""
    for layer in layers:
        parts = {"weight": layer.base.weight, "A": layer.A, "B": layer.B}
        sizes = {name: max_abs(values) for name, values in parts.items()}
        if wrong := [name for name, size in sizes.items() if not math.isfinite(size)]:
            raise AdapterError(f"{layer.name}: values of its {' and '.join(wrong)} are not finite")
        dtype = layer.base.weight.dtype
        bound = sizes["weight"] + layer.rank * sizes["A"] * sizes["B"]
        if bound > torch.finfo(dtype).max and not gather((layer.weight_mn + layer.delta()).isfinite().all()):
            raise AdapterError(f"{layer.name}: W + A B is larger than {dtype} can hold")


def _resample(layers: Sequence[SubspaceLayer], number: int) -> None:
    def sample(group: list[SubspaceLayer]) -> list[Pair]:
        if not group[0].needs_vectors:  # all layers of a model share their settings
            return [layer.sample(number, None) for layer in group]
        vectors = short_side_vectors([layer.merged_mn for layer in group])
        return [layer.sample(number, own) for layer, own in zip(group, vectors, strict=True)]

    on_cpu = [layer for layer in layers if layer.base.weight.device.type in IN_THREADS]
    elsewhere = [layer for layer in layers if layer.base.weight.device.type not in IN_THREADS]
    for groups, workers in (([[layer] for layer in on_cpu], _workers(on_cpu)), (_batches(elsewhere), 1)):
        for group, pairs in _in_order(sample, _with_merged_pairs(groups), workers):
            for layer, (a, b) in zip(group, pairs, strict=True):
                layer.set_factors(a, b)


def _with_merged_pairs(groups: Iterable[list[SubspaceLayer]]) -> Iterator[list[SubspaceLayer]]:
    for group in groups:
        for layer in group:
            layer.merge_pair()
        yield group


def _batches(layers: Sequence[SubspaceLayer]) -> list[list[SubspaceLayer]]:
    """Groups of layers with the same device and q, as large as ``BATCH_NUMBERS`` allows."""
    alike: dict[tuple[torch.device, int], list[SubspaceLayer]] = defaultdict(list)
    for layer in layers:
        alike[layer.base.weight.device, _short_side(layer)].append(layer)
    batches = []
    for (_, q), group in alike.items():
        size = max(1, BATCH_NUMBERS // q**2)
        batches += [group[first : first + size] for first in range(0, len(group), size)]
    return batches


def _short_side(layer: AdapterLayer) -> int:
    return min(layer.in_features, layer.out_features)


def _workers(layers: Sequence[AdapterLayer]) -> int:
    """The number of CPU threads that factorise at the same time."""
    needed = max((layer.base.weight.numel() + 5 * _short_side(layer) ** 2 for layer in layers), default=1)
    return max(1, min(torch.get_num_threads(), CPU_NUMBERS // needed))


def _in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """Map ``function`` over ``items`` in a thread pool. Yields (item, result) in order; workers + 1 are in flight.

    The caller's thread takes the items and yields the results, so that collective operations keep their order.
    """
    if workers == 1:
        for item in items:
            yield item, function(item)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    torch.set_num_threads(share)  # small products of this thread must not wait for the workers' cores
    try:
        waiting: deque[tuple[Item, Future[Result]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(function, item)))
            if len(waiting) > workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
