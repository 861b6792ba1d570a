"""Train an adapter with PEFT. lora_with_peft.py and rosa_with_peft.py differ in three lines."""

import argparse
from pathlib import Path

import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rosa.integrations.peft import RosaConfig

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=HERE.parent / "assets/tiny-gpt2", help="a hub name or a folder")
parser.add_argument("--texts", default=HERE / "texts.txt", type=Path, help="one text per line")
parser.add_argument("--epochs", default=3, type=int)
parser.add_argument("--out", default="adapter", help="the folder for the adapter")
args = parser.parse_args()

texts = args.texts.read_text(encoding="utf-8").splitlines()
tokenizer = AutoTokenizer.from_pretrained(args.model)
model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
model = peft.get_peft_model(model, RosaConfig(r=8, target_modules="all-linear"))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)

for epoch in range(1, args.epochs + 1):
    for text in texts:
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    print(f"epoch {epoch}: loss {loss.item():.3f}")
    model.base_model.after_epoch(epoch, args.epochs, optimizer)
model.save_pretrained(args.out)
