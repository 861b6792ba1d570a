"""ROSA with accelerate, on one process or many: accelerate launch examples/with_accelerate.py"""

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

import rosa

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=HERE.parent / "assets/tiny-gpt2", help="a hub name or a folder")
parser.add_argument("--texts", default=HERE / "texts.txt", type=Path, help="one text per line")
parser.add_argument("--epochs", default=3, type=int)
parser.add_argument("--out", default="adapter", help="the folder for the adapter")
args = parser.parse_args()

texts = args.texts.read_text(encoding="utf-8").splitlines()
tokenizer = AutoTokenizer.from_pretrained(args.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
config = rosa.RosaConfig(rank=8)
model = rosa.inject(AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32), config)
optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=1e-2)
loader = torch.utils.data.DataLoader(
    texts, batch_size=8, shuffle=True, collate_fn=lambda rows: tokenizer(rows, padding=True, return_tensors="pt")
)
accelerator = Accelerator()
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
resampler = rosa.Resampler(model, optimizer, config)
for epoch in range(1, args.epochs + 1):
    for batch in loader:
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        accelerator.backward(model(**batch, labels=labels).loss)
        optimizer.step()
        optimizer.zero_grad()
    resampler.after_epoch(epoch, args.epochs)
accelerator.on_main_process(rosa.save_adapter)(accelerator.unwrap_model(model), args.out)
