"""``SubspaceLayer``, the contract of layers that resample, and the resample of many layers at once.

One eigendecomposition keeps neither two cores nor a GPU busy, as half of it is matrix times vector. Many at a time
do. On a CPU each runs on one core, so the result is the same to the bit for any number of threads.
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
from rosa.sharding import gather, is_sharded, largest, whole
from rosa.subspace import short_vectors

Item = TypeVar("Item")
Result = TypeVar("Result")
Pair = tuple[Tensor, Tensor]

IN_THREADS = ("cpu", "mps")  # mps has no float64: its layers are factorised on the CPU
# Bounds of the memory beside the model, in float64 numbers; a single layer may take more.
CPU_NUMBERS = 2**27  # 1 GiB over all threads; GPT-2 small takes 42 MiB a thread
BATCH_NUMBERS = (
    2**24
)  # 128 MiB a batch's Gram matrices: 28 layers of GPT-2 small; eigenvectors and work space: 3 times that


class SubspaceLayer(LowRankLayer):
    """An adapter layer whose pair can be merged into the weight and sampled again.

    ``initialise`` sets the pair to zero; ``initialise_all`` samples subspace 0 of all layers together after it.

    Attributes:
        rounding: of a weight stored in 16 bits: the Frobenius norms of what rounding changed at the last resample,
            and of what training had changed since the one (or the loading of an adapter) before; else None.
    """

    rounding: tuple[float, float] | None = None

    @property
    @abstractmethod
    def merged_mn(self) -> Tensor:
        """The weight (m, n) that is factorised between ``merge_pair`` and ``set_factors``, in float32 at least."""

    @abstractmethod
    def merge_pair(self) -> None:
        """W ← W + A B in place, and A = B = 0: the function stays, here and if what follows fails."""

    @abstractmethod
    def sample(self, number: int, vectors: Tensor) -> Pair:
        """The pair of subspace ``number``, of a layer whose pair is merged; nothing is written.

        Args:
            vectors: ``rosa.subspace.short_vectors`` of ``merged_mn``, (q, q).
        """

    @abstractmethod
    def set_factors(self, a: Tensor, b: Tensor) -> None:
        """A, B ← a, b and W ← W − A B, in place: the function stays."""

    @classmethod
    def initialise_all(cls, layers: Sequence[Self]) -> None:
        super().initialise_all(layers)
        try:
            resample_layers(layers, 0)
        except BaseException:  # out of memory, interrupted: put back what was split off
            for layer in layers:
                with whole(layer):
                    layer.merge_pair()
            raise


@torch.no_grad()
def resample_layers(layers: Sequence[SubspaceLayer], number: int) -> None:
    """Merge the pair of each layer and sample subspace ``number``; parameters are written in place.

    Layers that are sharded over processes are gathered and resampled one after another, by every process.

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
            with whole(layer):
                _resample([layer], number)
    _resample([layer for layer in layers if not is_sharded(layer.base.weight)], number)


def check_finite(layers: Iterable[LowRankLayer]) -> None:
    """Raise AdapterError, which names the layer, unless W, A, B and W + A B are finite in each; nothing is written."""
    for layer in layers:
        parts = {"weight": layer.base.weight, "A": layer.A, "B": layer.B}
        sizes = {name: largest(values) for name, values in parts.items()}
        if wrong := [name for name, size in sizes.items() if not math.isfinite(size)]:
            raise AdapterError(f"{layer.name}: values of its {' and '.join(wrong)} are not finite")
        dtype = layer.base.weight.dtype
        bound = sizes["weight"] + layer.rank * sizes["A"] * sizes["B"]
        if bound > torch.finfo(dtype).max and not gather((layer.weight_mn + layer.delta()).isfinite().all()):
            raise AdapterError(f"{layer.name}: W + A B is larger than {dtype} can hold")


def _resample(layers: Sequence[SubspaceLayer], number: int) -> None:
    def sample(group: list[SubspaceLayer]) -> list[Pair]:
        vectors = short_vectors([layer.merged_mn for layer in group])
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
    """Layers of one device and one q, as many as ``BATCH_NUMBERS`` allows."""
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
    """How many CPU threads factorise at a time."""
    needed = max((layer.base.weight.numel() + 5 * _short_side(layer) ** 2 for layer in layers), default=1)
    return max(1, min(torch.get_num_threads(), CPU_NUMBERS // needed))


def _in_order(function: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[tuple[Item, Result]]:
    """Each item with ``function(item)``, in order; up to ``workers`` are computed and one more waits.

    Items are taken, and results given, in the caller's thread, so that collective operations keep their order.
    """
    if workers == 1:
        for item in items:
            yield item, function(item)
        return
    threads = torch.get_num_threads()
    share = max(1, threads // workers)
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(share,))
    torch.set_num_threads(share)  # this thread's own small products must not wait for cores that the workers hold
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
