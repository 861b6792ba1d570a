"""ROSA and LoRA adapters for any Hugging Face model.

    model = rosa.inject(AutoModelForCausalLM.from_pretrained("gpt2"), rosa.RosaConfig(rank=0.05))
    resampler = rosa.Resampler(model, optimizer, config)       # and call after_epoch after each epoch

Needs torch, transformers and safetensors only.
"""

from rosa.checkpoint import export, load_adapter, save_adapter
from rosa.config import AdapterConfig
from rosa.inject import (
    AdapterError,
    ParameterReport,
    adapter_layers,
    inject,
    merge,
    merged,
    parameter_report,
    start_adapters,
    unmerge,
    unwrap,
)
from rosa.layers import AdapterLayer
from rosa.methods import register
from rosa.methods.lora import LoraConfig
from rosa.methods.rosa import RosaConfig
from rosa.schedule import Resampler, resample

__version__ = "0.1.0"

__all__ = [
    "AdapterConfig",
    "AdapterError",
    "AdapterLayer",
    "LoraConfig",
    "ParameterReport",
    "Resampler",
    "RosaConfig",
    "adapter_layers",
    "export",
    "inject",
    "load_adapter",
    "merge",
    "merged",
    "parameter_report",
    "register",
    "resample",
    "save_adapter",
    "start_adapters",
    "unmerge",
    "unwrap",
]
