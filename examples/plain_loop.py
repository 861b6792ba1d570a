"""ROSA in a training loop of your own: the two lines with ``resampler`` are what it needs beyond LoRA."""

import argparse
from pathlib import Path

import torch
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
resampler = rosa.Resampler(model, optimizer, config)

for epoch in range(1, args.epochs + 1):
    for rows in torch.randperm(len(texts)).split(8):
        batch = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
    resampler.after_epoch(epoch, args.epochs)
rosa.save_adapter(model, args.out)
