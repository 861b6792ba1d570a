"""Read a sweep file: groups of jobs with shared resources, expanded from matrices of overrides."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.io.yaml_files import read_yaml
from utils.slurm.sweep.checks import blocks, check_document, names, slug, state_folder
from utils.slurm.sweep.quoting import fill_places, override_word
from utils.slurm.sweep.repeats import owned, owners
from utils.slurm.sweep.resources import time_limit
from utils.slurm.sweep.search import SEARCHED, Found, Point, Search, explore, incomparable, recorded_loss

COMMAND = "python train.py"
PLAIN = "jobs"  # the name of the group that a top-level paralleljobs makes
REQUEUES = 20
SAVE_BEFORE = 120  # seconds; half the time limit if that is less


@dataclass(frozen=True)
class Job:
    """One command. ``label`` tells it from its group's other jobs. A command given as text has no ``overrides``.

    ``follows``: a search added it to what the file gives.
    """

    id: str
    group: str
    label: str
    command: str
    overrides: dict[str, Any]
    follows: bool = False

    @property
    def trains(self) -> bool:
        """Whether its command calls train.py."""
        return "train.py" in self.command


@dataclass(frozen=True)
class Group:
    """Jobs that share everything but their command.

    Attributes:
        max_jobs: the largest number of them that run at a time; None for no limit.
        after: names of the groups that must end well before these jobs start.
        array: whether they are sent as job arrays.
        requeue: how often a job goes back to the queue when its time limit is near.
        save_before: how long before the time limit a job gets the signal to save, in seconds.
        searches: what is known of each search; ``jobs`` are those that follow from it.
        shared: ids of other groups' jobs that train what its searches ask for; these groups send them.
    """

    name: str
    jobs: tuple[Job, ...]
    resources: dict[str, Any]
    preamble: str
    max_jobs: int | None
    after: tuple[str, ...]
    array: bool
    requeue: int
    save_before: int
    searches: tuple[Found, ...] = ()
    shared: tuple[str, ...] = ()

    @property
    def job_ids(self) -> list[str]:
        """The jobs that must have ended for the group to have ended."""
        return [*(job.id for job in self.jobs), *self.shared]

    @property
    def settled(self) -> bool:
        """Whether all its jobs are known, that is, each search has chosen."""
        return all(found.chosen is not None for found in self.searches)

    @property
    def waits(self) -> list[str]:
        """The jobs without a result that its searches wait for."""
        return [job for found in self.searches for job in found.waits]

    @property
    def slug(self) -> str:
        """The name as it stands in ids, file names and SLURM's job names."""
        return slug(self.name)


@dataclass(frozen=True)
class Sweep:
    """A sweep file, checked and expanded. Each group comes after the groups that it waits for.

    Attributes:
        nodes: the groups as they stand in the file, in the same order.
        document: the whole file.
    """

    file: Path
    folder: Path
    groups: tuple[Group, ...]
    nodes: tuple[dict[str, Any], ...] = field(repr=False)
    document: dict[str, Any] = field(repr=False)

    def again(self) -> Sweep:
        """The same file, expanded by what is known now of its searches."""
        if not any(group.searches for group in self.groups):
            return self
        return replace(self, groups=tuple(_groups(self.nodes, self.document, self.folder)))

    @property
    def without_loss(self) -> set[str]:
        """The trials that can have no loss, which is a result and no failure."""
        return {job for group in self.groups for found in group.searches for job in found.without_loss}

    @property
    def jobs(self) -> list[Job]:
        return [job for group in self.groups for job in group.jobs]

    def next_id(self, group: Group) -> str:
        """The id of the job that goes on with a group's searches: of this file, since another may share the state."""
        return f"{group.slug}.next-{hashlib.sha256(os.fsencode(self.file.resolve())).hexdigest()[:8]}"

    def findings(self) -> list[str]:
        """What its searches have chosen, and what they could not choose: a line for each."""
        return [f"{group.name}: {found.text()}" for group in self.groups for found in group.searches if found.text()]

    def only(self, chosen: list[str] | None) -> list[Group]:
        """The groups with these names; None: all groups. Raises UserError for a name that no group has."""
        known = [group.name for group in self.groups]
        for name in chosen or []:
            if name not in known:
                raise UserError(f"--only {name}: {self.file} has no such group; it has {', '.join(known)}")
        return [group for group in self.groups if not chosen or group.name in chosen]


def load_sweep(file: Path, check: Callable[[list[Group]], list[str]] | None = None) -> Sweep:
    """Read, check and expand ``file``.

    Args:
        file: the sweep file.
        check: returns one sentence per problem of groups that are to be sent; None where nothing is to be sent.

    Raises:
        UserError: the file has problems; the message lists them all.
    """
    try:
        document = read_yaml(file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist. Give the sweep's file with --fn.") from None
    if not isinstance(document, dict):
        raise UserError(f"{file} is not a sweep file: it must be a mapping with groups or paralleljobs")
    problems, nodes = check_document(document)
    if "paralleljobs" in document and not problems:
        nodes.insert(0, {"name": PLAIN, "paralleljobs": document["paralleljobs"]})
    complete = not problems
    folder = state_folder(document, problems)
    groups = _groups(nodes, document, folder)
    problems += _late_warnings(groups) + ([] if check is None else check(groups))
    if complete:
        groups = _ordered(groups, problems)
    if problems:
        raise UserError(f"{file} has problems:\n" + "\n".join(f"  - {text}" for text in problems))
    by_name = {node["name"]: node for node in nodes}
    return Sweep(file, folder, tuple(groups), tuple(by_name[group.name] for group in groups), document)


def _groups(nodes: Sequence[dict[str, Any]], document: dict[str, Any], folder: Path) -> list[Group]:
    """The groups in the order of their nodes. A training that a search added to two of them is one group's job."""
    replaced: dict[str, str] = {}
    while True:
        groups = [_group(node, document, folder, replaced) for node in nodes]
        if not (more := owners(groups, folder)):
            return groups
        replaced |= more


def _group(node: dict[str, Any], shared: dict[str, Any], folder: Path, replaced: dict[str, str]) -> Group:
    def setting(key: str, default: Any = None) -> Any:
        return node.get(key, shared.get(key, default))

    name = node["name"]
    jobs: list[Job] = []
    searches: list[Found] = []
    command = setting("command", COMMAND).strip()
    overrides = {**shared.get("overrides", {}), **node.get("overrides", {})}
    if "matrix" in node or "overrides" in node or "search" in node:
        for block in blocks(node.get("matrix", {})):
            for values in itertools.product(*block.values()):
                chosen = dict(zip(block, values, strict=True))
                if "search" in node:
                    search = Search(**node["search"])
                    found, searched = _search(search, name, command, overrides, chosen, folder, replaced)
                    searches.append(found)
                    jobs += searched
                else:
                    jobs.append(_matrix_job(name, command, overrides, chosen))
    elif "command" in node:
        jobs.append(_command_job(name, command))
    jobs += [_command_job(name, text) for text in node.get("paralleljobs", [])]
    jobs = [owned(job, replaced) for job in jobs]
    resources = {**shared.get("resources", {}), **node.get("resources", {})}
    limit = time_limit(resources)
    preambles = [names(part.get("preamble", [])) for part in (shared, node)]
    return Group(
        name=name,
        jobs=tuple(job for job in jobs if job.id.startswith(f"{slug(name)}.")),
        resources=resources,
        preamble="\n".join(line.rstrip("\n") for lines in preambles for line in lines),
        max_jobs=setting("max_jobs"),
        after=tuple(dict.fromkeys(names(node.get("after", [])))),
        array=node.get("array", True),
        requeue=setting("requeue", REQUEUES),
        save_before=setting("save_before", min(SAVE_BEFORE, limit // 2) if limit else SAVE_BEFORE),
        searches=tuple(searches),
        shared=tuple(job.id for job in jobs if not job.id.startswith(f"{slug(name)}.")),
    )


def _search(
    search: Search,
    group: str,
    command: str,
    shared: dict[str, Any],
    chosen: dict[str, Any],
    folder: Path,
    replaced: dict[str, str],
) -> tuple[Found, list[Job]]:
    """One search and its jobs: a trial for each point and, once it has chosen, the settings with each of its seeds."""

    def trial(point: dict[str, Any]) -> Job:
        job = _matrix_job(group, command, {**shared, SEARCHED: True}, {**chosen, **point, "seed": search.seed})
        return replace(owned(job, replaced), follows=any(value not in search.keys[key] for key, value in point.items()))

    def allowed(point: Point) -> bool:
        from utils.slurm.sweep.overrides import refusals  # it imports hydra, which a status seldom needs

        job = trial(point)
        return not job.trains or not refusals(job.overrides)

    def difference(points: list[Point]) -> str:
        return incomparable(folder, (trial(point).id for point in points), search.keys)

    found = explore(search, lambda point: recorded_loss(folder, trial(point).id), allowed, difference)
    jobs = [trial(point) for point in found.points]
    found = replace(found, name=_label(chosen) or group, jobs=tuple(job.id for job in jobs))
    if found.chosen is not None:
        best = {**chosen, **found.chosen}
        final = [_matrix_job(group, command, shared, {**best, "seed": seed}) for seed in search.seeds]
        jobs += [replace(job, follows=True) for job in final]
    return found, jobs


def _matrix_job(group: str, command: str, shared: dict[str, Any], chosen: dict[str, Any]) -> Job:
    overrides = {**shared, **chosen}
    command, filled = fill_places(command, overrides)
    words = [override_word(key, value) for key, value in overrides.items() if key not in filled]
    # Sorted, so that the order of keys in the file does not change a job's identity.
    identity = " ".join([command, *sorted(words)])
    return Job(_job_id(group, identity), group, _label(chosen) or "-", " ".join([command, *words]), overrides)


def _label(chosen: dict[str, Any]) -> str:
    return " ".join(override_word(key.rpartition(".")[2], value) for key, value in chosen.items())


def _command_job(group: str, command: str) -> Job:
    text = command.strip()
    return Job(_job_id(group, text), group, text.splitlines()[0], text, {})


def _job_id(group: str, identity: str) -> str:
    return f"{slug(group)}.{hashlib.sha256(identity.encode()).hexdigest()[:8]}"


def _late_warnings(groups: list[Group]) -> list[str]:
    return [
        f"group {group.name}: save_before={group.save_before} leaves nothing of its time limit of {limit} s"
        for group in groups
        if (limit := time_limit(group.resources)) and group.save_before >= limit
    ]


def _ordered(groups: list[Group], problems: list[str]) -> list[Group]:
    """Sort groups after those that they wait for, else in the file's order; a circle is added to ``problems``."""
    done: dict[str, Group] = {}
    left = list(groups)
    while left:
        ready = next((group for group in left if all(name in done for name in group.after)), None)
        if ready is None:
            problems.append(f"groups wait for each other: {', '.join(group.name for group in left)}")
            return groups
        done[ready.name] = ready
        left.remove(ready)
    return list(done.values())
