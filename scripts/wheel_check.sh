#!/usr/bin/env bash
# Build the wheel, install it into an environment of its own, and use it away from the repository.
#   bash scripts/wheel_check.sh          what it depends on comes from the environment of this script, in seconds
#   bash scripts/wheel_check.sh --empty  pip brings that too, torch among it, as for a new user
set -euo pipefail
cd "$(dirname "$0")/.."
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" # setuptools leaves files of its own beside the sources
cp -r pyproject.toml LICENSE rosa "$work/source/"
python -m pip wheel -q --no-deps -w "$work" "$work/source"
python -m venv "$work/own"
packages='import sysconfig; print(sysconfig.get_path("purelib"))'
if [ "${1:-}" != --empty ]; then
  python -c "$packages" >"$("$work/own/bin/python" -c "$packages")/reused.pth"
fi
"$work/own/bin/python" -m pip install -q "$work"/*.whl
cd "$work/own"
bin/python - <<'END'
import importlib.metadata
import importlib.resources
import importlib.util

import torch

import rosa

assert importlib.metadata.version("rosa-adapters") == rosa.__version__
assert importlib.resources.files("rosa").joinpath("py.typed").is_file()
assert importlib.util.find_spec("utils") is None, "the wheel holds more than rosa"
model, x = torch.nn.Sequential(torch.nn.Linear(6, 4)), torch.randn(3, 6)
before = model(x)
rosa.inject(model, rosa.RosaConfig(rank=2, target_modules=["0"]))
torch.testing.assert_close(model(x), before)
print(f"rosa-adapters {rosa.__version__} works from its wheel: {rosa.__file__}")
END
