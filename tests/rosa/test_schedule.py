"""When a training resamples: schedules that never do, counts that begin again, parts with schedules of their own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import rosa
from rosa.schedule import count_resamples
from tests.rosa.cases import adapt, tokens
from tests.rosa.peft_models import adapt_by_peft


def resampler_of(**settings: Any) -> rosa.Resampler:
    model = adapt("gpt2", rosa.RosaConfig(rank=2, **settings))
    return rosa.Resampler(model, torch.optim.AdamW(rosa.parameter_groups(model)))


@pytest.mark.parametrize(("level", "total"), [("epoch", 1), ("epoch", 2), ("step", 3), ("step", 5)])
def test_a_training_without_a_resample_says_so_at_its_end(level: Any, total: int) -> None:
    """In a loop of one's own; with one more epoch or step there is a resample, and no word."""
    for every in (total, total - 1):
        resampler = resampler_of(level=level, every=max(every, 1))
        tell = resampler.after_step if level == "step" else resampler.after_epoch
        due = bool(count_resamples(resampler, total, total))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            done = [tell(number, total) for number in range(1, total + 1)]
        assert any(done) == due == (every == total - 1 > 0)
        assert [str(one.message)[:31] for one in seen] == ([] if due else ["this training never resampled: "])
        assert all(one.filename == __file__ for one in seen)


def test_a_peft_training_without_a_resample_says_so_at_its_end() -> None:
    pytest.importorskip("peft")
    model = adapt_by_peft("gpt2", r=2)
    model.base_model.bind_optimizer(torch.optim.AdamW(rosa.parameter_groups(model)))
    with pytest.warns(UserWarning, match="never resampled: it has 1 epochs, and level='epoch' with every=1 needs more"):
        assert not model.base_model.after_epoch(1, epochs=1)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert model.base_model.after_epoch(1)  # the end is not known
    assert not [one for one in seen if "never resampled" in str(one.message)]


def test_steps_that_begin_again_with_an_epoch_are_a_warning() -> None:
    resampler = resampler_of(level="step", every=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in (1, 2, 2, 3, 4):  # the second of a micro-batch
            assert not resampler.after_step(step, 12)
    with pytest.warns(UserWarning, match="step 1 after step 4: count the optimizer steps over all epochs"):
        assert not resampler.after_step(1, 12)


def encoder_decoder() -> Any:
    torch.manual_seed(0)
    shape: Any = dict(vocab_size=61, d_model=24, d_kv=12, d_ff=40, num_layers=1, num_heads=2, dropout_rate=0)
    return T5ForConditionalGeneration(T5Config(**shape, decoder_start_token_id=0)).eval()


def step(model: Any, optimizer: torch.optim.Optimizer) -> None:
    model(input_ids=tokens(), labels=tokens(seed=8)).loss.backward()
    optimizer.step()


def test_parts_with_settings_of_their_own_have_resamplers_and_folders_of_their_own(tmp_path: Path) -> None:
    model = encoder_decoder()
    rosa.inject(model.encoder, rosa.RosaConfig(rank=2, level="never"))
    rosa.inject(model.decoder, rosa.RosaConfig(rank=2))
    optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=1e-2)
    with pytest.raises(rosa.AdapterError, match=r"other level, every, .* make a Resampler of each part"):
        rosa.Resampler(model, optimizer)
    parts = [rosa.Resampler(part, optimizer) for part in (model.encoder, model.decoder)]
    step(model, optimizer)
    assert [part.after_epoch(1, 2) for part in parts] == [False, True]
    step(model, optimizer)
    with pytest.raises(rosa.AdapterError, match="save each part by itself"):
        rosa.save_adapter(model, tmp_path)
    assert not list(tmp_path.iterdir())
    loaded = encoder_decoder()
    for name in ("encoder", "decoder"):
        rosa.save_adapter(model.get_submodule(name), tmp_path / name)
        rosa.load_adapter(loaded.get_submodule(name), tmp_path / name)
    first, second = (one(input_ids=tokens(), labels=tokens()).logits for one in (model, loaded))
    assert torch.allclose(first, second, atol=1e-5)


def test_ranks_of_parts_may_differ(tmp_path: Path) -> None:
    model, loaded = encoder_decoder(), encoder_decoder()
    for part, rank in ((model.encoder, 2), (model.decoder, 3)):
        rosa.inject(part, rosa.LoraConfig(rank=rank))
    rosa.save_adapter(model, tmp_path)
    ranks = {layer.rank for layer in rosa.adapter_layers(rosa.load_adapter(loaded, tmp_path)).values()}
    assert ranks == {2, 3}


def test_adapters_that_were_frozen_with_the_base_model_are_a_warning() -> None:
    model = adapt("gpt2", rosa.RosaConfig(rank=2))
    for parameter in model.base_model.parameters():
        parameter.requires_grad_(False)
    with pytest.warns(UserWarning, match="no parameter of the adapters trains"):
        rosa.Resampler(model, torch.optim.AdamW([model.transformer.wte.weight.requires_grad_(True)]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        biases = adapt("gpt2", rosa.BitFitConfig())
        rosa.Resampler(biases, torch.optim.AdamW(rosa.parameter_groups(biases)))
