"""ROSA adapters of PEFT on disk: trained on, under the Trainer, on the hub, beside a head, with the wrong base."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import rosa
from tests.rosa.cases import logits, make_model, make_optimizer, tokens, train_steps

peft = pytest.importorskip("peft")

from tests.rosa.peft_models import adapt_by_peft, distance, make_classifier, train, trained  # noqa: E402


@pytest.mark.parametrize("options", [{}, {"basis": "random", "adapt": "b"}, {"seed": 2, "sample_method": "window"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_loaded_adapter_trains_on_in_the_same_subspaces(
    dtype: torch.dtype, options: dict[str, Any], tmp_path: Path
) -> None:
    model = trained(base=make_model("gpt2", dtype=dtype), **options)
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(make_model("gpt2", dtype=dtype), tmp_path, is_trainable=True)
    names = [{name for name, p in one.named_parameters() if p.requires_grad} for one in (model, loaded)]
    assert names[0] == names[1]
    for one in (model, loaded):
        train(one, 1)
    pairs = [one.get_base_model().transformer.h[1].mlp.c_fc.rosa_layers["default"] for one in (model, loaded)]
    assert [int(pair.number) for pair in pairs] == [3, 3]
    exact = dtype == torch.float32
    assert distance(pairs[0].A @ pairs[0].B, pairs[1].A @ pairs[1].B) < (1e-4 if exact else 0.02)
    assert distance(model, loaded) < (1e-4 if exact else 0.1)


def test_the_file_holds_the_adapter_only_and_is_small(tmp_path: Path) -> None:
    model = trained(r=1, resamples=1)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.rpartition(".")[2] for key in tensors} == {
        "A",
        "B",
        "left",
        "right",
        "number",
        "base_checksum",
        "holds",
    }
    assert all(".rosa_layers." in key and "default" not in key for key in tensors)
    sides = sum(sum(layer.base.weight.shape) for layer in rosa.adapter_layers(model).values())
    assert sum(values.numel() for values in tensors.values() if values.is_floating_point()) == sides * 4  # 2 R K


@pytest.mark.parametrize(("here", "there"), [("float32", "bfloat16"), ("bfloat16", "float32"), ("float32", "float32")])
def test_a_state_with_the_weight_says_what_the_weight_holds(here: str, there: str) -> None:
    """Of 32 bits it is W_f while ROSA trains, of 16 bits W_0."""
    model = trained(base=make_model("gpt2", dtype=getattr(torch, here)))
    other = trained(base=make_model("gpt2", dtype=getattr(torch, there)), resamples=0)
    other.load_state_dict(model.state_dict())
    scale = distance(model, make_model("gpt2"))
    tolerance = 0.05 * scale if "bfloat16" in (here, there) else 1e-6
    assert distance(other, model) < tolerance
    with model.disable_adapter(), other.disable_adapter():
        assert distance(other, model) < tolerance
    if here == there:
        assert distance(other.unload(), make_model("gpt2")) < 1e-5


def test_another_base_is_refused(tmp_path: Path) -> None:
    trained(resamples=0).save_pretrained(tmp_path)
    with pytest.raises(rosa.AdapterError, match="belongs to another base model"):
        peft.PeftModel.from_pretrained(make_model("gpt2", seed=1), tmp_path)
    with pytest.raises(ValueError, match="not found in the base model"):
        peft.PeftModel.from_pretrained(make_model("llama"), tmp_path)
    peft.PeftModel.from_pretrained(make_model("gpt2", dtype=torch.bfloat16), tmp_path)  # not comparable


def test_an_adapter_of_a_base_that_had_another_one_loads_into_that_base(tmp_path: Path) -> None:
    """``unload`` gives the base up to rounding. A base with other values is none of its bases all the same."""
    base = make_model("gpt2")
    for seed in (1, 2, 3):
        model = trained(base=base, seed=seed)
        model.save_pretrained(tmp_path / str(seed))
        assert distance(peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path / str(seed)), model) < 1e-5
        base = model.unload()
    base.transformer.h[0].attn.c_attn.weight.data += 1e-3
    trained(base=base).save_pretrained(tmp_path / "other")
    with pytest.raises(rosa.AdapterError, match="another base model"):
        peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path / "other")


def test_an_adapter_that_replaces_one_of_its_name_begins_at_the_base(tmp_path: Path) -> None:
    """As a cell of a notebook that runs again does, and two adapters loaded in turn into one base object."""
    wanted = {}
    for seed in (1, 2):
        model = trained(seed=seed)
        model.save_pretrained(tmp_path / str(seed))
        wanted[seed] = logits(model)
    base = make_model("gpt2")
    for seed in (1, 2):
        loaded = peft.PeftModel.from_pretrained(base, tmp_path / str(seed))
        assert distance(logits(loaded), wanted[seed]) < 1e-5
        with loaded.disable_adapter():
            assert distance(loaded, make_model("gpt2")) < 1e-5
    again = adapt_by_peft(base=base, seed=3)
    assert distance(again, make_model("gpt2")) < 1e-5
    train(again, 1)
    with again.disable_adapter():
        assert distance(again, make_model("gpt2")) < 1e-5


def test_one_config_for_two_models(tmp_path: Path) -> None:
    """Each finds its own layers, and is saved as an adapter of its own base."""
    from rosa.integrations.peft import RosaConfig

    config = RosaConfig(r=2)
    models = [peft.get_peft_model(make_model("gpt2", n_layer=depth), config) for depth in (2, 3)]
    assert [len(rosa.adapter_layers(model)) for model in models] == [8, 12] and config.target_modules is None
    models[0].save_pretrained(tmp_path)
    assert distance(peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path), models[0]) < 1e-5


@pytest.mark.parametrize("task", [task.value for task in peft.TaskType])
@pytest.mark.parametrize("targets", [["query", "q", "c_attn"], "all-linear"])
def test_every_task_trains_and_saves_the_head_that_lora_trains(
    task: str, targets: list[str] | str, tmp_path: Path
) -> None:
    import transformers

    from rosa.integrations.peft import RosaConfig

    sides = dict(num_heads=2, d_kv=12, d_ff=40, num_layers=2, decoder_start_token_id=0)
    bert = transformers.BertConfig(
        vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40
    )
    t5 = transformers.T5Config(vocab_size=61, d_model=24, **sides)
    makers: dict[str, Any] = {
        "TOKEN_CLS": lambda: transformers.BertForTokenClassification(bert),
        "SEQ_CLS": lambda: transformers.BertForSequenceClassification(bert),
        "QUESTION_ANS": lambda: transformers.BertForQuestionAnswering(bert),
        "FEATURE_EXTRACTION": lambda: transformers.BertModel(bert),
        "SEQ_2_SEQ_LM": lambda: transformers.T5ForConditionalGeneration(t5),
        "CAUSAL_LM": lambda: make_model("gpt2"),
    }

    def base() -> Any:
        torch.manual_seed(0)
        return makers[task]().eval()

    def outputs(one: Any) -> torch.Tensor:
        extra = {"decoder_input_ids": tokens()} if task == "SEQ_2_SEQ_LM" else {}
        return one.eval()(input_ids=tokens(), **extra)[0]

    def heads(config: Any) -> set[str]:
        model = peft.get_peft_model(base(), config)
        return {n for n, p in model.named_parameters() if p.requires_grad and not re.search(r"rosa_|lora_", n)}

    model = peft.get_peft_model(base(), RosaConfig(r=2, target_modules=targets, task_type=task))
    trained_ones = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = ["query", "q", "c_attn"]  # with all-linear PEFT's LoRA fails for two tasks
    assert {n for n, _ in trained_ones if "rosa_" not in n} == heads(
        peft.LoraConfig(r=2, target_modules=plain, task_type=task)
    )
    for _, parameter in trained_ones:
        parameter.data += 0.1
    model.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(base(), tmp_path)
    assert (outputs(loaded) - outputs(model)).abs().max() < 1e-5 < (outputs(model) - outputs(base())).abs().max()


def test_a_config_from_a_file_starts_anew_without_values(tmp_path: Path) -> None:
    from rosa.integrations.peft import RosaConfig

    trained(resamples=1).save_pretrained(tmp_path)
    config = RosaConfig.from_pretrained(tmp_path)
    config.inference_mode = False
    model = peft.get_peft_model(make_model("gpt2"), config)
    assert distance(model, make_model("gpt2")) < 1e-5
    train(model, 1)
    assert distance(model, make_model("gpt2")) > 0.05


class Hub:
    """Stands in for the hub: keeps what is pushed in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repos: list[str] = []

    def create_repo(self, repo_id: str, **others: Any) -> Any:
        return SimpleNamespace(repo_id=repo_id)

    def create_commit(self, repo_id: str, operations: Any, **others: Any) -> None:
        self.repos.append(repo_id)
        for operation in operations:
            (self.folder / operation.path_in_repo).write_bytes(Path(operation.path_or_fileobj).read_bytes())


def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.utils import hub

    there = Hub(tmp_path)
    monkeypatch.setattr(hub, "hf_api", lambda: there, raising=False)  # earlier versions of transformers: functions
    for name in ("create_repo", "create_commit"):
        monkeypatch.setattr(hub, name, getattr(there, name), raising=False)
    model = trained(resamples=1)
    model.push_to_hub("someone/adapter")
    assert there.repos == ["someone/adapter"]
    assert distance(peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path), model) < 1e-5


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": tokens()[index], "labels": tokens()[index]}


@pytest.mark.parametrize(("level", "every", "drawn"), [("step", 2, 1), ("epoch", 1, 1)])
def test_trainer_checkpoints_hold_the_adapter_and_resume(level: str, every: int, drawn: int, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    from rosa.integrations.trainer import ResampleCallback

    def trainer(folder: Path) -> Any:
        settings = dict(num_train_epochs=2, save_steps=3, per_device_train_batch_size=2, use_cpu=True, report_to="none")
        args = TrainingArguments(str(folder), **settings, learning_rate=1e-2, disable_tqdm=True, logging_steps=100)
        model = adapt_by_peft(level=level, every=every)
        return Trainer(model, args, train_dataset=Rows(), callbacks=[ResampleCallback()])

    whole = trainer(tmp_path)
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").exists() and not (checkpoint / "model.safetensors").exists()
    resumed = trainer(tmp_path / "again")
    resumed.train(resume_from_checkpoint=str(checkpoint))
    layers = [next(iter(rosa.adapter_layers(one.model).values())) for one in (whole, resumed)]
    assert [int(layer.number) for layer in layers] == [drawn, drawn]
    assert distance(whole.model, resumed.model) < 1e-4
    assert distance(whole.model, make_model("gpt2")) > 0.01


def test_sequence_classification_trains_and_keeps_the_head(tmp_path: Path) -> None:
    model = adapt_by_peft(base=make_classifier(0), task_type="SEQ_CLS")
    assert any("score" in name and p.requires_grad for name, p in model.named_parameters())
    optimizer = make_optimizer(model)
    model.base_model.bind_optimizer(optimizer)
    labels = torch.tensor([0, 1, 1, 0])
    for epoch in (1, 2):
        model(input_ids=tokens(), labels=labels).loss.backward()
        optimizer.step()
        model.base_model.after_epoch(epoch, 2)
    expected = logits(model)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    assert (
        distance(peft.PeftModel.from_pretrained(make_classifier(1), tmp_path), expected) < 1e-5
    )  # another random head


def test_modules_to_save(tmp_path: Path) -> None:
    """``modules_to_save`` beside ROSA trains, is saved, and is off while the adapter is disabled."""
    model = adapt_by_peft(modules_to_save=["wpe"])
    train_steps(model, make_optimizer(model), 2)
    expected = logits(model)
    with model.disable_adapter():
        assert distance(model, make_model("gpt2")) < 1e-5
    model.save_pretrained(tmp_path)
    assert distance(peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path), expected) < 1e-5
