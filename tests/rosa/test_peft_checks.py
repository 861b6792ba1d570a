"""What a ROSA adapter of PEFT refuses: states, models and moments that would give another function in silence."""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rosa
from tests.rosa.cases import digests, logits, make_model, train_steps

peft = pytest.importorskip("peft")

from tests.rosa.peft_models import adapt_by_peft, distance, train, trained, without_decay  # noqa: E402

FILE = "adapter_model.safetensors"


def changed_file(folder: Path, change: Any) -> None:
    """Write the tensors of a saved adapter again after ``change`` of their dictionary."""
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE, {"format": "pt"})


def test_a_file_of_another_base_is_refused_by_an_adapter_that_is_there(tmp_path: Path) -> None:
    """A resume under the Trainer loads this way."""
    source = trained(resamples=1)
    source.save_pretrained(tmp_path)
    base = make_model("gpt2")
    last = base.transformer.h[1].mlp.c_proj.weight
    last.data[0, 0] += 1
    model = adapt_by_peft(base=base)
    before = logits(model)
    with pytest.raises(rosa.AdapterError, match=r"h\.1\.mlp\.c_proj: the adapter belongs to another base model"):
        model.load_adapter(tmp_path, "default")
    assert torch.equal(logits(model), before), "no layer was loaded"
    for fits in (adapt_by_peft(), adapt_by_peft(seed=4)):
        fits.load_adapter(tmp_path, "default")
        assert distance(fits, source) < 1e-5
    adapt_by_peft(base=make_model("gpt2", dtype=torch.bfloat16)).load_adapter(tmp_path, "default")  # not comparable


def test_a_file_without_checksums_loads_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    source = trained(resamples=1)
    source.save_pretrained(tmp_path)
    changed_file(tmp_path, lambda found: [found.pop(key) for key in list(found) if key.endswith("base_checksum")])
    loaded = peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path)
    assert distance(loaded, source) < 1e-5
    assert not [str(one.message) for one in recwarn if "missing" in str(one.message)]
    model = adapt_by_peft()
    model.load_adapter(tmp_path, "default")
    assert distance(model, source) < 1e-5


def test_nothing_is_loaded_into_a_merged_model(tmp_path: Path) -> None:
    trained(resamples=1).save_pretrained(tmp_path)
    model = trained(resamples=2, seed=3)
    expected = logits(model)
    model.merge_adapter()
    with pytest.raises(rosa.AdapterError, match=r"c_attn is merged: call unmerge_adapter\(\)"):
        model.load_adapter(tmp_path, "default")
    model.unmerge_adapter()
    assert torch.equal(logits(model), expected)


def trained_by_bound_optimizer() -> tuple[Any, torch.optim.Optimizer]:
    """A model, and the optimizer that made one step."""
    model = adapt_by_peft()
    optimizer = without_decay(model)
    model.base_model.bind_optimizer(optimizer)
    train_steps(model, optimizer, 1)
    return model, optimizer


def test_a_resample_leaves_another_adapters_optimizer_alone_and_says_so() -> None:
    from rosa.integrations.peft import RosaConfig

    model, optimizer = trained_by_bound_optimizer()
    moments = len(optimizer.state)
    model.add_adapter("second", RosaConfig(r=2))
    model.set_adapter("second")
    with pytest.warns(UserWarning, match=r"'second' left the optimizer's state.*lacks some of its A and B"):
        assert model.base_model.after_epoch(1)
    assert len(optimizer.state) == moments > 0
    model.set_adapter("default")
    assert model.base_model.after_epoch(1)
    assert len(optimizer.state) == 0


def test_the_optimizer_is_neither_kept_alive_nor_copied() -> None:
    model, optimizer = trained_by_bound_optimizer()
    moments = len(optimizer.state)
    copied = pickle.loads(pickle.dumps(model))
    for one in (copied, copy.deepcopy(model)):
        with pytest.warns(UserWarning, match=r"'default' left the optimizer's state.*no optimizer is bound"):
            assert one.base_model.after_epoch(1)
    assert len(optimizer.state) == moments > 0
    del optimizer
    gc.collect()
    with pytest.warns(UserWarning, match="the bound optimizer is deleted"):
        assert model.base_model.after_epoch(1)


def test_a_lora_folder_of_a_merged_model_has_the_bias_change_once(tmp_path: Path) -> None:
    from rosa.integrations.peft import save_as_lora

    base = make_model("llama", attention_bias=True)  # biases in some layers only: the file holds them as a whole
    torch.nn.init.normal_(base.model.layers[0].self_attn.q_proj.bias)
    model = trained(base=base, resamples=1, r=1, bias="adapted")
    save_as_lora(tmp_path / "plain", model)
    model.merge_adapter()
    save_as_lora(tmp_path / "merged", model)
    plain, merged = (load_file(tmp_path / name / FILE) for name in ("plain", "merged"))
    assert any(key.endswith("base_layer.bias") for key in plain)
    for key, values in plain.items():
        torch.testing.assert_close(merged[key], values, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_resample_after_a_conversion_to_16_bits(dtype: torch.dtype) -> None:
    model = adapt_by_peft(base=make_model("gpt2", dtype=dtype)).to(torch.bfloat16)
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match="the model was converted after the adapter was added"):
        model.base_model.after_epoch(1)
    assert digests(model) == before


def test_a_lora_folder_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rosa.integrations.peft import as_lora

    as_lora.save_as_lora(tmp_path, trained(resamples=0, r=1))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(before) == 4
    real, calls = as_lora.save_file, []

    def fails_second(*args: Any, **options: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise OSError("no space left")
        real(*args, **options)

    monkeypatch.setattr(as_lora, "save_file", fails_second)
    with pytest.raises(OSError, match="no space left"):
        as_lora.save_as_lora(tmp_path, trained(resamples=1, r=1))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def spoil(key: str) -> Any:
    """What makes a tensor of a state unsound: a NaN, whole numbers, or another inner rank."""
    return {
        "right": lambda values: values.index_fill(0, torch.tensor([0]), torch.nan),
        "B": lambda values: values.long(),
        "left": lambda values: values[:, :-1].clone(),
    }[key]


@pytest.mark.parametrize(
    ("key", "message"), [("right", "right holds values"), ("B", "B holds values"), ("left", "do not fit together")]
)
def test_an_unsound_file_changes_nothing(key: str, message: str, tmp_path: Path) -> None:
    trained(resamples=1).save_pretrained(tmp_path)
    name = f"base_model.model.transformer.h.1.mlp.c_proj.rosa_layers.{key}"
    changed_file(tmp_path, lambda found: found.update({name: spoil(key)(found[name])}))
    model = trained(resamples=1, seed=2)
    before = digests(model)
    with pytest.raises(rosa.AdapterError, match=rf"h\.1\.mlp\.c_proj\.rosa_layers\.default\..*{message}"):
        model.load_adapter(tmp_path, "default")
    assert digests(model) == before
    with pytest.raises(rosa.AdapterError, match=message):
        peft.PeftModel.from_pretrained(make_model("gpt2"), tmp_path)


def test_an_adapter_without_a_record_loads(tmp_path: Path) -> None:
    source = trained(resamples=0, start="zero")  # its weight is W_0, so that left and right are empty
    source.save_pretrained(tmp_path)
    model = adapt_by_peft(start="zero")
    model.load_adapter(tmp_path, "default")
    assert distance(model, source) < 1e-5 < distance(model, make_model("gpt2"))


def test_a_model_of_inject_is_refused() -> None:
    model = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2))
    with pytest.raises(rosa.AdapterError, match=r"adapters of rosa\.inject: unwrap it first"):
        adapt_by_peft(base=model)


def test_a_merged_model_gets_no_further_adapter() -> None:
    from rosa.integrations.peft import RosaConfig

    model = trained(resamples=1)
    model.merge_adapter()
    names = model.state_dict().keys()
    with pytest.raises(rosa.AdapterError, match=r"merged: call unmerge_adapter\(\)"):
        model.add_adapter("second", RosaConfig(r=2))
    assert model.state_dict().keys() == names and list(model.peft_config) == ["default"]
    model.unmerge_adapter()
    model.add_adapter("second", RosaConfig(r=2))


def test_an_offloaded_base_is_refused() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = accelerate.cpu_offload(make_model("gpt2"), execution_device=torch.device("cpu"))
    with pytest.raises(rosa.AdapterError, match=r"c_attn cannot be adapted: its weight is offloaded by accelerate"):
        adapt_by_peft(base=model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_that_are_offloaded_are_refused(dtype: torch.dtype) -> None:
    """Those of a 16-bit base computed with values that were not there. Disabled, it is the base."""
    accelerate = pytest.importorskip("accelerate")
    model = adapt_by_peft(base=make_model("gpt2").to(dtype))
    train(model, 1)
    expected = logits(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    if dtype == torch.float32:
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
        model.base_model.disable_adapter_layers()
        assert distance(model, make_model("gpt2")) < 1e-5
        return
    with pytest.raises(rosa.AdapterError, match=r"c_attn: its weight is offloaded.*remove_hook_from_submodules"):
        logits(model)


def test_calls_that_fit_nothing_are_named(tmp_path: Path) -> None:
    from rosa.integrations.peft import RosaConfig, to_peft_lora

    model = adapt_by_peft(level="step")
    with pytest.raises(rosa.AdapterError, match=r"optimizer.*not list"):
        model.base_model.update_and_allocate(1, optimizer=[])
    for step in (2.5, "5"):
        with pytest.raises(rosa.AdapterError, match=f"global_step={step!r}"):
            model.base_model.update_and_allocate(step)
    with pytest.raises(rosa.AdapterError, match="save_as_lora"):
        to_peft_lora(model, make_model("gpt2"), tmp_path)
    empty = peft.get_peft_model(make_model("gpt2"), RosaConfig(r=2), low_cpu_mem_usage=True)
    with pytest.raises(rosa.AdapterError, match=r"c_attn: .*low_cpu_mem_usage"):
        logits(empty)
    plain = rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2))
    with rosa.disabled(plain), pytest.raises(rosa.AdapterError, match=r"leave rosa\.disabled"):
        rosa.resample(plain, 1)


def test_each_reader_names_the_other_format(tmp_path: Path) -> None:
    rosa.save_adapter(rosa.inject(make_model("gpt2"), rosa.RosaConfig(rank=2)), tmp_path / "own")
    for read in (peft.PeftModel.from_pretrained, lambda model, folder: model.load_adapter(folder)):
        with pytest.raises(KeyError, match=r"rosa\.save_adapter.*rosa\.load_adapter"):
            read(make_model("gpt2"), str(tmp_path / "own"))
    rosa.load_adapter(make_model("gpt2"), tmp_path / "own")
    model = adapt_by_peft()
    for _ in range(2):
        model.save_pretrained(tmp_path / "peft")
    with pytest.raises(rosa.AdapterError, match=r"PeftModel\.from_pretrained .*rosa\.integrations\.peft"):
        rosa.load_adapter(make_model("gpt2"), tmp_path / "peft")
    card = (tmp_path / "peft" / "README.md").read_text()
    assert card.count("from rosa.integrations.peft import RosaConfig") == 1
    assert card.index("from rosa.integrations.peft") < card.index("# Model Card")
