"""Training: what a run writes, learning-rate schedules, and losses."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import rosa
from tests.training.reading import only_run, points
from utils.config.train import TrainConfig
from utils.errors import UserError
from utils.models.loading import load_model, load_tokenizer
from utils.models.token_loss import TokenLoss
from utils.runs import find_runs
from utils.runs.checkpoint_folder import load_weights
from utils.runs.trained import load_base
from utils.training import failures, launch, loop, setup

METHODS = ("rosa", "lora", "none")


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
    """The loss of the best checkpoint's files, from plain logits at every position, is the recorded one."""
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


def test_finished_run_is_left_alone(train: Any, capsys: Any) -> None:
    run = train("train.epochs=1")
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    train("train.epochs=1", "logging.print_freq=7", "train.micro_batch_size=4")
    assert "finished already" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}


def test_accumulation_changes_nothing(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Micro-batches of any size weigh every token equally: without dropout losses and gradients agree.

    The model computes in float64, its loss in float32.
    """
    monkeypatch.setattr(setup, "load_base", lambda *given: load_base(*given).double())
    forward, inputs, found = TokenLoss.forward, [], []
    monkeypatch.setattr(TokenLoss, "forward", lambda *given: inputs.append(given[1].numel()) or forward(*given))
    for key, value in (("size", 16), ("size", 5), ("tokens", 200)):
        inputs.clear()
        more = f"train.micro_batch_{key}={value}", f"output.path={tmp_path / key}-{value}"
        run = train("model.dropout=0", "train.lr=1e-2", *more)
        rows = points(run, "train", "loss", "grad_norm"), points(run, "validation", "loss", "loss_all")
        found.append([torch.tensor(part, dtype=torch.float64) for part in rows])
    torch.testing.assert_close(found[1:], found[:1] * 2, rtol=1e-6, atol=0)
    assert len(inputs) > 3 * 70 * 76 / 200 and max(inputs) <= 200


def test_missing_memory_is_answered_with_half_of_what_divides_the_batch() -> None:
    for key, unit in (("micro_batch_tokens", "tokens"), ("micro_batch_size", "samples")):
        message = str(failures.advice(MemoryError(), TrainConfig(**{key: 64}), Path(), 3))
        assert f"with 64 {unit} at once" in message and f"set train.{key}=32 " in message


@pytest.mark.parametrize("kept", [False, True])
def test_a_loss_that_is_not_finite_is_answered_with_what_can_be_done(tmp_path: Path, kept: bool) -> None:
    """No checkpoint is spoken of where there is none, and no key that is set already."""
    if kept:
        (tmp_path / "checkpoints/last").mkdir(parents=True)
    error = failures.NotFinite(failures.not_finite("validation loss", float("nan"), 3))
    first, second = (str(failures.advice(error, TrainConfig(skip_nonfinite=on), tmp_path, 3)) for on in (False, True))
    assert all("at step 3: lower train.lr, warm up longer" in text for text in (first, second))
    assert "same command with train.skip_nonfinite=true" in first and "skip_nonfinite" not in second
    assert ["checkpoint" in text for text in (first, second)] == [kept, kept]


def test_gradient_checkpointing_changes_nothing(train: Any, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    losses = [
        points(train(f"train.gradient_checkpointing={on}", f"output.path={tmp_path / on}"), "train", "loss")
        for on in ("true", "false")
    ]
    assert not [warning for warning in recwarn if "checkpointing" in str(warning.message)]
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


def test_a_diverging_run_says_so(train: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loss is (nan|inf) at step \d+: lower train\.lr"):
        train("fnmodel.name=none", "train.lr=1e30", "train.optimizer=sgd", "train.scheduler=none")
    assert failure(tmp_path) == ("failed", True)


def test_a_resample_of_a_diverged_pair_says_so(train: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"attn.c_attn: .*, at step \d+: lower train\.lr"):
        train("train.lr=1e30", "train.optimizer=sgd", "train.scheduler=none", "fnmodel.rosa.level=step",
              "logging.print_freq=1000")  # fmt: skip
    assert failure(tmp_path) == ("failed", True)


@pytest.mark.parametrize("text", ["No space left on device", f"too long a name: {failures.REMEDY}"])
def test_another_failure_is_no_divergence(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, text)

    monkeypatch.setattr(launch, "fit", full)
    with pytest.raises(UserError, match=text):
        train()
    assert failure(tmp_path) == ("failed", False)


def failure(folder: Path) -> tuple[str, bool]:
    """The status of the only run, and whether its record says that it diverged."""
    (run,) = find_runs([folder / "runs"])
    return run.record()["status"], run.record()["diverged"]


def test_failed_setup_leaves_nothing(train: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="warmup_steps=99"):
        train("train.warmup_steps=99")
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


def test_run_pointer(train: Any, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv(launch.RUN_POINTER, str(tmp_path / "pointer"))
    run = train("train.epochs=1")
    assert (tmp_path / "pointer").read_text().splitlines() == [str(run.path.resolve())]


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


def test_the_launcher_does_not_divide_the_loss(train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate takes steps of accumulation from the environment, and divides by them."""
    settings = ("fnmodel.name=lora", "train.epochs=1", "train.optimizer=sgd", "train.lr=0.5")
    expected = train(*settings).record()["best"]["loss"]
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = train(*settings, f"output.path={tmp_path / 'launched'}")
    assert run.record()["best"]["loss"] == expected
    assert (
        "launched for bf16, but train.precision decides: fp32" in only_run(tmp_path / "launched").log_file.read_text()
    )


@pytest.mark.parametrize("wrong", ["fnmodel.params.rank=999", "train.warmup_steps=99"])
def test_settings_that_can_never_train_are_noted(train: Any, monkeypatch: Any, tmp_path: Path, wrong: str) -> None:
    """For a search, which would wait for such a trial for ever."""
    monkeypatch.setenv(launch.RUN_POINTER, str(tmp_path / "pointer"))
    with pytest.raises(UserError):
        train(wrong)
    assert wrong.rpartition("=")[2] in (tmp_path / "pointer.unfit").read_text()
    train("train.epochs=1")
    assert not (tmp_path / "pointer.unfit").exists()
