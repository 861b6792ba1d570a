"""Reading from the Hugging Face hub, with one clear message where there is no network."""

from __future__ import annotations

import logging
from typing import Any

from utils.errors import UserError

WAYS_OUT = (
    "Without network: set {path_key} to a local folder, fill the cache on a machine with network ({cache_hint}), "
    "or try the bundled pair: dataset.name=e2e_sample model.name=tiny."
)


def load_split(
    repository: str, split: str, cache: str | None, *, revision: str | None = None, config: str | None = None
) -> Any:
    """A split of a hub data set; a cache filled earlier serves without network.

    Raises:
        UserError: neither the hub nor the cache has it.
    """
    import datasets

    datasets.disable_progress_bars()
    logging.getLogger("datasets").setLevel(logging.ERROR)
    try:
        return datasets.load_dataset(repository, config, split=split, revision=revision, cache_dir=cache)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        ways = WAYS_OUT.format(path_key="dataset.path", cache_hint="dataset.cache=DIR there and here")
        raise UserError(f"the hub data set {repository} ({split}) cannot be loaded: {reason}. {ways}") from None
