"""Loading base models and tokenizers: a hub name, a local folder, or the bundled ``tiny``; or a GGUF file in one."""

from __future__ import annotations

import contextlib
import functools
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

import rosa
from rosa.injection import build_layers
from rosa.targets import summary
from utils.config.settings import Config
from utils.errors import UnfitSettings, UserError, short_reason
from utils.io.hub import WAYS_OUT
from utils.log import log
from utils.models.attention import same_attention
from utils.models.fast_modules import use_faster_modules
from utils.models.gguf import as_plain, check_gguf, gguf_options, no_bar
from utils.text import nearest

BUNDLED = {"tiny": Path(__file__).parents[2] / "assets" / "tiny-gpt2"}
START_ADAPTER = "start_adapter"  # a run's copy of model.adapter (utils.runs.run)
TOKENIZER_HINT = (
    "Save the model's own tokenizer in its folder: AutoTokenizer.from_pretrained(BASE).save_pretrained(FOLDER), or "
    "copy tokenizer.json and tokenizer_config.json there."
)


def model_source(name: str, gguf: str | None = None) -> str:
    """The name or path for ``from_pretrained``. Raises UserError for a path that is not a model folder.

    Args:
        gguf: the name of a GGUF file there, which then is the model.
    """
    path = BUNDLED.get(name) or Path(name).expanduser()
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if gguf is not None and (path.is_dir() or not looks_like_path):
        check_gguf(path if path.is_dir() else None, gguf)
        return str(path) if path.is_dir() else name
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.name={name} is a folder without config.json: not a saved model")
        return str(path)
    if looks_like_path or path.exists():
        raise UserError(f"model.name={name} is not a folder with a saved model")
    return name


def load_tokenizer(name: str, gguf: str | None = None) -> Any:
    """The tokenizer. It pads on the left, as generation in batches needs.

    It pads with eos if it has no padding token, or one that was added to it and not to the model's embedding.

    A special token in a text, such as ``<|endoftext|>``, is tokenised as plain text: data cannot end a text early.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, name, "tokenizer", gguf)
    rows = getattr(load_model_config(name, gguf=gguf).get_text_config(), "vocab_size", None)
    _check_vocabulary(tokenizer, name, rows)
    if tokenizer.pad_token_id is None or (rows is not None and tokenizer.pad_token_id >= rows):
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    tokenizer.split_special_tokens = True
    return tokenizer


def _check_vocabulary(tokenizer: Any, name: str, rows: int | None) -> None:
    """Raise UserError for a tokenizer without tokens, one without eos, or one whose tokens the model does not have.

    Args:
        rows: of the model's embedding, if they are known.
    """
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"model.name={name}: its tokenizer has no end-of-text token, which marks the end of a target: name one as "
            '"eos_token" in its tokenizer_config.json'
        )
    added = tokenizer.added_tokens_decoder
    if not set(tokenizer.get_vocab().values()) - set(added):  # what transformers makes if files are missing
        raise UserError(f"model.name={name} has no tokenizer, or one without tokens. {TOKENIZER_HINT}")
    special = {token for token, content in added.items() if content.special}  # never made from a text
    largest = max({tokenizer.eos_token_id, *tokenizer.get_vocab().values()} - (special - {tokenizer.eos_token_id}))
    if rows is not None and largest >= rows:
        raise UserError(
            f"model.name={name}: its tokenizer has tokens up to number {largest}, but its embedding has {rows} rows: "
            f"they are not of the same model. {TOKENIZER_HINT}"
        )


def load_model(
    name: str, dropout: float | None = None, *, gguf: str | None = None, adapter: str | Path | None = None
) -> Any:
    """The causal language model in float32 (merges in bfloat16 would lose small changes).

    Args:
        name: see ``model_source``.
        dropout: for every dropout of the model; None keeps its own.
        gguf: the name of a GGUF file in the model's folder or repository, which holds the weights.
        adapter: the folder of an adapter to merge, of this library or a LoRA of the library peft.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = load_model_config(name, dropout, gguf)
    # With a padding id, models search each batch for padding, which waits for the device. Here padding is on the right,
    # where no token attends to it, and generation gets its padding id by itself.
    vars(config)["pad_token_id"] = None  # ModernBERT's decoder declares an integer, and a plain assignment checks that
    options = gguf_options() if gguf else {"use_safetensors": True}
    options |= {"config": config, "dtype": torch.float32, "output_loading_info": True}
    model, info = _from_pretrained(AutoModelForCausalLM, name, "model", gguf, **options)
    _check_whole(model, info, name)
    model = as_plain(model) if gguf else model
    model.generation_config = GenerationConfig()  # Decoding says how a run generates, not generation_config.json
    if adapter is not None:
        _merge_adapter(model, adapter)
    use_faster_modules(model)
    return model


def _check_whole(model: Any, info: dict[str, Any], name: str) -> None:
    """Raise UserError unless the files hold what the configuration says, in finite numbers.

    A part that the files lack would be random. Blocks beyond those of the configuration are refused too. Other weights
    without a place, such as those that read images, are logged.
    """
    if missing := sorted(info["missing_keys"]):
        raise UserError(
            f"model.name={name} is not whole: by its config.json it has {summary(missing):.300}, which its files lack. "
            "Copy the model again, or correct the configuration"
        )
    unused = sorted(info["unexpected_keys"])
    own = {re.sub(r"\d+", "#", key) for key in model.state_dict()}
    own |= {key.removeprefix(f"{model.base_model_prefix}.") for key in own}  # a base model's files lack it
    if further := [key for key in unused if re.sub(r"\d+", "#", key) in own]:
        raise UserError(
            f"model.name={name} has more blocks in its files than its config.json says: {summary(further):.300}. "
            "Correct the configuration, or copy the model again"
        )
    # a sum is much faster than a look at each number, and overflows at most where numbers are finite
    values = model.named_parameters()
    if bad := sorted(key for key, value in values if not (value.sum().isfinite() or value.isfinite().all())):
        raise UserError(
            f"model.name={name} holds values that are not finite, in {summary(bad):.300}. Copy the model again, or "
            "give another one"
        )
    if unused:
        log.warning(
            "not used of model.name=%s, because its config.json has no place for it: %.300s", name, summary(unused)
        )


def _merge_adapter(model: Any, folder: str | Path) -> None:
    """Add a saved adapter to the model's weights, in place. All of them train afterwards, as before.

    Raises:
        UserError: it cannot be loaded, or was made for a base model with other values.
    """
    path = Path(folder).expanduser()
    try:
        load_adapter_of_base(model, path, keep_base=False)
    except UserWarning as warning:
        raise UserError(f"model.adapter={folder} cannot be used: {warning}. {_right_base(path)}") from None
    except rosa.AdapterError as error:
        raise UserError(f"model.adapter={folder} cannot be used: {error}") from None
    rosa.unwrap(model).requires_grad_(True)


def load_adapter_of_base(model: Any, folder: Path, *, keep_base: bool) -> None:
    """``rosa.load_adapter``, with an error where it warns that the adapter was made for a base with other values.

    Raises:
        UserWarning: that warning.
        rosa.AdapterError: the adapter cannot be loaded.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "the adapter was saved with another base model", UserWarning)
        rosa.load_adapter(model, folder, keep_base=keep_base)


def _right_base(folder: Path) -> str:
    """The way out for an adapter of another base model, which may be one with a run's own start merged."""
    for run in folder.resolve().parents:
        if (run / START_ADAPTER).is_dir():
            return (
                f"It is of a run that itself began with an adapter, {run / START_ADAPTER}: write both as one by "
                f"python -m utils.export {run} --as peft, and give that folder"
            )
    return "Give the model that it was made for as model.name"


def load_model_config(name: str, dropout: float | None = None, gguf: str | None = None) -> Any:
    """The model's configuration, with all dropout probabilities replaced if ``dropout`` is given."""
    from transformers import AutoConfig

    config = _from_pretrained(AutoConfig, name, "configuration", gguf)
    if dropout is not None:
        places = list(_dropouts(config))
        if not places:
            raise UserError(f"model.dropout={dropout}: {name} ({config.model_type}) has no dropout to set")
        for part, key in places:
            part.__dict__[key] = dropout  # MPT declares one as an integer, and a plain assignment checks that
    return config


def _dropouts(config: Any) -> Iterator[tuple[Any, str]]:
    """Each dropout probability of a model's configuration and of those within it, with the one that has it."""
    for key, value in config.to_dict().items():
        if isinstance(value, (int, float)) and key.endswith(("dropout", "pdrop", "dropout_prob", "dropout_rate")):
            yield config, key
        elif hasattr(inner := getattr(config, key, None), "to_dict"):
            yield from _dropouts(inner)


def hidden_size(name: str, gguf: str | None) -> int | None:
    """The model's hidden size; None if its configuration names none."""
    value = getattr(load_model_config(name, gguf=gguf).get_text_config(decoder=True), "hidden_size", None)
    return value if isinstance(value, int) else None


def recompute_activations(model: Any) -> None:
    """Let the backward pass compute the activations of each block again: less memory, more time."""
    # transformers has renamed the method and warns of the old name
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False, "context_fn": functools.partial(same_attention, model)})


def check_method_fits(config: Config) -> None:
    """Check that the adapter, or the layers to train, fit the model's shapes, before any weight is read.

    Raises:
        UserError: a rank above a layer's full rank, targets that match nothing, no causal language model, a quantised
            one.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM

    name, adapter, layers = config.model.name, config.adapter, config.fnmodel.trained_layers
    model_config = load_model_config(name, gguf=config.model.gguf_file)
    if type(model_config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"model.name={name}: transformers has no causal language model of type {model_config.model_type}, and "
            "train.py trains no other. It can be adapted as a library: rosa.inject."
        )
    if not config.model.gguf_file and getattr(model_config, "quantization_config", None):
        raise UserError(
            f"model.name={name} holds quantised weights, and train.py trains weights of 32 bits: give the model "
            "without quantisation, or save it dequantised (model.dequantize(), where transformers has that for its "
            "kind, and model.save_pretrained(FOLDER)). As a library, LoRA and (IA)³ train on quantised weights: "
            "rosa.inject."
        )
    if adapter is None and layers is None:
        return
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model_config, dtype=torch.float32)
        if adapter is not None:
            build_layers(model, adapter)
        else:
            rosa.train_only(model, layers)
    except rosa.AdapterError as error:
        raise UnfitSettings(f"fnmodel does not fit model.name={name}: {error}") from None


def max_positions(model: Any) -> int | None:
    """The longest sequence that the model takes, in tokens; None if its configuration names none."""
    value = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return int(value) if value else None


def _from_pretrained(loader: Any, name: str, what: str, gguf: str | None = None, **options: Any) -> Any:
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    source = model_source(name, gguf)
    if gguf is not None:
        options["gguf_file"] = gguf
    try:
        with no_bar() if gguf else contextlib.nullcontext():
            return loader.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError) as error:
        ways = WAYS_OUT.format(path_key="model.name", cache_hint="HF_HOME=DIR there and here")
        if what == "configuration" and isinstance(error, ValueError):
            ways = "Give a model of a type that this version of transformers has; code of a model's own is never run."
        elif Path(source).is_dir():
            ways = TOKENIZER_HINT if what == "tokenizer" else "The folder is not a whole saved model: copy it again."
        near = nearest(name, BUNDLED)
        hint = f" Did you mean {near}?" if near and name not in BUNDLED else ""
        why = short_reason(error).rstrip(".")
        raise UserError(f"the {what} of model.name={name} cannot be loaded.{hint} {why}. {ways}") from None
