"""Figures of one data set's runs: ``python figures.py --fn RUNS/e2e_nlg``, as PNG and PDF."""

from __future__ import annotations

import argparse
from pathlib import Path

from utils.errors import comma_list, run_cli
from utils.plots import draw_figures, plots


def main() -> None:
    """Draw the figures."""
    figures = "\n".join(f"  {plot.name:<20}{plot.about}" for plot in plots().values())
    parser = argparse.ArgumentParser(
        description="Draw the figures of all finished runs of one data set.",
        epilog=f"figures:\n{figures}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fn", required=True, metavar="DIR", help="the data set's runs, such as RUNS/e2e_nlg")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder of the figures (default: <fn>/figures)")
    parser.add_argument("--only", type=comma_list, default=[], metavar="NAME,...", help="only these figures")
    parser.add_argument(
        "--metric",
        metavar="KEY",
        help="a column of compile_results.py, such as BLEU (default: test_perplexity, "
        "or val_loss if no run is evaluated); file names then end in it",
    )
    args = parser.parse_args()
    draw_figures(args.fn, args.out, args.only, args.metric)


if __name__ == "__main__":
    run_cli(main)
