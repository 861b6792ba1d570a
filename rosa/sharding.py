"""Gather a layer that FSDP2 (``fully_shard``) has sharded, to merge, factorise, resample or save it.

All of these need the whole weight. Every process gathers one layer at a time, so that a model may be larger than a
device.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rosa.errors import AdapterError


def is_sharded(tensor: Tensor) -> bool:
    """Whether each process holds only a part of ``tensor`` (a DTensor)."""
    return hasattr(tensor, "full_tensor")


def gather(tensor: Tensor) -> Tensor:
    """The whole tensor, detached. If it is sharded, every process must call this."""
    values: Any = tensor.detach()
    return values.full_tensor() if is_sharded(tensor) else values  # type: ignore[no-any-return]


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of it, unless it is sharded."""
    values: Any = tensor
    return values.to_local() if is_sharded(tensor) else values  # type: ignore[no-any-return]


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether what is written into one of two tensors is written into the other, too."""
    if a.is_meta or b.is_meta:
        return False
    return local_part(a).untyped_storage().data_ptr() == local_part(b).untyped_storage().data_ptr()


def max_abs(tensor: Tensor) -> float:
    """The largest absolute value; NaN if one is NaN. Waits for the device; see ``gather`` for sharded tensors."""
    return float(torch.linalg.vector_norm(gather(tensor), math.inf))


def reshard(model: nn.Module) -> None:
    """Drop parameters that ``fully_shard`` gathered for a forward pass: values written into them would be lost."""
    for module in model.modules():
        if callable(drop := getattr(module, "reshard", None)) and callable(getattr(module, "unshard", None)):
            drop()


def on_first_process(write: Callable[[], None]) -> None:
    """Call ``write`` on the first process only. The others wait, and fail if it fails.

    Raises:
        AdapterError: on the other processes, with the first one's message.
    """
    error: BaseException | None = None
    if dist.get_rank() == 0:
        try:
            write()
        except Exception as caught:
            error = caught
    message = [None if error is None else f"{type(error).__name__}: {error}"]
    dist.broadcast_object_list(message, 0)
    if error is not None:
        raise error
    if message[0] is not None:
        raise AdapterError(f"the first process could not write: {message[0]}")


def shard_like(values: Tensor, model: Any) -> Tensor:
    """This process's part of ``values`` as a tensor that is sharded like ``model``. Does not communicate."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        values.to(model.device, model.dtype), model.device_mesh, model.placements, src_data_rank=None
    )


@contextlib.contextmanager
def gathered(layer: nn.Module) -> Iterator[None]:
    """Give a layer its whole parameters within a ``with`` block. Afterwards each process keeps its part of them.

    Every process must enter the block and write the same values. The sharded parameters keep their identity, and an
    error in the block leaves them as they were. Does nothing for a layer that is not sharded.
    """
    sharded = [
        (module, name, parameter)
        for module in layer.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if is_sharded(parameter)
    ]
    try:
        for module, name, parameter in sharded:
            module._parameters[name] = nn.Parameter(gather(parameter), parameter.requires_grad)
        yield
        with torch.no_grad():
            for module, name, parameter in sharded:
                parameter.copy_(shard_like(getattr(module, name).detach(), parameter))
    finally:
        for module, name, parameter in sharded:
            module._parameters[name] = parameter


def gather_all(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors; sharded ones gathered one after another, with values on the first process only, on its CPU."""
    found: dict[int, Tensor] = {}
    for tensor in tensors.values():
        if is_sharded(tensor) and id(tensor) not in found:
            values = gather(tensor)
            found[id(tensor)] = values.cpu() if dist.get_rank() == 0 else values.new_empty(0)
    return {name: found.get(id(tensor), tensor) for name, tensor in tensors.items()}
