"""Tables of all runs, one per data set, as CSV, Markdown and LaTeX: ``python compile_results.py RUNS``."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.errors import comma_list, run_cli
from utils.results.compare import compare_runs
from utils.results.diff import diff_runs
from utils.tables import FORMATS, compile_results


def main() -> None:
    """Write the tables, or compare two runs."""
    parser = argparse.ArgumentParser(description="Compile the tables of all runs, one per data set.")
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="folders with runs (train.py's output.path)")
    parser.add_argument("--dataset", type=comma_list, default=[], metavar="NAME,...", help="only these data sets")
    parser.add_argument(
        "--columns",
        type=comma_list,
        metavar="KEY,...",
        help="measured columns in this order (an unknown one lists all)",
    )
    parser.add_argument(
        "--sort",
        metavar="KEY[:asc|:desc]",
        help="a column (best first), method, rank, parameters or n; default: by method (untrained, full fine-tuning, "
        "LoRA, ROSA, others), then by trainable parameters",
    )
    parser.add_argument(
        "--format",
        type=comma_list,
        default=list(FORMATS),
        metavar="F,...",
        help=f"{', '.join(FORMATS)} (default: all)",
    )
    parser.add_argument(
        "--baseline",
        default="none",
        metavar="METHOD",
        help="the method whose results are subtracted in differences: none (full fine-tuning, the default), "
        "none-layers (full training of some layers only), untrained, rosa or another; "
        "a method with ranks is compared at the same rank only",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="write to DIR/<dataset>/ (default: beside the runs; in RUNS if it is one run)",
    )
    parser.add_argument(
        "--compare",
        nargs=2,
        metavar=("RUN_A", "RUN_B"),
        help="test scores of two runs with a paired bootstrap test",
    )
    parser.add_argument("--diff", nargs=2, metavar=("RUN_A", "RUN_B"), help="settings that differ between two runs")
    args = parser.parse_args()
    if sum(map(bool, (args.runs, args.compare, args.diff))) != 1:
        parser.error("give RUNS for tables, --compare RUN_A RUN_B, or --diff RUN_A RUN_B")
    if args.compare or args.diff:
        print(compare_runs(*args.compare) if args.compare else diff_runs(*args.diff))
        return
    compile_results(args.runs, args.dataset, args.columns, args.sort, args.format, args.baseline, args.out)


if __name__ == "__main__":
    run_cli(main)
