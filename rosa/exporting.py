"""``export``: a plain model, with the adapters merged, that needs nothing of this library."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rosa.errors import AdapterError
from rosa.files import CONFIG_FILE, follow_umask, keep_apart
from rosa.injection import layers_in_place, merged, without_adapters
from rosa.layers import AdapterLayer
from rosa.resampling import RESAMPLER, warn_if_never_resampled
from rosa.sharding import gather_all, is_sharded, on_first_process


def export(model: Any, folder: str | Path) -> None:
    """Save as a plain model: adapters merged, loadable by ``from_pretrained`` without this library.

    The weights from before the merge are kept in an unnamed file in ``folder``, not in memory, and restored to the bit.
    Every process of a sharded model must call this; the first one gathers the whole model on its CPU.

    Raises:
        AdapterError: a model of the library peft, one without ``save_pretrained``, or a quantised weight; or the folder
            holds an adapter, which ``from_pretrained`` would add to the merged weights. Nothing is written then.
    """
    layers = layers_in_place(model, to_merge=True)
    if not hasattr(model, "save_pretrained"):
        wrapped = "the model that it wraps (model.module)" if hasattr(model, "module") else "a model of transformers"
        raise AdapterError(f"{type(model).__name__} has no save_pretrained: give {wrapped}")
    keep_apart(Path(folder), CONFIG_FILE)
    warn_if_never_resampled(layers.values(), RESAMPLER)
    if any(is_sharded(layer.base.weight) for layer in layers.values()):
        with merged(model):
            state = gather_all(model.state_dict(keep_vars=True))
            on_first_process(lambda: _save(model, Path(folder), state_dict=state))
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    with _merged_in_place(layers.values(), Path(folder)), without_adapters(model):
        _save(model, Path(folder))


def _save(model: Any, folder: Path, **options: Any) -> None:
    model.save_pretrained(folder, **options)
    follow_umask(*folder.glob("*.safetensors"))


@contextlib.contextmanager
def _merged_in_place(layers: Iterable[AdapterLayer], folder: Path) -> Iterator[None]:
    """Merge the layers within a ``with`` block; a file keeps their previous weights and biases."""
    changing = [layer for layer in layers if not layer.merged]
    with tempfile.TemporaryFile(dir=folder) as file:
        for layer in changing:
            for values in layer.base.parameters():
                file.write(_bytes(values.detach().contiguous().cpu()))
        file.flush()
        try:
            for layer in changing:
                layer.merge(keep=False)
            yield
        finally:
            file.seek(0)
            for layer in changing:
                for values in layer.base.parameters():
                    before = torch.empty_like(values, device="cpu", memory_format=torch.contiguous_format)
                    if file.readinto(_bytes(before)) != before.nbytes:
                        raise AdapterError(f"{layer.name}: its weight could not be read back from {folder}")
                    values.detach().copy_(before)


def _bytes(tensor: Tensor) -> Any:
    return tensor.view(torch.uint8).numpy()
