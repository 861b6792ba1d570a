"""Overrides that train.py would not take are found before anything is sent, and cheaply."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import UserError
from utils.slurm.sweep import overrides
from utils.slurm.sweep.file import Sweep, load_sweep


def load(folder: Path, text: str) -> Sweep:
    """Raises UserError for what train.py does not take."""
    (folder / "jobs.yaml").write_text(text)
    return load_sweep(folder / "jobs.yaml", overrides.override_problems)


GOOD = """
paralleljobs:
  - python train.py dataset.cache=$SLURM_TMPDIR/x fnmodel.name=lora train.lr=1e-3
  - torchrun --nproc_per_node 2 train.py seed=3 'fnmodel.params.target_modules=[c_attn, c_proj]'
  - echo nothing=here
groups:
  - {name: own, overrides: {dataset.name: pairs, dataset.path: "${OWN_DATA}/x", train.weight_decay: $DECAY}}
  - name: a
    overrides: {output.path: $SCRATCH/runs, train.lr: 3e-4, fnmodel.params.target_modules: [c_attn]}
    matrix: {fnmodel.params.rank: [4, 0.5], seed: [0, 1], train.loss_on: [target, null]}
"""


def test_what_train_takes(project: Path) -> None:
    load(project, GOOD)


def test_the_papers_sweep_is_what_train_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNS", raising=False)
    load_sweep(Path(__file__).parents[2] / "jobs.yaml", overrides.override_problems)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("groups: [{name: a, matrix: {train.lrr: [1, 2]}}]", "group a: train.lrr is not a key; did you mean lr?"),
        ("groups: [{name: a, matrix: {train.lr: [1, fast]}}]", "group a: train.lr=fast"),
        ("groups: [{name: a, matrix: {seed: [1, 2, -3]}}]", "group a: seed=-3"),
        ("groups: [{name: a, matrix: {trian.lr: [1]}}]", "group a: trian"),
        ("groups: [{name: a, overrides: {outptu.path: $HOME/x}}]", "group a: outptu"),
        ("groups: [{name: a, overrides: {fnmodel.name: rose}}]", "rose"),
        ("groups: [{name: a, overrides: {experiment: no_such_thing}}]", "group a: "),
        ("paralleljobs: [python train.py train.epoch=5]", "group jobs: train.epoch is not a key; did you mean epochs"),
        ("paralleljobs: [python train.py train.epochs=many]", "group jobs: train.epochs=many"),
    ],
)
def test_what_train_does_not_take(project: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load(project, text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ("{name: a, matrix: {fnmodel.name: [lora], fnmodel.rosa.level: [epoch, never]}}",
         "group a: name=lora level=never and, in group a, name=lora level=epoch are one run, since fnmodel.rosa.level"),
        ("{name: a, matrix: {fnmodel.name: [lora], fnmodel.rosa.basis: [random, singular]}}",
         "group a: name=lora basis=singular and, in group a, name=lora basis=random are one run, since fnmodel.rosa.b"),
        ("{name: a, matrix: {fnmodel.name: [none, lora], fnmodel.params.rank: [2, 4], seed: [0, 1]}}",
         "name=none rank=4 seed=0 and, in group a, name=none rank=2 seed=0 are one run, since fnmodel.params.rank has"),
        ("{name: a, matrix: {train.micro_batch_size: [8]}}, {name: b, matrix: {train.micro_batch_size: [4]}}",
         "group b: micro_batch_size=4 and, in group a, micro_batch_size=8 are one run, since train.micro_batch_size"),
        ("{name: a, matrix: {fnmodel.name: [none], fnmodel.params.bias: [none, adapted]}}",
         "group a: name=none bias=adapted and, in group a, name=none bias=none are one run, since fnmodel.params.bias"),
        ("{name: a, matrix: {train.block_size: [128, 256]}}",
         "group a: block_size=256 and, in group a, block_size=128 are one run, since train.block_size has no effect"),
    ],
)  # fmt: skip
def test_jobs_that_are_one_run(project: Path, groups: str, words: str) -> None:
    """Together they would fail: the run is being trained already."""
    with pytest.raises(UserError) as error:
        load(project, f"groups: [{groups}]")
    (line,) = str(error.value).splitlines()[1:]
    assert words in line


def test_keys_that_decide_the_run_or_need_no_run_are_no_problem(project: Path) -> None:
    load(
        project,
        """
groups:
  - {name: a, matrix: {fnmodel.name: [rosa], fnmodel.rosa.level: [epoch, never], fnmodel.params.rank: [2, 4]}}
  - {name: b, overrides: {dry_run: true}, matrix: {train.micro_batch_size: [4, 8]}}
  - {name: c, overrides: {fnmodel.name: none}, matrix: {fnmodel.params.target_modules: [all-linear, null]}}
""",
    )


def test_all_problems_once_in_one_message(project: Path) -> None:
    text = "groups: [{name: a, matrix: {train.lrr: [1, 2], seed: [0, 1]}}, {name: b, matrix: {seed: [-1, 0]}}]"
    with pytest.raises(UserError) as error:
        load(project, text)
    assert str(error.value).count("\n  - ") == 2


def test_wrong_overrides_and_a_wrong_file_are_told_together(project: Path) -> None:
    text = "max_job: 1\ngroups: [{name: a, matrix: {train.lrr: [1]}}, {name: b}, {name: c, after: b, command: echo}]"
    with pytest.raises(UserError) as error:
        load(project, text)
    assert [line[4:] for line in str(error.value).splitlines()[1:]] == [
        "max_job is not a key; did you mean max_jobs?",
        "group b: has no jobs: give a matrix, overrides, a command or paralleljobs",
        "group a: train.lrr is not a key; did you mean lr?",
    ]
    with pytest.raises(UserError, match="resources must be a mapping"):
        load(project, "resources: 3\n" + text)


def test_a_limit_set_by_another_key_is_seen_in_a_later_group(project: Path) -> None:
    sizes = "matrix: {train.micro_batch_size: [16, 32, 64]}"
    groups = f"{{name: a, overrides: {{seed: 0}}, {sizes}}}, {{name: b, overrides: {{train.batch_size: 32}}, {sizes}}}"
    text = f"groups: [{groups}]"
    with pytest.raises(UserError, match=r"group b: train\.micro_batch_size=64 is above train\.batch_size=32"):
        load(project, text)


def test_the_configuration_is_composed_once_for_a_thousand_jobs(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides._composed.cache_clear()
    composed, parsed = [], []
    compose, parse = overrides.compose, overrides.parse_config
    monkeypatch.setattr(overrides, "compose", lambda *a, **k: composed.append(a) or compose(*a, **k))
    monkeypatch.setattr(overrides, "parse_config", lambda config: parsed.append(config) or parse(config))
    sweep = load(
        project,
        "groups:\n"
        + "\n".join(
            f"  - {{name: g{n}, overrides: {{train.epochs: {n}}}, "
            f"matrix: {{train.lr: [1e-3, 3e-4], fnmodel.params.rank: [1, 2, 3, 4, 5], seed: {list(range(25))}}}}}"
            for n in range(1, 5)
        ),
    )
    assert len(sweep.jobs) == 1000
    assert len(composed) == 1
    assert len(parsed) <= 25 + 3 * 5
    assert {config.seed for config in parsed} == set(range(25))
    assert {config.fnmodel.params.rank for config in parsed} == {1, 2, 3, 4, 5}
