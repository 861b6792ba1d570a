"""The data of a training run: load both splits, choose a part of each, tokenise it, and check it against the model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rosa.subspace import seeded_generator
from utils.config.settings import Config
from utils.config.train import TrainConfig
from utils.data import Example, digest, known_samples, training_units
from utils.errors import UnfitSettings
from utils.log import log
from utils.models.loading import max_positions
from utils.runs.inputs import TRAINING
from utils.tokens.encoding import Encoded, ending_texts, spelled_tokens
from utils.tokens.packing import encode_units


@dataclass(frozen=True)
class TrainingData:
    """The tokenised splits, the distinct prompts of the validation split in file order, and what was read.

    ``inputs`` has the digest of each input by name, see ``utils.runs.inputs``.
    """

    train: Encoded
    validation: Encoded
    prompts: list[str]
    inputs: dict[str, str]


def load_training_data(config: Config, tokenizer: Any) -> TrainingData:
    """Load and tokenise the training and validation splits, never the test split.

    Raises:
        UserError: the data cannot be loaded or do not fit ``train.seq_len``.
    """
    source, train = config.source, config.train
    examples = {split: config.load(split) for split in TRAINING}
    units = {split: chosen_units(config, split, part) for split, part in examples.items()}
    prompts = dict.fromkeys(example.prompt for unit in units["validation"] for example in unit)
    encoded = {
        split: encode_units(part, tokenizer, packed=source.packed, seq_len=train.seq_len, block_size=train.block_size)
        for split, part in units.items()
    }
    texts = [text for split in units.values() for unit in split for e in unit for text in (e.prompt, e.target)]
    if ending := ending_texts(texts, tokenizer):
        log.warning(
            "%d of %d prompts and targets spell %s, which this tokenizer reads as the end of a text even there: what "
            "follows it is trained as another text. Remove it from the data", ending, len(texts), tokenizer.eos_token,
        )  # fmt: skip
    elif spelled := spelled_tokens(texts, tokenizer):
        log.warning(
            "%d of %d prompts and targets spell special tokens of the model, such as %s: they are read as plain text, "
            "so that data cannot end a text", len(spelled), len(texts), spelled[0],
        )  # fmt: skip
    if source.needs_path:
        training, validation = ([e for unit in units[split] for e in unit] for split in TRAINING)
        if known := known_samples(validation, training, "validation"):
            log.warning("%s: the best checkpoint is chosen on known data", known)
    for split, data in encoded.items():
        if data.cut:
            log.warning(
                "%d of %d %s samples are longer than train.seq_len=%d: the ends of their targets are cut",
                data.cut, len(data), split, train.seq_len,
            )  # fmt: skip
    return TrainingData(
        encoded["train"],
        encoded["validation"],
        list(prompts),
        {f"data/{split}": digest(part) for split, part in examples.items()},
    )


def chosen_units(config: Config, split: str, examples: list[Example]) -> list[list[Example]]:
    """The part of a split that a run reads: a random fraction of its units, at least one, in their original order.

    The fraction is ``train.fraction`` or ``train.validation_fraction``; the name of the key is part of the seed.
    """
    units = training_units(config.source, examples)
    key = "fraction" if split == "train" else "validation_fraction"
    count = max(1, round(getattr(config.train, key) * len(units)))
    if count == len(units):
        return units
    chosen = torch.randperm(len(units), generator=seeded_generator(key, config.seed))[:count]
    return [units[i] for i in sorted(chosen.tolist())]


def check_lengths(data: TrainingData, model: Any, config: Config) -> None:
    """Raise UserError, with the key to set, if a sample or the setting is longer than the model's positions.

    The default value is not checked, so that a model with few positions can train on short samples.
    """
    limit = max_positions(model)
    longest = max(part.describe()["longest"] for part in (data.train, data.validation))
    key = "seq_len" if data.train.documents is None else "block_size"
    value, name = getattr(config.train, key), config.model.name
    if limit is not None and longest > limit:
        raise UnfitSettings(f"a sample has {longest} tokens, but {name} takes {limit}: set train.{key}={limit}")
    if limit is not None and value > limit and value != getattr(TrainConfig, key):
        raise UnfitSettings(f"train.{key}={value} is above the {limit} positions of {name}: set at most {limit}")
