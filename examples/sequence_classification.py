"""Train a classifier with ROSA under PEFT, which also trains and saves the new head, load it again, and use it."""

import argparse
from pathlib import Path

import torch
from peft import AutoPeftModelForSequenceClassification, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rosa.integrations.peft import RosaConfig

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=HERE.parent / "assets/tiny-gpt2", help="a hub name or a folder")
parser.add_argument("--texts", default=HERE / "texts.txt", type=Path, help="one text per line")
parser.add_argument("--epochs", default=4, type=int)
parser.add_argument("--out", default="classifier", help="the folder for the adapter and the head")
args = parser.parse_args()

texts = args.texts.read_text(encoding="utf-8").splitlines()
labels = torch.tensor([int("station" in text) for text in texts])  # is the restaurant near the station?
tokenizer = AutoTokenizer.from_pretrained(args.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
batch = tokenizer(texts, padding=True, return_tensors="pt")
options = dict(num_labels=2, pad_token_id=tokenizer.pad_token_id, dtype=torch.float32)
model = AutoModelForSequenceClassification.from_pretrained(args.model, **options)
model = get_peft_model(model, RosaConfig(r=8, task_type="SEQ_CLS"))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0)
for epoch in range(1, args.epochs + 1):
    for _ in range(5):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.base_model.after_epoch(epoch, args.epochs, optimizer)
model.save_pretrained(args.out)
loaded = AutoPeftModelForSequenceClassification.from_pretrained(args.out, **options)
print("right:", (loaded(**batch).logits.argmax(-1) == labels).float().mean().item())
