#!/usr/bin/env bash
# Run the tests that skip where an optional package is missing, with all of them, in an environment of its own on top of
# the one of this script: transformers imports torchao wherever it is, which would slow every other command down.
set -euo pipefail
cd "$(dirname "$0")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
python -m venv "$work/own"
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
python -c "$packages" >"$("$work/own/bin/python" -c "$packages")/reused.pth"
python - >"$work/extras.txt" <<'END'
import tomllib

with open("pyproject.toml", "rb") as file:
    extras = tomllib.load(file)["project"]["optional-dependencies"]
print(*(requirement for name in ("gguf", "wandb", "trackio", "quantised") for requirement in extras[name]), sep="\n")
END
"$work/own/bin/python" -m pip install -q -r "$work/extras.txt"
"$work/own/bin/python" -m pytest -rs tests/models/test_gguf.py tests/runs/test_loggers.py \
  tests/rosa/test_adapter_quantised.py tests/rosa/test_peft_options.py
