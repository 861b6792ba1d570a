"""ROSA under transformers' Trainer: a callback resamples. Evaluation, saving and resuming work as ever."""

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.data import DataCollatorForLanguageModeling

import rosa
from rosa.integrations.trainer import ResampleCallback

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=HERE.parent / "assets/tiny-gpt2", help="a hub name or a folder")
parser.add_argument("--texts", default=HERE / "texts.txt", type=Path, help="one text per line")
parser.add_argument("--epochs", default=3, type=int)
parser.add_argument("--out", default="adapter", help="the folder for checkpoints and the adapter")
args = parser.parse_args()

tokenizer = AutoTokenizer.from_pretrained(args.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
rows = [tokenizer(text) for text in args.texts.read_text(encoding="utf-8").splitlines()]

model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
rosa.inject(model, rosa.RosaConfig(rank=8))
optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=1e-2)
settings = TrainingArguments(args.out, num_train_epochs=args.epochs, logging_strategy="epoch", report_to=[])
Trainer(
    model,
    settings,
    train_dataset=rows,
    data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
    optimizers=(optimizer, None),
    callbacks=[ResampleCallback()],
).train()
rosa.save_adapter(model, args.out)
