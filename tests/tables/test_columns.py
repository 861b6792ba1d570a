"""Columns of a table: which are shown, best values, differences to a baseline, and sorting by a column."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.records import csv_of, latex_rows, markdown_rows, row_of, write_run
from utils.results.read import Result
from utils.runs import Run
from utils.tables import compile_results


def test_best_is_bold_in_the_right_direction(tmp_path: Path) -> None:
    write_run(tmp_path, method="lora", loss=1.5, scores={"BLEU": 0.70, "SER": 0.02})
    write_run(tmp_path, method="rosa", loss=1.2, scores={"BLEU": 0.60, "SER": 0.05})
    write_run(tmp_path, method="rosa", rank=0.1, loss=1.9, scores={"BLEU": 0.699999, "SER": 0.03})
    compile_results([tmp_path])
    lora, small, large = markdown_rows(tmp_path)
    assert (lora["val loss"], small["val loss"], large["val loss"]) == ("1.5000", "**1.2000**", "1.9000")
    assert (lora["slot error"], small["slot error"]) == ("**0.0200**", "0.0500")
    assert (lora["BLEU"], small["BLEU"], large["BLEU"]) == ("**0.7000**", "0.6000", "**0.7000**")  # equal as printed
    assert "**" not in lora["params"] + small["params"] + lora["n"]
    assert r"\textbf{1.2000}" in latex_rows(tmp_path)[1] and "1.5000" in latex_rows(tmp_path)[0]


def test_a_table_shows_the_scores_that_its_data_set_lists(tmp_path: Path) -> None:
    more = {"distinct_1": 0.5, "length_ratio": 1.25, "of_a_plug_in": 3.0, "items": 630}
    write_run(tmp_path, dataset="eli5", scores=more)
    write_run(tmp_path, dataset="gone", scores=more)
    compile_results([tmp_path])
    (own,), (other,) = markdown_rows(tmp_path, "eli5"), markdown_rows(tmp_path, "gone")
    official = {"BLEU", "NIST", "METEOR", "ROUGE-L", "CIDEr"}
    assert official & own.keys() == {"ROUGE-L"} and (own["distinct 1"], own["length ratio"]) == ("0.5000", "1.2500")
    assert official <= other.keys() and not {"distinct 1", "length ratio", "of a plug in"} & other.keys()
    for dataset in ("eli5", "gone"):  # the CSV has all scores
        frame = csv_of(tmp_path, dataset)
        assert (frame.BLEU_mean[0], frame.of_a_plug_in_mean[0]) == (0.65, 3.0)
        assert "items_mean" not in frame


def test_a_value_is_best_among_several_rows_of_its_model_only(tmp_path: Path) -> None:
    write_run(tmp_path, model="gpt2", loss=1.0)
    write_run(tmp_path, model="gpt2-medium", loss=2.0)
    write_run(tmp_path, model="gpt2-medium", method="lora", loss=3.0)
    compile_results([tmp_path])
    printed = markdown_rows(tmp_path)
    assert [row["model"] for row in printed] == ["gpt2", "gpt2-medium", "gpt2-medium"]
    assert [row["val loss"] for row in printed] == ["1.0000", "3.0000", "**2.0000**"]
    assert (tmp_path / "e2e_nlg" / "results.tex").read_text(encoding="utf-8").split(r"\bottomrule")[0].count(
        r"\midrule"
    ) == 2


def test_times_on_different_hardware_have_no_best(tmp_path: Path) -> None:
    write_run(tmp_path, method="lora")
    write_run(tmp_path, seed=7)
    compile_results([tmp_path])
    assert [row["train (s)"] for row in markdown_rows(tmp_path)] == ["**600**", "615"]  # with resamples
    write_run(tmp_path, seed=8, record={"hardware": {"name": "H100", "processes": 2, "precision": "fp32"}})
    compile_results([tmp_path])
    assert [row["train (s)"] for row in markdown_rows(tmp_path)] == ["600", "616 ± 1"]
    assert "H100 × 2, fp32" in (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")


def test_times_are_those_of_every_start(tmp_path: Path) -> None:
    """A run that was requeued to a faster node is not the fastest on it."""
    slow, fast = ({"device": "cuda", "name": name, "precision": "fp16"} for name in ("V100", "A100"))
    starts = {"hardware": fast, "starts": [{"hardware": slow}, {"hardware": fast}, {"hardware": fast}, {}, None]}
    write_run(tmp_path, method="rosa", record=starts)
    write_run(tmp_path, method="lora", record={"hardware": fast})
    compile_results([tmp_path])
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert "Hardware: A100, fp16; V100, fp16 and A100, fp16." in page and "different hardware are not compared" in page
    assert "**" not in "".join(row["train (s)"] for row in markdown_rows(tmp_path))
    cores = [{"hardware": {"device": "cpu", "name": "a CPU", "cores": count}} for count in (2, 64)]
    assert [Result(Run(tmp_path), one, {}, {}, {}, ()).hardware for one in cores] == [
        "a CPU of 2 cores",
        "a CPU of 64 cores",
    ]


def test_times_and_memory_of_other_micro_batches_are_not_compared(tmp_path: Path) -> None:
    """As the run had them at each start; a record of before has only what its configuration says."""
    saving = {"train.micro_batch_size": 8, "train.gradient_checkpointing": True}
    write_run(tmp_path, method="none", config=saving)
    write_run(tmp_path, method="lora", config={"train.micro_batch_size": 128})  # the batch size
    compile_results([tmp_path])
    assert "**" not in "".join(row["memory (MiB)"] for row in markdown_rows(tmp_path))
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert "a CPU, fp32; a CPU, fp32, micro_batch_size=8, gradient_checkpointing=true." in page
    parts = [{"hardware": {"name": "a CPU", "costs": costs}} for costs in ({}, {"compile": False})]
    result = Result(Run(tmp_path), {**parts[1], "starts": parts}, saving, {}, {}, ())
    assert result.hardware == "a CPU and a CPU, compile=false"


def test_speed_is_that_of_training_with_its_resamples(tmp_path: Path) -> None:
    for method in ("lora", "rosa"):
        write_run(tmp_path, method=method)
    compile_results([tmp_path])
    lora, rosa = (row_of(csv_of(tmp_path), method=method) for method in ("lora", "rosa"))
    assert (lora.train_seconds_mean, lora.samples_per_second_mean) == (600.0, 350.0)
    assert (rosa.train_seconds_mean, rosa.resample_seconds_mean) == (608.0, 8.0)
    assert rosa.samples_per_second_mean == pytest.approx(350.0 * 600 / 608)
    assert rosa.tokens_per_second_mean == pytest.approx(21_000.0 * 600 / 608)


def test_differences_are_over_the_seeds_that_both_rows_have(tmp_path: Path) -> None:
    """LoRA loses .3 on the seed of both, and .4 against a mean of other seeds."""
    for seed, bleu in enumerate((0.5, 0.4, 0.3)):
        write_run(tmp_path, method="lora", seed=seed, scores={"BLEU": bleu})
    write_run(tmp_path, method="none", scores={"BLEU": 0.8})
    write_run(tmp_path, method="none", epochs=0, scores={"BLEU": 0.1})
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path), method="lora").BLEU_delta == pytest.approx(-0.3)
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert "| −0.3000 (1) |" in page and "(k): the value is of k seeds only." in page
    compile_results([tmp_path], baseline="untrained")
    assert row_of(csv_of(tmp_path), method="lora").BLEU_delta == pytest.approx(0.3), "the same for every seed"
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert "(0)" not in page


def test_a_difference_without_a_common_seed_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, method="lora", scores={"BLEU": 0.5})
    write_run(tmp_path, method="none", seed=5, scores={"BLEU": 0.8})
    compile_results([tmp_path])
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8")
    assert "| −0.3000 (0) |" in page and "(0): the rows have no seed in common" in page


def test_differences_to_full_fine_tuning_and_to_equal_rank(tmp_path: Path) -> None:
    write_run(tmp_path, method="none", loss=0.9, scores={"BLEU": 0.70})
    for rank, lora, rosa in ((0.05, 1.2, 1.1), (0.1, 1.3, 1.0)):
        write_run(tmp_path, method="lora", rank=rank, loss=lora)
        write_run(tmp_path, method="rosa", rank=rank, loss=rosa, scores={"BLEU": 0.66})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    rosa = row_of(frame, method="rosa", rank="0.1")
    assert rosa.val_loss_delta == pytest.approx(0.1) and rosa.BLEU_delta == pytest.approx(-0.04)
    assert rosa.baseline == row_of(frame, method="none").group
    assert math.isnan(row_of(frame, method="none").val_loss_delta)
    second = (
        (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").split("## difference to full fine-tuning")[1]
    )
    assert "| +0.1000 |" in second and "| −0.0400 |" in second
    compile_results([tmp_path], baseline="lora")
    frame = csv_of(tmp_path)
    assert row_of(frame, method="rosa", rank="0.1").val_loss_delta == pytest.approx(-0.3)
    assert row_of(frame, method="rosa", rank="0.05").val_loss_delta == pytest.approx(-0.1)


def test_differences_are_to_the_best_full_training_whatever_its_rate(tmp_path: Path) -> None:
    """The full training with the rate of LoRA is a badly tuned one, and one with more epochs is another comparison."""
    for method, rate, loss, epochs in (
        ("none", 3e-3, 3.9, 5), ("none", 3e-2, 6.0, 5), ("none", 3e-3, 1.0, 50), ("lora", 3e-2, 4.6, 5),
    ):  # fmt: skip
        beams = {"num_beams": 10 if rate == 3e-2 else 1}
        write_run(
            tmp_path, method=method, loss=loss, epochs=epochs, config={"train.lr": rate}, evaluation={"decoding": beams}
        )
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    lora = row_of(frame, method="lora")
    assert lora.val_loss_delta == pytest.approx(0.7) and lora.baseline == row_of(frame, val_loss_mean=3.9).group
    page = (tmp_path / "e2e_nlg" / "results.md").read_text(encoding="utf-8").replace("\\", "")
    assert "Differences to full fine-tuning are to the row with epochs 5, lr 0.003" in page


def test_losses_on_different_tokens_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, loss=1.0, config={"train.loss_on": None})
    write_run(tmp_path, loss=0.5, record={"loss_on": "all", "group": "other"}, config={"train.loss_on": "all"})
    compile_results([tmp_path])
    printed = markdown_rows(tmp_path)
    assert "val loss" not in printed[0]
    assert sorted(row["val loss, target"] for row in printed) == ["0.5000", "1.0000"]
    assert sorted(row["val loss, all"] for row in printed) == ["0.7500", "1.5000"]


@pytest.mark.parametrize(
    "config",
    [
        {"train.validation_fraction": 0.1},
        {"train.seq_len": 64},
        {"train.epochs": 3},
        {"model.adapter": "/a"},
        {"model.name": "/other/gpt2"},
        {"data_sha256": {"train": "a" * 64, "validation": "b" * 64, "test": "c" * 64}},
    ],
)
def test_nothing_is_compared_across_a_condition_that_differs(tmp_path: Path, config: dict[str, Any]) -> None:
    """Not the LoRA of a condition of its own, which is better than all; other seeds change nothing."""
    data = {"data_sha256": {"train": "0" * 64, "validation": "1" * 64, "test": "2" * 64}}
    usual = {key: None for key in config if key.startswith("train.s")}
    write_run(tmp_path, method="none", loss=1.0, record=data, config=usual)
    write_run(tmp_path, loss=1.2, seed=1, record=data, config=usual)
    own = {"record": config} if "data_sha256" in config else {"config": config, "record": data}
    write_run(tmp_path, method="lora", loss=0.5, scores={"BLEU": 0.9}, **own)
    compile_results([tmp_path])
    printed = {row["method"]: row for row in markdown_rows(tmp_path)}
    for column in ("val loss", "test ppl", "BLEU", "train (s)"):
        assert "**" not in printed["LoRA"][column]
    assert printed["full fine-tuning"]["val loss"] == "**1.0000**"
    frame = csv_of(tmp_path)
    assert frame.val_loss_delta.notna().tolist() == (frame.method == "rosa").tolist()
    page = (tmp_path / "e2e_nlg" / "results.md").read_text().replace("\\", "")
    assert "Rows with different " in page and "are not compared, in bold or in differences" in page


def test_a_mean_is_best_if_its_interval_does_not_overlap_that_of_the_next(tmp_path: Path) -> None:
    for seed, (lora, rosa, near) in enumerate(((1.0, 2.0, 2.1), (1.2, 2.2, 2.3))):
        for rank, loss in ((4, rosa), (8, near)):
            write_run(tmp_path, seed=seed, rank=rank, loss=loss)
        lone = write_run(tmp_path, seed=seed, method="lora", loss=lora)
    compile_results([tmp_path])
    assert [row["val loss"][:2] for row in markdown_rows(tmp_path)] == ["**", "2.", "2."]
    (lone / "run.json").unlink()
    compile_results([tmp_path])
    assert [row["val loss"][:2] for row in markdown_rows(tmp_path)] == ["1.", "2.", "2."], "one seed has no interval"
    for rank in (4, 8):
        write_run(tmp_path / "two", method="rosa", rank=rank, loss=2.0 + rank / 100)
        write_run(tmp_path / "two", method="rosa", rank=rank, loss=2.2 + rank / 100, seed=1)
    compile_results([tmp_path / "two"])
    assert "**" not in "".join(row["val loss"] for row in markdown_rows(tmp_path / "two"))


def test_seeds_with_their_own_validation_items_are_compared_seed_by_seed(tmp_path: Path) -> None:
    for method, seeds in (("none", (0, 1)), ("rosa", (1, 2)), ("lora", (2, 3))):
        for seed in seeds:
            config = {"train.validation_fraction": 0.1}
            loss = {"none": 1.0, "rosa": 1.5, "lora": 2.0}[method] + seed**2
            write_run(tmp_path, method=method, seed=seed, loss=loss, config=config)
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert row_of(frame, method="rosa").val_loss_delta == pytest.approx(0.5), "of seed 1 alone"
    assert math.isnan(row_of(frame, method="lora").val_loss_delta), "no seed in common"
    assert row_of(frame, method="lora").test_loss_delta == pytest.approx(7.0), "all seeds have the same test items"
    page = (tmp_path / "e2e_nlg" / "results.md").read_text()
    assert "only rows of the same seeds are compared" in page
    for seed, method in enumerate(("lora", "rosa")):
        config = {"train.validation_fraction": 0.1}
        write_run(tmp_path / "one", method=method, seed=seed, loss=1.0 + seed, config=config)
    compile_results([tmp_path / "one"])
    assert [row["val loss"] for row in markdown_rows(tmp_path / "one")] == ["1.0000", "2.0000"]
    assert markdown_rows(tmp_path / "one")[0]["test ppl"].startswith("**"), "all have the same test items"
    assert "**" not in "".join(row["val loss"] for row in markdown_rows(tmp_path))


def test_the_untrained_model_differs_by_seed_on_parts_of_the_validation_data(tmp_path: Path) -> None:
    for seed, loss in enumerate((6.0, 7.0)):
        write_run(
            tmp_path, method="none", seed=seed, loss=loss, epochs=0, config={"train.validation_fraction": 0.02}
        )  # fmt: skip
    compile_results([tmp_path])
    assert row_of(csv_of(tmp_path)).val_loss_std == pytest.approx(0.7071, abs=1e-3)


def test_other_scores_are_in_the_csv_and_in_the_table_on_request(tmp_path: Path) -> None:
    write_run(tmp_path, scores={"distinct_1": 0.25, "items": 630})
    compile_results([tmp_path])
    frame = csv_of(tmp_path)
    assert row_of(frame).distinct_1_mean == 0.25 and "items_mean" not in frame
    assert "distinct 1" not in markdown_rows(tmp_path)[0]
    compile_results([tmp_path], columns=["distinct_1", "BLEU"])
    header = list(markdown_rows(tmp_path)[0])
    assert header[-2:] == ["distinct 1", "BLEU"]
    assert [name for name in csv_of(tmp_path) if name.endswith("_mean")] == ["distinct_1_mean", "BLEU_mean"]


def test_rows_are_sorted_by_the_given_column(tmp_path: Path) -> None:
    for rank, bleu in ((0.0125, 0.5), (0.025, 0.7), (0.05, 0.6)):
        write_run(tmp_path, rank=rank, loss=bleu, scores={"BLEU": bleu})
    write_run(tmp_path, rank=0.1, scores={"absent": True}, loss=2.0)

    def ranks(sort: str | None) -> list[str]:
        compile_results([tmp_path], sort=sort)
        return list(csv_of(tmp_path)["rank"])

    assert ranks(None) == ["0.0125", "0.025", "0.05", "0.1"]  # by trainable parameters
    assert ranks("BLEU") == ["0.025", "0.05", "0.0125", "0.1"]  # best first, rows without a value last
    assert ranks("BLEU:asc") == ["0.0125", "0.05", "0.025", "0.1"]
    assert ranks("val_loss") == ["0.0125", "0.05", "0.025", "0.1"]
    assert ranks("rank:desc") == ["0.1", "0.05", "0.025", "0.0125"]
