"""An adapter's files: written under a temporary name and renamed; read without trusting their content."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from rosa.errors import AdapterError
from rosa.sharding import max_abs

CONFIG_FILE = "adapter_config.json"
MODEL_FILE = "config.json"  # of transformers
ADAPTER_FILE = "adapter.safetensors"
FROZEN_FILE = "frozen.safetensors"
LEFT, RIGHT = "left", "right"  # the factors of W_f − W_0, in the frozen file
SUBSPACE = "subspace"  # in the metadata of its tensors, the number of their subspace: training goes on to the next one
FORMAT = 1
# In the place of the type that PEFT looks for: it quotes the text in its error.
FOR_PEFT = "not of PEFT: rosa.save_adapter wrote this adapter, so load it with rosa.load_adapter(model, folder)"
METADATA_KEY = "marks"  # of the checksums, in a safetensors file
LARGEST_CONFIG = 2**26  # bytes; a layer takes some 100
LEFTOVER_SECONDS = 3600  # a temporary file that nobody wrote to for so long is that of a killed process
DTYPES = ("F16", "BF16", "F32", "F64")  # as safetensors names them


def replace_files(writers: Mapping[Path, Callable[[Path], object]]) -> None:
    """Write each file under a temporary name, then rename all of them. Several processes may do it at once."""
    token = f"{os.getpid()}-{secrets.token_hex(4)}"  # process ids of two machines or containers may be equal
    temporary = {path: path.with_name(f".{path.name}.{token}.tmp") for path in writers}
    for path in writers:
        _remove_leftovers(path)
    try:
        for path, write in writers.items():
            write(temporary[path])
            follow_umask(temporary[path])
        for path, written in temporary.items():
            written.replace(path)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def keep_apart(folder: Path, file: str) -> None:
    """Raise AdapterError if ``folder`` has a model's or an adapter's ``file``: the other must not come beside it."""
    if (folder / file).exists():
        raise AdapterError(
            f"{folder} has {file}: from_pretrained adds an adapter to a model in its folder, so that a merged change "
            "would count twice. Give another folder"
        )


def follow_umask(*paths: Path) -> None:
    """Give files the mode of a new file. safetensors 0.8 writes files that only their owner may read."""
    umask = os.umask(0o077)
    os.umask(umask)
    for path in paths:
        with contextlib.suppress(OSError):  # a file system without modes, or another user's file
            path.chmod(0o666 & ~umask)


def _remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed processes left beside ``path``."""
    for left in path.parent.glob(f".{path.name}.*tmp"):
        with contextlib.suppress(FileNotFoundError):  # another process removes it too, or renames its own
            if time.time() - left.stat().st_mtime > LEFTOVER_SECONDS:
                left.unlink()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], **checksums: str) -> None:
    """Write a safetensors file with ``checksums`` in one metadata entry, because several have a random order."""
    metadata = {METADATA_KEY: json.dumps(checksums, sort_keys=True)} if checksums else None
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)


def read_checksums(file: Any) -> dict[str, str]:
    """The checksums in an open safetensors file; {} if it is older than they are."""
    checksums = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
    if not isinstance(checksums, dict):
        raise TypeError("its checksums are not an object")
    return checksums


def read_description(folder: Path) -> dict[str, Any]:
    """The content of ``adapter_config.json``: method, config, layers, and base (may be empty).

    That of the library peft (it has ``peft_type``) comes as it is, for ``rosa.peft_files``.

    Raises:
        AdapterError: the file is missing, damaged, or of another format.
    """
    path = folder / CONFIG_FILE
    try:
        if not path.exists():
            raise AdapterError(f"{folder} holds no adapter: {CONFIG_FILE} is missing")
        if not path.is_file():
            raise OSError("it is not a file")
        with path.open("rb") as file:
            content = file.read(LARGEST_CONFIG + 1)
        if len(content) > LARGEST_CONFIG:
            raise ValueError(f"it is larger than {LARGEST_CONFIG:,} bytes")
        description = json.loads(content)
        if isinstance(description, dict) and description.get("peft_type", FOR_PEFT) != FOR_PEFT:
            return description
        if description["format"] != FORMAT:
            raise AdapterError(f"{path} has format {description['format']!s:.20}, this version reads {FORMAT}")
        for key, kind in (("method", str), ("config", dict), ("layers", dict)):
            if not isinstance(description[key], kind):
                raise TypeError(f"{key} must be {'a text' if kind is str else 'an object'}")
        found = {"base": {}, **description}
        if not all(_is_flat(part) for part in (found["config"], found["base"], *found["layers"].values())):
            raise TypeError("its objects must hold plain values")
        return {key: found[key] for key in ("method", "config", "layers", "base")}
    except AdapterError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path} is damaged: {error!r:.200}") from None


def _is_flat(part: object) -> bool:
    """Whether ``part`` is an object of plain values and of lists of them."""
    if not isinstance(part, dict):
        return False
    items = [item for value in part.values() for item in (value if isinstance(value, list) else [value])]
    return not any(isinstance(item, (dict, list)) for item in items)


def factor_ranks(path: Path) -> dict[str, int]:
    """The rank of each layer whose factors the frozen file holds; {} for a file that cannot be read."""
    try:
        shapes = tensor_shapes(path) if path.is_file() else {}
    except AdapterError:  # ``read_tensors`` says what is wrong
        return {}
    end = f".{LEFT}"
    return {name.removesuffix(end): max([1, *shape[1:]]) for name, shape in shapes.items() if name.endswith(end)}


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor in a file, of which only the header is read.

    Raises:
        AdapterError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise AdapterError(f"{path} is missing or damaged: {error!s:.200}") from None


def read_tensors(path: Path, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, in the dtypes of ``expected``, and its checksums.

    Raises:
        AdapterError: the file is missing or damaged, has other names, shapes or kinds of numbers than ``expected``, or
            holds values that are not finite.
    """
    try:
        if not path.is_file():
            raise OSError("no such file")
        with safe_open(path, framework="pt") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in parts.items()}
            wrong = [
                name for name in {**expected, **found}
                if name not in found or name not in expected or found[name][0] != tuple(expected[name].shape)
            ]  # fmt: skip
            if wrong:
                text = ", ".join(wrong[:3])
                raise AdapterError(f"{path} does not fit the model: {text:.500} differ ({len(wrong)} in all)")
            for name, (_, dtype) in found.items():
                if dtype not in DTYPES:
                    raise AdapterError(f"{path}: {name} holds {dtype} numbers, not one of {', '.join(DTYPES)}")
            values = {name: file.get_tensor(name).to(expected[name].dtype) for name in expected}
            checksums = read_checksums(file)
    except AdapterError:
        raise
    except Exception as error:  # a damaged file can make the reader raise anything
        raise AdapterError(f"{path} is missing or damaged: {error!s:.200}") from None
    for name, tensor in values.items():
        if not max_abs(tensor) < torch.inf:
            raise AdapterError(f"{path}: {name} holds values that are not finite in {expected[name].dtype}")
    return values, checksums
