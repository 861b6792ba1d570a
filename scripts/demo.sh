#!/usr/bin/env bash
# The whole way on the bundled model and data, without downloads: train, evaluate, score, tabulate, draw.
#   make demo        (or, in an environment with requirements.txt: bash scripts/demo.sh [OUTPUT])
set -euo pipefail
cd "$(dirname "$0")/.."
out="${1:-demo}"
common=(dataset.name=e2e_sample model.name=tiny "output.path=$out" train.batch_size=32 logging.print_freq=25)
adapter=(train.epochs=4 fnmodel.params.rank=0.33 fnmodel.params.bias=none) # equally many trained parameters

# each with the learning rate that the search of studies/bundled chose for it
python train.py "${common[@]}" fnmodel.name=none train.epochs=0 # the untrained base, to compare with
python train.py "${common[@]}" fnmodel.name=none train.epochs=4 train.lr=0.01
python train.py "${common[@]}" fnmodel.name=lora "${adapter[@]}" train.lr=0.018
python train.py "${common[@]}" fnmodel.name=rosa "${adapter[@]}" train.lr=0.012
python train.py "${common[@]}" fnmodel.name=rosa fnmodel.rosa.level=never "${adapter[@]}" train.lr=0.012 # the control

python eval.py "$out"
bash eval.sh "$out"
python compile_results.py "$out"
python figures.py --fn "$out/e2e_sample"

echo
cat "$out/e2e_sample/results.md"
cat <<'EOF'

What to see: training brings a model that knew nothing of restaurants to describe them. LoRA and ROSA train equally
many parameters, each with the learning rate that a search found for it. In this short training ROSA's three resamples
cost more than they give: without them (level=never) it is close to LoRA (studies/bundled/README.md). In the
capacity study, where the data held four times what the adapter could, they paid (studies/capacity/README.md, make study).

EOF
echo "table:   $out/e2e_sample/results.md (.csv, .tex)"
echo "figures: $out/e2e_sample/figures/"
echo "curves:  tensorboard --logdir=$out"
