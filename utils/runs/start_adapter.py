"""The adapter that a run starts from (``model.adapter``): the run's own copy.

The adapter is merged into the base model before anything else. Its digest takes the place of its path in the run's
identity. The run keeps a copy of its files, so that it can be evaluated and exported once the folder is gone, or on
another machine: checkpoints do not hold all weights of the model that they adapt.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from utils.config.settings import Config
from utils.errors import UserError
from utils.io.files import own_folder, sync
from utils.runs.inputs import adapter_digest, adapter_files, check_inputs
from utils.runs.run import ADAPTER, Run


def keep_start(run: Run, config: Config, digest: str) -> None:
    """Copy the adapter into the run's directory, unless it is there. To be called once the adapter was loaded.

    Args:
        digest: the adapter's in the run's identity.

    Raises:
        UserError: the folder has changed since ``digest`` was taken, so that something else may have been loaded.
    """
    source = Path(str(config.model.adapter)).expanduser()
    if adapter_digest(source) != digest:
        raise UserError(f"model.adapter={source} was changed while it was loaded: give the same command again")
    if not run.start_adapter.exists() or adapter_digest(run.start_adapter) != digest:
        temporary = run.path / f".{run.start_adapter.name}"
        for folder in (temporary, run.start_adapter):
            shutil.rmtree(folder, ignore_errors=True)
        own_folder(temporary)
        sync(*(shutil.copyfile(path, temporary / path.name) for path in adapter_files(source)), temporary)
        temporary.rename(run.start_adapter)


def kept_start(run: Run, config: Config) -> Path | None:
    """The run's copy of its start, once it is what the run began with; None if the run has none.

    Raises:
        UserError: it is gone, or another one.
    """
    if config.model.adapter is None:
        return None
    if not run.start_adapter.is_dir():
        raise UserError(
            f"{run.start_adapter} is gone: put the adapter that the run began with (model.adapter="
            f"{config.model.adapter}) there again"
        )
    check_inputs(run, {ADAPTER: adapter_digest(run.start_adapter)}, config)
    return run.start_adapter
