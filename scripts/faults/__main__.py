"""``python -m scripts.faults``: the table of docs/faults.md."""

import os

# before numpy: a parent that forks must have one thread
os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from scripts.faults.command import main
from utils.errors import run_cli

if __name__ == "__main__":
    run_cli(main)
