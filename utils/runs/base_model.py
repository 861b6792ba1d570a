"""The files of a base model in a local folder: a run's record has their digests, and a run goes on from no others."""

from __future__ import annotations

from pathlib import Path

from utils.config import ModelConfig
from utils.errors import UserError
from utils.io.files import sha256
from utils.models.loading import model_source
from utils.runs.run import Run

RECORDED = "base_sha256"
DECIDING = ("config.json", "*.safetensors", "tokenizer.json", "vocab.json", "merges.txt", "*.model")


def base_digests(settings: ModelConfig) -> dict[str, str]:
    """The SHA-256 of each file that decides what the model computes, by name; {} for a model from the hub.

    Raises:
        UserError: the folder is no saved model, or a file cannot be read.
    """
    folder = Path(model_source(settings.name, settings.gguf_file))
    if not folder.is_dir():
        return {}
    patterns = DECIDING if settings.gguf_file is None else (settings.gguf_file,)
    try:
        return {path.name: sha256(path) for pattern in patterns for path in sorted(folder.glob(pattern))}
    except OSError as error:
        raise UserError(f"model.name={settings.name} cannot be read: {error.strerror}") from None


def agree_on_base(run: Run, settings: ModelConfig) -> dict[str, str]:
    """The digests of the base model, once they are those of the run's record, if it has any.

    Raises:
        UserError: a file is not the one that the run began with, or is gone.
    """
    recorded = run.record().get(RECORDED) if run.record_file.exists() else None
    found = base_digests(settings)
    if found and isinstance(recorded, dict):
        others = sorted(name for name, digest in recorded.items() if found.get(name) != digest)
        if others:
            raise UserError(
                f"{run.path} was made from another base model: {', '.join(others)} in model.name={settings.name} "
                "differs from what the run began with. Give that model; to train on this one, give another "
                "output.path or remove the run's folder"
            )
    return found
