"""``python -m utils.export RUN --as {merged,peft,adapter}``: a run's model for other tools, with a model card."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, printable, run_cli

FORMS = {
    "merged": "a plain model with its tokenizer and generation settings, for from_pretrained",
    "peft": "a LoRA adapter for PEFT and what reads its files (vLLM)",
    "adapter": "the adapter in this library's format, for rosa.load_adapter",
}


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Command line of ``python -m utils.export``."""
    parser = argparse.ArgumentParser(
        prog="python -m utils.export",
        description="Write a run's model for other tools, with a model card.",
        epilog="; ".join(f"{form}: {about}" for form, about in FORMS.items()),
    )
    parser.add_argument("run", help="the folder of one run")
    parser.add_argument("--as", dest="form", choices=tuple(FORMS), required=True, help="what to write, see below")
    cut = parser.add_mutually_exclusive_group()
    cut.add_argument("--rank", type=int, metavar="R", help="with --as peft: cut each layer's pair to this rank")
    cut.add_argument(
        "--keep", type=float, metavar="SHARE",
        help="with --as peft: cut each pair so that it keeps this share of its change's squared norm, in (0, 1]",
    )  # fmt: skip
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="(default: best)")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="(default: RUN/export/<form>)")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in the folder")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="for the loss of a cut"
    )
    parser.add_argument("--dataset-path", help="for the loss of a cut: local data in place of the run's dataset.path")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Write one export and print what it is."""
    values = vars(parse_arguments(argv))
    if values["rank"] is not None and values["rank"] < 1:
        raise UserError(f"--rank {values['rank']} must be at least 1")
    if values["keep"] is not None and not 0 < values["keep"] <= 1:
        raise UserError(f"--keep {values['keep']} must be a share in (0, 1]")
    from utils.io.hub import go_offline_without_network

    go_offline_without_network()  # before anything imports the hub's libraries
    from utils.export.write import Options, export_run
    from utils.log import run_log
    from utils.runs.trained import one_run

    with run_log(None):
        run = one_run(values.pop("run"))
        print("\n".join(map(printable, export_run(run, Options(**values)))))
    return 0


if __name__ == "__main__":
    run_cli(main)
