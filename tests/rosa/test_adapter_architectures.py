"""What the default adapts in the architectures of transformers, and that it trains, resamples and is exported there."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.pytorch_utils import Conv1D

import rosa
from tests.rosa.cases import tokens

COMMON = dict(
    vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
    max_position_embeddings=32, bos_token_id=0, eos_token_id=0, pad_token_id=0,
)  # fmt: skip
GROUPED = dict(num_key_value_heads=2)
HEAD = dict(head_dim=6, query_pre_attn_scalar=6, **GROUPED)
EXPERTS = dict(num_experts=3, num_local_experts=3, num_experts_per_tok=2, moe_intermediate_size=16, **GROUPED)
SHARED = dict(shared_expert_intermediate_size=20, **EXPERTS)
LATENT = dict(
    n_routed_experts=4, n_group=2, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=8,
    q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=6, moe_intermediate_size=16,
)  # fmt: skip
HYBRID = dict(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, **EXPERTS)

ATTENTION = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
LLAMA = f"{ATTENTION} {GATED}"
OUT_PROJ = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj fc1 fc2"
CROSS = "encoder_attn.q_proj encoder_attn.k_proj encoder_attn.v_proj encoder_attn.out_proj"
T5_SELF = "SelfAttention.q SelfAttention.k SelfAttention.v SelfAttention.o"
T5_CROSS = "EncDecAttention.q EncDecAttention.k EncDecAttention.v EncDecAttention.o"
BERT = (
    "attention.self.query attention.self.key attention.self.value attention.output.dense intermediate.dense "
    "output.dense"
)

# type of the model: settings, the layers that the default adapts, and all others; names begin after the last number
CAUSAL: dict[str, tuple[dict[str, Any], str, str]] = {
    "gpt2": ({}, "attn.c_attn attn.c_proj mlp.c_fc mlp.c_proj", "lm_head"),
    "gpt_neo": (
        dict(attention_types=[[["global", "local"], 1]]),
        "attn.attention.q_proj attn.attention.k_proj attn.attention.v_proj attn.attention.out_proj mlp.c_fc mlp.c_proj",
        "lm_head",
    ),
    "gpt_neox": ({}, "attention.query_key_value attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h", "lm_head"),
    "gptj": (dict(rotary_dim=4), "attn.q_proj attn.k_proj attn.v_proj attn.out_proj mlp.fc_in mlp.fc_out", "lm_head"),
    "bloom": (
        {}, "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h", "lm_head",
    ),
    "falcon": (
        {}, "self_attention.query_key_value self_attention.dense mlp.dense_h_to_4h mlp.dense_4h_to_h", "lm_head",
    ),
    "opt": (dict(ffn_dim=40, word_embed_proj_dim=24), OUT_PROJ, "lm_head"),
    "llama": (GROUPED, LLAMA, "lm_head"),
    "mistral": (GROUPED, LLAMA, "lm_head"),
    "mixtral": (EXPERTS, ATTENTION, "lm_head"),
    "qwen2": (GROUPED, LLAMA, "lm_head"),
    "qwen2_moe": (
        SHARED,
        f"{ATTENTION} mlp.shared_expert.gate_proj mlp.shared_expert.up_proj mlp.shared_expert.down_proj",
        "lm_head mlp.shared_expert_gate",
    ),
    "qwen3": (HEAD, LLAMA, "lm_head"),
    "qwen3_moe": (dict(head_dim=6, **EXPERTS), ATTENTION, "lm_head"),
    "gemma": (HEAD, LLAMA, "lm_head"),
    "gemma2": (HEAD, LLAMA, "lm_head"),
    "gemma3_text": (HEAD, LLAMA, "lm_head"),
    "phi": (
        dict(hidden_size=32),
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.dense mlp.fc1 mlp.fc2",
        "lm_head",
    ),
    "phi3": (GROUPED, "self_attn.qkv_proj self_attn.o_proj mlp.gate_up_proj mlp.down_proj", "lm_head"),
    "starcoder2": (GROUPED, f"{ATTENTION} mlp.c_fc mlp.c_proj", "lm_head"),
    "olmo2": (GROUPED, LLAMA, "lm_head"),
    "cohere": (dict(logit_scale=1.0, **GROUPED), LLAMA, "lm_head"),
    "granitemoe": (EXPERTS, ATTENTION, "lm_head"),
    "hunyuan_v1_moe": (
        dict(head_dim=6, moe_topk=2, **EXPERTS),
        f"{ATTENTION} mlp.shared_mlp.gate_proj mlp.shared_mlp.up_proj mlp.shared_mlp.down_proj",
        "lm_head mlp.gate.wg",
    ),
    "gpt_oss": (dict(head_dim=6, **EXPERTS), ATTENTION, "lm_head"),
    "deepseek_v3": (
        LATENT,
        "self_attn.q_a_proj self_attn.q_b_proj self_attn.kv_a_proj_with_mqa self_attn.kv_b_proj self_attn.o_proj "
        f"{GATED} mlp.shared_experts.gate_proj mlp.shared_experts.up_proj mlp.shared_experts.down_proj",
        "lm_head",
    ),
    "mamba": ({}, "mixer.in_proj mixer.x_proj mixer.dt_proj mixer.out_proj", "lm_head"),
    "jamba": (
        HYBRID,
        f"{ATTENTION} mamba.in_proj mamba.x_proj mamba.dt_proj mamba.out_proj feed_forward.gate_proj "
        "feed_forward.up_proj feed_forward.down_proj",
        "lm_head",
    ),
}  # fmt: skip
SEQ2SEQ: dict[str, tuple[dict[str, Any], str, str]] = {
    "t5": (
        dict(d_ff=40, d_kv=6, decoder_start_token_id=0),
        f"{T5_SELF} {T5_CROSS} DenseReluDense.wi DenseReluDense.wo",
        "lm_head",
    ),
    "bart": (
        dict(encoder_layers=2, decoder_layers=2, encoder_ffn_dim=40, decoder_ffn_dim=40, decoder_attention_heads=4),
        f"{OUT_PROJ} {CROSS}", "lm_head",
    ),
    "switch_transformers": (
        dict(d_ff=40, d_kv=6, num_experts=3, num_decoder_layers=2, decoder_start_token_id=0),
        f"{T5_SELF} {T5_CROSS} mlp.wi mlp.wo wi wo",  # dense and sparse blocks
        "lm_head mlp.router.classifier",
    ),
}  # fmt: skip
MASKED: dict[str, tuple[dict[str, Any], str, str]] = {
    "bert": ({}, BERT, "cls.predictions.transform.dense cls.predictions.decoder"),
    "roberta": ({}, BERT, "lm_head.dense lm_head.decoder"),
    "distilbert": (
        dict(hidden_dim=40),
        "attention.q_lin attention.k_lin attention.v_lin attention.out_lin ffn.lin1 ffn.lin2",
        "vocab_transform vocab_projector",
    ),
    "modernbert": ({}, "attn.Wqkv attn.Wo mlp.Wi mlp.Wo", "head.dense decoder"),
}
TABLE = [
    (loader, kind, *row)
    for loader, rows in (
        (AutoModelForCausalLM, CAUSAL),
        (AutoModelForSeq2SeqLM, SEQ2SEQ),
        (AutoModelForMaskedLM, MASKED),
    )
    for kind, row in rows.items()
]


def make(loader: Any, kind: str, settings: dict[str, Any]) -> Any:
    """A tiny random model in evaluation mode, with weights that are large enough for its layers to matter."""
    torch.manual_seed(0)
    model = loader.from_config(AutoConfig.for_model(kind, **{**COMMON, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.2)
    return model


def endings(names: Any) -> set[str]:
    return {re.split(r"[._]\d+\.", name)[-1] for name in names}


def forward(model: Any) -> tuple[Tensor, Tensor]:
    """Loss and logits of a fixed batch."""
    batch = tokens()
    out = model(input_ids=batch, labels=batch, use_cache=False) if model.can_generate() else model(batch, labels=batch)
    return out.loss, out.logits


@pytest.mark.parametrize(("loader", "kind", "settings", "adapted", "rest"), TABLE, ids=[row[1] for row in TABLE])
def test_the_default_fits(
    loader: Any, kind: str, settings: dict[str, Any], adapted: str, rest: str, tmp_path: Path
) -> None:
    model = make(loader, kind, settings)
    layers = {name for name, module in model.named_modules() if isinstance(module, (nn.Linear, Conv1D))}
    _, before = forward(model)
    rosa.inject(model, rosa.RosaConfig(rank=1))
    found = rosa.adapter_layers(model)
    assert endings(found) == set(adapted.split())
    assert endings(layers - found.keys()) == set(rest.split())
    close = dict(atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(forward(model)[1], before, **close)

    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    forward(model)[0].backward()
    still = [name for name, layer in found.items() if not (layer.A.grad.any() and layer.B.grad.any())]
    assert not still, "no gradient"
    optimizer.step()
    _, after = forward(model)
    assert (after - before).abs().max() > 1e-2
    rosa.resample(model, 1, optimizer)
    torch.testing.assert_close(forward(model)[1], after, **close)

    rosa.export(model, tmp_path)
    plain = loader.from_pretrained(tmp_path, dtype=torch.float32).eval()
    torch.testing.assert_close(forward(plain)[1], after, **close)


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe"])
def test_the_share_of_experts_that_no_adapter_takes_is_said(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    model = make(AutoModelForCausalLM, kind, CAUSAL[kind][0])
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    with caplog.at_level(logging.WARNING, "rosa"):
        rosa.inject(model, rosa.LoraConfig(rank=1))
    router = ["not adapted: model.layers.{0..1}.mlp.shared_expert_gate: it chooses experts"]
    expected = [
        *(router if kind == "qwen2_moe" else []),
        f"not adapted: model.layers.{{0..1}}.mlp.experts: its weights, {experts / sum(sizes.values()):.0%} of the",
    ]
    assert len(caplog.messages) == len(expected)
    assert all(found.startswith(text) for found, text in zip(caplog.messages, expected, strict=True))


def test_a_router_that_is_named_is_adapted() -> None:
    model = make(AutoModelForCausalLM, "qwen2_moe", CAUSAL["qwen2_moe"][0])
    rosa.inject(model, rosa.LoraConfig(rank=1, target_modules=["shared_expert_gate"]))
    assert endings(rosa.adapter_layers(model)) == {"mlp.shared_expert_gate"}
