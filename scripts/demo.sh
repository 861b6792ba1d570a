#!/usr/bin/env bash
# The whole way on the bundled model and data, without downloads: train, evaluate, score, tabulate, draw.
#   make demo        (or, in an environment with requirements.txt: bash scripts/demo.sh [OUTPUT])
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-demo}"
common=(dataset.name=e2e_sample model.name=tiny "output.path=$out" train.batch_size=32 logging.print_freq=25)

python train.py "${common[@]}" fnmodel.name=none train.epochs=0 # the untrained base, to compare with
python train.py "${common[@]}" fnmodel.name=none train.epochs=4 train.lr=4e-3
python train.py "${common[@]}" fnmodel.name=lora train.epochs=4 train.lr=2e-2 fnmodel.params.rank=0.33
python train.py "${common[@]}" fnmodel.name=rosa train.epochs=4 train.lr=2e-2 fnmodel.params.rank=0.33

python eval.py "$out"
bash eval.sh "$out"
python compile_results.py "$out"
python figures.py --fn "$out/e2e_sample"

echo
cat "$out/e2e_sample/results.md"
echo "table:   $out/e2e_sample/results.md (.csv, .tex)"
echo "figures: $out/e2e_sample/figures/"
echo "curves:  tensorboard --logdir=$out"
