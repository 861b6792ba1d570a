"""Models in a GGUF file (``model.gguf_file``), unpacked to plain float32 weights."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path
from typing import Any

from utils.errors import UserError


def check_gguf(folder: Path | None, name: str) -> None:
    """Raise UserError without the package gguf, or if a local ``folder`` (None: the hub) has no such file."""
    if importlib.util.find_spec("gguf") is None:
        raise UserError(f"model.gguf_file={name} needs the package gguf: pip install gguf")
    if folder is not None and not (folder / name).is_file():
        found = ", ".join(sorted(path.name for path in folder.glob("*.gguf"))[:5]) or "none"
        raise UserError(f"model.gguf_file={name} is not a file in {folder}; GGUF files there: {found}")


def gguf_options() -> dict[str, Any]:
    """The arguments of ``from_pretrained``, beside the file, with which a model is unpacked."""
    import transformers

    # newer versions of transformers keep quantised blocks unless they are told not to; older ones always unpack them
    unpack = getattr(transformers, "GgufConfig", None)
    return {"quantization_config": unpack(dequantize=True)} if unpack else {}


def no_bar() -> contextlib.AbstractContextManager[Any]:
    """Hide the progress bar that transformers shows even where there is no terminal; log lines are still shown."""
    return contextlib.redirect_stderr(io.StringIO())


def as_plain(loaded: Any) -> Any:
    """A model that was unpacked from GGUF as a plain one, which can be trained and saved."""
    config = loaded.config
    vars(config).pop("quantization_config", None)
    model = type(loaded)(config).float()
    model.load_state_dict(loaded.state_dict())
    return model
