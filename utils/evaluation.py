"""Evaluate finished runs: loss and perplexity of a split, predictions and references beside the run."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rosa
from utils.config import Config, load_config
from utils.data import Example, digest, get_source, group_by_source
from utils.errors import UserError, reason
from utils.generation.generate import Decoding, generate
from utils.io.files import LARGEST, lock, remove_leftovers, sha256, write_json
from utils.log import log, run_log
from utils.processes.signals import never, stop_on_signals
from utils.runs import Run, find_runs
from utils.runs.checkpoint import checkpoint_hash, load_weights, verify
from utils.runs.digests import TRAINING, recorded_digests, refuse_other_data
from utils.runs.identity import group_hash
from utils.runs.texts import Answer, write_texts
from utils.training.failures import is_out_of_memory


@dataclass(frozen=True)
class Options:
    """What to evaluate and how.

    Attributes:
        split: test or validation.
        limit: the first so many items (prompts with their references) only; None: the losses of all, and texts
            for all or for as many as the data set's ``generate_limit``.
        batch_size: prompts generated together; None: what suits the device, see ``batch``.
        force: evaluate again what is finished.
        device, precision: as for training; ``auto`` picks.
        dataset_path: in place of the path the run was trained with.
    """

    split: str = "test"
    limit: int | None = None
    batch_size: int | None = None
    force: bool = False
    decoding: Decoding = dataclasses.field(default_factory=Decoding)
    device: str = "auto"
    precision: str = "auto"
    dataset_path: str | None = None

    def batch(self) -> int:
        """Prompts generated together: 64, on a GPU 128, which is kept waiting by fewer.

        With 10 beams a prompt of E2E takes some 20 MB for GPT-2 small in float32, three quarters of it keys and
        values: about 200 tokens, its own and those of the beams where they differ. The rest are logits.
        """
        from utils.processes.devices import resolve_device

        return self.batch_size or (128 if resolve_device(self.device) == "cuda" else 64)


def evaluate_runs(roots: Sequence[str], options: Options) -> int:
    """Evaluate every finished run under ``roots``, print a summary; 1 if one failed or none is evaluated, else 0."""
    outcomes: list[tuple[Run, str, str]] = []
    runs = find_runs(roots)
    with run_log(None), stop_on_signals() as stop:
        try:
            for run in runs:
                stop.check()
                outcomes.append((run, *_outcome(run, options, stop.check)))
        finally:
            done = _print_summary(outcomes, len(runs), options.split)
    return 1 if done == 0 or any(outcome == "failed" for _, outcome, _ in outcomes) else 0


def _outcome(run: Run, options: Options, check: Callable[[], None]) -> tuple[str, str]:
    """What becomes of one run, with a line about it; one run's error must not stop the others."""
    split = options.split
    try:
        status = run.record()["status"]
        if status != "finished":
            return "skipped", f"training is {status}: run its training command again"
        print(f"{run.path}", flush=True)
        with lock(run.lock_file("eval"), "evaluated"):
            written = (run.raw_predictions(split), run.references(split), run.predictions(split))
            remove_leftovers(run.record_file, run.eval_file, *written)
            return evaluate_run(run, options, check)
    except Exception as error:
        return "failed", _told(error, options)


def _print_summary(outcomes: Sequence[tuple[Run, str, str]], runs: int, split: str) -> int:
    """Print what became of each run; how many of all ``runs`` are evaluated."""
    print(f"\n{'status':<10} run")
    for run, outcome, detail in outcomes:
        print(f"{outcome:<10} {run.path}: {detail}", file=sys.stderr if outcome == "failed" else sys.stdout)
    done = sum(outcome in ("evaluated", "current") for _, outcome, _ in outcomes)
    print(f"{done} of {runs} runs are evaluated on {split}")
    return done


def _told(error: Exception, options: Options) -> str:
    if is_out_of_memory(error):
        return f"out of memory: give a lower --batch-size than {options.batch()}, or fewer --num-beams"
    return reason(error)


def evaluate_run(run: Run, options: Options, check: Callable[[], None] = never) -> tuple[str, str]:
    """Evaluate one run: what happened (evaluated or current) and a line about it.

    ``check`` is called often, before anything is written; what it raises ends the evaluation.
    """
    wanted = {
        "split": options.split,
        "limit": options.limit,
        "decoding": dataclasses.asdict(options.decoding),
        "checkpoint_sha256": checkpoint_hash(run.best),
    }
    config = load_config(run.config_file)
    check_settings(run, config)
    current = not options.force and is_current(run, options.split, wanted)
    if not current or options.dataset_path:
        examples = load_examples(run, config, options)
    if current:
        return "current", "nothing to do (--force evaluates again)"
    verify(run.best)
    groups = group_by_source(examples)[: options.limit]
    result = {**wanted, "items": len(groups), **_measure(run, config, groups, options, check)}
    result |= _hashes(run, options.split)
    evaluations = _evaluations(run)
    write_json(run.eval_file, {**evaluations, options.split: result})
    texts = "" if result["predictions"] == len(groups) else f" ({result['predictions']} with texts)"
    return (
        "evaluated",
        f"{len(groups)} items{texts}, loss {result['loss']:.4f}, perplexity {result['perplexity']:.3f}",
    )


def is_current(run: Run, split: str, wanted: dict[str, Any]) -> bool:
    """Whether the recorded evaluation is of this checkpoint, decoding and limit, and its files are untouched."""
    recorded = _evaluations(run).get(split, {})
    if any(recorded.get(key) != value for key, value in wanted.items()):
        return False
    hashes = _hashes(run, split)
    return None not in hashes.values() and all(recorded.get(key) == value for key, value in hashes.items())


def _hashes(run: Run, split: str) -> dict[str, str | None]:
    """Of the three files that an evaluation writes, which a kill between two of them would leave of different ones."""
    files = {
        "predictions_sha256": run.predictions(split),
        "raw_predictions_sha256": run.raw_predictions(split),
        "references_sha256": run.references(split),
    }
    return {name: sha256(path, LARGEST) if path.is_file() else None for name, path in files.items()}


def _evaluations(run: Run) -> dict[str, Any]:
    """Recorded evaluations by split. An unreadable eval.json counts as empty: evaluating again rebuilds it."""
    found = {}
    for split in ("validation", "test"):
        with contextlib.suppress(UserError):
            found[split] = run.evaluation(split)
    return {split: value for split, value in found.items() if value}


def check_settings(run: Run, config: Config) -> None:
    """Raise UserError where the saved configuration is not the one that the run's record is of.

    ``model.name`` may be another one: the folder may have moved, and a checkpoint does not fit another model.
    """
    record = run.record()
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, name=record.get("model", config.model.name))
    )
    data = {split: value for split, value in recorded_digests(record).items() if split in TRAINING}
    groups = (None, group_hash(config), group_hash(config, data))  # with data: see find_directory
    if record.get("group") not in groups or record.get("seed") not in (None, config.seed):
        raise UserError(
            f"{run.config_file} was changed after the training: its settings are not those of {run.record_file.name}. "
            f"Put it back (what was typed is in {run.overrides_file}), or remove the folder and train with "
            "the other settings"
        )


def load_examples(run: Run, config: Config, options: Options) -> list[Example]:
    """The split's examples; their digest is noted in the record with the first evaluation on the test split.

    Raises:
        UserError: they cannot be had, or are not those of the run's record.
    """
    dataset = dataclasses.replace(config.dataset, path=options.dataset_path or config.dataset.path)
    examples = get_source(dataset.name).load(options.split, dataset.folder(), dataset.cache)
    recorded, found = recorded_digests(run.record()), {options.split: digest(examples)}
    if options.split in TRAINING or options.split in _evaluations(run):
        refuse_other_data(run, recorded, found, dataset)
    if options.split not in TRAINING:
        run.update_record(data_sha256=recorded | found)
    return examples


def _measure(
    run: Run, config: Config, groups: list[list[Example]], options: Options, check: Callable[[], None]
) -> dict[str, Any]:
    """Losses and predictions of the run's best checkpoint; writes the prediction and reference files."""
    import torch

    from utils.generation.prompts import shorten
    from utils.models.loading import load_model, load_tokenizer, max_positions
    from utils.models.token_loss import TokenLoss, evaluate_losses
    from utils.processes.devices import MIXED_DTYPE, resolve_device, resolve_precision
    from utils.tokens.batches import Collator
    from utils.tokens.packing import encode_units

    device = torch.device(resolve_device(options.device))
    precision = resolve_precision(options.precision, device.type)
    tokenizer = load_tokenizer(config.model.name)
    model = load_model(config.model.name, config.model.dropout)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    if options.decoding.num_beams > vocabulary:
        raise UserError(
            f"--num-beams {options.decoding.num_beams} is above {vocabulary}, the size of the model's vocabulary: the "
            "first token has no more candidates"
        )
    load_weights(run.best, model)
    model = rosa.unwrap(model).to(device).eval()
    dtype = MIXED_DTYPE[precision]
    context = torch.autocast(device.type, dtype) if dtype else contextlib.nullcontext()

    source = config.source
    encoded = encode_units(
        groups, tokenizer, packed=source.packed, seq_len=config.train.seq_len, block_size=config.train.block_size
    )
    asked = groups if options.limit is not None else groups[: source.generate_limit]
    prompts = [group[0].prompt for group in asked]
    limit = max_positions(model)
    if source.packed and limit is not None:  # a meaning representation is never cut: generate refuses
        prompts = shorten(prompts, tokenizer, limit - options.decoding.max_new_tokens)
        cut = sum(prompt != group[0].prompt for prompt, group in zip(prompts, asked, strict=True))
        if cut:
            log.warning("%d of %d questions lose their beginning to fit the model", cut, len(asked))
    collator = Collator(tokenizer.pad_token_id, "all", device)
    with context:
        token_loss = TokenLoss(model).checked(encoded, collator)
        losses = evaluate_losses(token_loss, encoded, collator, options.batch(), check=check)
        texts = generate(model, tokenizer, prompts, options.decoding, options.batch(), bar=True, check=check)
    answered = [
        [dataclasses.replace(example, prompt=prompt) for example in group]
        for group, prompt in zip(asked, prompts, strict=True)
    ]
    write_predictions(run, options.split, answered, texts)
    return {**losses.metrics(config.loss_on()), "predictions": len(texts), "precision": precision}


def write_predictions(run: Run, split: str, groups: list[list[Example]], texts: list[str]) -> None:
    """Write the generated ``texts``, one for each group of examples that are its references."""
    answers = [
        Answer(group[0].source, group[0].prompt, text, [example.reference for example in group])
        for group, text in zip(groups, texts, strict=True)
    ]
    write_texts(run, split, answers)
