"""The model card of an export: README.md with the front matter of the hub. All of it comes from the run's files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import rosa
from utils.config.settings import Config
from utils.export.folder import MARK
from utils.io.files import read_object
from utils.models.gguf import gguf_options
from utils.models.loading import BUNDLED
from utils.results.columns import all_columns
from utils.results.methods import method_label
from utils.results.read import Result, read_results
from utils.runs import Run
from utils.runs.identity import science
from utils.runs.run import ADAPTER, SUMMARY
from utils.text import printable_line

TITLES = {
    "merged": "A plain model: the adapters are merged into its weights.",
    "peft": "A LoRA adapter in the format of PEFT, of {change} since the base model.",
    "adapter": "An adapter in the format of rosa.",
}
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class Exported:
    """What a card is about.

    Attributes:
        form: merged, peft or adapter.
        checkpoint: best or last.
        folder: that checkpoint's, which a training that goes on no longer changes.
        facts: what the export found, one sentence each.
        cut: whether the change was cut.
    """

    form: str
    checkpoint: str
    folder: Path
    facts: tuple[str, ...]
    cut: bool


def model_card(run: Run, config: Config, exported: Exported) -> str:
    """The text of README.md."""
    result = read_results([run.path])[0][0]
    base = hub_name(config.model.name)
    lines = [
        *_front_matter(exported.form, base, result), MARK, "",
        f"# {printable_line(run.path.resolve().name)}", "",
        _about(exported, result),
        *(f"\n- {fact}" if not number else f"- {fact}" for number, fact in enumerate(exported.facts)), "",
        "## Use", "", "```python", *_code(exported.form, base, config, result), "```", "",
        f"Texts are generated from {_prompt(config)}", "",
        "## Results", "", *_results(result, exported), "",
        "## Training", "", *_training(result), "",
        "The settings that change the result:", "",
        "```yaml", *_settings(config, result).splitlines(), "```", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _about(exported: Exported, result: Result) -> str:
    """What the export is, and the adapter that the run began with, if any, in sentences."""
    change = "a part (see below) of the change" if exported.cut else "the whole change"
    text = (
        f"`{result.model}` trained on `{result.dataset}` with {method_label(result.method)}. "
        f"{TITLES[exported.form].format(change=change)}"
    )
    start = result.inputs.get(ADAPTER)
    if start is None:
        return text
    return (
        f"{text} The run began with another adapter merged into its base model (`model.adapter`, SHA-256 "
        f"`{start}`), whose change is in this export too."
    )


def hub_name(name: str) -> str | None:
    """The name of a model on the hub; None for a local or the bundled one."""
    local = name in BUNDLED or name.startswith(".") or Path(name).exists()
    return name if HUB_NAME.fullmatch(name) and not local else None


def _front_matter(form: str, base: str | None, result: Result) -> list[str]:
    values: dict[str, Any] = {"tags": [result.method, "text-generation"], "pipeline_tag": "text-generation"}
    if base:
        values |= {"base_model": base, "base_model_relation": "finetune" if form == "merged" else "adapter"}
    if form != "adapter":
        values["library_name"] = "transformers" if form == "merged" else "peft"
    return ["---", *yaml.safe_dump(values, sort_keys=True).splitlines(), "---", ""]


def _code(form: str, base: str | None, config: Config, result: Result) -> list[str]:
    """How to load the export, with this folder's name to be filled in."""
    name = f'"{base}"' if base else f'"PATH/TO/{result.model}"'
    if form == "merged":
        return [
            "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
            'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")',
            'model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")',
        ]  # fmt: skip
    gguf, classes = "", "AutoModelForCausalLM"
    if config.model.gguf_file:
        gguf = f", gguf_file={config.model.gguf_file!r}"
        if gguf_options():
            gguf, classes = f"{gguf}, quantization_config=GgufConfig(dequantize=True)", f"{classes}, GgufConfig"
    load = [f"base = AutoModelForCausalLM.from_pretrained({name}{gguf}, dtype=torch.float32)"]
    if form == "peft":
        imports = ["import torch", "from peft import PeftModel", f"from transformers import {classes}", ""]
        return [*imports, *load, 'model = PeftModel.from_pretrained(base, "THIS_FOLDER")']
    imports = ["import rosa", "import torch", f"from transformers import {classes}", ""]
    return [*imports, *load, 'model = rosa.load_adapter(base, "THIS_FOLDER", trainable=False)']


def _prompt(config: Config) -> str:
    template = config.source.prompt("{source}")
    if template == "{source}":
        return "the text itself as the prompt."
    return f"the prompt `{template}`, with a source of the data set in the place of `{{source}}`."


def _results(result: Result, exported: Exported) -> Iterator[str]:
    """A table of the losses and scores that the run's files have, each with the checkpoint that it is of."""
    # not of the run's record, which a training that goes on has meanwhile moved to a later checkpoint
    progress = read_object(exported.folder / SUMMARY)["progress"]
    measured = progress.get("last") or {}
    own = "loss" in measured and measured.get("step") == progress.get("step")  # else of an earlier step
    rows = [("validation loss (nats per token)", f"{measured['loss']:.4f}")] if own else []
    if exported.checkpoint == "best":
        for column in all_columns([result]).values():
            number = column.value(result)
            if number is not None and (column.scored or column.key in ("test_loss", "test_perplexity")):
                rows.append((column.header, column.text(number)))
    if not rows:
        yield "None are recorded."
        return
    yield from ("| measure | value |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows), "")
    yield f"Of the {exported.checkpoint} checkpoint{' before the cut' if exported.cut else ''}."
    if len(rows) > 1 and result.limit is not None:
        yield f"Test results are of the first {result.limit} items only."
    if len(rows) > 1 and result.decoding:
        yield "Texts were generated with " + ", ".join(f"{k}={v}" for k, v in result.decoding.items()) + "."


def _training(result: Result) -> Iterator[str]:
    """Parameters, data, progress, hardware and versions, as the record has them."""
    record = result.record
    parameters = record.get("parameters") or {}
    yield f"- status: {record['status']}"
    for name in ("trainable", "total"):
        if name in parameters:
            yield f"- {name} parameters: {parameters[name]:,}"
    for key, name in (("bias", "trained biases"), ("loss_on", "loss on")):
        if record.get(key) is not None:
            yield f"- {name}: {record[key]}"
    for split, counts in (record.get("data") or {}).items():
        yield f"- {split} data: " + ", ".join(f"{k} {v}" for k, v in counts.items())
    for name, digest in result.inputs.items():
        yield f"- SHA-256 of {name}: `{digest}`"
    yield f"- hardware: {result.hardware}"
    versions = {**(record.get("versions") or {}), "code": record.get("git_commit")}
    yield "- versions: " + ", ".join(f"{k} {v}" for k, v in versions.items() if v)
    yield f"- exported with rosa {rosa.__version__}"


def _settings(config: Config, result: Result) -> str:
    """The settings that identify the run, without paths of one machine."""
    values = science(config)
    values["model"] |= {"name": result.model, "adapter": result.inputs.get(ADAPTER)}
    return yaml.safe_dump(values, sort_keys=True, allow_unicode=True)
