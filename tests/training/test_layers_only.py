"""``fnmodel.name=none`` with ``target_modules``: full training of some layers only, from training to the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.conftest import make_config
from tests.plots.test_plots import figure_of, lines
from tests.records import csv_of, markdown_rows, row_of, write_run
from tests.training.reading import stopped_at
from utils.data.e2e import E2E
from utils.errors import UserError
from utils.evaluation import Options, evaluate_run
from utils.generation.decoding import Decoding
from utils.models.loading import load_model, load_tokenizer
from utils.runs.identity import run_directory
from utils.tables import compile_results
from utils.tokens.batches import epoch_batches

LAYERS = ("fnmodel.name=none", "fnmodel.params.target_modules=all-linear", "model.dropout=0")
SETTINGS = {"fnmodel.params.target_modules": "all-linear"}


def by_hand(folder: Path, data: Path, lr: float) -> dict[str, torch.Tensor]:
    """An epoch of AdamW on the plain model, of which the Conv1D layers of the blocks train; linear to zero."""
    model, tokenizer = load_model(str(folder), 0.0), load_tokenizer(str(folder))
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.rpartition(".")[0].endswith(layers))
    samples = []
    for example in E2E().load("train", data, None):
        prompt, target = (tokenizer(text)["input_ids"] for text in (example.prompt, example.target))
        samples.append(([*prompt, *target, tokenizer.eos_token_id], len(prompt)))
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), weight_decay=0.01)
    batches = epoch_batches([len(ids) for ids, _ in samples], 16, 50, 0, 0)
    for step, batch in enumerate(batches):
        nats, tokens = torch.zeros(()), 0
        for ids, start in (samples[i] for i in batch):
            logits = model(torch.tensor([ids])).logits[0, start - 1 : -1]
            nats = nats + F.cross_entropy(logits, torch.tensor(ids[start:]), reduction="sum")
            tokens += len(ids) - start
        optimizer.zero_grad()
        (nats / tokens).backward()
        optimizer.param_groups[0]["lr"] = lr * (1 - step / len(batches))
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def test_it_is_a_training_of_these_layers_by_hand(train: Any, small_model: Path, small_e2e: Path) -> None:
    run = train(*LAYERS, "train.epochs=1", "train.lr=1e-3", "train.warmup_steps=0")
    expected, found = by_hand(small_model, small_e2e, 1e-3), load_file(run.last / "model.safetensors")
    start = load_model(str(small_model)).state_dict()
    moved = {name for name, value in found.items() if not torch.equal(value, start[name])}
    assert moved == {name for name in expected if ".attn.c_" in name or ".mlp.c_" in name}
    assert max(float((found[name] - start[name]).abs().max()) for name in moved) > 1e-3
    for name in moved:
        torch.testing.assert_close(found[name], expected[name], atol=1e-6, rtol=0)
    record = run.record()
    assert record["parameters"]["trainable"] == sum(start[name].numel() for name in moved)
    assert (record["method"], record["rank"], record["bias"]) == ("none-layers", None, "adapted")
    assert "-none-layers-s0-" in run.path.name


def test_a_stopped_run_goes_on_and_is_evaluated(train: Any, tmp_path: Path) -> None:
    whole = train(*LAYERS, f"output.path={tmp_path / 'whole'}")
    with stopped_at(4):
        train(*LAYERS)
    halves = train(*LAYERS)
    assert "resumed from" in halves.log_file.read_text()
    first, second = (load_file(run.last / "model.safetensors") for run in (whole, halves))
    assert all(torch.equal(first[name], second[name]) for name in first)
    decoding = Decoding(num_beams=1, max_new_tokens=4)
    assert evaluate_run(halves, Options(split="validation", decoding=decoding, device="cpu"))[0] == "evaluated"
    assert halves.evaluation("validation")["loss"] == pytest.approx(halves.record()["best"]["loss"], abs=1e-5)


def test_layers_that_do_not_exist_are_refused_before_training(train: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"fnmodel does not fit model\.name=.*nothing to adapt matches c_fcc"):
        train("fnmodel.name=none", "fnmodel.params.target_modules=[c_fcc]")
    assert not (tmp_path / "runs").exists()


def test_its_hash_is_that_of_its_layers() -> None:
    layers, full = (make_config("fnmodel.name=none", *more) for more in (LAYERS[1:2], ()))
    some = make_config("fnmodel.name=none", "fnmodel.params.target_modules=[c_fc]")
    assert len({run_directory(config) for config in (layers, full, some)}) == 3
    same = make_config(*LAYERS[:2], "fnmodel.params.rank=3", "fnmodel.params.bias=none")
    assert run_directory(same) == run_directory(layers)
    assert run_directory(make_config(LAYERS[1])) == run_directory(make_config())  # of an adapter it is the default


def test_tables_and_figures_tell_it_from_full_fine_tuning(tmp_path: Path) -> None:
    write_run(tmp_path, method="none", loss=1.0, config={"fnmodel.params.target_modules": None})
    write_run(tmp_path, method="none-layers", loss=1.25, config=SETTINGS)
    write_run(tmp_path, method="none-layers", loss=9.0, epochs=0, config=SETTINGS)
    write_run(tmp_path, method="lora", loss=1.5, config={"fnmodel.params.target_modules": None})
    compile_results([tmp_path], baseline="none-layers")
    assert row_of(csv_of(tmp_path), method="lora").val_loss_delta == pytest.approx(0.25)
    rows = markdown_rows(tmp_path)
    assert [row["method"] for row in rows] == ["untrained", "full fine-tuning", "full, layers only", "LoRA"]
    assert "target modules" not in rows[0]  # the same layers, however they are written
    drawn = lines(figure_of("parameters", tmp_path))
    assert drawn["full fine-tuning"][1] != drawn["full, layers only"][1] and len(drawn["LoRA"][0]) == 1
