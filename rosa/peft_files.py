"""Read a LoRA or DoRA adapter in the files of the library peft, which is not needed for it.

    adapter_config.json           r, lora_alpha, use_rslora, use_dora, rank_pattern, alpha_pattern, bias, …
    adapter_model.safetensors     base_model.model.<layer>.lora_A.weight (R, m), .lora_B.weight (n, R), …

What the file holds decides which layers there are and their ranks; the settings decide the scale of each. The folder is
not trusted: nothing is unpickled, and a pattern that could run without end is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rosa.errors import AdapterError
from rosa.files import read_tensors, tensor_shapes
from rosa.layers import AdapterLayer
from rosa.settings import ends_in
from rosa.targets import memory_of, weight_owners

WEIGHTS_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."
LORA_A, LORA_B, MAGNITUDE, BIAS_OF_B = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "lora_B.bias"
BIASES = ("base_layer.bias", "bias")  # newer and older versions
# Settings that are read, and those that do not change what the saved adapter computes. Any other must be off.
READ = {"alpha_pattern", "bias", "init_lora_weights", "lora_alpha", "lora_bias", "lora_dropout", "modules_to_save"}
READ |= {"peft_type", "r", "rank_pattern", "use_dora", "use_rslora"}
HARMLESS = {"auto_mapping", "base_model_name_or_path", "exclude_modules", "fan_in_fan_out", "inference_mode"}
HARMLESS |= {"layers_pattern", "layers_to_transform", "megatron_core", "peft_version", "qalora_group_size", "revision"}
HARMLESS |= {"runtime_config", "target_modules", "task_type", "corda_config", "eva_config", "loftq_config"}
HARMLESS |= {"lora_ga_config"}
KEEPS_BASE = (True, False, "gaussian", "orthogonal", "eva")  # values of init_lora_weights that leave the base as it is
LONGEST_PATTERN, MOST_REPEATS = 200, 3


class PeftAdapter:
    """A folder of peft as an adapter of this library.

    Args:
        folder: where it lies.
        settings: the content of its ``adapter_config.json``.

    Attributes:
        description: method, config, layers and base, as in this library's ``adapter_config.json``.

    Raises:
        AdapterError: it is no LoRA adapter, has a setting or a tensor that this library does not know, or is damaged.
            The text names the setting.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.folder, self.path = folder, folder / WEIGHTS_FILE
        self._check(settings)
        self.keys: dict[str, str] = {}  # name of a tensor here: its key in the file
        self.added_biases: set[str] = set()  # names of biases that the file holds the change of
        layers = self._sort(settings)
        scales = {name: self._scale(settings, name, shape[0]) for name, (shape, _) in layers.items()}
        whole = {name.rpartition(".")[0] for name in self.keys if name.rpartition(".")[0] not in layers}
        self.description: dict[str, Any] = {
            "method": "dora" if settings.get("use_dora") else "lora",
            "config": {
                "rank": settings.get("r", 8),
                "alpha": settings.get("lora_alpha", 8),
                "scale": "rslora" if settings.get("use_rslora") else "standard",
                "dropout": settings.get("lora_dropout", 0.0),
                "bias": "adapted" if any(f"{name}.bias" in self.keys for name in layers) else "none",
                "target_modules": sorted(layers),
                "modules_to_save": sorted(whole) or None,
            },
            "layers": {
                name: {
                    "in": a[1],
                    "out": b[0],
                    "bias": f"{name}.bias" in self.keys,
                    "rank": a[0],
                    "scale": scales[name],
                }
                for name, (a, b) in layers.items()
            },
            "base": {"name": settings.get("base_model_name_or_path")},
        }

    def _refuse(self, reason: str) -> AdapterError:
        return AdapterError(f"{self.folder} is an adapter of the library peft that cannot be read here: {reason}")

    def _check(self, settings: Mapping[str, Any]) -> None:
        """Raise AdapterError for settings that change the function in a way that is not known here."""
        if settings["peft_type"] != "LORA":
            raise self._refuse(
                f"peft_type is {settings['peft_type']!s:.20}, and only LORA is read. Load it with "
                "peft.PeftModel.from_pretrained (ROSA after the import of rosa.integrations.peft.RosaConfig), merge it "
                "(merge_and_unload), and save the plain model."
            )
        for key in sorted(settings.keys() - READ - HARMLESS):
            if settings[key]:
                raise self._refuse(f"{key:.50}={settings[key]!s:.50} is not known")
        if settings.get("init_lora_weights", True) not in KEEPS_BASE:
            raise self._refuse(
                f"init_lora_weights={settings['init_lora_weights']!s:.50} changes the base model. Save it with peft's "
                "path_initial_model_for_weight_conversion, which makes it a plain LoRA adapter."
            )
        if settings.get("bias", "none") not in ("none", "lora_only"):
            raise self._refuse(f"bias={settings['bias']!s:.20} trains biases of layers that are not adapted")
        for key in ("rank_pattern", "alpha_pattern"):
            if not isinstance(settings.get(key) or {}, dict):
                raise self._refuse(f"{key} is not an object")
        if not self.path.is_file():
            pickled = (self.folder / "adapter_model.bin").exists()
            way = ": adapter_model.bin is pickled, save it again with safe_serialization=True" if pickled else ""
            raise self._refuse(f"it has no {WEIGHTS_FILE}{way}")

    def _sort(self, settings: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Fill ``keys``; the adapted layers with the shapes of A (R, m) and B (n, R)."""
        shapes = {key.removeprefix(PREFIX): shape for key, shape in tensor_shapes(self.path).items()}
        layers: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for key, shape in shapes.items():
            if key.endswith(f".{LORA_A}"):
                name = key.removesuffix(f".{LORA_A}")
                other = shapes.get(f"{name}.{LORA_B}", ())
                if len(shape) != 2 or len(other) != 2:
                    raise self._refuse(f"{name:.200} has no pair of matrices lora_A and lora_B")
                layers[name] = (shape, other)
        parts = {LORA_A: "A", LORA_B: "B", MAGNITUDE: "magnitude", f"{MAGNITUDE}.weight": "magnitude"}
        parts |= {BIAS_OF_B: "bias"} | {bias: "bias" for bias in BIASES}
        known = {f"{name}.{part}": f"{name}.{here}" for name in layers for part, here in parts.items()}
        saved = settings.get("modules_to_save")
        endings = saved if isinstance(saved, list) else []
        for key in shapes:
            module = key.rpartition(".")[0]
            if key in known:
                self.keys[known[key]] = PREFIX + key
                if key.endswith(f".{BIAS_OF_B}"):
                    self.added_biases.add(known[key])
            elif any(ends_in(part, endings) for part in _outer(module)):
                self.keys[key] = PREFIX + key
            else:
                raise self._refuse(f"the tensor {key:.200} is of no layer and of no module in modules_to_save")
        if not layers:
            raise self._refuse("it has no adapted layer")
        return layers

    def _scale(self, settings: Mapping[str, Any], name: str, rank: int) -> float:
        alpha = settings.get("lora_alpha", 8)
        for pattern, value in (settings.get("alpha_pattern") or {}).items():
            if self._matches(pattern, name):
                alpha = value
                break
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
            raise self._refuse(f"the lora_alpha of {name:.200} is {alpha!s:.50}")
        return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)

    def _matches(self, pattern: str, name: str) -> bool:
        """Whether peft applies a key of alpha_pattern to a layer: to a whole name, or to what follows a dot."""
        repeats = len(re.findall(r"[*+{]", pattern))
        if len(pattern) > LONGEST_PATTERN or repeats > MOST_REPEATS or re.search(r"\)[*+{?]", pattern):
            raise self._refuse(f"alpha_pattern has the expression {pattern!r:.100}, which could take too long to match")
        try:
            return re.match(rf"(.*\.)?({pattern})$", name) is not None
        except (re.error, RecursionError, OverflowError) as error:
            raise self._refuse(f"alpha_pattern has {pattern!r:.100}, which is no expression: {error}") from None

    def check_modules(self, model: nn.Module, modules: Mapping[str, nn.Module]) -> None:
        """Raise AdapterError if one of these, which peft replaced by copies, shares a parameter with another module."""
        owners = weight_owners(model)
        for name, module in modules.items():
            if any(owners[memory_of(parameter)] > 1 for parameter in module.parameters()):
                raise self._refuse(
                    f"{name} is a copy there, and here it shares its weight with another module. Give it a weight of "
                    f"its own first (model.{name}.weight = torch.nn.Parameter(model.{name}.weight.detach().clone())) "
                    "and set model.config.tie_word_embeddings = False."
                )

    def read(self, expected: Mapping[str, Tensor], adapted: Mapping[str, AdapterLayer]) -> dict[str, Tensor]:
        """The values of the ``expected`` tensors, by their names here.

        Args:
            expected: the tensors of the model's adapters that train.
            adapted: the layers: some files hold the change of their biases.

        Raises:
            AdapterError: the file is damaged, or does not fit.
        """
        keys = {name: self.keys.get(name, f"{PREFIX}{name}") for name in expected}
        layers = self.description["layers"]
        turned = {name for name in expected if name.rpartition(".")[0] in layers and name[-2:] in (".A", ".B")}
        wanted = {key: expected[name].T if name in turned else expected[name] for name, key in keys.items()}
        found = read_tensors(self.path, wanted)[0]
        values = {name: found[key].T if name in turned else found[key] for name, key in keys.items()}
        for name in self.added_biases:
            scale = layers[name.removesuffix(".bias")]["scale"]
            bias = adapted[name.removesuffix(".bias")].unmerged_bias
            values[name] = bias.to(values[name]) + scale * values[name]
        return values


def _outer(name: str) -> list[str]:
    """A module's name and those of the modules around it."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
