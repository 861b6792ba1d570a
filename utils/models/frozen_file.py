"""A file with what the frozen blocks gave for a run's samples: for other runs on them, and for a resume."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rosa.files import replace_files
from utils.io.files import sync
from utils.log import log
from utils.tokens.encoding import Encoded

Row = tuple[int, ...]
Kept = dict[Row, Tensor]


class FrozenFile:
    """One file in a folder that runs share. It is complete or missing, and its name tells apart what it depends on.

    Attributes:
        path: its name has a digest of the samples, of the weights, of the precision, and of some outputs to the bit,
            which differ with the model's settings and the machine.
        needed: the rows of the training samples. The file is written once each of them is kept.
    """

    def __init__(self, folder: Path, precision: str, tensors: Iterable[Tensor], parts: Sequence[Encoded]) -> None:
        """``tensors`` are the weights and the outputs, ``parts`` the training samples, then those of the validation."""
        rows = [{tuple(map(int, sample.ids[:-1])) for sample in part.samples} for part in parts]
        digest = hashlib.sha256(json.dumps([precision, *map(sorted, rows)]).encode())
        for tensor in tensors:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        self.path = folder / f"frozen-{digest.hexdigest()[:16]}.safetensors"
        self.needed = rows[0]

    def read(self, device: torch.device) -> Kept:
        """The rows and the hidden states (n, d) of each. Nothing without a file; of a broken one, a warning."""
        try:
            tensors = load_file(self.path, device=str(device))
            lengths, ids = tensors["lengths"].tolist(), iter(tensors["ids"].tolist())
            return {tuple(islice(ids, len(hidden))): hidden for hidden in tensors["hidden"].split(lengths)}
        except FileNotFoundError:
            return {}
        except (OSError, SafetensorError, KeyError, RuntimeError) as error:
            log.warning("%s cannot be read (%s): the frozen blocks are computed again", self.path, error)
            return {}

    def write_once(self, kept: Kept) -> None:
        """Write ``kept`` if it has every training sample. A full disk ends in a warning."""
        if not self.needed or not self.needed <= kept.keys():
            return
        self.needed = set()
        tensors = {
            "ids": torch.tensor([token for row in kept for token in row]),
            "lengths": torch.tensor([len(row) for row in kept]),
            "hidden": torch.cat([hidden.cpu() for hidden in kept.values()]),
        }

        def write(path: Path) -> None:
            save_file(tensors, path)
            sync(path)  # after a power failure the file is whole or missing

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            replace_files({self.path: write})
            log.info("outputs of the frozen blocks for other runs: %s", self.path)
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be written (%s): other runs compute the frozen blocks again", self.path, error)
