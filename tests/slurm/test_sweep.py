"""A sweep file expands to the jobs it says, and everything wrong with it is told at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.slurm.sweep.checks import GROUP_KEYS, SWEEP_KEYS
from utils.slurm.sweep.file import Sweep, load_sweep
from utils.slurm.sweep.repeats import repeated_jobs
from utils.slurm.sweep.resources import time_limit

ROOT = Path(__file__).parents[2]


def load(folder: Path, text: str) -> Sweep:
    file = folder / "jobs.yaml"
    file.write_text(text)
    return load_sweep(file, repeated_jobs)


def test_a_matrix_is_every_combination_over_the_shared_overrides(project: Path) -> None:
    sweep = load(
        project,
        """
        overrides: {train.epochs: 5, train.lr: 1}
        resources: {time: 1:00:00, mem: 8G}
        preamble: module load a
        max_jobs: 3
        groups:
          - name: GPT2 | LoRA
            overrides: {fnmodel.name: lora}
            resources: {mem: 16G}
            preamble: [module load b, export X=1]
            matrix:
              - {train.lr: [1e-3, 3e-4], seed: [0, 1]}
              - {seed: [7]}
        """,
    )
    (group,) = sweep.groups
    assert [job.command for job in group.jobs] == [
        f"python train.py train.epochs=5 train.lr={lr} fnmodel.name=lora seed={seed}"
        for lr, seed in [("0.001", 0), ("0.001", 1), ("0.0003", 0), ("0.0003", 1), ("1", 7)]
    ]
    assert [job.label for job in group.jobs][:2] == ["lr=0.001 seed=0", "lr=0.001 seed=1"]
    assert group.resources == {"time": "1:00:00", "mem": "16G"}
    assert group.preamble == "module load a\nmodule load b\nexport X=1"
    assert group.max_jobs == 3
    assert all(job.id.startswith("GPT2-LoRA.") for job in group.jobs)


def test_a_job_is_known_by_what_it_does_not_by_where_it_stands(project: Path) -> None:
    one = load(project, "groups: [{name: g, matrix: {a: [1, 0.5], b: [x]}}]").jobs
    other = load(project, "groups: [{name: g, matrix: {b: [y, x], a: [5e-1, 1]}}]").jobs
    assert {job.id for job in one} < {job.id for job in other}
    assert len({job.id for job in other}) == 4
    assert {job.id for job in one}.isdisjoint(
        job.id for job in load(project, "groups: [{name: h, matrix: {a: [1, 0.5], b: [x]}}]").jobs
    )


def test_plain_lists_of_commands(project: Path) -> None:
    sweep = load(
        project,
        """
        paralleljobs:
          - python train.py fnmodel.name=lora dataset.cache=$SLURM_TMPDIR/huggingface
        groups:
          - name: two
            preamble: ["#!/bin/bash", "#SBATCH --gres=gpu:2"]
            paralleljobs: [echo 'a  b', python train.py seed=3]
        """,
    )
    assert [(job.group, job.command) for job in sweep.jobs] == [
        ("jobs", "python train.py fnmodel.name=lora dataset.cache=$SLURM_TMPDIR/huggingface"),
        ("two", "echo 'a  b'"),
        ("two", "python train.py seed=3"),
    ]
    assert sweep.folder == project / "runs/.jobs"


def test_groups_stand_behind_those_they_wait_for(project: Path) -> None:
    text = """
    groups:
      - {name: c, after: [b, a], command: echo c}
      - {name: b, after: a, command: echo b}
      - {name: a, command: echo a}
    """
    assert [group.name for group in load(project, text).groups] == ["a", "b", "c"]


def test_the_state_folder_follows_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "state: ${RUNS:-my runs}/.jobs\nparalleljobs: [echo]\n"
    monkeypatch.delenv("RUNS", raising=False)
    assert load(project, text).folder == project / "my runs/.jobs"
    monkeypatch.setenv("RUNS", "/scratch/r")
    assert load(project, text).folder == Path("/scratch/r/.jobs")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[1, 2]", "is not a sweep file: it must be a mapping"),
        ("{}", "there are no jobs: give groups (a list) or paralleljobs"),
        ("groups: []", "there are no jobs"),
        ("group: []", "group is not a key; did you mean groups?"),
        ("groups: {a: {command: b}}", "groups must be a list"),
        ("groups: [{command: a}]", "group 1: name is missing"),
        ("groups: [{command: a}]", "group 1: name is missing"),
        ("groups: [{name: '!', command: a}]", "group 1: name must be a text with a letter (a to z) or a digit"),
        ("groups: [{name: 7, command: a}]", "group 1: name must be a text"),
        ("groups: [{name: a, command: a, after: a}]", "group a: after: a is the group itself"),
        ("groups: [{name: a}]", "group a: has no jobs: give a matrix"),
        ("groups: [{name: a, matrix: {}}]", "group a: has no jobs: its matrix is empty"),
        ("groups: [{name: a, matrix: {x: []}}]", "group a: has no jobs: matrix.x is an empty list"),
        ("groups: [{name: a, paralleljobs: []}]", "group a: has no jobs: paralleljobs is empty"),
        ("groups: [{name: a, paralleljobs: [3]}]", "group a: paralleljobs: 3 is not a command"),
        ("groups: [{name: a, matrix: {x: 1}}]", "group a: matrix.x must be a list of values"),
        ("groups: [{name: a, command: b, aftr: c}]", "group a: aftr is not a key; did you mean after?"),
        ("groups: [{name: a, matrxi: {x: [1]}}]", "problems:\n  - group a: matrxi is not a key; did you mean matrix?"),
        ("groups: [{name: a, command: b, after: c}]", "group a: after: c is not a group; known: a"),
        ("groups: [{name: a b, command: x}, {name: a-b, command: y}]", "groups 1 and 2 have the same name, a-b"),
        ("groups: [{name: a, command: x, after: b}, {name: b, command: y, after: a}]", "groups wait for each other"),
        ("groups: [{name: a, matrix: {x: [1, 1.0, 1]}}]", "group a: the same job twice: x=1"),
        (
            "groups: [{name: a, matrix: {x: [1]}}, {name: b, matrix: {x: [1]}}]",
            "groups a and b have the same job: x=1",
        ),
        ("groups: [{name: a, command: b, max_jobs: 0}]", "group a: max_jobs=0 must be 1 or more"),
        ("groups: [{name: a, command: b, max_jobs: true}]", "group a: max_jobs must be a whole number"),
        ("groups: [{name: a, command: b, resources: {tiem: 1}}]", "resources.tiem is not an option of sbatch; did"),
        ("groups: [{name: a, command: b, resources: {time: [1]}}]", "resources.time must be one value, not a list"),
        ("groups: [{name: a, command: b, resources: {job_name: x}}]", "resources.job_name is not for resources: the"),
        ("groups: [{name: a, command: b, resources: {mem: $NO_MEM}}]", "mem=$NO_MEM: NO_MEM is not set"),
        ("state: $NO_RUNS/x\nparalleljobs: [echo]", "state=$NO_RUNS/x: NO_RUNS is not set in the environment"),
        ("state: /dev/null\nparalleljobs: [echo]", "state='/dev/null' is no folder"),
        (f"state: {'x' * 5000}\nparalleljobs: [echo]", "File name too long"),
        ('state: "a\\0b"\nparalleljobs: [echo]', "state='a\\x00b' is no folder"),
        ("groups: [{name: a, command: b, resources: {time: 6h}}]", "group a: resources.time=6h is no time: write"),
        ("resources: {time: 2}\ngroups: [{name: a, command: b, save_before: 120}]", "group a: save_before=120 leaves"),
        ("groups: [{name: a, command: b, resources: {clusters: c}}]", "export SLURM_CLUSTERS"),
        ("groups: [{name: a, command: b, resources: {wrap: c}}]", "resources: use command or paralleljobs"),
        ("state: 3\nparalleljobs: [echo]", "state must be a text"),
    ],
)
def test_bad_files(project: Path, text: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load(project, text)
    assert words in str(error.value)
    assert str(project / "jobs.yaml") in str(error.value)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("90:30", 5430), ("1:30:00", 5400), ("2-0", 172800), ("1-12:30", 131400), ("1-00:00:30", 86430),
     ("UNLIMITED", None), ("0", None), ("''", None), ("null", None), ("$HOURS:00:00", 10800)],
)  # fmt: skip
def test_time_limits(project: Path, monkeypatch: pytest.MonkeyPatch, time: str, seconds: int | None) -> None:
    monkeypatch.setenv("HOURS", "3")
    (group,) = load(project, f"groups: [{{name: a, command: b, resources: {{time: {time}}}}}]").groups
    assert time_limit(group.resources) == seconds


def test_a_short_job_is_warned_at_half_its_time(project: Path) -> None:
    text = "groups: [{name: a, command: b, resources: {time: 2}}, {name: b, command: c, resources: {time: 10}}]"
    assert [group.save_before for group in load(project, text).groups] == [60, 120]


@pytest.mark.parametrize(
    "groups",
    [
        "{{name: b, command: 'true', matrix: {{{keys}}}}}",
        "{{name: b, command: 'true', matrix: [{{a: {ten}, b: {ten}, c: {ten}, d: {ten}, e: {ten}}}, {{f: [1]}}]}}",
    ],
    ids=["10^100", "one too many"],
)
def test_jobs_are_counted_before_they_are_made(project: Path, groups: str) -> None:
    ten = list(range(10))
    keys = ", ".join(f"k{number}: {ten}" for number in range(100))
    with pytest.raises(UserError, match="group b: with it there are more than 100000 jobs"):
        load(project, f"groups: [{{name: a, command: echo}}, {groups.format(keys=keys, ten=ten)}]")


def test_all_problems_come_in_one_message(project: Path) -> None:
    with pytest.raises(UserError) as error:
        load(project, "max_job: 1\ngroups: [{name: a}, {name: b, command: c, resources: {tim: 1}, after: d}]")
    assert str(error.value).count("\n  - ") == 4


def test_the_papers_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNS", raising=False)
    sweep = load_sweep(ROOT / "jobs.yaml")
    published = [job.overrides for job in sweep.jobs if "experiment" in job.overrides]
    tables = [("e2e", "gpt2"), ("e2e", "gpt2-medium"), ("e2e", "gpt2-large"), ("eli5", "gpt2")]
    assert {item["experiment"] for item in published} == {p.stem for p in (ROOT / "configs/experiment").glob("*.yaml")}
    methods = [("none", None), *((method, rank) for method in ("lora", "rosa") for rank in (0.0125, 0.025, 0.05, 0.1))]
    expected = {(*table, *method, seed) for table in tables for method in methods for seed in (0, 1, 2)}
    keys = ("experiment", "model.name", "fnmodel.name", "fnmodel.params.rank", "seed")
    assert {tuple(item.get(key) for key in keys) for item in published} == expected
    assert len(published) == len(expected)

    monkeypatch.setattr("utils.slurm.sweep.file.recorded_loss", lambda *_: 1.0)  # every search can choose
    known = sweep.again()
    assert all(group.settled for group in known.groups)
    overrides = [job.overrides for job in known.jobs if "dataset.name" in job.overrides]
    assert {item["fnmodel.params.bias"] for item in overrides} == {"none"}, "equally many trainable parameters"
    seen = {key: {item[key] for item in overrides} for key in ("dataset.name", "model.name", "fnmodel.name")}
    assert seen["dataset.name"] == {"e2e", "eli5"}
    assert seen["model.name"] == {"gpt2", "gpt2-medium", "gpt2-large"}
    assert seen["fnmodel.name"] == {"none", "lora", "rosa"}
    for data in seen["dataset.name"]:
        for model in seen["model.name"]:
            here = [item for item in overrides if (item["dataset.name"], item["model.name"]) == (data, model)]
            for method in [("lora",), ("rosa", "random"), ("rosa", "bottom"), ("rosa", "never"), ("none",)]:
                variants = ("fnmodel.name", "fnmodel.rosa.sample_method", "fnmodel.rosa.level")
                own = [item for item in here if tuple(item[key] for key in variants if key in item) == method]
                ranks = {0.0125, 0.025, 0.05, 0.1, 0.2} if method != ("none",) else {None}
                assert {item.get("fnmodel.params.rank") for item in own} == ranks
                trials = [item for item in own if item.get("output.search")]
                final = {item["seed"] for item in own if item not in trials}
                assert len(final) >= 3 and final.isdisjoint(item["seed"] for item in trials)
                assert len({item["train.lr"] for item in trials}) >= 4
    ceiling = {item.get("fnmodel.params.target_modules") for item in overrides if item["fnmodel.name"] == "none"}
    assert ceiling == {None, "all-linear"}, "full training, and that of the layers that adapters adapt by default"
    training = [group.name for group in sweep.groups if group.jobs[0].overrides]
    evaluation = [group for group in sweep.groups if "eval.py" in group.jobs[0].command]
    assert sorted(name for group in evaluation for name in group.after) == sorted(training)
    assert "/home" not in (ROOT / "jobs.yaml").read_text()


def test_the_papers_sweep_names_every_key_of_a_sweep_file() -> None:
    text = (ROOT / "jobs.yaml").read_text(encoding="utf-8")
    assert {*SWEEP_KEYS, *GROUP_KEYS} <= set(re.findall(r"\w+", text.split("\npreamble:")[0]))
