"""``RosaConfig``: ROSA's settings in PEFT's form, and ROSA as a member of PEFT's list of methods."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import peft
from peft import PeftConfig, PeftType

from rosa import settings
from rosa.errors import AdapterError
from rosa.files import replace_files

SHARED = (  # settings with the same name and meaning as in ``rosa.RosaConfig``
    "seed", "sample_method", "basis", "factor_split", "start", "adapt", "level", "every", "optimizer_state", "decay",
)  # fmt: skip


def _add_to_peft_types(name: str) -> Any:
    """Make ``name`` a member of PEFT's enum of methods, which ``register_peft_method`` and much of PEFT read.

    Python has no public way to extend an enum. A member is an object of the class in these three tables.
    """
    if name in PeftType.__members__:
        raise AdapterError(f"peft {peft.__version__} has a method {name} of its own: install an earlier one, peft<0.22")
    member = str.__new__(PeftType, name)
    member._name_, member._value_ = name, name
    type.__setattr__(PeftType, name, member)
    PeftType._member_map_[name] = PeftType._value2member_map_[name] = member
    PeftType._member_names_.append(name)
    return member


ROSA = _add_to_peft_types("ROSA")
HOW_TO_LOAD = """
Load this adapter with PEFT and the library `rosa`, whose import makes the method known to PEFT:

```python
from peft import PeftModel
from rosa.integrations.peft import RosaConfig

model = PeftModel.from_pretrained(base_model, folder)
```
"""


@dataclass
class RosaConfig(PeftConfig):  # type: ignore[misc]  # peft is not type-checked here
    """ROSA for ``peft.get_peft_model``. What is not listed here is explained at ``rosa.RosaConfig``.

    Attributes:
        r: the rank R of the pair: an int is R itself, a float in (0, 1] a share of min(m, n) of each layer.
        target_modules: which layers to adapt, in PEFT's sense: name endings, a regular expression, or ``all-linear``.
            None: every Linear and Conv1D inside the model's blocks.
        exclude_modules, layers_to_transform, layers_pattern, modules_to_save: as in PEFT.
        rank_pattern: other values of ``r``, by a module's name or a regular expression.
        bias: ``none``, or ``adapted`` (as published; ``auto`` is the same): the biases of adapted layers train.
        dequantize: replace a quantised layer by a plain one with its dequantised weight, which takes the memory of an
            unquantised layer. Without it a quantised layer is an error.
    """

    r: int | float = 8
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None
    layers_pattern: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    rank_pattern: dict[str, int | float] = field(default_factory=dict)
    bias: str = "none"
    seed: int = 0
    sample_method: str = "random"
    basis: str = "singular"
    factor_split: str = "sqrt"
    start: str = "split"
    adapt: str = "ab"
    level: str = "epoch"
    every: int = 1
    optimizer_state: str = "reset"
    decay: bool = False
    dequantize: bool = False

    # PEFT would save the base weight of an adapted output head too, unless tokens train. Here the file needs none, and
    # the weight is the W_f of whichever adapter it holds.
    trainable_token_indices: ClassVar[dict[str, Any]] = {}

    def __new__(cls, *args: Any, **options: Any) -> RosaConfig:
        names = [one.name for one in dataclasses.fields(cls)]
        if unknown := sorted(options.keys() - set(names)):
            raise TypeError(  # PEFT looks for these words, to read files of later versions
                f"RosaConfig got an unexpected keyword argument {', '.join(map(repr, unknown))}. ROSA has no alpha, no "
                f"dropout and no other option of LoRA's, and rewarm_steps needs rosa.inject: leave "
                f"it out. It takes {', '.join(names)}."
            )
        return super().__new__(cls)  # type: ignore[no-any-return]

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = ROSA
        self.values_follow = False  # True: the values of this adapter will be loaded from a file
        for name in ("target_modules", "exclude_modules"):
            if isinstance(value := getattr(self, name), (list, tuple)):
                setattr(self, name, set(value))
        if isinstance(self.target_modules, str) and (self.layers_to_transform, self.layers_pattern) != (None, None):
            raise AdapterError(
                "layers_to_transform and layers_pattern need target_modules as a list of names, or None, not a text"
            )
        problems = [*self.settings(self.r, self.bias).problems()]
        for pattern, rank in self.rank_pattern.items():
            problems += [f"rank_pattern[{pattern!r}]: {text}" for text in self.settings(rank).problems()]
        if problems:
            raise AdapterError("; ".join(problems))

    def settings(self, rank: int | float, bias: str = "none") -> settings.RosaConfig:
        """The settings of this library's ROSA layer of this rank."""
        shared: dict[str, Any] = {name: getattr(self, name) for name in SHARED}
        return settings.RosaConfig(rank=rank, bias=bias, **shared)  # type: ignore[arg-type]

    @property
    def trains_bias(self) -> bool:
        """Whether biases of adapted layers train."""
        return self.settings(self.r, self.bias).trains_bias

    def save_pretrained(self, save_directory: str, **options: Any) -> None:
        """Write the settings; begin the README that PEFT has written there with the import that loads the adapter."""
        super().save_pretrained(save_directory, **options)
        readme = Path(save_directory, "README.md")
        text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        if text and HOW_TO_LOAD not in text:
            header = re.match(r"---\n.*?\n---\n", text, re.S)
            end = header.end() if header else 0
            text = text[:end] + HOW_TO_LOAD + text[end:]
            replace_files({readme: lambda path: path.write_text(text, encoding="utf-8")})

    @classmethod
    def from_pretrained(cls, *args: Any, **options: Any) -> RosaConfig:
        """Read a saved adapter's settings. PEFT then builds the adapter and loads its values."""
        config: RosaConfig = super().from_pretrained(*args, **options)
        config.values_follow = True
        return config
