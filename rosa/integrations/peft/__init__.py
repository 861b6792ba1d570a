"""ROSA beside the ``peft`` library: adapters here written as LoRA adapters of PEFT."""

from rosa.integrations.peft.lora_files import to_peft_lora

__all__ = ["to_peft_lora"]
