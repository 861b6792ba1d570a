"""ROSA beside the ``peft`` library: ``lora_files.py`` writes adapters as LoRA adapters of PEFT, whose pairs
``changes.py`` finds.
"""

from rosa.integrations.peft.lora_files import to_peft_lora

__all__ = ["to_peft_lora"]
