"""What must not move while the code is rewritten: make its results, and compare them with earlier ones.

    python -m scripts.oracle make before                    # about four minutes on two cores
    python -m scripts.oracle make after --saved before      # also loads the adapters that `before` saved
    python -m scripts.oracle compare before after           # exit code 1, and a line for each difference

A folder of results has six short trainings in float32 (losses, merged weights), one of them stopped and resumed; texts
and scores of one of them; the tables of all study records; the batch scripts of jobs.yaml; and two saved adapters with
the logits of the models that load them. Numbers agree within 1e-6, texts exactly. Times and paths are left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).parents[1]
TOLERANCE = 1e-6
UNSTABLE = re.compile(r"second|memory|time|host|hardware|device|started|commit|samples/s|_mib|GiB|path|folder")
COMMON = (
    "model.name=tiny", "train.precision=fp32", "train.device=cpu", "train.lr=0.01",
    "train.compile=false", "logging.print_freq=1", "logging.samples=0", "logging.to=[]", "model.dropout=0.1",
)  # fmt: skip
E2E = (
    "dataset.name=e2e_sample",
    "train.batch_size=32",
    "train.epochs=3",
    "train.fraction=0.3",
    "fnmodel.params.rank=4",
)
OWN = ("dataset.path={data}", "train.batch_size=8")
STEPS = ("fnmodel.rosa.level=step", "fnmodel.rosa.every=7", "fnmodel.rosa.rewarm_steps=2")
RUNS = {
    "rosa": (*E2E, "fnmodel.name=rosa"),
    "stopped": (*E2E, "fnmodel.name=rosa", *STEPS, "train.save_every=5"),
    "lora": (*E2E, "fnmodel.name=lora", "fnmodel.lora.alpha=8"),
    "full": (*E2E, "fnmodel.name=none"),
    "pairs": (*OWN, "dataset.name=pairs", "train.epochs=4", "fnmodel.name=relora", "fnmodel.relora.rewarm_steps=2"),
    "packed": (*OWN, "dataset.name=eli5", "train.epochs=2", "train.block_size=64"),
}


def run(*command: str) -> str:
    """What a command of this repository prints."""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def write_data(folder: Path) -> None:
    """Small files of a user's own: pairs of texts, and questions with answers."""
    colours, things = ("red", "green", "blue", "grey"), ("boat", "tower", "river", "garden", "lamp", "door")
    for split, first, size in (("train", 0, 48), ("validation", 100, 12), ("test", 200, 12)):
        rows = [
            (f"{colours[i % 4]} {things[i % 6]} {i}", f"The {things[i % 6]} number {i} is {colours[i % 4]}.")
            for i in range(first, first + size)
        ]
        with (folder / f"{split}.csv").open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("prompt", "target"), *rows])
        lines = [json.dumps({"question": f"What is the {a}?", "answer": b * 4}) for a, b in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def train(name: str, out: Path, runs: Path) -> Path:
    """Train one of RUNS. Returns its directory."""
    place = runs / name
    data = place.parent / ("data-pairs" if name == "pairs" else "data-packed")
    settings = [one.format(data=data) for one in (*COMMON, *RUNS[name])]
    command = [sys.executable, "train.py", *settings, f"output.path={place}"]
    if name == "stopped":
        stop_once(command, place)
    run(*command)
    (record,) = place.glob("*/*/run.json")
    return record.parent


def stop_once(command: list[str], place: Path) -> None:
    """Begin a training and interrupt it after its second resample."""
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        time.sleep(0.05)
        if any(file.read_text().count("\n") > 18 for file in place.glob("*/*/metrics.jsonl")):
            process.send_signal(signal.SIGTERM)
            break
    if process.wait() == 0:
        raise SystemExit("the training ended before it could be interrupted: make it longer")


def make(out: Path, saved: Path | None) -> None:
    """Write all results into ``out``."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder)
        for kind, kept in (("pairs", ".csv"), ("packed", ".jsonl")):
            data = runs / f"data-{kind}"
            data.mkdir()
            write_data(data)
            for file in data.iterdir():
                if file.suffix != kept:
                    file.unlink()
        for name in RUNS:
            directory = train(name, out, runs)
            print("trained", name, flush=True)
            shutil.copy(directory / "metrics.jsonl", out / f"{name}.jsonl")
            run(
                sys.executable,
                "-m",
                "utils.export",
                str(directory),
                "--as",
                "merged",
                "--out",
                str(runs / "merged" / name),
            )
            save_file(load_file(runs / "merged" / name / "model.safetensors"), out / f"{name}.safetensors")
        rosa_run = next((runs / "rosa").glob("*/*/run.json")).parent
        run(sys.executable, "eval.py", str(rosa_run), "--limit", "20")
        run("bash", "eval.sh", str(rosa_run))
        for file in ("test_predictions.txt", "scores.json", "eval.json"):
            shutil.copy(rosa_run / file, out / file)
        run(
            sys.executable,
            "-m",
            "utils.export",
            str(rosa_run),
            "--as",
            "adapter",
            "--out",
            str(out / "saved" / "adapter"),
        )
        run(sys.executable, "-m", "utils.export", str(rosa_run), "--as", "peft", "--out", str(out / "saved" / "peft"))
    tables(out)
    (out / "jobs.txt").write_text(
        run(sys.executable, "jobrunner.py", "--fn", "jobs.yaml", "--dry-run"), encoding="utf-8"
    )
    logits((saved or out) / "saved", out)


def tables(out: Path) -> None:
    """The study's own tables and results.csv of every folder or archive of records."""
    for study in sorted((ROOT / "studies").iterdir()):
        for records in sorted(study.glob("records*")):
            place = out / "tables" / f"{study.name}-{records.name.partition('.')[0]}"
            place.mkdir(parents=True)
            if study.name != "precision":
                (place / "report.txt").write_text(
                    run(sys.executable, "-m", "studies.report", str(records)), encoding="utf-8"
                )
            if "clipped" not in records.name:  # it has trials only, which have no place in a table of results
                run(sys.executable, "compile_results.py", str(records), "--format", "csv", "--out", str(place))
    print("tabulated", flush=True)


def logits(saved: Path, out: Path) -> None:
    """The logits of the base model with each saved adapter, on fixed tokens."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    import rosa

    ids = torch.arange(64).view(2, 32) * 7 % 500

    def base() -> Any:
        return AutoModelForCausalLM.from_pretrained(ROOT / "assets" / "tiny-gpt2", dtype=torch.float32).eval()

    model, plain = base(), base()
    rosa.load_adapter(model, saved / "adapter")
    with torch.no_grad():
        own = model(input_ids=ids).logits
        peft = PeftModel.from_pretrained(plain, str(saved / "peft")).eval()(input_ids=ids).logits
    save_file({"adapter": own.contiguous(), "peft": peft.contiguous()}, out / "logits.safetensors")


def values(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file of results says, as named values, without times and paths."""
    if path.suffix == ".safetensors":
        yield from load_file(path).items()
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as file:
            for i, row in enumerate(csv.DictReader(file)):
                yield from ((f"row {i} {key}", value) for key, value in row.items() if value)
    elif path.suffix == ".jsonl":
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            yield from leaves(json.loads(line), f"line {i} ")
    elif path.suffix == ".json":
        yield from leaves(json.loads(path.read_text(encoding="utf-8")), "")
    else:
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            yield f"line {i}", line


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{name}{key}.")
    else:
        yield name, value


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.allclose(one.double(), other.double(), rtol=TOLERANCE, atol=TOLERANCE)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(map(same, one, other))
    if one == other:
        return True
    try:
        return abs(float(one) - float(other)) <= TOLERANCE * max(1.0, abs(float(one)))
    except (TypeError, ValueError):
        return False


def compare(before: Path, after: Path) -> int:
    """Print what differs. Returns 1 if anything does."""
    files = sorted(
        {path.relative_to(folder) for folder in (before, after) for path in folder.rglob("*.*") if path.is_file()}
    )
    count = 0
    for file in (file for file in files if file.parts[0] != "saved"):
        if not ((before / file).exists() and (after / file).exists()):
            found = [f"only in {before if (before / file).exists() else after}"]
        else:
            old, new = dict(values(before / file)), dict(values(after / file))
            keys = [key for key in old | new if not UNSTABLE.search(key)]
            found = [f"{key}: {_shown(old, key)} -> {_shown(new, key)}" for key in keys
                     if (key in old) != (key in new) or not same(old[key], new[key])]  # fmt: skip
        count += len(found)
        for line in found[:8]:
            print(f"{file}: {line}")
        if len(found) > 8:
            print(f"{file}: and {len(found) - 8} more")
    print(f"{count} differences in {len(files)} files")
    return int(count > 0)


def _shown(values: dict[str, Any], key: str) -> str:
    return str(values.get(key, "nothing"))[:80].replace("\n", " ")


def main() -> None:
    """Make results, or compare two folders of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write results into a folder")
    making.add_argument("out", type=Path)
    making.add_argument("--saved", type=Path, help="load the adapters in this folder of earlier results")
    comparing = commands.add_parser("compare", help="compare two folders of results")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    args = parser.parse_args()
    if args.command == "make":
        os.environ |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "HF_HUB_OFFLINE": "1"}
        torch.set_num_threads(1)
        make(args.out.resolve(), args.saved and args.saved.resolve())
    else:
        raise SystemExit(compare(args.before, args.after))


if __name__ == "__main__":
    main()
