"""``SubspaceLayer``, the base of layers that resample, and the resample of many layers at once.

A single eigendecomposition keeps neither two cores nor a GPU busy, because half of it is matrix times vector. Several
at a time do. On a CPU each runs on one core, so that the result is the same to the bit for any number of threads.
"""

from __future__ import annotations

import itertools
import math
import warnings
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rosa.averages import warn_of_averages
from rosa.errors import AdapterError, OtherProcessError
from rosa.fused import full_precision
from rosa.kept_base import WRITTEN_IN_PLACE, Pair, is_rounded
from rosa.layers import AdapterLayer, LowRankLayer, product
from rosa.sharding import gather, gathered, is_sharded, max_abs, shares_memory
from rosa.subspace import short_side_vectors
from rosa.threads import in_order

RESAMPLER = "rosa.Resampler's after_epoch or after_step"  # what resamples the adapters of ``rosa.inject``
Groups = list[list["SubspaceLayer"]]  # one process or thread factorises the members of one together
IN_THREADS = ("cpu", "mps")  # mps has no float64: its layers are factorised on the CPU
# Limits of the memory used beside the model, in float64 numbers; a single layer may take more.
CPU_NUMBERS = 2**27  # 1 GiB over all threads; GPT-2 small takes 42 MiB per thread
BATCH_NUMBERS = 2**24  # the Gram matrices of a batch, 28 layers of GPT-2 small; vectors and work space take 3 times it


class SubspaceLayer(LowRankLayer):
    """An adapter layer whose pair can be merged into the weight and sampled again.

    All values are written in place, so that optimizers, DDP and compiled graphs keep their parameters.
    ``initialise`` sets the pair to zero; ``initialise_all`` does that and then samples subspace 0 of all layers.

    Attributes:
        number: that of the present subspace, in the state so that an adapter that is loaded goes on to the next one.
        has_schedule: whether anything was made that resamples this layer when it is due.
        rounding: for 16-bit weights, two Frobenius norms: of the last resample's rounding error, and of the trained
            change before it (since the previous resample, or since an adapter was loaded). Else None.
    """

    rewrites_base: ClassVar[bool] = True
    needed_with_pair: ClassVar[tuple[str, ...]] = ("base.weight",)
    has_schedule: bool = False
    _sampled_ends: tuple[Tensor, Tensor] | None = None  # the first row of A and column of B, to find if they trained
    rounding: tuple[float, float] | None = None
    number: Tensor

    def __init__(self, name: str, base: nn.Linear, config: Any) -> None:
        super().__init__(name, base, config)
        self.register_buffer("number", torch.tensor(0))
        # Used only if the stored W has 16 bits:
        self._exact: Tensor | None = None  # W in float32, between merge_pair and set_factors
        self._start: tuple[Tensor, Tensor] | None = None  # A and B as they were sampled, on the CPU
        self._change = math.nan  # Frobenius norm of the change of A B by training

    @property
    def _is_rounded(self) -> bool:
        return is_rounded(self.base.weight)

    @property
    def unrounded(self) -> list[Tensor]:
        """What a resample writes without a record of its rounding, so that it must not have 16 bits."""
        return [self.A]

    @property
    def merged_mn(self) -> Tensor:
        """The weight (m, n) to factorise, between ``merge_pair`` and ``set_factors``; at least float32."""
        return self.weight_mn if self._exact is None else self._exact

    @torch.no_grad()
    def initialise(self) -> None:
        self.A.zero_()
        self.B.zero_()

    def on_load(self) -> None:
        super().on_load()
        self._remember_pair()

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        """Where ``load_state_dict`` brings another W_f, keep W_0 whole: its difference from that W_f is not known.

        W_0 is lost where that W_f is in the weight by now, since the state shares its memory.
        """
        given = state_dict.get(f"{prefix}base.weight")
        if self.kept is not None and given is not None:
            if self.kept.whole is None and shares_memory(given, self.base.weight):
                warnings.warn(WRITTEN_IN_PLACE, stacklevel=2)
                self.kept = None
            else:
                with gathered(self), full_precision(self.base.weight.device):
                    self.kept = self.kept.loaded(None, self.weight_mn)
        if "number" not in self.needed_with_pair:
            state_dict.setdefault(f"{prefix}number", self.number)  # states of earlier versions have none
        super()._load_from_state_dict(state_dict, prefix, *others)
        self._remember_pair()

    def _remember_pair(self) -> None:
        """Keep A and B as training starts from them, to find what it changed. Only 16-bit weights need all of them."""
        ends = None if is_sharded(self.A) else (self.A[:1].detach().clone(), self.B[:, :1].detach().clone())
        self._sampled_ends = ends
        if self._is_rounded:
            self._start = gather(self.A).to("cpu", copy=True), gather(self.B).to("cpu", copy=True)

    @property
    def never_resampled(self) -> bool:
        """Whether A and B have trained, in the first subspace, and nothing resamples them although ``level`` says so.

        Not known of a sharded layer.
        """
        unknown = self._sampled_ends is None or is_sharded(self.A) or self.A.is_meta
        if unknown or self.has_schedule or getattr(self.config, "level", "never") == "never" or int(self.number):
            return False
        pairs = zip((self.A[:1], self.B[:, :1]), self._sampled_ends or (), strict=True)
        return any(not torch.equal(now, before.to(now)) for now, before in pairs)

    @torch.no_grad()
    def merge_pair(self) -> None:
        """W ← W + scale · A B and A = B = 0, in place. The function stays the same, also if a later step fails."""
        with full_precision(self.base.weight.device):
            kept = self.kept and self.kept.merged(self.A * self.scale, self.B, self.weight_mn)
            if self._is_rounded:
                delta = self.delta()
                self._exact = (self.weight_mn + delta).float()
                if self._start is not None:
                    before = product(*(start.to(delta.device) for start in self._start)) * self.scale
                    self._change = float((delta - before).norm())
            self._add_pair(1)
        self.initialise()
        self.kept = kept

    def _add_pair(self, sign: int) -> None:
        """W ← W ± scale · A B, on a CPU in one pass over W."""
        weight = self.weight_mn
        if weight.device.type == "cpu" and weight.dtype == self.A.dtype:
            weight.addmm_(self.A, self.B, alpha=sign * self.scale)
        else:
            weight.add_(self.delta(), alpha=sign)

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

    @torch.no_grad()
    def set_factors(self, a: Tensor, b: Tensor) -> None:
        """A, B ← a, b and W_f = W − scale · A B, in place. The function stays the same.

        W_f is formed from the rounded A and B, so that an error of the factorisation does not change the function. A
        W_f that is stored in 16 bits is rounded once, and ``rounding`` records by how much.
        """
        self.A.copy_(a)
        self.B.copy_(b)
        with full_precision(self.base.weight.device):
            if self._exact is None:
                self._add_pair(-1)
            else:
                delta = self.delta()
                self.weight_mn.copy_(self._exact - delta)
                self.rounding = float((self.weight_mn + delta - self._exact).norm()), self._change
                self._exact = None
            self.kept = self.kept and self.kept.sampled(self.A * self.scale, self.B)
        self._remember_pair()

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

    Several processes share the layers out: each factorises some and sends their pairs to the others, so that all have
    the same vectors (two machines may find other signs). Sharded layers are gathered one after another. Subspace 0 of
    whole layers is sampled by each process alone, because a model may be adapted on one process first; DDP then sends
    the parameters of the first one to all.

    Raises:
        RuntimeError: a layer is merged; nothing is written then.
        AdapterError: ``unrounded`` has 16 bits, a layer's weight or pair is not finite, or their sum is too large, and
            nothing is written then.
        OtherProcessError: another process failed, and the pairs of some layers are merged.
    """
    for layer in layers:
        if layer.merged:
            raise RuntimeError(f"{layer.name} is merged: unmerge before a resample")
        if any(map(is_rounded, layer.unrounded)):
            raise AdapterError(
                f"{layer.name}: a resample would be rounded to 16 bits, because the model was converted after the "
                "adapter was added. Load the base model in 16 bits (dtype=torch.bfloat16) before it is adapted, or "
                "train under autocast"
            )
    check_finite(layers)
    if number:
        warn_of_averages(layers)
    for layer in layers:
        if is_sharded(layer.base.weight):
            with gathered(layer):
                _resample([layer], number, together=True)
    _resample([layer for layer in layers if not is_sharded(layer.base.weight)], number, together=number > 0)


def subspace_number(layers: Iterable[AdapterLayer]) -> int:
    """The number of the subspace in which these layers are; 0 for methods that do not resample."""
    numbers = (layer.number for layer in layers if isinstance(layer, SubspaceLayer))
    return max((int(number) for number in numbers if not number.is_meta), default=0)


def warn_if_never_resampled(layers: Iterable[AdapterLayer], call: str) -> None:
    """Warn, once, of layers that have trained although nothing resamples them.

    Args:
        call: what resamples them.
    """
    found = [layer for layer in layers if isinstance(layer, SubspaceLayer) and layer.never_resampled]
    for layer in found:
        layer.has_schedule = True  # said
    if found:
        warnings.warn(
            "the adapter trained and was never resampled, although its level is not 'never'. Give the Trainer a "
            f"ResampleCallback of rosa.integrations.trainer, or call {call}. For one subspace set level='never'",
            stacklevel=3,
        )


def check_finite(layers: Iterable[LowRankLayer]) -> None:
    """Raise AdapterError with the layer's name unless W, A, B and W + A B are finite in every layer."""
    for layer in layers:
        sizes = {name: max_abs(part) for name, part in (("weight", layer.base.weight), ("A", layer.A), ("B", layer.B))}
        if wrong := [name for name, size in sizes.items() if not math.isfinite(size)]:
            raise AdapterError(f"{layer.name}: values of its {' and '.join(wrong)} are not finite")
        dtype = layer.base.weight.dtype
        bound = sizes["weight"] + layer.scale * layer.rank * sizes["A"] * sizes["B"]
        if bound > torch.finfo(dtype).max and not gather((layer.weight_mn + layer.delta()).isfinite().all()):
            raise AdapterError(f"{layer.name}: W + A B is larger than {dtype} can hold")


def _resample(layers: Sequence[SubspaceLayer], number: int, together: bool) -> None:
    """``resample_layers`` of layers with values here; ``together``: all processes do so, and share the layers out."""
    several = together and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    processes, here = (dist.get_world_size(), dist.get_rank()) if several else (1, 0)
    failures: list[Exception] = []

    def sample(groups: Groups) -> list[Pair]:
        """The pairs of this process's group among those of all processes."""
        group = groups[here] if here < len(groups) else []
        try:
            return _sampled(group, number)
        except Exception as error:
            if not several:
                raise
            failures.append(error)  # raised once the others know: they wait for these pairs
            return [(torch.full_like(layer.A, torch.nan), torch.full_like(layer.B, torch.nan)) for layer in group]

    on_cpu = [layer for layer in layers if layer.base.weight.device.type in IN_THREADS]
    elsewhere = [layer for layer in layers if layer.base.weight.device.type not in IN_THREADS]
    for groups, workers in (([[layer] for layer in on_cpu], _workers(on_cpu)), (_batches(elsewhere, processes), 1)):
        rounds = [groups[first : first + processes] for first in range(0, len(groups), processes)]
        for round_, pairs in in_order(sample, _with_merged_pairs(rounds), workers):
            for process, group in enumerate(round_):
                found = pairs if process == here else [(torch.empty_like(x.A), torch.empty_like(x.B)) for x in group]
                for layer, pair in zip(group, found, strict=True):
                    if several and (pair := _sent(pair, process))[0].isnan().any():
                        raise failures[0] if failures else OtherProcessError(f"process {process} could not resample")
                    layer.set_factors(*pair)
                    layer.number.fill_(number)


def _sampled(group: Sequence[SubspaceLayer], number: int) -> list[Pair]:
    if not group or not group[0].needs_vectors:  # all layers of a model share their settings
        pairs = [layer.sample(number, None) for layer in group]
    else:
        vectors = short_side_vectors([layer.merged_mn for layer in group])
        pairs = [layer.sample(number, own) for layer, own in zip(group, vectors, strict=True)]
    for layer, pair in zip(group, pairs, strict=True):
        if not all(math.isfinite(max_abs(factor)) for factor in pair):  # huge weights; nothing of the pair is written
            raise AdapterError(f"{layer.name}: values of its A and B are not finite")
    return pairs


def _sent(pair: Pair, process: int) -> Pair:
    """The pair of the process with this number, received into those of the others."""
    a, b = pair[0].detach().contiguous(), pair[1].detach().contiguous()
    dist.broadcast(a, process)
    dist.broadcast(b, process)
    return a, b


def _with_merged_pairs(rounds: Iterable[Groups]) -> Iterator[Groups]:
    for groups in rounds:
        for layer in itertools.chain(*groups):
            layer.merge_pair()
        yield groups


def _batches(layers: Sequence[SubspaceLayer], processes: int) -> Groups:
    """Groups of layers of one device and q, as large as ``BATCH_NUMBERS`` allows, at least one for each process."""
    alike: dict[tuple[torch.device, int], list[SubspaceLayer]] = defaultdict(list)
    for layer in layers:
        alike[layer.base.weight.device, _short_side(layer)].append(layer)
    batches = []
    for (_, q), group in alike.items():
        size = max(1, min(BATCH_NUMBERS // q**2, -(-len(group) // processes)))
        batches += [group[first : first + size] for first in range(0, len(group), size)]
    return batches


def _short_side(layer: AdapterLayer) -> int:
    return min(layer.in_features, layer.out_features)


def _workers(layers: Sequence[AdapterLayer]) -> int:
    """The number of CPU threads that factorise at the same time."""
    needed = max((layer.base.weight.numel() + 5 * _short_side(layer) ** 2 for layer in layers), default=1)
    return max(1, min(torch.get_num_threads(), CPU_NUMBERS // needed))
