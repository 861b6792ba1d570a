"""``python -m utils.export``: what it writes loads elsewhere with the same function; cards; refusals; kills."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import rosa
from tests.export.conftest import TrainIn, logits, model_of
from utils.errors import UserError
from utils.export import write
from utils.export.__main__ import main
from utils.export.card import hub_name
from utils.generation.decoding import Decoding
from utils.generation.generate import generate
from utils.io.files import sha256
from utils.models.loading import load_tokenizer
from utils.runs import Run

PROMPT = "Input: name[The Silver Swan], eatType[pub] Output:"


def plain(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def export(run: Run, folder: Path, *options: str) -> Path:
    assert main([str(run.path), "--out", str(folder), *options]) == 0
    return folder


def test_a_merged_model_is_plain_and_generates_as_the_run_does(
    rosa_run: Run, small_model: Path, tmp_path: Path
) -> None:
    merged = export(rosa_run, tmp_path / "merged", "--as", "merged")
    trained, expected = model_of(rosa_run), logits(model_of(rosa_run))
    assert (expected - logits(plain(small_model))).abs().max() > 0.05
    model = plain(merged)
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(merged)
    ours = load_tokenizer(str(small_model))
    inputs = tokenizer([PROMPT, "Input:"], return_tensors="pt", padding=True, add_special_tokens=False)
    assert inputs["attention_mask"][1, 0] == 0, "it pads on the left"
    assert inputs["input_ids"][0].tolist() == ours(PROMPT)["input_ids"]
    output = model.generate(**{name: value[:1] for name, value in inputs.items()})  # its own settings
    text = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
    assert text == generate(trained, ours, [PROMPT], Decoding(), 1)[0]
    before, after = (json.loads((place / "config.json").read_text()) for place in (small_model, merged))
    assert before["resid_pdrop"] == after["resid_pdrop"] == 0.1
    assert "/" not in "".join(path.read_text() for path in merged.glob("*config.json"))


def test_from_run_to_peft_to_merged_to_plain(rosa_run: Run, small_model: Path, tmp_path: Path, capsys: Any) -> None:
    peft = pytest.importorskip("peft")
    adapter = export(rosa_run, tmp_path / "peft", "--as", "peft")
    assert "vLLM takes its format with --enable-lora --max-lora-rank 8" in capsys.readouterr().out
    expected = logits(model_of(rosa_run))
    loaded = peft.PeftModel.from_pretrained(plain(small_model), adapter)
    torch.testing.assert_close(logits(loaded), expected, atol=1e-5, rtol=0)
    loaded.merge_and_unload().save_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain(tmp_path / "plain")), expected, atol=1e-5, rtol=0)


def test_an_adapter_of_this_library(rosa_run: Run, small_model: Path, tmp_path: Path) -> None:
    folder = export(rosa_run, tmp_path / "adapter", "--as", "adapter")
    loaded = rosa.load_adapter(plain(small_model), folder)
    torch.testing.assert_close(logits(loaded), logits(model_of(rosa_run)), atol=1e-5, rtol=0)
    held, whole = ((place / "frozen.safetensors").stat().st_size for place in (folder, rosa_run.best))
    assert held < 0.7 * whole, "it holds factors where a checkpoint holds the whole W_f"
    with rosa.disabled(loaded):
        torch.testing.assert_close(logits(loaded), logits(plain(small_model)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cut", [("--rank", "1"), ("--keep", "0.5")])
def test_a_cut_tells_what_it_costs(
    rosa_run: Run, small_model: Path, tmp_path: Path, capsys: Any, cut: tuple[str, str]
) -> None:
    peft = pytest.importorskip("peft")
    folder = export(rosa_run, tmp_path / "peft", "--as", "peft", *cut)
    out = capsys.readouterr().out
    before, after = (
        float(text.split()[0]) for text in out.split("validation loss ")[1].replace("cut, ", "|").split("|")
    )
    assert before == pytest.approx(rosa_run.record()["best"]["loss"], abs=1e-4)
    model = peft.PeftModel.from_pretrained(plain(small_model), folder)
    assert after == pytest.approx(validation_loss(rosa_run, model), abs=1e-4) and abs(after - before) > 3e-4
    card = (folder / "README.md").read_text()
    assert out.splitlines()[-1] in card and "of a part (see below) of the change" in card and "whole" not in card


def validation_loss(run: Run, model: Any) -> float:
    """The mean loss per target token, by transformers, one sample at a time."""
    from utils.config.settings import load_config

    config = load_config(run.config_file)
    tokenizer, total, count = load_tokenizer(config.model.name), 0.0, 0
    for example in config.source.load("validation", config.dataset.folder(), None):
        prompt, target = (
            tokenizer(part, add_special_tokens=False)["input_ids"] for part in (example.prompt, example.target)
        )
        target = [*target, tokenizer.eos_token_id]
        labels = torch.tensor([[-100] * len(prompt) + target])
        with torch.no_grad():
            loss = model.eval()(input_ids=torch.tensor([prompt + target]), labels=labels).loss
        total, count = total + float(loss) * len(target), count + len(target)
    return total / count


@pytest.mark.parametrize("error", [UserError("gone"), torch.OutOfMemoryError("CUDA out of memory.")])
def test_a_loss_that_cannot_be_measured_costs_no_export(
    rosa_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: Any) -> list[float]:
        raise error

    monkeypatch.setattr(write, "validation_losses", fails)
    card = (export(rosa_run, tmp_path / "peft", "--as", "peft", "--rank", "1") / "README.md").read_text()
    assert "by the cut was not measured: " in card


def test_the_last_checkpoint_on_request(rosa_run: Run, tmp_path: Path) -> None:
    best, last = (
        export(rosa_run, tmp_path / name, "--as", "merged", "--checkpoint", name) for name in ("best", "last")
    )
    record = rosa_run.record()
    for name, folder in (("best", best), ("last", last)):
        assert f"| {record[name]['loss']:.4f} |" in (folder / "README.md").read_text()
    assert rosa_run.best.resolve() != rosa_run.last.resolve() or sha256(best / "model.safetensors") == sha256(
        last / "model.safetensors"
    )


def test_trained_biases_are_kept_for_peft_and_said_to_be_none_for_vllm(
    train_in: TrainIn, small_model: Path, tmp_path: Path, capsys: Any
) -> None:
    peft = pytest.importorskip("peft")
    run = train_in(tmp_path / "runs", "model.dropout=0.3")
    folder = export(run, tmp_path / "peft", "--as", "peft")
    out = capsys.readouterr().out
    assert "vLLM does not take this adapter: it has trained biases" in out and "fnmodel.params.bias=none." in out
    loaded = peft.PeftModel.from_pretrained(plain(small_model), folder)
    torch.testing.assert_close(logits(loaded), logits(model_of(run)), atol=1e-5, rtol=0)
    merged = export(run, tmp_path / "merged", "--as", "merged")
    assert json.loads((merged / "config.json").read_text())["attn_pdrop"] == 0.1, "the training's dropout is its own"


# -- the model card ------------------------------------------------------------------------------------------------


def test_a_card_says_what_the_run_recorded_and_nothing_of_this_machine(
    rosa_run: Run, small_model: Path, small_e2e: Path, tmp_path: Path
) -> None:
    run = Run(Path(shutil.copytree(rosa_run.path, tmp_path / "run", symlinks=True)))
    from utils.evaluation import Options, evaluate_run

    evaluate_run(run, Options(decoding=Decoding(num_beams=1, max_new_tokens=4), device="cpu"))
    hashes = {key: run.evaluation()[key] for key in ("predictions_sha256", "references_sha256")}  # type: ignore[index]
    run.scores_file.write_text(json.dumps({"test": {**hashes, "BLEU": 0.4321}}))
    card = (export(run, tmp_path / "merged", "--as", "merged") / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "transformers" and front["pipeline_tag"] == "text-generation"
    assert "base_model" not in front, "a local folder is no name on the hub"
    record = run.record()
    assert f"| validation loss (nats per token) | {record['best']['loss']:.4f} |" in card
    assert f"| {run.evaluation()['loss']:.4f} |" in card and "| BLEU | 0.4321 |" in card  # type: ignore[index]
    assert run.inputs()["data/train"] in card and f"torch {record['versions']['torch']}" in card
    settings = yaml.safe_load(card.split("```yaml")[1].split("```")[0])
    assert settings["fnmodel"]["name"] == "rosa" and settings["model"]["name"] == small_model.name
    for path in (str(tmp_path), str(small_model), str(small_e2e)):
        assert path not in card
    run.scores_file.write_text(json.dumps({"test": {**hashes, "predictions_sha256": "0", "BLEU": 0.4321}}))
    card = (export(run, tmp_path / "again", "--as", "merged") / "README.md").read_text()
    assert "BLEU" not in card, "they are scores of other predictions"


def test_names_on_the_hub(small_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-medium").mkdir()
    names = ("gpt2", "openai-community/gpt2", "tiny", str(small_model), "./gpt2", "gpt2-medium")
    assert [hub_name(name) for name in names] == ["gpt2", "openai-community/gpt2", None, None, None, None]


@pytest.mark.parametrize("form", ["merged", "peft", "adapter"])
def test_the_code_in_a_card_runs(rosa_run: Run, small_model: Path, tmp_path: Path, form: str) -> None:
    if form == "peft":
        pytest.importorskip("peft")
    folder = export(rosa_run, tmp_path / form, "--as", form)
    code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    code = code.replace("THIS_FOLDER", str(folder)).replace(f"PATH/TO/{small_model.name}", str(small_model))
    found: dict[str, Any] = {}
    exec(code, found)
    torch.testing.assert_close(logits(found["model"]), logits(model_of(rosa_run)), atol=1e-5, rtol=0)


# -- refusals and kills --------------------------------------------------------------------------------------------


def refusal(*arguments: object) -> str:
    with pytest.raises(UserError) as refused:
        main([str(argument) for argument in arguments])
    return str(refused.value)


def test_what_is_no_run(rosa_run: Run, tmp_path: Path) -> None:
    assert "is not a folder" in refusal(tmp_path / "nowhere", "--as", "merged")
    assert "has no run.json. Give one run" in refusal(rosa_run.path.parent, "--as", "merged")
    run = Run(Path(shutil.copytree(rosa_run.path, tmp_path / "run", symlinks=True)))
    run.update_record(status="interrupted")
    assert main([str(run.path), "--as", "merged"]) == 0 and (run.path / "export" / "merged" / "README.md").is_file()
    shutil.rmtree(run.checkpoints)
    assert "no checkpoint 'best' (its training is interrupted): run its" in refusal(run.path, "--as", "merged")


def test_full_fine_tuning_has_one_form(train_in: TrainIn, small_model: Path, tmp_path: Path) -> None:
    run = train_in(tmp_path / "runs", "fnmodel.name=none")
    for form in ("peft", "adapter"):
        assert "fnmodel.name=none): --as merged is its only form" in refusal(run.path, "--as", form)
    merged = export(run, tmp_path / "merged", "--as", "merged")
    torch.testing.assert_close(logits(plain(merged)), logits(model_of(run)), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["fnmodel.name=ia3"], "fnmodel.name=ia3 has no pair A, B, which a LoRA adapter is made of: write --as merged"),
        (["fnmodel.name=none", "fnmodel.params.target_modules=[c_attn]"], "(fnmodel.name=none): --as merged is"),
    ],
)
def test_a_method_without_a_pair_names_the_form_that_it_has(
    train_in: TrainIn, tmp_path: Path, overrides: list[str], message: str
) -> None:
    text = refusal(train_in(tmp_path / "runs", *overrides).path, "--as", "peft", "--rank", 2)
    assert message in text and text.count("--") == 1


def test_options_that_do_not_go_together(rosa_run: Run, capsys: Any) -> None:
    assert "do not go with --as merged" in refusal(rosa_run.path, "--as", "merged", "--rank", 2)
    assert "--rank 0 must be at least 1" in refusal(rosa_run.path, "--as", "peft", "--rank", 0)
    assert "--keep 1.5 must be a share" in refusal(rosa_run.path, "--as", "peft", "--keep", 1.5)
    for wrong in (["--as", "peft", "--rank", "1", "--keep", "0.5"], ["--as", "lora"], []):
        with pytest.raises(SystemExit) as ended:
            main([str(rosa_run.path), *wrong])
        assert ended.value.code == 2


def test_a_change_too_large_for_a_lora_adapter_names_the_ways_out(train_in: TrainIn, tmp_path: Path) -> None:
    run = train_in(tmp_path / "runs", "fnmodel.params.rank=12")
    text = refusal(run.path, "--as", "peft", "--out", tmp_path / "peft")
    assert "it takes" in text and "--as merged, --keep SHARE or --rank R" in text
    assert not (tmp_path / "peft").exists()


def test_only_an_earlier_export_is_overwritten(rosa_run: Run, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    export(rosa_run, target, "--as", "adapter")  # an empty folder is no obstacle
    arguments = (rosa_run.path, "--out", target, "--as", "merged")
    assert "is not empty" in refusal(*arguments)
    assert main([*map(str, arguments), "--overwrite"]) == 0
    assert (target / "config.json").is_file() and not (target / "adapter_config.json").exists()
    (target / "README.md").write_text("# Mine\n")
    assert "not of an export" in refusal(*arguments, "--overwrite")
    assert "is not a folder" in refusal(rosa_run.path, "--as", "merged", "--out", target / "README.md")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_write_that_fails_leaves_what_was_there(
    rosa_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = export(rosa_run, tmp_path / "out", "--as", "adapter")
    before = sorted((path.name, sha256(path)) for path in target.iterdir())

    def full(*_: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "model_card", full)
    text = refusal(rosa_run.path, "--out", target, "--as", "merged", "--overwrite")
    assert f"{target} cannot be written: No space left on device" in text
    assert sorted((path.name, sha256(path)) for path in target.iterdir()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
