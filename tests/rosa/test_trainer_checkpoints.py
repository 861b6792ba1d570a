"""What a Trainer's checkpoints hold after ``rosa.inject``, and what they restore."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import rosa
from rosa.integrations.trainer import keep_what_changes
from tests.rosa.cases import adapt, digests, logits, make_optimizer
from tests.rosa.test_adapter_integrations import STEPS_PER_EPOCH, make_trainer


@pytest.mark.parametrize("config", [rosa.RosaConfig(rank=4, adapt="b"), rosa.LoraConfig(rank=4), rosa.BitFitConfig()])
def test_a_trainer_checkpoint_holds_what_trains_or_changes(config: rosa.AdapterConfig, tmp_path: Path) -> None:
    """Onto the base model it gives the model of its step, to the bit."""
    trainer = make_trainer(config, tmp_path, save_strategy="steps", save_steps=6, num_train_epochs=2, max_steps=6)
    trainer.train()
    saved = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
    changed = {
        name for name, digest in digests(adapt("gpt2", config)).items() if digests(trainer.model)[name] != digest
    }
    own = {name for name in trainer.model.state_dict() if name.rpartition(".")[2] in ("A", "B")}
    assert changed and saved.keys() == changed | own
    resumed = adapt("gpt2", config)
    assert not resumed.load_state_dict(saved, strict=False).unexpected_keys
    assert digests(resumed) == digests(trainer.model)


def test_the_best_model_at_the_end_comes_from_such_a_checkpoint(tmp_path: Path) -> None:
    from transformers import TrainerCallback

    class Worse(TrainerCallback):
        """Evaluations get worse, so that the first checkpoint is the best."""

        best: dict[str, str]

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, model: Any = None, **_: Any) -> None:
            metrics["eval_loss"] = float(state.global_step)
            if state.global_step == STEPS_PER_EPOCH:
                self.best = digests(model)

    worse, each_epoch = Worse(), dict(save_strategy="epoch", eval_strategy="epoch")
    settings = dict(load_best_model_at_end=True, metric_for_best_model="loss", save_total_limit=1)
    trainer = make_trainer(rosa.RosaConfig(rank=4), tmp_path, [worse], **each_epoch, **settings)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{STEPS_PER_EPOCH}")
    assert digests(trainer.model) == worse.best


def test_a_checkpoint_under_the_names_of_the_hubs_files_restores_the_adapter(tmp_path: Path) -> None:
    """transformers 5 saves a ViT under other names than its modules have, and ``load_state_dict`` skips those."""
    from transformers import ViTConfig, ViTForImageClassification

    shape = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40, image_size=8)
    base = ViTForImageClassification(ViTConfig(**shape, patch_size=4, num_labels=3)).eval()
    images, config = torch.randn(4, 3, 8, 8), rosa.RosaConfig(rank=2)
    model, fresh = (rosa.inject(copy.deepcopy(base), config) for _ in range(2))
    optimizer = make_optimizer(model)
    for number in (1, 2):
        model(pixel_values=images, labels=torch.arange(4) % 3).loss.backward()
        optimizer.step()
        rosa.resample(model, number, optimizer)
    model.save_pretrained(tmp_path / "checkpoint-2")
    weights = tmp_path / "checkpoint-2" / "model.safetensors"
    assert not load_file(weights).keys() <= model.state_dict().keys()  # else the test would prove nothing
    keep_what_changes(model, weights)
    fresh.load_state_dict(load_file(weights), strict=False)
    expected = model(pixel_values=images).logits
    assert (base(pixel_values=images).logits - expected).abs().max() > 1e-3
    assert torch.equal(fresh(pixel_values=images).logits, expected)


def test_a_trainer_checkpoint_keeps_what_the_user_froze_after_it_trained(tmp_path: Path) -> None:
    model = adapt("llama", rosa.RosaConfig(rank=2, modules_to_save=["lm_head"]))
    biased = adapt("gpt2", rosa.RosaConfig(rank=2))
    for one, key in ((model, "lm_head.weight"), (biased, "transformer.h.0.mlp.c_fc.base.bias")):
        one.requires_grad_(False)
        weights = tmp_path / f"{key}.safetensors"
        save_file({name: value.clone() for name, value in one.state_dict().items()}, weights)
        keep_what_changes(one, weights)
        assert key in load_file(weights)


def test_an_injected_model_is_not_saved_as_one_that_loads_with_random_weights(tmp_path: Path) -> None:
    """Neither by itself, nor by the Trainer, nor as a copy. What is plain, for a block or for good, is saved."""
    trainer = make_trainer(rosa.RosaConfig(rank=4), tmp_path / "run", num_train_epochs=1)
    trainer.train()
    model, folder = trainer.model, tmp_path / "saved"
    copied, read = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    model.transformer.wte.weight.data += 1  # not of the copies
    with rosa.disabled(copied):
        saves = [model.save_pretrained, model.transformer.save_pretrained, copied.save_pretrained, read.save_pretrained]
        for save in (*saves, trainer.save_model):
            with pytest.raises(rosa.AdapterError, match=r"rosa\.save_adapter.*rosa\.export"):
                save(str(folder))
    assert not list(folder.iterdir())  # which the Trainer makes first
    expected = logits(copied)
    with rosa.merged(copied):
        copied.save_pretrained(folder)
    assert (logits(type(model).from_pretrained(folder)) - expected).abs().max() < 1e-5
    rosa.unwrap(copied).save_pretrained(folder)
    assert (logits(type(model).from_pretrained(folder)) - expected).abs().max() < 1e-5
    assert b"rosa" not in pickle.dumps(copied)


def test_a_resume_with_other_frozen_weights_is_a_warning(tmp_path: Path) -> None:
    """As of tokens that were added with new values: the checkpoint leaves them out."""
    config = rosa.RosaConfig(rank=4)
    settings: Any = dict(save_strategy="steps", save_steps=3, num_train_epochs=2)
    make_trainer(config, tmp_path, max_steps=3, **settings).train()
    for changed in (False, True):
        trainer = make_trainer(config, tmp_path, max_steps=4, **settings)
        if changed:
            trainer.model.transformer.wte.weight.data[-1] += 1
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
        assert any("checkpoint-3 was written by a model with other frozen weights" in str(w.message) for w in seen) == (
            changed
        )
