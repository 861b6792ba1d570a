"""Training: what is written, what resumes, what the schedule and the losses are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rosa
from utils.data import pair
from utils.errors import UserError
from utils.models.loading import load_model, load_tokenizer
from utils.models.token_loss import TokenLoss
from utils.processes.signals import EXIT_INTERRUPTED
from utils.runs import Run, find_runs
from utils.runs.checkpoint import load_weights
from utils.tokens.batches import Collator, epoch_batches
from utils.tokens.encoding import encode
from utils.training import launch, loop

METHODS = ("rosa", "lora", "none")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor that a checkpoint holds."""
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= {f"{path.name}/{name}": value for name, value in load_file(path).items()}
    return found


def points(run: Run, split: str, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(point[name] for name in names) for point in run.metrics(split)]


def only_run(folder: Path) -> Run:
    """The one run below ``folder``."""
    (run,) = find_runs([folder])
    return run


@pytest.mark.parametrize("method", METHODS)
def test_a_run_learns_and_records(train: Any, method: str) -> None:
    run = train(f"fnmodel.name={method}", "train.lr=1e-2", "train.scheduler=constant", "train.warmup_steps=0")
    record = run.record()
    validation = [loss for (loss,) in points(run, "validation", "loss")]
    assert record["status"] == "finished"
    assert len(validation) == 4 and validation[-1] < validation[0] - 0.05
    assert record["best"]["loss"] == min(validation[1:])
    assert record["progress"] == {"epoch": 3, "step": 15, "total_steps": 15}
    assert record["timings"]["resamples"] == (2 if method == "rosa" else 0)
    model = load_model(record["model"])
    load_weights(run.best, model)
    assert rosa.parameter_report(model).trainable == record["parameters"]["trainable"]


def test_best_checkpoint_has_the_best_validation_loss(train: Any, small_e2e: Path) -> None:
    """The loss measured from the best checkpoint's files is the one recorded, plain logits over every position."""
    from utils.data.e2e import E2E

    run = train("fnmodel.name=rosa", "train.lr=1e-2")
    model = load_model(run.record()["model"])
    tokenizer = load_tokenizer(run.record()["model"])
    load_weights(run.best, model)
    model.eval()
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for example in E2E().load("validation", small_e2e, None):
            prompt = tokenizer(example.prompt)["input_ids"]
            ids = [*prompt, *tokenizer(example.target)["input_ids"], tokenizer.eos_token_id]
            logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1]
            labels = torch.tensor(ids[len(prompt) :])
            nats += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            tokens += len(labels)
    assert nats / tokens == pytest.approx(run.record()["best"]["loss"], abs=1e-5)


def test_learning_rate_of_rosa_is_that_of_lora(train: Any) -> None:
    traces = [
        points(train(f"fnmodel.name={method}", "train.warmup_steps=4", "logging.print_freq=1"), "train", "step", "lr")
        for method in METHODS
    ]
    assert traces[0] == traces[1] == traces[2]
    assert max(rate for _, rate in traces[0]) == pytest.approx(1e-3)
    assert traces[0][-1][1] < 1e-3 / 10


@pytest.mark.parametrize("method", (*METHODS, "ia3", "bitfit"))
@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_resumed_equals_undisturbed(train: Any, monkeypatch: Any, tmp_path: Path, method: str, stop_at: int) -> None:
    """Stopped within an epoch, at an epoch's last step, and after a resample; dropout 0.1 is on."""
    whole = train(f"fnmodel.name={method}", f"output.path={tmp_path / 'whole'}")
    original = loop.train_step

    def stopping(training: Any, *arguments: Any, **options: Any) -> Any:
        result = original(training, *arguments, **options)
        if training.progress.step + 1 == stop_at:
            training.stop.signal = "SIGTERM"
        return result

    overrides = (f"fnmodel.name={method}", f"output.path={tmp_path / 'halves'}")
    monkeypatch.setattr(loop, "train_step", stopping)
    with pytest.raises(SystemExit) as stopped:
        train(*overrides)
    assert stopped.value.code == EXIT_INTERRUPTED
    monkeypatch.setattr(loop, "train_step", original)
    halves = train(*overrides)

    assert halves.record()["status"] == "finished"
    first, second = weights(whole.last), weights(halves.last)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for split, names in (("train", ("step", "loss", "lr")), ("validation", ("step", "loss")), ("resample", ("step",))):
        assert points(whole, split, *names) == points(halves, split, *names)


def test_a_damaged_checkpoint_is_passed_over_and_named(train: Any, monkeypatch: Any, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", _fail_at_epoch(3))
        with pytest.raises(RuntimeError):
            train("train.save_every=1")
    run = only_run(tmp_path)
    assert run.record()["status"] == "failed"
    damaged = run.last / "adapter.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    resumed = train("train.save_every=1")
    assert "adapter.safetensors is damaged" in resumed.log_file.read_text()
    assert "resumed from" in resumed.log_file.read_text()
    assert resumed.record()["status"] == "finished"


def test_without_one_complete_checkpoint_a_run_refuses_to_start_over(
    train: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "validate", _fail_at_epoch(2))
        with pytest.raises(RuntimeError):
            train()
    run = only_run(tmp_path)
    for path in run.checkpoints.glob("step-*/state.pt"):
        path.unlink()
    with pytest.raises(UserError, match=r"no checkpoint .* is complete"):
        train()


def _fail_at_epoch(epoch: int) -> Any:
    original = loop.validate

    def validate(training: Any) -> bool:
        if training.progress.epoch == epoch:
            raise RuntimeError("planted")
        return original(training)

    return validate


def test_finished_run_is_left_alone(train: Any, capsys: Any) -> None:
    run = train("train.epochs=1")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    train("train.epochs=1", "logging.print_freq=7", "train.micro_batch_size=4")
    assert "finished already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}


def test_accumulation_changes_nothing(train: Any, tmp_path: Path) -> None:
    """Micro-batches weigh every token alike, whatever their lengths; without dropout the losses agree."""
    losses = [
        points(
            train("model.dropout=0", f"train.micro_batch_size={size}", f"output.path={tmp_path / size}"),
            "train",
            "loss",
        )
        for size in ("16", "5")
    ]
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-5)


def test_gradient_checkpointing_changes_nothing(train: Any, tmp_path: Path) -> None:
    losses = [
        points(train(f"train.gradient_checkpointing={on}", f"output.path={tmp_path / on}"), "train", "loss")
        for on in ("true", "false")
    ]
    assert torch.allclose(torch.tensor(losses[0]), torch.tensor(losses[1]), atol=1e-5)


def test_base_model_run(train: Any) -> None:
    """train.epochs=0 records the untrained model: ready to be evaluated, equal to the base."""
    run = train("fnmodel.name=none", "train.epochs=0")
    assert run.record()["status"] == "finished" and run.record()["best"]["step"] == 0
    model, base = load_model(run.record()["model"]), load_model(run.record()["model"])
    load_weights(run.best, model)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), base.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
@pytest.mark.parametrize("scheduler", ["linear", "cosine", "constant", "none"])
def test_optimizers_and_schedules(train: Any, optimizer: str, scheduler: str) -> None:
    run = train(f"train.optimizer={optimizer}", f"train.scheduler={scheduler}", "train.epochs=1")
    rates = [rate for (rate,) in points(run, "train", "lr")]
    assert len(set(rates)) == (1 if scheduler in ("none", "constant") else len(rates))


def test_clipping_bounds_what_is_applied(train: Any, monkeypatch: Any) -> None:
    norms = []

    def watched(training: Any, *arguments: Any, **options: Any) -> Any:
        step = training.optimizer.step

        def note() -> None:
            gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(gradients)))
            step()

        with monkeypatch.context() as patch:
            patch.setattr(training.optimizer, "step", note)
            return original(training, *arguments, **options)

    original = loop.train_step
    monkeypatch.setattr(loop, "train_step", watched)
    train("train.max_grad_norm=0.05", "train.epochs=1")
    assert norms and max(norms) <= 0.05 * 1.001


def test_one_training_at_a_time(train: Any, monkeypatch: Any) -> None:
    messages = []
    original = launch.fit

    def fit(training: Any) -> None:
        with pytest.raises(UserError) as refused:
            train("train.epochs=1")
        messages.append(str(refused.value))
        original(training)

    monkeypatch.setattr(launch, "fit", fit)
    assert train("train.epochs=1").record()["status"] == "finished"
    assert f"process {os.getpid()}" in messages[0]


def test_a_diverging_run_says_so(train: Any) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+: lower train\.lr"):
        train("fnmodel.name=none", "train.lr=1e30", "train.optimizer=sgd", "train.scheduler=none")


def test_a_resample_of_a_diverged_pair_says_so(train: Any) -> None:
    with pytest.raises(UserError, match=r"attn.c_attn: .*, at step \d+: lower train\.lr"):
        train("train.lr=1e30", "train.optimizer=sgd", "train.scheduler=none", "fnmodel.rosa.level=step",
              "logging.print_freq=1000")  # fmt: skip


def test_failed_setup_leaves_nothing(train: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="warmup_steps=99"):
        train("train.warmup_steps=99")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_run_pointer(train: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv(launch.RUN_POINTER, str(tmp_path / "pointer"))
    run = train("train.epochs=1")
    assert (tmp_path / "pointer").read_text().splitlines() == [str(run.path.resolve())]


def test_batches_are_a_partition_of_little_padding() -> None:
    lengths = torch.randint(5, 120, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    sorted_batches = epoch_batches(lengths, 16, 50, seed=1, epoch=0)
    random_batches = epoch_batches(lengths, 16, 0, seed=1, epoch=0)

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    for batches in (sorted_batches, random_batches):
        assert sorted(i for batch in batches for i in batch) == list(range(1003))
        assert sorted(map(len, batches), reverse=True)[:-1] == [16] * 62
    assert padded(sorted_batches) < 1.1 * sum(lengths) < padded(random_batches)
    assert epoch_batches(lengths, 16, 50, 1, 0) == sorted_batches
    assert epoch_batches(lengths, 16, 50, 1, 1) != sorted_batches != epoch_batches(lengths, 16, 50, 2, 0)


@pytest.mark.parametrize("loss_on", ["target", "all"])
def test_loss_and_gradients_equal_the_plain_way(small_model: Path, loss_on: str) -> None:
    """Head at labelled positions, no mask, batched: against one sample at a time through the model's own forward."""
    model = load_model(str(small_model), dropout=0.0)
    tokenizer = load_tokenizer(str(small_model))
    examples = [pair("name[A]", "A is a pub."), pair("name[The Long Hall], area[riverside]", "By the river: é, £20.")]
    encoded = encode(examples, tokenizer, 200)
    rosa.inject(model, rosa.RosaConfig(rank=4))
    batch = Collator(tokenizer.pad_token_id, loss_on)(encoded, [0, 1])
    token_loss = TokenLoss(model)
    assert token_loss.check(batch)
    total, losses = token_loss(batch.input_ids, batch.positions, batch.labels)
    loss = total / len(losses)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)

    nats, tokens = torch.zeros(()), 0
    for sample in encoded.samples:
        labels = torch.tensor([sample.ids]).clone()
        if loss_on == "target":
            labels[0, : sample.prompt_length] = -100
        count = int((labels[0, 1:] != -100).sum())
        nats = nats + model(input_ids=torch.tensor([sample.ids]), labels=labels).loss * count
        tokens += count
    expected = torch.autograd.grad(nats / tokens, parameters)
    assert loss.item() == pytest.approx((nats / tokens).item(), abs=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(gradients, expected, strict=True))


def test_a_head_that_is_more_than_linear_takes_the_plain_way(small_model: Path) -> None:
    model = load_model(str(small_model))
    tokenizer = load_tokenizer(str(small_model))
    encoded = encode([pair("name[A]", "A is a pub.")], tokenizer, 99)
    batch = Collator(tokenizer.pad_token_id, "all")(encoded, [0])
    token_loss = TokenLoss(model)
    assert token_loss.check(batch)
    original = model.forward

    def scaled(**inputs: Any) -> Any:
        output = original(**inputs)
        output.logits = 3 * output.logits
        return output

    model.forward = scaled
    assert not token_loss.check(batch)


def test_long_samples_are_cut_and_counted(small_model: Path) -> None:
    tokenizer = load_tokenizer(str(small_model))
    examples = [pair("name[A]", "A is a pub. " * 20), pair("name[A]", "A.")]
    encoded = encode(examples, tokenizer, 30)
    assert encoded.cut == 1
    assert len(encoded.samples[0].ids) == 30
    prompt = tokenizer(examples[0].prompt)["input_ids"]
    assert encoded.samples[0].ids == (prompt + tokenizer(examples[0].target)["input_ids"])[:30]
    with pytest.raises(UserError, match="no room for the target"):
        encode(examples, tokenizer, 5)


@pytest.mark.parametrize("method", METHODS)
def test_models_with_linear_layers_train_too(train: Any, tmp_path: Path, method: str) -> None:
    """A Llama-type model: Linear layers, no biases, grouped keys and values."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_tokenizer("tiny")
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_hidden_layers=2, max_position_embeddings=256, **shape)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    run = train(f"model.name={tmp_path / 'llama'}", f"fnmodel.name={method}", "train.lr=1e-2", "train.warmup_steps=0")
    losses = [loss for (loss,) in points(run, "validation", "loss")]
    assert losses[-1] < losses[0] - 0.02
    assert run.record()["parameters"]["adapted_layers"] == (0 if method == "none" else 14)
