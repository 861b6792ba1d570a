#!/usr/bin/env bash
# Score the predictions of every run under RUNS and write each run's scores.json.
#   bash eval.sh RUNS [RUNS ...] [--force]
# PYTHON names the interpreter (default: python).
set -euo pipefail
repository="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# Not `-m utils.metrics`: that would look for `utils` in the caller's folder first.
exec "${PYTHON:-python}" -c '
import sys
sys.path[0] = sys.argv.pop(1)
from utils.errors import run_cli
from utils.metrics.scoring.score_runs import main
run_cli(main)
' "$repository" "$@"
