"""``train.cache_frozen``: the same losses and gradients, with each row's frozen blocks computed once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

import rosa
from tests.conftest import make_config
from tests.rosa.test_adapter_architectures import CAUSAL, make
from tests.training.reading import points, stopped_at
from utils.errors import UserError
from utils.models.frozen_blocks import FrozenBlocks, frozen_blocks
from utils.models.frozen_file import FrozenFile
from utils.models.token_loss import TokenLoss
from utils.tokens.batches import Batch, Collator
from utils.tokens.encoding import Encoded, Sample

NO_DROPOUT = dict.fromkeys(("dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
ALL_DROPOUT = dict.fromkeys(("hidden_dropout", "attention_dropout", "embed_dropout"), 0.0)
LAST = r".*\.1\..*"  # the second of two blocks
SAMPLES = Encoded([Sample([5, 3, 8, 2, 6], 2, 0, 0), Sample([9, 1, 7], 1, 0, 0), Sample([4, 4, 4, 4], 2, 0, 0)], 0)


def token_loss_of(model: Any) -> TokenLoss:
    rosa.inject(model, rosa.LoraConfig(rank=2, target_modules=LAST))
    for layer in rosa.adapter_layers(model).values():
        nn.init.normal_(layer.B)
    return TokenLoss(model.train())


def batch_of(rows: list[int], loss_on: str = "target") -> Batch:
    return Collator(0, loss_on)(SAMPLES, rows)


def loss_and_gradients(token_loss: TokenLoss, batch: Batch) -> tuple[torch.Tensor, list[torch.Tensor]]:
    total, _ = token_loss(batch.input_ids, batch.positions, batch.labels)
    return total, list(torch.autograd.grad(total, [p for p in token_loss.parameters() if p.requires_grad]))


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "opt", "llama", "mixtral", "gemma2", "qwen3"])
def test_losses_and_gradients_are_those_of_all_blocks(kind: str) -> None:
    """GPT-2 adds positions to the embeddings and Gemma scales them, before the blocks that are left out."""
    token_loss = token_loss_of(make(AutoModelForCausalLM, kind, {**CAUSAL[kind][0], **NO_DROPOUT}))
    batches = [batch_of([0, 1, 2]), batch_of([1]), batch_of([2, 0], "all")]
    expected = [loss_and_gradients(token_loss, batch) for batch in batches]
    token_loss.frozen = frozen_blocks(token_loss, batches[0])
    for _ in range(2):
        for batch, (total, gradients) in zip(batches, expected, strict=True):
            found, found_gradients = loss_and_gradients(token_loss, batch)
            torch.testing.assert_close(found, total, rtol=1e-5, atol=1e-5)
            for a, b in zip(found_gradients, gradients, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_frozen_block_runs_once_for_each_row_and_alone() -> None:
    token_loss = token_loss_of(make(AutoModelForCausalLM, "llama", CAUSAL["llama"][0]))
    token_loss.frozen = frozen_blocks(token_loss, batch_of([0]))
    shapes: list[tuple[int, ...]] = []
    token_loss.frozen.blocks[0].mlp.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape[:2])))
    for rows in ([0, 1, 2], [2, 1], [0], []):
        batch = batch_of(rows)
        token_loss(batch.input_ids, batch.positions, batch.labels)
    # the last token of a sample predicts nothing; a batch without samples keeps nothing
    assert shapes == [(1, 4), (1, 2), (1, 3), (1, 1)]
    assert sorted(len(row) for row in token_loss.frozen.kept) == [2, 3, 4]


def test_what_cannot_be_kept_is_refused() -> None:
    with pytest.raises(UserError, match=r"Set model\.dropout=0"):
        frozen_blocks(token_loss_of(make(AutoModelForCausalLM, "gpt2", {})), batch_of([0, 1]))
    model = make(AutoModelForCausalLM, "llama", CAUSAL["llama"][0])
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight is trained"):
        FrozenBlocks(model)
    rosa.inject(model, rosa.LoraConfig(rank=2))
    with pytest.raises(UserError, match=r"the first block is trained, or none: set fnmodel\.params"):
        FrozenBlocks(model)
    for other in ("train.compile=true", "train.sharding=fsdp"):
        with pytest.raises(UserError, match=r"train\.cache_frozen works with neither"):
            make_config("train.cache_frozen=true", other)


@pytest.mark.parametrize("method", ["rosa", "lora", "none"])
def test_a_training_stays_the_same_and_a_stopped_one_goes_on(train: Any, tmp_path: Path, method: str) -> None:
    settings = (f"fnmodel.name={method}", "fnmodel.params.target_modules=[h.1.mlp.c_fc]", "model.dropout=0")
    plain = train(*settings)
    cached = (*settings, "train.cache_frozen=true")
    whole = train(*cached, f"output.path={tmp_path / 'whole'}")
    assert "the first 1 of 2 blocks are computed once for each sample" in whole.log_file.read_text()
    assert whole.path.name == plain.path.name
    for (found,), (expected,) in zip(*(points(run, "validation", "loss") for run in (whole, plain)), strict=True):
        assert found == pytest.approx(expected, abs=1e-4)

    halves = (*cached, f"output.path={tmp_path / 'halves'}")
    with stopped_at(7):
        train(*halves)
    assert points(train(*halves), "validation", "loss") == points(whole, "validation", "loss")


def test_other_runs_read_what_one_has_kept(train: Any, small_model: Path, tmp_path: Path) -> None:
    """Also of another method or seed, or a stopped one. Another base, precision or part of the data has its own."""
    folder, other = tmp_path / "shared", tmp_path / "other"
    model = AutoModelForCausalLM.from_pretrained(small_model)
    with torch.no_grad():
        model.transformer.wte.weight[-1] += 1e-3  # of a token that no sample has
    shutil.copytree(small_model, other)
    model.save_pretrained(other)
    plain = ("fnmodel.params.target_modules=[h.1.mlp.c_fc]", "model.dropout=0", "train.cache_frozen=true")
    settings = (*plain, f"train.cache_folder={folder}")
    computed: list[int] = []
    compute = FrozenBlocks.compute

    def counted(self: FrozenBlocks, input_ids: torch.Tensor) -> torch.Tensor:
        computed.append(len(input_ids))
        return compute(self, input_ids)

    def run(*more: str) -> tuple[Any, int]:
        computed.clear()
        return train(*settings, *more), len(computed)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FrozenBlocks, "compute", counted)
        first, all_rows = run("fnmodel.name=lora")
        assert len(list(folder.iterdir())) == 1 and "for other runs" in first.log_file.read_text()
        with stopped_at(7):
            run("fnmodel.name=rosa")
        second, trial_rows = run("fnmodel.name=rosa")
        assert trial_rows < 6 < all_rows
        alone = train(*plain, "fnmodel.name=rosa", f"output.path={tmp_path / 'alone'}")
        assert points(second, "validation", "loss") == points(alone, "validation", "loss")
        assert run("fnmodel.name=lora", "seed=3")[1] == trial_rows
        for files, more in enumerate(("train.fraction=0.5", "train.precision=bf16", f"model.name={other}"), 2):
            _, rows = run("fnmodel.name=lora", more)
            assert len(list(folder.iterdir())) == files and rows > 6

        for path in folder.iterdir():
            path.write_bytes(path.read_bytes()[:99])
        again, rows = run("fnmodel.name=lora", "train.lr=1e-4")
        assert rows == all_rows and "are computed again" in again.log_file.read_text()
    with pytest.raises(UserError, match=r"train\.cache_folder is where train\.cache_frozen=true"):
        make_config("train.cache_folder=x")


def test_tokens_read_from_a_cache_or_packed_find_the_same_file(tmp_path: Path) -> None:
    """Theirs are numpy's numbers."""
    arrays = [Sample(np.array(sample.ids, np.int32), 1, 0, 0) for sample in SAMPLES.samples]
    plain, same = (FrozenFile(tmp_path, "fp32", [], (part, SAMPLES)) for part in (SAMPLES, Encoded(arrays, 0)))
    assert same.path == plain.path and same.needed == plain.needed


def test_a_model_that_computes_short_rows_otherwise_in_long_batches_is_refused() -> None:
    """Phi-3 with longrope: beyond the original length all rows of a batch get other frequencies."""
    settings = CAUSAL["phi3"][0] | dict(
        original_max_position_embeddings=8, max_position_embeddings=32,
        rope_parameters=dict(
            rope_type="longrope", rope_theta=10_000.0, short_factor=[1.0] * 3, long_factor=[4.0] * 3,
            original_max_position_embeddings=8,
        ),
    )  # fmt: skip
    token_loss = token_loss_of(make(AutoModelForCausalLM, "phi3", settings))
    long = Encoded([*SAMPLES.samples, Sample(list(range(1, 21)), 2, 0, 0)], 0)
    frozen_blocks(token_loss, Collator(0, "target")(long, [0, 1]))
    with pytest.raises(UserError, match="does not work with this model"):
        frozen_blocks(token_loss, Collator(0, "target")(long, [1, 3]))


@pytest.mark.parametrize("kind", ["gpt_neo", "falcon", "bloom"])
def test_blocks_of_another_kind_are_refused_with_the_way_out(kind: str) -> None:
    token_loss = token_loss_of(make(AutoModelForCausalLM, kind, {**CAUSAL[kind][0], **NO_DROPOUT, **ALL_DROPOUT}))
    with pytest.raises(UserError, match=r"does not work with this model .*: leave it out"):
        frozen_blocks(token_loss, batch_of([0, 1]))
    assert token_loss.training and "forward" not in vars(FrozenBlocks(token_loss.model).blocks[0])
