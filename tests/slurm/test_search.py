"""A search: which trials follow from the losses known, what is chosen, and what a sweep file may ask for."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.errors import UserError
from utils.slurm.commands import sending_problems
from utils.slurm.sweep.file import load_sweep
from utils.slurm.sweep.search import Found, Search, explore, recorded_loss

Loss = Callable[[dict[str, Any]], float | None]


def search(values: list[Any], **settings: Any) -> Search:
    return Search({"lr": values}, 100, [0, 1], **settings)


def bowl(lowest: float) -> Loss:
    """A loss of one minimum, symmetric on a logarithmic scale."""
    return lambda point: 1 + math.log(point["lr"] / lowest) ** 2


def rates(found: Found) -> list[float]:
    return [point["lr"] for point in found.points]


def test_a_best_within_the_grid_is_chosen() -> None:
    found = explore(search([3e-4, 1e-3, 3e-3]), bowl(1.1e-3))
    assert found.chosen == {"lr": 1e-3} and rates(found) == [3e-4, 1e-3, 3e-3]


@pytest.mark.parametrize(
    ("grid", "lowest", "added"),
    [([3e-4, 1e-3, 3e-3], 0.02, [9e-3, 0.027, 0.081]), ([2.7e-4, 8.1e-4], 2e-5, [9e-5, 3e-5, 1e-5])],
)
def test_a_grid_is_widened_by_its_last_ratio_until_the_best_lies_within(
    grid: list[float], lowest: float, added: list[float]
) -> None:
    found = explore(search(grid), bowl(lowest))
    assert rates(found) == [*grid, *added]
    assert found.chosen == {"lr": added[1]}


def test_a_search_says_what_it_needs_and_repeats_its_steps() -> None:
    """However the losses come in, each known prefix asks for the same trials."""
    whole = explore(search([3e-4, 1e-3, 3e-3], factor=1.5), bowl(8e-3))
    for known in range(len(whole.points)):
        part = explore(
            search([3e-4, 1e-3, 3e-3], factor=1.5),
            lambda point, known=known: bowl(8e-3)(point) if whole.points.index(point) < known else None,
        )
        assert part.chosen is None and part.points == whole.points[: len(part.points)] and len(part.points) > known
        assert part.losses.count(None) == len(part.points) - known


@pytest.mark.parametrize("factor", [1.3, 1.5, 2.0])
@pytest.mark.parametrize("lowest", [4.2e-4, 1.1e-3, 1.7e-3, 8e-3])
def test_a_factor_bounds_the_step_near_the_optimum(factor: float, lowest: float) -> None:
    """And so the chosen value is within one such step of the true one."""
    found = explore(search([3e-4, 1e-3, 3e-3], factor=factor), bowl(lowest))
    values = sorted(rates(found))
    assert found.chosen is not None and len(set(values)) == len(values)
    place = values.index(found.chosen["lr"])
    for low, high in itertools.pairwise(values[place - 1 : place + 2]):
        assert high / low <= factor * 1.01
    assert 1 / factor < found.chosen["lr"] / lowest < factor
    assert all(float(f"{value:.3g}") == value for value in values)


def test_integers_stay_integers_and_end_at_one() -> None:
    found = explore(search([2, 4, 8], factor=1.1), bowl(0.5))
    assert found.chosen == {"lr": 1} and sorted(rates(found)) == [1, 2, 4, 8]
    assert all(type(value) is int for value in rates(found))
    assert sorted(rates(explore(search([10, 20, 40], factor=1.5), bowl(22)))) == [10, 14, 20, 28, 40]


def test_of_two_keys_each_is_widened_on_the_best_line_and_words_are_only_compared() -> None:
    keys = {"lr": [0.1, 0.2], "gain": [1.0, 2.0], "kind": ["a", "b"]}

    def loss(point: dict[str, Any]) -> float:
        return math.log(point["lr"] / 0.4) ** 2 + math.log(point["gain"] / 2) ** 2 + (point["kind"] == "a")

    found = explore(Search(keys, 0, [1]), loss)
    assert found.chosen == {"lr": 0.4, "gain": 2.0, "kind": "b"}
    added = found.points[8:]
    assert added[:2] == [{"lr": 0.4, "gain": 2.0, "kind": "b"}, {"lr": 0.2, "gain": 4.0, "kind": "b"}]
    for key, value in (("lr", 0.2), ("lr", 0.8), ("gain", 1.0), ("gain", 4.0)):
        assert {**found.chosen, key: value} in found.points, "it is compared with its neighbours"


def test_the_first_of_equals_is_chosen() -> None:
    flat = explore(search([0.2, 0.1, 0.4]), lambda point: 1.0)
    assert flat.chosen == {"lr": 0.2} and len(flat.points) == 3


def test_a_diverged_trial_is_the_worst() -> None:
    found = explore(search([1e-3, 3e-3, 9e-3]), lambda point: math.inf if point["lr"] > 5e-3 else bowl(1e-1)(point))
    assert found.chosen == {"lr": 3e-3}
    none = explore(search([1e-3, 3e-3]), lambda point: math.inf)
    assert none.chosen is None and none.problem == "all 2 diverged or are unfit: give other values"


@pytest.mark.parametrize("most", [0, 2])
def test_a_best_at_the_edge_is_never_chosen(most: int) -> None:
    found = explore(search([1e-3, 2e-3], most=most), lambda point: -point["lr"])
    assert found.chosen is None and len(found.points) == 2 + most
    assert f"is at the edge after {most} further values of lr" in found.problem and "search.most" in found.problem


@pytest.mark.parametrize(
    ("lowest", "added", "chosen"),
    [(3.0, [1.0, 10.0], 1.0), (0.1, [1.0], 0.1), (0.01, [], 0.01), (-1.0, [], 0)],
)
def test_a_zero_is_the_lowest_and_the_other_end_is_widened(lowest: float, added: list[float], chosen: float) -> None:
    """No ratio leads to 0: nothing is tried between it and the lowest other value."""

    def loss(point: dict[str, Any]) -> float:
        return float(abs(point["lr"] - lowest))

    for factor in (None, 10.0):
        found = explore(search([0, 0.01, 0.1], factor=factor), loss)
        assert rates(found) == [0, 0.01, 0.1, *added] and found.chosen == {"lr": chosen}
    alone = explore(search([0, 0.1]), loss)
    assert rates(alone) == [0, 0.1], "one number has no ratio"


@pytest.mark.parametrize(("limit", "chosen"), [(1.0, 0.9), (2.0, 1.62)])
def test_a_value_that_is_not_allowed_ends_the_widening(limit: float, chosen: float) -> None:
    found = explore(search([0.5, 0.9]), lambda point: -point["lr"], lambda point: point["lr"] <= limit)
    assert found.chosen == {"lr": chosen} and max(rates(found)) == chosen and not found.problem


def test_train_py_says_where_a_key_ends(project: Path) -> None:
    """The ratio of a rank is at most 1: the sweep file is right, though the next value would not be."""
    (project / "jobs.yaml").write_text(
        "groups: [{name: g, search: {keys: {fnmodel.params.rank: [0.5, 0.9]}, seed: 100, seeds: [0]}}]"
    )
    sweep = load_sweep(project / "jobs.yaml", sending_problems)
    (sweep.folder / "pointers").mkdir(parents=True)
    for job in sweep.jobs:
        (project / job.id).mkdir()
        best = {"loss": 2 - job.overrides["fnmodel.params.rank"]}
        (project / job.id / "run.json").write_text(json.dumps({"status": "finished", "best": best}))
        (sweep.folder / "pointers" / job.id).write_text(f"{project / job.id}\n")
    (line,) = load_sweep(project / "jobs.yaml", sending_problems).findings()
    assert line == "g: g: chose fnmodel.params.rank=0.9, validation loss 1.1000 (2 tried)"


SEARCH = "keys: {train.lr: [3e-4, 1e-3]}, seed: 100, seeds: [0, 1]"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("seed: 1, seeds: [0]", "search.keys is missing"),
        ("keys: {train.lr: [1e-3]}, seeds: [0]", "search.seed is missing"),
        ("keys: {train.lr: [1e-3]}, seed: 1", "search.seeds is missing"),
        ("keys: {}, seed: 1, seeds: [0]", "search.keys is empty"),
        ("keys: {train.lr: 1e-3}, seed: 1, seeds: [0]", "search.keys.train.lr must be a list of different values"),
        ("keys: {train.lr: [1, 1.0]}, seed: 1, seeds: [0]", "search.keys.train.lr must be a list of different values"),
        ("keys: {seed: [1, 2]}, seed: 1, seeds: [0]", "search.keys.seed: give seed and seeds"),
        ("keys: {fnmodel.name: [rosa]}, seed: 1, seeds: [0]", "search.keys.fnmodel.name: it is in matrix, too"),
        *(
            (f"keys: {{{key}: [a, b]}}, seed: 1, seeds: [0]", f"search.keys.{key}: losses under different values")
            for key in (
                "train.loss_on",
                "train.validation_fraction",
                "train.seq_len",
                "train.block_size",
                "model.name",
                "dataset.name",
                "++dataset.path",
                "experiment",
            )
        ),
        (SEARCH.replace("seed: 100", "seed: 1"), "search.seeds has the search's own seed, 1"),
        (SEARCH.replace("[0, 1]", "[]"), "search.seeds must be a list of different whole numbers"),
        (SEARCH.replace("[0, 1]", "[0, 0]"), "search.seeds must be a list of different whole numbers"),
        (SEARCH + ", factor: 1", "search.factor=1 must be above 1"),
        (SEARCH + ", most: -1", "search.most=-1 must be 0 or more"),
        (SEARCH + ", fator: 1.5", "search.fator is not a key; did you mean factor?"),
        (SEARCH + "}, overrides: {runs: 2", "runs is set by the search"),
        (SEARCH + "}, paralleljobs: [a", "paralleljobs cannot be searched"),
    ],
)
def test_each_bad_search_is_one_clear_problem(project: Path, settings: str, problem: str) -> None:
    end = "]" if settings.endswith("[a") else "}"
    (project / "jobs.yaml").write_text(
        f"groups: [{{name: g, matrix: {{fnmodel.name: [lora, rosa]}}, search: {{{settings}{end}}}]"
    )
    with pytest.raises(UserError) as error:
        load_sweep(project / "jobs.yaml")
    (line,) = str(error.value).splitlines()[1:]
    assert line.startswith("  - group g: ") and problem in line


def test_unfit_settings_bound_the_search(tmp_path: Path) -> None:
    """As a learning rate that diverges does: else the search would wait for them for ever."""
    (tmp_path / "pointers").mkdir()
    assert recorded_loss(tmp_path, "job") is None
    (tmp_path / "pointers" / "job.unfit").write_text("rank 128 is above the full rank of 64\n")
    assert recorded_loss(tmp_path, "job") == math.inf
