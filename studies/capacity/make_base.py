"""Make the base model of the study: a GPT of 0.2 million weights that has learned book A.

    python -m studies.capacity.make_base --out runs/capacity/base

writes an untrained model with a tokenizer of single characters beside it, trains it on book A by train.py, and saves
the best checkpoint as a model folder. The same command goes on where it stopped, and leaves a finished base alone. The
same machine and number of threads give the same weights.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from string import ascii_lowercase, digits
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from utils.errors import UserError, run_cli
from utils.io.files import sha256
from utils.models.loading import load_tokenizer
from utils.runs import find_runs
from utils.runs.checkpoint_folder import load_weights

ROOT = Path(__file__).resolve().parents[2]
SEED = 0
BOOK_A, SIZE_A = 0, 1000
END, UNKNOWN = "<|endoftext|>", "<unk>"
POSITIONS = 32  # key, colon, number and end are 18 tokens
SETTINGS = (
    f"seed={SEED}", "dataset.name=phone_book", f"dataset.book={BOOK_A}", f"dataset.size={SIZE_A}", "fnmodel.name=none",
    "train.epochs=150", "train.batch_size=100", "train.lr=3e-3", "train.weight_decay=0", "train.warmup_steps=100",
    "train.validate_every=50", "train.precision=fp32", "train.device=cpu", "logging.samples=0",
    "logging.print_freq=500",
)  # fmt: skip


def character_tokenizer() -> Any:
    """A tokenizer whose tokens are letters, digits and the colon between key and number."""
    vocabulary = {token: number for number, token in enumerate((END, UNKNOWN, ":", *ascii_lowercase, *digits))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, unk_token=UNKNOWN, model_max_length=POSITIONS
    )


def write_untrained(folder: Path) -> None:
    """A GPT-2 of 4 blocks and width 64 without dropout, with random weights that ``SEED`` decides.

    Two heads and ReLU take a quarter less time on a CPU than four heads and GELU.
    """
    tokenizer = character_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=POSITIONS, n_embd=64, n_layer=4, n_head=2, initializer_range=0.07,
        activation_function="relu", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tokenizer.eos_token_id, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    torch.manual_seed(SEED)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def train_on_book_a(untrained: Path, runs: Path) -> Path:
    """Train all weights on book A. Returns the folder of the best checkpoint."""
    command = [sys.executable, "train.py", f"model.name={untrained}", f"output.path={runs}", *SETTINGS]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError("the training on book A did not end well: see its messages above")
    (run,) = find_runs([str(runs)])
    return run.best


def main() -> None:
    """Make what is missing, and print a hash of the weights."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/capacity/base"), help="model folder to write")
    out = parser.parse_args().out.resolve()
    untrained = out.with_name(f"{out.name}-untrained")
    if not (out / "config.json").exists():
        if not (untrained / "tokenizer.json").exists():
            write_untrained(untrained)
        best = train_on_book_a(untrained, out.with_name(f"{out.name}-training"))
        model = AutoModelForCausalLM.from_pretrained(untrained)
        load_weights(best, model)
        staging = out.with_name(f".{out.name}")
        shutil.rmtree(staging, ignore_errors=True)
        model.save_pretrained(staging)
        load_tokenizer(str(untrained)).save_pretrained(staging)
        staging.rename(out)
    print(f"{out}: weights {sha256(out / 'model.safetensors')[:16]}")


if __name__ == "__main__":
    run_cli(main)
