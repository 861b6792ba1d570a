"""The validation loss of models, to say what a cut of the learned change costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from utils.config.settings import Config
from utils.evaluation import Options, load_examples
from utils.models.losses import model_losses
from utils.processes.devices import resolve_device
from utils.runs import Run
from utils.tokens.packing import encode_units
from utils.training.data import chosen_units


def validation_losses(run: Run, config: Config, tokenizer: Any, models: Sequence[Any], options: Options) -> list[float]:
    """The loss of each plain model on the validation data of the run's training, in float32.

    Raises:
        UserError: the data are missing, or are not those that the run was trained with.
    """
    train = config.train
    units = chosen_units(config, "validation", load_examples(run, config, options)[0])
    encoded = encode_units(
        units, tokenizer, packed=config.source.packed, seq_len=train.seq_len, block_size=train.block_size
    )
    device = torch.device(resolve_device(options.device))
    losses = []
    for model in models:
        found = model_losses(model.to(device).eval(), encoded, tokenizer.pad_token_id, options.batch())
        losses.append(found.metrics(config.loss_on())["loss"])
        model.cpu()
    return losses
