"""Evaluates finished runs: computes loss and perplexity on a split and writes predictions and references."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rosa
from utils.config.settings import Config, load_config
from utils.data import Example, digest, group_by_source, known_samples
from utils.errors import UserError, is_out_of_memory, reason
from utils.generation.decoding import Decoding
from utils.generation.generate import check_beams, decoded, generate_tokens
from utils.io.files import lock, remove_leftovers, sha256, write_json
from utils.log import log, run_log
from utils.processes.signals import never, stop_on_signals
from utils.runs import Run, find_runs
from utils.runs.checkpoint_folder import verify
from utils.runs.inputs import TRAINING, check_inputs
from utils.runs.run import checkpoint_hash
from utils.runs.texts import Answer, write_texts
from utils.runs.trained import check_base_found, check_settings, load_trained
from utils.tokens.encoding import prompt_ids

# examples, what the training data give away of them, and their digest, by the settings of a data set and the split
Loaded = dict[Any, tuple[list[Example], str, str]]


@dataclass(frozen=True)
class Options:
    """The options of eval.py.

    Attributes:
        split: test or validation.
        limit: evaluate only this many items (prompts with their references), the first ones. None: losses on all items,
            and texts for all or for the first ``generate_limit`` of the data set.
        batch_size: prompts generated together; None: see ``batch``.
        force: evaluate again even if the evaluation is current.
        decoding: how texts are generated.
        device, precision: as for training; ``auto`` chooses.
        dataset_path: replaces the path that the run was trained with.
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
        """The number of prompts generated together. The default is 64, on a GPU 128, because fewer leave it idle.

        With 10 beams, GPT-2 small in float32 needs about 20 MB per E2E prompt. Three quarters are keys and values of
        about 200 tokens (the prompt, and those parts of the beams that differ), the rest are logits.
        """
        from utils.processes.devices import resolve_device

        return self.batch_size or (128 if resolve_device(self.device) == "cuda" else 64)


def evaluate_runs(roots: Sequence[str], options: Options) -> int:
    """Evaluate every finished run under ``roots`` and print a summary.

    Returns: the exit code: 1 if a run failed or no run is evaluated, otherwise 0.
    """
    outcomes: list[tuple[Run, str, str]] = []
    loaded: Loaded = {}
    runs = find_runs(roots)
    with run_log(None), stop_on_signals() as stop:
        try:
            for run in runs:
                stop.check()
                outcomes.append((run, *_outcome(run, options, stop.check, loaded)))
        finally:
            evaluated = _print_summary(outcomes, len(runs), options.split)
    return 1 if evaluated == 0 or any(outcome == "failed" for _, outcome, _ in outcomes) else 0


def _outcome(run: Run, options: Options, check: Callable[[], None], loaded: Loaded) -> tuple[str, str]:
    """Evaluate one run and return its status with a line about it. An error does not stop the other runs."""
    split = options.split
    try:
        status = run.record()["status"]
        if status != "finished":
            return "skipped", f"training is {status}: run its training command again"
        print(f"{run.path}", flush=True)
        with lock(run.lock_file("eval"), "evaluated"):
            written = (run.raw_predictions(split), run.references(split), run.predictions(split))
            remove_leftovers(run.record_file, run.inputs_file, run.eval_file, *written)
            return evaluate_run(run, options, check, loaded)
    except Exception as error:
        if is_out_of_memory(error):
            return "failed", f"out of memory: give a lower --batch-size than {options.batch()}, or fewer --num-beams"
        return "failed", run.without_folder(reason(error))


def _print_summary(outcomes: Sequence[tuple[Run, str, str]], runs: int, split: str) -> int:
    """Print the outcome of each run. Returns the number of evaluated runs."""
    print(f"\n{'status':<10} run")
    for run, outcome, detail in outcomes:
        print(f"{outcome:<10} {run.path}: {detail}", file=sys.stderr if outcome == "failed" else sys.stdout)
    evaluated = sum(outcome in ("evaluated", "current") for _, outcome, _ in outcomes)
    print(f"{evaluated} of {runs} runs are evaluated on {split}")
    return evaluated


def evaluate_run(
    run: Run, options: Options, check: Callable[[], None] = never, loaded: Loaded | None = None
) -> tuple[str, str]:
    """Evaluate one run. Returns its status (evaluated, current or skipped) and a line about it.

    Args:
        check: called often, before anything is written. An exception that it raises stops the evaluation.
        loaded: see ``load_examples``.
    """
    conditions = {
        "split": options.split,
        "limit": options.limit,
        "decoding": dataclasses.asdict(options.decoding),
        "checkpoint_sha256": checkpoint_hash(run.best),
        **({} if options.precision == "auto" else {"precision": options.precision}),
    }
    config = load_config(run.config_file)
    if config.output.search and not options.force:
        return "skipped", "a trial of a search; --force evaluates it"
    check_settings(run, config)
    if options.limit is not None and not options.force:
        done = run.readable_parts(run.eval_file).get(options.split, {}).get("limit")
        larger = done is None or (isinstance(done, int) and done > options.limit)
        earlier = {"limit": done, "checkpoint_sha256": conditions["checkpoint_sha256"]}
        if larger and is_current(run, options.split, earlier):
            items = "all" if done is None else f"the first {done}"
            return "skipped", f"evaluated on {items} items already: --force replaces that by the first {options.limit}"
    current = not options.force and is_current(run, options.split, conditions)
    local = config.dataset.folder()
    # raises if local data have changed; data from the hub are not loaded only to be compared
    if not current or options.dataset_path or (local is not None and local.exists()):
        examples, known = load_examples(run, config, options, loaded)
    if current:
        return "current", "nothing to do (--force evaluates again)"
    verify(run.best)
    every = group_by_source(examples)
    groups = every[: options.limit]
    counts = {"items": len(groups), "all_items": len(every), **({"known": known} if known else {})}
    result = {**conditions, **counts, **_measure(run, config, groups, options, check)}
    result |= _hashes(run, options.split)
    write_json(run.eval_file, {**run.readable_parts(run.eval_file), options.split: result})
    texts = "" if result["predictions"] == len(groups) else f" ({result['predictions']} with texts)"
    return (
        "evaluated",
        f"{len(groups)} items{texts}, loss {result['loss']:.4f}, perplexity {result['perplexity']:.3f}",
    )


def is_current(run: Run, split: str, conditions: dict[str, Any]) -> bool:
    """Whether the recorded evaluation has the same checkpoint, decoding, limit and precision, and unchanged files."""
    recorded = run.readable_parts(run.eval_file).get(split, {})
    if any(recorded.get(key) != value for key, value in conditions.items()):
        return False
    hashes = _hashes(run, split)
    return None not in hashes.values() and all(recorded.get(key) == value for key, value in hashes.items())


def _hashes(run: Run, split: str) -> dict[str, str | None]:
    """SHA-256 of the three files that an evaluation writes, None for a missing file.

    They are compared together, because a kill between two writes leaves files of different evaluations.
    """
    return {name: sha256(path) if path.is_file() else None for name, path in run.texts(split).items()}


def load_examples(
    run: Run, config: Config, options: Options, loaded: Loaded | None = None
) -> tuple[list[Example], str]:
    """The examples of the split, and in words how many of them are training samples.

    The first evaluation on the test split makes them an input of the run.

    Args:
        loaded: what was read for other runs; it is used again, and what is read now is added.

    Raises:
        UserError: the data is missing or malformed, or differs from what the run began with.
    """
    dataset = dataclasses.replace(config.dataset, path=options.dataset_path or config.dataset.path)
    folder = dataset.folder()
    if folder is not None and not options.dataset_path and not folder.exists():
        raise UserError(f"{folder}, the dataset.path of the run, does not exist: say where it is now (--dataset-path)")
    loaded, key = {} if loaded is None else loaded, (*dataclasses.astuple(dataset), options.split)
    if key not in loaded:
        examples = config.source.load(options.split, folder, dataset.cache)
        known = ""
        if config.source.needs_path and options.split not in TRAINING:
            with contextlib.suppress(UserError):  # the training data need not be here
                training = config.source.load("train", folder, dataset.cache)
                if known := known_samples(examples, training, options.split):
                    log.warning("%s", known)
        loaded[key] = examples, known, digest(examples)
    examples, known, current_digest = loaded[key]
    current = {f"data/{options.split}": current_digest}
    if options.split in TRAINING or options.split in run.readable_parts(run.eval_file):
        check_inputs(run, current, dataclasses.replace(config, dataset=dataset))
    run.add_inputs(current)
    return examples, known


def generating_model(
    run: Run, config: Config, checkpoint: Path, decoding: Decoding, device: str, precision: str
) -> tuple[Any, Any, str]:
    """The tokenizer, the plain model of a checkpoint on its device, and the precision in which it computes.

    Args:
        decoding: how it will generate.
        device, precision: as the options of the commands.

    Raises:
        UserError: one of them cannot be loaded, or the model cannot generate in this way.
    """
    import torch

    from utils.models.loading import hidden_size
    from utils.processes.devices import resolve_device, resolve_precision

    check_base_found(run, config)  # before its configuration is read
    resolved = torch.device(resolve_device(device))
    precision = resolve_precision(precision, resolved.type, hidden_size(config.model.name, config.model.gguf_file))
    tokenizer, model = load_trained(run, config, checkpoint)
    check_beams(model, decoding)
    return tokenizer, rosa.unwrap(model).to(resolved).eval(), precision


def _measure(
    run: Run, config: Config, groups: list[list[Example]], options: Options, check: Callable[[], None]
) -> dict[str, Any]:
    """Compute the losses of the run's best checkpoint, and write its predictions and their references."""
    from utils.generation.prompts import prepare
    from utils.models.loading import max_positions
    from utils.models.losses import model_losses
    from utils.processes.devices import autocast
    from utils.tokens.packing import encode_units

    tokenizer, model, precision = generating_model(
        run, config, run.best, options.decoding, options.device, options.precision
    )
    source, limit = config.source, max_positions(model)
    longest = config.train.seq_len if limit is None else min(config.train.seq_len, limit)
    fitting = groups if source.packed else _fitting(groups, tokenizer, longest)
    encoded = encode_units(
        fitting, tokenizer, packed=source.packed, seq_len=longest, block_size=config.train.block_size
    )
    if encoded.cut:
        log.warning("%d targets are longer than %d tokens: the loss is on their beginnings", encoded.cut, longest)
    data = encoded.describe() | {"left_out": len(groups) - len(fitting)}
    chosen = groups if options.limit is not None else groups[: source.generate_limit]
    prompts = prepare(source, [group[0] for group in chosen], tokenizer, options.decoding, limit)
    with autocast(model.device, precision):
        losses = model_losses(model, encoded, tokenizer.pad_token_id, options.batch(), check)
        if not math.isfinite(losses.all.nats):
            way_out = "" if precision == "fp32" else ": try --precision fp32"
            raise UserError(f"the loss is not finite in {precision}, and nothing was written{way_out}")
        new = generate_tokens(model, tokenizer, prompts, options.decoding, options.batch(), bar=True, check=check)
    unfinished = sum(tokenizer.eos_token_id not in tokens for tokens in new)
    if unfinished:
        longest = options.decoding.max_new_tokens
        log.warning("%d of %d texts are cut at %d tokens (--max-new-tokens)", unfinished, len(new), longest)
    write_predictions(run, options.split, chosen, prompts, decoded(tokenizer, new))
    counts = {"predictions": len(new), "unfinished": unfinished}
    return {**losses.metrics(config.loss_on()), "data": data, **counts, "precision": precision}


def _fitting(groups: list[list[Example]], tokenizer: Any, longest: int) -> list[list[Example]]:
    """The groups whose prompt leaves room for a target; all of them, and so an error that says it, if none does."""
    ids = prompt_ids([group[0].prompt for group in groups], tokenizer)
    found = [group for group, prompt in zip(groups, ids, strict=True) if len(prompt) < longest]
    if found and len(found) < len(groups):
        log.warning(
            "%d of %d items have prompts of %d tokens or more: they are left out of the loss",
            len(groups) - len(found), len(groups), longest,
        )  # fmt: skip
    return found or groups


def write_predictions(run: Run, split: str, groups: list[list[Example]], prompts: list[str], texts: list[str]) -> None:
    """Write the ``texts`` generated after the ``prompts``, one per group of examples, which has its references."""
    answers = [
        Answer(group[0].source, prompt, text, [example.reference for example in group])
        for group, prompt, text in zip(groups, prompts, texts, strict=True)
    ]
    write_texts(run, split, answers)
