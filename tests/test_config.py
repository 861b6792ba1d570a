"""Configuration: every file composes, every problem is reported at once, equal settings mean one directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.conftest import ROOT, make_config
from utils.config.settings import config_problems, load_config, parse_config, schema
from utils.data import sources
from utils.errors import UserError
from utils.io.yaml_files import dotted
from utils.runs.identity import group_hash, run_directory


def problems(*overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        make_config(*overrides)
    return str(refused.value)


def test_the_reference_page_has_every_key_with_its_default() -> None:
    page = yaml.safe_load((ROOT / "configs" / "train.yaml").read_text())
    del page["defaults"], page["hydra"]
    typed = dotted(OmegaConf.to_container(schema()))
    written = dotted(OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "train.yaml")))
    written = {k: v for k, v in written.items() if not k.startswith(("defaults", "hydra"))}
    assert written == typed
    assert dotted(page).keys() == typed.keys()


def test_every_key_of_the_reference_page_is_explained() -> None:
    lines = (ROOT / "configs" / "train.yaml").read_text().splitlines()
    body = lines[next(number for number, line in enumerate(lines) if line.startswith("seed: 0 ")) :]
    for line in body[: body.index("hydra:")]:
        assert not line.strip() or line.endswith(":") or "#" in line, f"no comment: {line}"


def test_every_data_set_is_on_the_reference_page() -> None:
    page = (ROOT / "configs" / "train.yaml").read_text()
    for source in set(sources().values()):
        assert any(name in page for name in source.names), source


@pytest.mark.parametrize("name", ["e2e", "eli5"])
def test_every_experiment_composes_with_the_published_settings(name: str) -> None:
    assert [path.stem for path in sorted((ROOT / "configs" / "experiment").glob("*.yaml"))] == ["e2e", "eli5"]
    config = make_config(f"experiment={name}", "model.name=gpt2-medium", "fnmodel.name=lora")
    assert (config.dataset.name, config.model.name, config.fnmodel.name) == (name, "gpt2-medium", "lora")
    assert config.fnmodel.params.rank == 0.1 and config.loss_on() == "all"
    published = {"epochs": 5, "batch_size": 8, "lr": 2e-4, "optimizer": "sgd", "scheduler": "linear"}
    published |= {"warmup_steps": 500, "loss_on": "all"}
    assert dataclasses.asdict(config.train) == {**dataclasses.asdict(make_config().train), **published}


def test_names_of_runs_stay() -> None:
    """A change of these costs every user the runs that exist."""
    names = {
        ("experiment=e2e", "fnmodel.name=none"): "runs/e2e_nlg/gpt2-none-s0-e025760a",
        ("experiment=e2e", "fnmodel.name=lora", "fnmodel.params.rank=0.05"): "runs/e2e_nlg/gpt2-lora-r0.05-s0-16eaa74f",
        ("experiment=e2e", "model.name=gpt2-large", "seed=2"): "runs/e2e_nlg/gpt2-large-rosa-r0.1-s2-a29afce9",
        ("experiment=eli5", "fnmodel.params.rank=0.0125", "seed=1"): "runs/eli5/gpt2-rosa-r0.0125-s1-a4cbaf3b",
    }
    assert {overrides: str(run_directory(make_config(*overrides))) for overrides in names} == names


def test_all_problems_come_in_one_message() -> None:
    message = problems(
        "train.lr=abc", "+train.batch_sise=3", "fnmodel.name=rosaa", "fnmodel.params.rank=0", "dataset.name=e2f",
        "fnmodel.rosa.sample_method=best", "train.epochs=-1", "train.optimizer=sgd", "train.betas=[0.9,0.99]",
        "train.micro_batch_size=2", "train.micro_batch_tokens=99", "model.dropout=1", "train.eps=[1e-8,1e-6]",
    )  # fmt: skip
    for part in (
        "micro_batch_size and train.micro_batch_tokens exclude each other", "train.lr=abc", "did you mean batch_size",
        "fnmodel.name=rosaa is not one of none, bitfit, dora, ia3, lora, relora, rosa", "rank=0", "Did you mean e2e?",
        "fnmodel.rosa.sample_method=best is not one of random, window, top, bottom",
        "model.dropout=1.0 must be below 1", "python train.py -m train.eps=1e-08,1e-06",
        "train.epochs=-1 must be at least 0", "train.betas is not a parameter of sgd",
    ):  # fmt: skip
        assert part in message, part


def test_columns_are_named_for_own_data_only() -> None:
    assert "do not go with e2e" in problems("dataset.prompt=question")
    own = ("dataset.name=pairs", "dataset.path=x")
    assert make_config(*own, "dataset.prompt=question").source.columns == ("question", "target")
    assert "both name the column a" in problems(*own, "dataset.prompt=a", "dataset.target=a")


def test_problems_of_the_methods_own_keys() -> None:
    message = problems("+fnmodel.lora.aplha=1", "fnmodel.lora.alpha=x", "~fnmodel.bitfit", "fnmodel.lora.dropout=2")
    for part in ("did you mean alpha", "lora.alpha=x", "fnmodel.bitfit is missing", "fnmodel.lora.dropout=2"):
        assert part in message, part
    assert "fnmodel.rosa=3 must be a group of keys" in problems("fnmodel.rosa=3")
    assert "scale=rslora needs an alpha" in problems("fnmodel.name=lora", "fnmodel.lora.scale=rslora")
    assert "bias=none leaves BitFit nothing" in problems("fnmodel.name=bitfit", "fnmodel.params.bias=none")


def test_a_method_without_a_rank_has_none_in_its_name_and_hash() -> None:
    for name in ("ia3", "bitfit"):
        found = {run_directory(make_config(f"fnmodel.name={name}", f"fnmodel.params.rank={rank}")) for rank in (1, 0.5)}
        assert len(found) == 1 and "-r" not in found.pop().name
    assert make_config("fnmodel.name=ia3").adapter != make_config("fnmodel.name=ia3", "seed=1").adapter


@pytest.mark.parametrize("rank", ["0", "-1", "0.0", "1.5", "true", "abc"])
def test_ranks_that_are_none(rank: str) -> None:
    assert "fnmodel.params.rank" in problems(f"fnmodel.params.rank={rank}")


def test_int_one_and_ratio_one_stay_apart() -> None:
    assert make_config("fnmodel.params.rank=1").adapter.rank == 1
    ratio = make_config("fnmodel.params.rank=1.0").adapter.rank
    assert isinstance(ratio, float) and ratio == 1.0


def test_target_modules_take_a_string_or_a_list() -> None:
    assert make_config("fnmodel.params.target_modules=[c_attn,c_fc]").adapter.target_modules == ["c_attn", "c_fc"]
    assert make_config("fnmodel.params.target_modules='.*attn.*'").adapter.target_modules == ".*attn.*"
    assert "target_modules" in problems("fnmodel.params.target_modules=3")


def test_a_group_cannot_be_a_value_nor_a_value_a_group() -> None:
    assert "train=3 must be a group of keys" in _refused({"train": 3})
    assert "seed" in _refused({"seed": {"a": 1}})


def _refused(values: dict[str, Any]) -> str:
    with pytest.raises(UserError) as refused:
        parse_config(OmegaConf.create(values))
    return str(refused.value)


def test_saved_configuration_round_trips(tmp_path: Path) -> None:
    config = make_config("fnmodel.params.rank=1.0", "train.betas=[0.9,0.95]", "fnmodel.params.target_modules=[c_fc]")
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(dataclasses.asdict(config))))
    assert load_config(tmp_path / "config.yaml") == config
    assert config_problems(config) == []


def test_one_directory_for_one_set_of_settings() -> None:
    base = run_directory(make_config())
    same = ("dataset.name=e2e_nlg", "train.micro_batch_size=4", "dataset.cache=x", "logging.print_freq=1",
            "fnmodel.lora.alpha=3", "train.save_every=5", "dataset.path=y", "runs=3", "train.device=cpu",
            "train.micro_batch_tokens=9")  # fmt: skip
    other = ("train.lr=2e-3", "seed=1", "fnmodel.params.rank=1", "fnmodel.name=lora", "model.dropout=0",
             "fnmodel.rosa.every=2", "fnmodel.params.bias=none", "train.fraction=0.5", "train.loss_on=all")  # fmt: skip
    assert {run_directory(make_config(override)) for override in same} == {base}
    assert len({run_directory(make_config(override)) for override in other} | {base}) == len(other) + 1
    assert run_directory(make_config("fnmodel.params.bias=adapted")) == base  # what auto means for rosa
    full = {run_directory(make_config("fnmodel.name=none", f"fnmodel.params.rank={rank}")) for rank in (1, 0.5)}
    assert len(full) == 1  # full fine-tuning has no rank
    assert group_hash(make_config("seed=1")) == group_hash(make_config()) != group_hash(make_config("train.lr=2e-3"))


def test_local_file_sets_paths_without_a_package_header(tmp_path: Path) -> None:
    """configs/local/default.yaml needs no ``@package`` line, and the command line wins over it."""
    import shutil

    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "configs" / "local" / "default.yaml").write_text("model: {name: tiny}\ntrain: {fraction: 0.5}\n")
    with initialize_config_dir(str(tmp_path / "configs"), version_base="1.3"):
        config = parse_config(compose("train", overrides=["train.fraction=0.25"]))
    assert (config.model.name, config.train.fraction) == ("tiny", 0.25)


def test_a_section_that_was_deleted_is_refused() -> None:
    """``~train`` would take the other overrides of the section with it."""
    assert "train is missing: ~train" in problems("train.epochs=1", "~train")
    assert "train.lr is missing" in problems("~train.lr")


def test_a_saved_configuration_may_lack_keys_that_came_later(tmp_path: Path) -> None:
    values = dataclasses.asdict(make_config())
    del values["train"]["validation_fraction"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(values)))
    assert load_config(tmp_path / "config.yaml") == make_config()


@pytest.mark.parametrize("key", ["output.path", "dataset.path", "dataset.cache", "model.name"])
@pytest.mark.parametrize("text", ["", "' '"])
def test_an_empty_text_is_no_value(key: str, text: str) -> None:
    assert f"{key} is empty" in problems(f"{key}={text}")


def test_seeds_have_63_bits() -> None:
    assert make_config(f"seed={2**63 - 1}").seed == 2**63 - 1
    assert "the last seed must be below 2**63" in problems(f"seed={2**63}")
    assert "the last seed must be below 2**63" in problems(f"seed={2**63 - 2}", "runs=3")
