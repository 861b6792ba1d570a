"""The capacity study's base, and what the studies measure of a run."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

import rosa
from studies.capacity import draws, measure
from studies.capacity.make_base import character_tokenizer, write_untrained
from studies.pretrained import measure as pretrained
from studies.records import uncopied
from tests.conftest import make_config
from utils.config.settings import load_config
from utils.data import get_source
from utils.models.loading import load_model, load_tokenizer
from utils.results.columns import default_columns, stored_bits
from utils.results.read import read_results
from utils.runs import Run, find_runs
from utils.runs.checkpoint_folder import load_weights
from utils.training.launch import train_all


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("capacity") / "base"
    write_untrained(folder)
    return folder


def trained(base: Path, out: Path, *overrides: str) -> Run:
    """A run on three pairs of book 1, one step each epoch."""
    train_all(
        make_config(
            f"model.name={base}", f"output.path={out}", "dataset.name=phone_book", "dataset.book=1", "dataset.size=3",
            "train.device=cpu", "train.batch_size=3", "train.weight_decay=0", "train.lr=3e-3", "logging.samples=0",
            "fnmodel.params.rank=2", "fnmodel.params.bias=none", "train.validate_every=100", *overrides,
        ),
        [],
    )  # fmt: skip
    (run,) = find_runs([out])
    return run


def test_a_token_is_a_character() -> None:
    tokenizer = character_tokenizer()
    for example in get_source("phone_book", 20).load("train", None, None):
        ids = tokenizer(example.prompt + example.target)["input_ids"]
        assert len(ids) == 17 and tokenizer.decode(ids) == example.prompt + example.target
        assert tokenizer.unk_token_id not in ids and tokenizer.eos_token_id not in ids


def test_a_book_that_is_learnt_is_stored_to_the_last_bit(untrained: Path, tmp_path: Path) -> None:
    """Read from the record, from the weights, and from the generated texts; the untrained model has stored nothing."""
    run = trained(untrained, tmp_path / "learnt", "fnmodel.name=none", "train.epochs=150")
    folder = measure.collect(run, tmp_path / "records")
    (result,), _ = read_results([folder])
    measured = json.loads((folder / "study.json").read_text())
    bits = stored_bits(result)
    cut = {**result.record, "data": {"validation": {**result.record["data"]["validation"], "cut": 1}}}
    assert stored_bits(dataclasses.replace(result, record=cut)) is None
    assert bits is not None and 0.9 * 3 * 10 * math.log2(10) < bits < 3 * 10 * math.log2(10)
    loss = pytest.approx(result.record["best"]["loss_target"], abs=1e-3)
    assert measured["book_b"] == {"loss": loss, "stored_bits": pytest.approx(bits, abs=0.1), "exact_match": 1.0}
    assert (
        measured["book_a"]["stored_bits"] == measured["book_a"]["exact_match"] == 0 and measured["book_a"]["loss"] > 2
    )
    assert result.model == "base" and str(tmp_path) not in (folder / "config.yaml").read_text()
    assert default_columns("phone_book", False)[0] == "stored_bits" and "stored_bits" not in default_columns(
        "e2e", False
    )

    nothing = measure.collect(trained(untrained, tmp_path / "not", "fnmodel.name=none", "train.epochs=0"), tmp_path)
    measured = json.loads((nothing / "study.json").read_text())
    assert measured["book_b"]["stored_bits"] == 0
    assert json.loads((tmp_path / "base" / "study.json").read_text()) == {"book_a": measured["book_a"]}
    assert {layer["rank"] for layer in measured["change"]["layers"].values()} == {0}


@pytest.mark.parametrize("method, draws, expected", [("lora", 0, 2), ("rosa", 0, 4), ("rosa", 1, 8)])
def test_the_rank_of_the_change(untrained: Path, tmp_path: Path, method: str, draws: int, expected: int) -> None:
    """Two for each factor that trained: LoRA's B A has rank 2, ROSA's A B minus its start 4 for each draw."""
    level = ("fnmodel.rosa.level=step", "fnmodel.rosa.every=10") if draws else ("fnmodel.rosa.level=never",)
    run = trained(untrained, tmp_path / "runs", f"fnmodel.name={method}", *level, "train.epochs=20")
    change = json.loads((measure.collect(run, tmp_path / "records") / "study.json").read_text())["change"]
    assert len(change["layers"]) == 16 and len(change["spectrum"]) == 64 and change["spectrum"][0] == 1
    for layer in change["layers"].values():
        assert 1 <= layer["rank"] <= expected and 1 <= layer["effective_rank"] <= layer["rank"] + 1
    assert all(value < 1e-5 for value in change["spectrum"][expected:])
    assert change["spectrum"][expected - 1] > 1e-5


def test_what_is_measured_of_a_pretrained_model(small_model: Path, tmp_path: Path) -> None:
    """Its loss on ordinary text before and after, in nats per token of the stream, and the change of one layer."""
    pairs = [("Why is the sky blue?", "Light of short waves scatters."), ("What is rain?", "Water that falls.")]
    (tmp_path / "validation.jsonl").write_text(
        "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs)
    )
    run = trained(
        small_model, tmp_path / "runs", "model.dropout=0", "train.epochs=4", "train.cache_frozen=true",
        f"train.cache_folder={tmp_path / 'kept'}",
        "fnmodel.name=rosa", "fnmodel.params.target_modules=[h.1.mlp.c_fc]",
    )  # fmt: skip
    run.eval_file.write_text("{}")
    run.predictions().write_text("one\n")
    folder = pretrained.collect(run, tmp_path / "records", tmp_path)
    assert str(tmp_path) not in (folder / "config.yaml").read_text()
    assert {run.eval_file.name, run.predictions().name} < {path.name for path in folder.iterdir()}
    measured, base = (json.loads((tmp_path / "records" / n / "study.json").read_text()) for n in (folder.name, "base"))
    assert list(measured["change"]["layers"]) == ["transformer.h.1.mlp.c_fc"]
    assert measured["book_b"]["loss"] == pytest.approx(run.record()["best"]["loss_target"], abs=1e-3)

    model, tokenizer = load_model(str(small_model)).eval(), load_tokenizer(str(small_model))
    source = get_source("eli5")
    ids = [
        token
        for example in source.load("validation", tmp_path, None)
        for token in (
            *tokenizer(example.prompt).input_ids,
            *tokenizer(example.target).input_ids,
            tokenizer.eos_token_id,
        )
    ]
    with torch.no_grad():
        plain = float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss)
    assert base["english"] == {"loss": pytest.approx(plain, abs=1e-4), "tokens": len(ids) - 1}
    assert measured["english"]["loss"] != base["english"]["loss"]


def test_a_trial_is_recorded_and_measured_if_asked(untrained: Path, tmp_path: Path) -> None:
    run = trained(untrained, tmp_path / "runs", "train.epochs=2", "output.search=true")
    folder = pretrained.collect(run, tmp_path / "records", tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "inputs.json", "run.json"]
    assert [path.name for path in (tmp_path / "records").iterdir()] == [folder.name]

    (tmp_path / "validation.jsonl").write_text(json.dumps({"question": "abc?", "answer": "def"}) + "\n")

    def missing(measured: bool) -> list[Run]:
        return list(uncopied([str(tmp_path / "runs")], tmp_path / "records", lambda run: measured))

    assert missing(measured=True) == [run] and not missing(measured=False)
    run.eval_file.write_text("{}")  # evaluated since
    assert missing(measured=False) == [run]
    pretrained.collect(run, tmp_path / "records", tmp_path)
    assert not missing(measured=False)

    folder = pretrained.collect(run, tmp_path / "measured", tmp_path, trials=True)
    measured = (folder / "study.json").read_text()
    assert json.loads(measured).keys() == {"book_b", "english"}
    (folder / "study.json").write_text(f"{measured}\n")
    run.eval_file.write_text('{"again": true}')
    pretrained.collect(run, tmp_path / "measured", tmp_path, trials=True)
    assert (folder / "eval.json").read_text() == '{"again": true}'
    assert (folder / "study.json").read_text() == f"{measured}\n", "it was measured again"

    run.update_record(started="later")  # trained again since
    assert missing(measured=False) == [run]
    pretrained.collect(run, tmp_path / "measured", tmp_path)
    assert not (folder / "study.json").exists(), "it is of the earlier training's weights"


def test_the_effective_rank_by_hand() -> None:
    """Equal singular values count in full; of 2 and 1, with shares 4/5 and 1/5, it is exp(H)."""
    columns = torch.tensor([[2.0] * 4 + [0.0] * 5, [2.0, 1.0] + [0.0] * 7])
    before = {"equal": torch.zeros(6, 9), "unequal": torch.zeros(6, 9)}
    after = {n: torch.eye(6, 9) * c for n, c in zip(before, columns, strict=True)}
    change = measure.change(before, after)
    assert change["spectrum"] == [1, 0.75, 0.5, 0.5, 0, 0]
    small = {"small": torch.zeros(3, 4)}
    change = measure.change(before | small, after | {"small": torch.eye(3, 4)})
    assert change["spectrum"] == [1, 0.8333, 0.6667], "as far as the shortest one"
    found = change["layers"]
    assert found["equal"] == {"norm": pytest.approx(4), "rank": 4, "effective_rank": pytest.approx(4)}
    entropy = -0.8 * math.log(0.8) - 0.2 * math.log(0.2)
    assert found["unequal"] == {
        "norm": pytest.approx(5**0.5), "rank": 2, "effective_rank": pytest.approx(math.exp(entropy)),
    }  # fmt: skip


def test_what_is_kept_of_each_draw(untrained: Path, tmp_path: Path) -> None:
    """By hand, and in a training: the last snapshot is the trained weight, and each draw changed something."""
    steps = [torch.tensor(x, dtype=torch.float64) for x in ([0.0, 0.0, 0.0], [2.0, 0.0, 0.0], [1.0, 3.0, 0.0])]
    assert draws.kept(steps) == [0.5, 1.0]

    overrides = ("fnmodel.name=rosa", "fnmodel.rosa.level=step", "fnmodel.rosa.every=5", "train.epochs=20")
    run = trained(untrained, tmp_path / "runs", *overrides)
    snapshots = draws.train_watched(load_config(run.config_file), tmp_path)
    assert len(snapshots) == 1 + 3 + 1 and len(draws.kept(snapshots)) == 4
    model = load_model(str(untrained))
    before = measure.weights(model)
    load_weights(run.best, model)
    expected = rosa.unwrap(model)
    found = torch.cat([weight.double().flatten() for weight in measure.weights(expected).values()])
    torch.testing.assert_close(snapshots[-1], found, rtol=0, atol=1e-6)
    start = torch.cat([weight.double().flatten() for weight in before.values()])
    torch.testing.assert_close(snapshots[0], start, rtol=0, atol=1e-6)
