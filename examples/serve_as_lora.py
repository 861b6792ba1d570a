"""Train with ROSA, save what was learned as a LoRA adapter, and use it with PEFT alone, as a server would."""

import argparse
from pathlib import Path

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

import rosa
from rosa.integrations.peft import to_peft_lora

HERE = Path(__file__).parent
parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default=HERE.parent / "assets/tiny-gpt2", help="a hub name or a folder")
parser.add_argument("--texts", default=HERE / "texts.txt", type=Path, help="one text per line")
parser.add_argument("--steps", default=30, type=int)
parser.add_argument("--out", default="lora", help="the folder for the LoRA adapter")
args = parser.parse_args()

texts = args.texts.read_text(encoding="utf-8").splitlines()
tokenizer = AutoTokenizer.from_pretrained(args.model)
base, pretrained = (AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32) for _ in range(2))
config = rosa.RosaConfig(rank=4, level="step", every=20, bias="none")  # vLLM takes no biases
model = rosa.inject(base, config)
optimizer = torch.optim.AdamW(rosa.parameter_groups(model), lr=1e-2)
resampler = rosa.Resampler(model, optimizer, config)
for step in range(1, args.steps + 1):
    ids = tokenizer(texts[step % len(texts)], return_tensors="pt")["input_ids"]
    model(ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    resampler.after_step(step, args.steps)
written = to_peft_lora(model, pretrained, args.out)
print(f"rank {written.rank}, for vLLM --max-lora-rank {written.max_lora_rank}")
served = AutoPeftModelForCausalLM.from_pretrained(args.out)
print(tokenizer.decode(served.generate(**tokenizer("You find", return_tensors="pt"), max_new_tokens=12)[0]))
