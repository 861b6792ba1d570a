"""Print a study's tables from its committed records.

    python -m studies.report studies/capacity/records            # --page: writes them into the study's page

The first table has the trials of the search: bits stored at each learning rate, or the validation loss if the data are
no phone book. The next have what they forgot, where that was measured: the loss on the old text, and the share of book
A's numbers that they still write whole. Then come the reported seeds, the share of the gap between LoRA and the ceiling
that each method closes, with a 95 % interval over seeds, the numerical and the effective rank of the change, the share
of the time that resamples took, and the peak of memory. The last have the scores of each seed's texts, and what later
draws leave of each draw.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from studies.measured import Measured, Way, amount, label, order, training
from utils.config.fnmodel import LAYERS_ONLY
from utils.errors import UserError, run_cli
from utils.io.archives import unpacked
from utils.io.files import read_object, write_text
from utils.metrics import OFFICIAL
from utils.results.gap import share_of_gap
from utils.results.read import Result, read_results
from utils.text import replace_part

SCORES = (*OFFICIAL, "SER")
PART = "{} by python -m studies.report"  # the name of its tables on a page


def chosen_rate(runs: list[Measured]) -> tuple[float, bool]:
    """The rate with the lowest loss, and whether it lies at an end of its grid."""
    best = min(runs, key=lambda run: run.loss)
    rates = sorted({run.lr for run in runs})
    return best.lr, best.lr in (rates[0], rates[-1])


def best_rate(runs: list[Measured]) -> list[Measured]:
    """The runs at the rate with the lowest mean loss, [] without runs."""
    rates: dict[float, list[Measured]] = defaultdict(list)
    for run in runs:
        rates[run.lr].append(run)
    return min(rates.values(), key=lambda same: statistics.fmean(run.loss for run in same), default=[])


def gap_closed(*runs: list[Measured]) -> str:
    """The share of the gap that a method closes, with its interval; empty without a seed in common.

    Args:
        runs: of LoRA, the method, and the ceiling.
    """
    losses = [{run.seed: run.loss for run in same} for same in runs]
    seeds = sorted(set.intersection(*map(set, losses)))
    if not seeds:
        return ""
    lora, method, ceiling = ([part[seed] for seed in seeds] for part in losses)
    share, interval = share_of_gap(lora, method, ceiling)
    if share is None:
        return "no gap"
    return f"{share:.0%}" + (f" ({interval[0]:.0%} to {interval[1]:.0%})" if interval else "")


def by_rate(found: dict[Way, list[Measured]]) -> Iterator[tuple[Way, float, list[Measured]]]:
    """The rows of a table of seeds: each method at each of its rates, with its runs in the order of their seeds."""
    for way in sorted(found, key=order):
        for lr in sorted({run.lr for run in found[way]}):
            yield way, lr, sorted((run for run in found[way] if run.lr == lr), key=lambda run: run.seed)


def search_table(found: dict[Way, list[Measured]], shown: Callable[[Measured], str]) -> list[str]:
    """What is ``shown`` of the trial at each rate; the chosen rate is bold, and marked where it is at an end."""
    rates = sorted({run.lr for runs in found.values() for run in runs})
    rows = []
    for way in sorted(found, key=order):
        best, at_end = chosen_rate(found[way])
        cells = {run.lr: shown(run) for run in found[way]}
        cells[best] = (f"**{cells[best]}**" if cells[best] else "") + (" (end)" if at_end else "")
        rows.append([str(way.keys or ""), label(way), *(cells.get(rate, "") for rate in rates)])
    return markdown(["keys", "method", *(f"{rate:g}" for rate in rates)], rows)


def seeds_table(found: dict[Way, list[Measured]]) -> list[str]:
    """The reported seeds, each shown, and what is derived from them."""
    heads = [
        "keys", "method", "trained", "lr", f"{what(found)} of each seed", "mean", "gap closed", "exact",
        f"loss on {old_text(found)}", "rank", "effective rank", "resampling", "MiB",
    ]  # fmt: skip
    rows = []
    for way, lr, runs in by_rate(found):
        ends = Way(way.keys, "lora", gap_rank(found, way), 0, ""), Way(way.keys, LAYERS_ONLY, 0, 0, "")
        lora, ceiling = (best_rate(found.get(end, [])) for end in ends)
        gap = gap_closed(lora, runs, ceiling)
        rows.append([
            str(way.keys or ""), label(way), f"{runs[0].parameters:,}", f"{lr:g}",
            " ".join(amount([run]) for run in runs), amount(runs), gap,
            _mean(runs, "{:.0%}", lambda study: study["book_b"]["exact_match"]) if way.keys else "",
            _mean(runs, "{:.2f}", old_loss),
            _mean(runs, "{:.1f}", lambda study: mean_rank(study, "rank")),
            _mean(runs, "{:.1f}", lambda study: mean_rank(study, "effective_rank")),
            f"{statistics.fmean(run.resampling for run in runs):.1%}",
            f"{statistics.fmean(memory):,.0f}" if (memory := [run.memory for run in runs if run.memory]) else "",
        ])  # fmt: skip
    return markdown(heads, rows)


def markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table, without the columns that are empty in every row."""
    kept = [i for i in range(len(heads)) if any(row[i] for row in rows)]
    cells = [[row[i] for i in kept] for row in (heads, ["---"] * len(heads), *rows)]
    return [f"| {' | '.join(row)} |" for row in cells]


def what(found: dict[Way, list[Measured]]) -> str:
    """What ``amount`` gives of these runs."""
    return "bits" if any(run.bits is not None for runs in found.values() for run in runs) else "loss"


def old_text(found: dict[Way, list[Measured]]) -> str:
    """What the runs may have forgotten: book A, or the ordinary text of ``studies.pretrained.measure``."""
    return "English" if any("english" in run.study for runs in found.values() for run in runs) else "A"


def old_loss(study: dict[str, Any]) -> float:
    """The loss on that text, in nats per token."""
    return float((study.get("book_a") or study["english"])["loss"])


def shared_ranks(found: dict[Way, list[Measured]], keys: int) -> list[int]:
    """The ranks that LoRA and another method both have on the book with so many keys; without one, LoRA's smallest."""
    ways = [way for way in found if way.keys == keys and way.rank]
    lora, others = ({way.rank for way in ways if (way.method == "lora") is one} for one in (True, False))
    return sorted(lora & others) or sorted(lora)[:1]


def gap_rank(found: dict[Way, list[Measured]], way: Way) -> int:
    """The rank of the LoRA from which the gap of a row counts, 0 without one.

    It is the row's own where LoRA is compared with another method, else the smallest rank of such a comparison.
    """
    shared = shared_ranks(found, way.keys)
    return way.rank if way.method != "lora" and way.rank in shared else min(shared, default=0)


def gaps_line(found: dict[Way, list[Measured]]) -> str:
    """From which LoRA the gaps of each book count, for below the table."""
    named = []
    for keys in dict.fromkeys(way.keys for way in sorted(found, key=order)):
        for rank in (shared := shared_ranks(found, keys)):
            of = [f"{keys} keys"] * bool(keys) + [f"methods of rank {rank} but LoRA"] * (rank != shared[0])
            named.append(f"r={rank}" + (f" ({', '.join(of)})" if of else ""))
    if not named:
        return ""
    return (
        f"Gap closed: from LoRA of {', '.join(named)} to full training of the same layers. In brackets a 95 % interval "
        "over seeds by bootstrap, of three seeds or fewer the worst and the best."
    )


def old_exact(study: dict[str, Any]) -> float:
    """The share of book A's numbers that are still written whole, 0 if another text is the old one."""
    return float(study.get("book_a", {}).get("exact_match", 0))


def mean_rank(study: dict[str, Any], kind: str) -> float:
    """The numerical (``rank``) or effective (``effective_rank``) rank of ΔW, averaged over layers."""
    return statistics.fmean(layer[kind] for layer in study["change"]["layers"].values())


def draws_table(runs: list[Measured]) -> list[str]:
    """What later draws leave of a draw, see ``studies.capacity.draws``."""
    rows = [
        [
            label(run.way), str(run.seed), str(len(run.kept)), f"{run.kept[0]:.0%}",
            f"{min(run.kept[1:]):.0%}" if run.kept[1:] else "", f"{statistics.median(run.kept):.2f}",
        ]
        for run in sorted(runs, key=lambda run: (order(run.way), run.seed))
    ]  # fmt: skip
    return markdown(["method", "seed", "draws", "of the first", "of another, at least", "median of all"], rows)


def scores_table(found: dict[Way, list[Measured]]) -> list[str]:
    """The scores of each seed's texts; ``compile_results.py`` has their means."""
    rows = []
    for way, lr, runs in by_rate(found):
        cells = (" ".join(f"{run.scores[name]:.4f}" if name in run.scores else "–" for run in runs) for name in SCORES)
        rows.append([label(way), f"{lr:g}", *cells])
    return markdown(["method", "lr", *SCORES], rows)


def before_line(folder: Path) -> str:
    """The loss on the old text before any training, from the record ``base``; empty without one."""
    file = unpacked(folder) / "base" / "study.json"
    if not file.exists():
        return ""
    study = read_object(file)
    return f" Before training the loss on {'A' if 'book_a' in study else 'English'} is {old_loss(study):.4f}."


def _mean(runs: list[Measured], form: str, value: Any) -> str:
    """The mean over the runs that were measured, how many if not all were, and empty if none was."""
    values = [value(run.study) for run in runs if run.study]
    partly = f" ({len(values)} of {len(runs)})" if len(values) < len(runs) else ""
    return form.format(statistics.fmean(values)) + partly if values else ""


def load(folder: Path) -> list[Measured]:
    """The finished runs below ``folder``.

    Raises:
        UserError: a record cannot be read or is not of the study, or runs would be averaged or compared that differ in
            more than the tables show.
    """
    results, unreadable = read_results([folder])
    if unreadable:
        raise UserError(f"{unreadable[0].run.path}: {unreadable[0].reason}")
    alike: dict[tuple[Any, ...], tuple[Any, Result]] = {}
    runs = []
    for result in results:
        if not result.finished:
            continue
        run = Measured.of(result)
        for place, content in (
            ((run.way, run.lr, run.seed, run.trial), result.run.path),
            ((run.way, run.lr, run.trial), (result.group, run.trial and run.seed)),  # one trial of a rate is shown
            *(((run.way.keys, key), value) for key, value in training(result, run.way).items()),
        ):
            expected, other = alike.setdefault(place, (content, result))
            if content != expected:
                what = f"{place[1]}, which no table shows" if len(place) == 2 else "nothing that the tables show"
                raise UserError(
                    f"{result.run.path} and {other.run.path} differ in {what}: keep records of other settings in "
                    "another folder"
                )
        runs.append(run)
    return runs


def report(folder: Path) -> str:
    """All tables as Markdown; see ``load``."""
    search: dict[Way, list[Measured]] = defaultdict(list)
    reported: dict[Way, list[Measured]] = defaultdict(list)
    for run in load(folder):
        (search if run.trial else reported)[run.way].append(run)
    parts = []
    if search:
        head = "Bits stored" if what(search) == "bits" else "Losses"
        table = search_table(search, lambda run: amount([run]))
        parts.append([f"{head} in the search (bold: the rate with the lowest loss):", "", *table])
        measured = {way: runs for way, runs in search.items() if any(run.study for run in runs)}
        if measured:
            table = search_table(measured, lambda run: f"{old_loss(run.study):.2f}" if run.study else "")
            parts.append([f"Loss on {old_text(measured)} after the runs of the search:", "", *table])
        if of_a := {way: runs for way, runs in measured.items() if any(old_exact(run.study) >= 0.005 for run in runs)}:
            table = search_table(of_a, lambda run: f"{old_exact(run.study):.0%}" if run.study else "")
            parts.append(["Numbers of A written whole after the runs of the search, where there are any:", "", *table])
    if reported:
        parts.append(["Reported seeds:", "", *seeds_table(reported), "", gaps_line(reported) + before_line(folder)])
    if scored := {way: runs for way, runs in reported.items() if any(run.scores for run in runs)}:
        parts.append(["Scores of each seed (SER: slot error):", "", *scores_table(scored)])
    if drawn := [run for runs in reported.values() for run in runs if run.kept]:
        parts.append(["What later draws leave of a draw:", "", *draws_table(drawn)])
    return "\n\n".join("\n".join(lines) for lines in parts)


def main() -> None:
    """Print the tables, or write them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("records", type=Path, help="folder with records, or its archive")
    parser.add_argument("--page", action="store_true", help="write them into the README.md beside the records")
    arguments = parser.parse_args()
    tables, folder = report(arguments.records), arguments.records.resolve()
    if not arguments.page:
        print(tables)
        return
    page = folder.parent / "README.md"
    try:
        text = replace_part(page.read_text(encoding="utf-8"), PART.format(folder.name), tables)
    except OSError as error:
        raise UserError(f"{page} cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(f"{page}: {error}") from None
    write_text(page, text)
    print(f"written: {page}")


if __name__ == "__main__":
    run_cli(main)
