"""A run's trained model as a plain model, a LoRA adapter of PEFT, or an adapter of this library."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rosa
from rosa.integrations.peft.lora_files import PeftLora, to_peft_lora
from rosa.settings import LowRankConfig
from utils import evaluation
from utils.config.settings import Config, load_config
from utils.errors import UserError, is_out_of_memory, reason
from utils.export.card import Exported, model_card
from utils.export.folder import CARD, whole_folder
from utils.export.loss import validation_losses
from utils.generation.decoding import Decoding
from utils.io.files import refuse_link, write_text
from utils.log import log
from utils.results.read import read_results
from utils.runs import Run
from utils.runs.trained import check_settings, checkpoint_of, load_base, load_trained


@dataclass(frozen=True)
class Options:
    """The options of the command.

    Attributes:
        form: merged, peft or adapter.
        rank, keep: of peft, see ``to_peft_lora``.
        checkpoint: best or last.
        out: where to write; None: ``export/<form>`` in the run's directory.
        overwrite: replace an earlier export there.
        device: where validation losses are computed.
        dataset_path: replaces the path that the run was trained with.
    """

    form: str
    rank: int | None = None
    keep: float | None = None
    checkpoint: str = "best"
    out: Path | None = None
    overwrite: bool = False
    device: str = "auto"
    dataset_path: str | None = None

    @property
    def cuts(self) -> bool:
        """Whether a LoRA adapter is cut to less than the whole change."""
        return self.rank is not None or self.keep is not None


def export_run(run: Run, options: Options) -> list[str]:
    """Write a run's model with its card. Returns lines about what was written, the folder's first.

    Raises:
        UserError: the run has no such checkpoint, its method does not have this form, or the folder has other files.
    """
    config = load_config(run.config_file)
    check_settings(run, config)
    _check_form(config, options)
    checkpoint = checkpoint_of(run, options.checkpoint)
    target = options.out or run.path / "export" / options.form
    if options.out is None:
        refuse_link(target.parent)
    with whole_folder(target, options.overwrite) as folder:
        tokenizer, model = load_trained(run, config, checkpoint, keep_base=options.form == "adapter")
        facts = []
        if options.form == "merged":
            _write_merged(tokenizer, model, _decoding(run, options), folder)
        elif options.form == "adapter":
            rosa.save_adapter(model, folder)
        else:
            facts = _write_peft(run, config, tokenizer, model, folder, options)
        exported = Exported(options.form, options.checkpoint, checkpoint, tuple(facts), options.cuts)
        write_text(folder / CARD, model_card(run, config, exported))
    return [f"written: {target}", *facts]


def _check_form(config: Config, options: Options) -> None:
    """Raise UserError for a form that the run's method does not have, and for options that the form does not have."""
    form, method = options.form, config.fnmodel.name
    if options.cuts and form != "peft":
        raise UserError(f"--rank and --keep cut a LoRA adapter: they do not go with --as {form}")
    if form == "merged":
        return
    if config.adapter is None:
        raise UserError(
            f"this run trained the weights themselves (fnmodel.name={method}): --as merged is its only form"
        )
    if form == "peft" and not isinstance(config.adapter, LowRankConfig):
        raise UserError(f"fnmodel.name={method} has no pair A, B, which a LoRA adapter is made of: write --as merged")
    if form == "adapter" and config.model.adapter is not None:
        raise UserError(
            "this run began with an adapter merged into its base model (model.adapter), to which its own belongs: "
            "write --as merged, or --as peft, which holds both changes"
        )


def _decoding(run: Run, options: Options) -> Decoding:
    """How the texts were generated whose scores are on the card; without them as eval.py does by default."""
    recorded = read_results([run.path])[0][0].decoding if options.checkpoint == "best" else {}
    known = {option.name for option in dataclasses.fields(Decoding)}
    return Decoding(**{name: value for name, value in recorded.items() if name in known})


def _write_merged(tokenizer: Any, model: Any, decoding: Decoding, folder: Path) -> None:
    """A plain model, its tokenizer, and ``decoding`` as the default of ``generate``."""
    from transformers import GenerationConfig

    model.config.pad_token_id = tokenizer.pad_token_id
    settings = dataclasses.asdict(decoding)
    if decoding.num_beams > 1:
        settings["early_stopping"] = False
    else:
        del settings["length_penalty"]  # of beams
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model.generation_config = GenerationConfig(do_sample=False, **settings, **ends)
    rosa.export(model, folder)
    # Training reads special tokens in a text as plain text. That is a property of its data, not of the tokenizer.
    tokenizer.split_special_tokens = tokenizer.init_kwargs.get("split_special_tokens", False)
    tokenizer.init_kwargs["padding_side"] = tokenizer.padding_side
    tokenizer.save_pretrained(folder)


def _write_peft(run: Run, config: Config, tokenizer: Any, model: Any, folder: Path, options: Options) -> list[str]:
    """A LoRA adapter on the base model as it was published. Returns facts about it, one sentence each."""
    base = load_base(dataclasses.replace(config.model, dropout=None))
    try:
        lora = to_peft_lora(model, base, folder, rank=options.rank, keep=options.keep)
    except rosa.AdapterError as error:
        raise UserError(f"{error} For the command: --as merged, --keep SHARE or --rank R.") from None
    facts = [_size(lora), _vllm(lora, own_biases=config.adapter is not None and config.adapter.trains_bias)]
    if options.cuts:
        lora.merge_into(base)
        facts.append(_loss_change(run, config, tokenizer, rosa.unwrap(model), base, options))
    return facts


def _size(lora: PeftLora) -> str:
    least = min(lora.ranks.values())
    ranks = f"rank {lora.rank}" if least == lora.rank else f"ranks {least} to {lora.rank}"
    worst = max(lora.errors, key=lora.errors.__getitem__)
    return (
        f"{ranks} in {len(lora.ranks)} layers; the pairs differ from the trained change by {lora.error:.2e} of its "
        f"Frobenius norm (at most {lora.errors[worst]:.2e}, in {worst})"
    )


def _vllm(lora: PeftLora, own_biases: bool) -> str:
    """Whether vLLM takes the adapter. ``own_biases``: the run trained biases, not the adapter that it began with."""
    if lora.vllm_problems:
        other = ", or train with fnmodel.params.bias=none" if own_biases else ""
        return f"vLLM does not take this adapter: {'; '.join(lora.vllm_problems)}. Serve --as merged{other}."
    return f"vLLM takes its format with --enable-lora --max-lora-rank {lora.max_lora_rank}"


def _loss_change(run: Run, config: Config, tokenizer: Any, whole: Any, cut: Any, options: Options) -> str:
    """What the cut costs on the validation data, from the plain models with the whole change and with the cut one."""
    chosen = evaluation.Options(split="validation", device=options.device, dataset_path=options.dataset_path)
    try:
        before, after = validation_losses(run, config, tokenizer, [whole, cut], chosen)
    except (UserError, MemoryError, RuntimeError) as error:
        if not isinstance(error, UserError) and not is_out_of_memory(error):
            raise
        log.warning("the validation loss is not measured: %s", reason(error))
        return f"the change of the validation loss by the cut was not measured: {reason(error)}"
    return f"validation loss {before:.4f} before the cut, {after:.4f} with it ({after - before:+.4f}), in float32"
