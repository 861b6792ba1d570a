"""The share of the gap between LoRA and full training that a method closes, and what makes a comparison unfair."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from tests.records import csv_of, markdown_rows, row_of, write_run
from utils.results.gap import share_of_gap
from utils.tables import compile_results

LOSSES = {"lora": [1.30, 1.36, 1.32], "rosa": [1.22, 1.20, 1.27], "none": [1.10, 1.12, 1.08]}


def write(folder: Path, method: str, losses: list[float], first: int = 0, **more: object) -> None:
    record = {"parameters": {"total": 10_000, "trainable": more.pop("trainable", 1000), "adapted_layers": 4}}
    for seed, loss in enumerate(losses, first):
        write_run(folder, method=method, rank=4, seed=seed, loss=loss, record=record, **more)  # type: ignore[arg-type]


def page(folder: Path) -> str:
    return (folder / "e2e_nlg" / "results.md").read_text(encoding="utf-8")


def test_the_share_and_its_interval_are_those_of_every_resample() -> None:
    """Compared with all 5^5 resamples of five seeds, which are equally likely."""
    lora, method, ceiling = np.array([[2.1, 2.0, 2.3, 2.2, 1.9], [1.8, 1.7, 1.7, 2.0, 1.8], [1.5, 1.6, 1.4, 1.5, 1.5]])
    share, interval = share_of_gap(lora, method, ceiling)
    assert share == pytest.approx((2.1 - 1.8) / (2.1 - 1.5), rel=1e-12)
    every = np.array(list(itertools.product(range(5), repeat=5)))
    shares = [(lora[i].mean() - method[i].mean()) / (lora[i].mean() - ceiling[i].mean()) for i in every]
    assert interval == pytest.approx(np.quantile(shares, (0.025, 0.975)), abs=0.02)
    assert interval[0] < share < interval[1]


def test_without_a_gap_or_with_one_seed_nothing_is_claimed() -> None:
    low, high = [1.0, 1.1], [2.0, 2.1]
    assert share_of_gap(low, low, high) == (None, None)
    assert share_of_gap(high[:1], low[:1], low[:1]) == (1.0, None)
    assert share_of_gap([0.5002] * 2, [0.52] * 2, [0.5] * 2) == (None, None)  # a gap of nothing, not −9900 %
    assert share_of_gap([2.0, 1.0], low, [1.0, 1.5]) == (pytest.approx(0.45 / 0.25), None)


def test_the_table_shows_the_share_over_the_seeds_that_all_have(tmp_path: Path) -> None:
    for method, losses in LOSSES.items():
        write(tmp_path, method, losses)
    write(tmp_path, "rosa", [9.0], first=7)  # the others have no such seed
    write(tmp_path, "lora", [9.0], first=8)
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path), method="rosa")
    lora, rosa, full = (sum(LOSSES[name]) / 3 for name in ("lora", "rosa", "none"))
    assert row.gap_closed == pytest.approx((lora - rosa) / (lora - full), rel=1e-12)
    assert row.gap_closed_low < row.gap_closed < row.gap_closed_high
    grid = page(tmp_path).split("## gap between LoRA and full training")[1].split("\n\n")[1]
    cells = [cell.strip() for cell in grid.splitlines()[2].split("|")]
    assert cells[1] == "ROSA" and cells[-4] == f"{100 * row.gap_closed:.0f} %" and cells[-2] == "3"
    assert cells[-3] == f"{100 * row.gap_closed_low:.0f} % to {100 * row.gap_closed_high:.0f} %"
    assert "differ by more than 1 %" not in page(tmp_path)
    assert r"\label{tab:e2e-nlg-gap}" in (tmp_path / "e2e_nlg" / "results.tex").read_text(encoding="utf-8")


@pytest.mark.parametrize(("seeds", "told"), [(1, False), (2, True), (3, True), (4, False)])
def test_the_caption_says_what_an_interval_of_few_seeds_is(tmp_path: Path, seeds: int, told: bool) -> None:
    for method, losses in LOSSES.items():
        write(tmp_path, method, [*losses, losses[0]][:seeds])
    compile_results([tmp_path])
    assert ("goes from the worst seed to the best, so that it covers less than 95 %" in page(tmp_path)) == told
    if told:
        lora, rosa, full = (LOSSES[name][:seeds] for name in ("lora", "rosa", "none"))
        shares = [(a - b) / (a - c) for a, b, c in zip(lora, rosa, full, strict=True)]
        row = row_of(csv_of(tmp_path), method="rosa")
        assert (row.gap_closed_low, row.gap_closed_high) == pytest.approx((min(shares), max(shares)), rel=1e-12)


def test_each_method_counts_with_its_own_rate(tmp_path: Path) -> None:
    write(tmp_path, "lora", [1.5], config={"train.lr": 1e-3})
    write(tmp_path, "lora", [1.4], config={"train.lr": 3e-3})
    write(tmp_path, "rosa", [1.2], config={"train.lr": 1e-3})
    write(tmp_path, "none", [1.0], config={"train.lr": 1e-4})
    write(tmp_path, "lora", [1.1], config={"train.lr": 3e-3, "train.batch_size": 8})  # another comparison
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path), method="rosa").gap_closed == pytest.approx(0.5, rel=1e-12)


def test_the_rate_with_the_same_seeds_counts_not_a_single_trial_of_another(tmp_path: Path) -> None:
    for method, losses in LOSSES.items():
        write(tmp_path, method, losses)
    write(tmp_path, "lora", [1.11], config={"train.lr": 3e-3})  # lower, by luck
    write(tmp_path, "none", [1.01], first=7, config={"train.lr": 3e-3})
    write(tmp_path, "lora", [1.9, 1.9, 1.9, 1.9], config={"train.lr": 1e-1})  # more seeds, and a worse rate
    write(tmp_path, "rosa", [1.9], first=3)
    compile_results([tmp_path])
    lora, rosa, full = (sum(LOSSES[name]) / 3 for name in ("lora", "rosa", "none"))
    assert row_of(csv_of(tmp_path), method="rosa").gap_closed == pytest.approx((lora - rosa) / (lora - full), rel=1e-12)


def test_only_what_is_trained_alike_is_compared(tmp_path: Path) -> None:
    """LoRA+ is a method to compare, not the reference; full training of fewer layers or for longer is no ceiling."""
    targets = "fnmodel.params.target_modules"
    write(tmp_path, "lora", [1.5], config={targets: None})
    write(tmp_path, "lora", [1.3], config={"fnmodel.lora.lr_ratio_b": 16.0, targets: None})
    write(tmp_path, "rosa", [1.2], config={targets: None})
    write(tmp_path, "none-layers", [1.1], config={targets: ["c_attn"], "fnmodel.name": "none"})
    write(tmp_path, "none", [0.5], config={"train.epochs": 50})
    write(tmp_path, "none", [1.0])
    compile_results([tmp_path])
    table = csv_of(tmp_path)
    assert row_of(table, method="rosa").gap_closed == pytest.approx(0.6, rel=1e-12)
    plus = row_of(table, method="lora", val_loss_mean=1.3)
    assert plus.gap_closed == pytest.approx(0.4, rel=1e-12)
    assert "No share of the gap" not in page(tmp_path)


def test_what_keeps_a_row_from_a_share_is_told(tmp_path: Path) -> None:
    write(tmp_path, "lora", [1.5], config={"train.weight_decay": 0.1})
    write(tmp_path, "none", [1.0], config={"train.weight_decay": 0.0})
    write(tmp_path, "rosa", [1.2], config={"train.weight_decay": 0.0})
    write(tmp_path, "relora", [1.2], first=5, config={"train.weight_decay": 0.1})
    compile_results([tmp_path])
    told = "No share of the gap for {} 4: LoRA of the same rank, or full training, differs in train weight decay."
    assert told.format("ROSA 4, ReLoRA") in page(tmp_path)
    write(tmp_path, "lora", [1.5], config={"train.weight_decay": 0.0})
    write(tmp_path, "none", [1.0], config={"train.weight_decay": 0.1})
    compile_results([tmp_path])
    assert "full training, has no seed in common." in page(tmp_path) and told.format("ReLoRA") not in page(tmp_path)


@pytest.mark.parametrize(("trainable", "told"), [(1009, False), (1011, True), (989, True)])
def test_unequal_trainables_are_told(tmp_path: Path, trainable: int, told: bool) -> None:
    write(tmp_path, "lora", [1.5])
    write(tmp_path, "rosa", [1.2], trainable=trainable)
    compile_results([tmp_path])
    assert ("Trainable parameters differ by more than 1 % from those of LoRA" in page(tmp_path)) == told
    assert "gap closed" not in page(tmp_path), "there is no ceiling"


def test_trials_of_a_search_are_in_no_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "lora", [0.1], first=100, config={"output.search": True})
    compile_first = pytest.raises(Exception, match="no run has finished")
    with compile_first as error:
        compile_results([tmp_path])
    assert "a trial of a search" in str(error.value)
    write(tmp_path, "lora", [1.5, 1.7], config={"output.search": False})
    compile_results([tmp_path])
    row = row_of(csv_of(tmp_path), method="lora")
    assert row.n == 2 and row.val_loss_mean == pytest.approx(1.6)
    assert "1 trials of searches (seed 100) are not in the table." in page(tmp_path)


def test_runs_of_other_data_are_not_compared(tmp_path: Path) -> None:
    """The LoRA on other data has the lower loss, so it would be chosen if the data did not count."""
    for digest, losses in (("a" * 64, {"lora": 1.0}), ("b" * 64, {"lora": 1.5, "rosa": 1.2, "none": 1.1})):
        for method, loss in losses.items():
            data = {"train": digest, "validation": digest, "test": digest}
            write_run(tmp_path, method=method, rank=4, loss=loss, record={"data_sha256": data})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path), method="rosa").gap_closed == pytest.approx(0.75, rel=1e-12)
    assert "Rows with different train data, validation data, test data are not compared" in page(tmp_path)
    assert "aaaaaaaa" in page(tmp_path) and "| **1.0000**" not in page(tmp_path), "none is the best on different data"


def test_seeds_on_other_data_are_another_row(tmp_path: Path) -> None:
    for seed, digest in enumerate("aab"):
        write_run(tmp_path, seed=seed, loss=1.0 + seed, record={"data_sha256": {"train": digest * 64}})
    write_run(tmp_path, seed=3, loss=4.0)  # of an early version, whose records have no digests
    compile_results([tmp_path])
    assert sorted(csv_of(tmp_path).n) == [1, 3]


def test_seeds_on_other_base_weights_are_another_row(tmp_path: Path) -> None:
    """A cache of the hub may have more files or fewer; an early version recorded none."""
    recorded = [{"config.json": "c", "model.safetensors": name} for name in "aab"]
    recorded[1]["tokenizer.json"] = "t"
    for seed, files in enumerate([*recorded, None]):
        write_run(tmp_path, seed=seed, loss=1.0 + seed, record={"base_sha256": files})
    write_run(tmp_path, method="none", loss=0.5, record={"base_sha256": recorded[2]})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert sorted(zip(frame.method, frame.seeds, strict=True)) == [("none", "0"), ("rosa", "0 1 3"), ("rosa", "2")]
    assert row_of(frame, seeds="0 1 3").isna().val_loss_delta and row_of(frame, seeds="2").val_loss_delta == 2.5
    assert "| base files |" in page(tmp_path)


def test_two_bases_of_one_name_are_two_models(tmp_path: Path) -> None:
    write_run(tmp_path, method="lora", rank=4, loss=1.5, model="base", config={"model.name": "/first/base"})
    for method, loss in (("rosa", 1.2), ("none", 1.1)):
        write_run(tmp_path, method=method, rank=4, loss=loss, model="base", config={"model.name": "/second/base"})
    compile_results([tmp_path])
    assert "gap closed" not in page(tmp_path)
    assert "first/base" in page(tmp_path) and "second/base" in page(tmp_path) and "/first" not in page(tmp_path)
    assert row_of(csv_of(tmp_path), method="lora").isna().val_loss_delta
    write_run(tmp_path, method="bitfit", rank=None, loss=0.9, model="base", config={"model.name": "/first/base"})
    compile_results([tmp_path], sort="val_loss")
    bold = [row["method"] for row in markdown_rows(tmp_path) if "**" in row["val loss"]]
    assert bold == ["BitFit", "full fine-tuning"], "each model has its best"


def test_one_base_by_two_names_of_its_folder_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    for method, name in (("lora", "~/base"), ("rosa", "/home/me/base"), ("none", "/home/me/./base")):
        write_run(tmp_path, method=method, rank=4, loss=LOSSES[method][0], model="base", config={"model.name": name})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path), method="rosa").gap_closed == pytest.approx(0.4)


def test_a_lora_with_the_same_biases_is_preferred(tmp_path: Path) -> None:
    for method, bias, loss in (("lora", "none", 1.2), ("lora", "adapted", 1.5), ("rosa", "adapted", 1.3)):
        choice = {"fnmodel.params.bias": bias}
        write_run(tmp_path, method=method, rank=4, loss=loss, config=choice, record={"bias": bias})
    write_run(tmp_path, method="none", loss=1.1, config={"fnmodel.params.bias": "adapted"}, record={"bias": "adapted"})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path), method="rosa").gap_closed == pytest.approx(0.5, rel=1e-12)
    assert "but for the learning rate;" in page(tmp_path)


def test_the_gap_of_validation_losses_does_not_depend_on_decoding(tmp_path: Path) -> None:
    for loss, beams in ((1.5, 10), (1.4, 1)):
        config = {"train.lr": loss}
        write_run(
            tmp_path, method="lora", rank=4, loss=loss, config=config, evaluation={"decoding": {"num_beams": beams}}
        )
    write_run(tmp_path, method="rosa", rank=4, loss=1.2, evaluation={"decoding": {"num_beams": 10}})
    write_run(tmp_path, method="none", loss=1.0, evaluation={"decoding": {"num_beams": 10}})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path), method="rosa").gap_closed == pytest.approx(0.5, rel=1e-12)


def test_of_several_rows_of_lora_the_one_that_counts_is_named(tmp_path: Path) -> None:
    for method, losses in LOSSES.items():
        write(tmp_path, method, losses, config={"fnmodel.lora.dropout": 0.0})
    compile_results([tmp_path])
    assert "The gap of LoRA 4" not in page(tmp_path)
    write(tmp_path, "lora", [1.2, 1.2, 1.2], config={"fnmodel.lora.dropout": 0.3})
    compile_results([tmp_path])
    assert "The gap of LoRA 4 is that of the row with dropout 0.3." in page(tmp_path)
