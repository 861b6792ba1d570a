"""Make the bundled base model: a byte-level BPE tokenizer and a small GPT-2, pretrained on generated text.

The text comes from ``scripts.tiny_gpt2.corpus``: data in many layouts with a description, about hotels, films,
cars and other domains, none of them restaurants. It teaches the model to write English and to copy values
from its input, so that fine-tuning it on another data-to-text task (E2E) is an adaptation of a base.

    python scripts/tiny_gpt2/build.py --out assets/tiny-gpt2

needs no network; the same seed, steps, machine and number of threads give the same weights. The folder is
built beside its place and renamed, so that an interrupted build leaves the old one.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Config, GPT2LMHeadModel, GPT2TokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a script, from any folder
from scripts.tiny_gpt2.corpus import Document, documents
from utils.errors import UserError, run_cli

END = "<|endoftext|>"
POSITIONS = 512  # longest prompt and text together, in tokens
HELD_OUT = 512  # documents for the reported loss, drawn from a seed of their own
INIT = 0.07  # standard deviation of initial weights: GPT-2's 0.02 learns slowly at this width
LIMIT = 4_000_000  # bytes of the folder


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("assets/tiny-gpt2"), help="folder to write")
    parser.add_argument("--seed", type=int, default=0, help="seed of text, initial weights and batches")
    parser.add_argument("--steps", type=int, default=4000, help="optimizer steps of pretraining")
    parser.add_argument("--batch-size", type=int, default=24, help="documents in an optimizer step")
    parser.add_argument("--lr", type=float, default=4e-3, help="peak learning rate (cosine, 5 %% warm-up)")
    parser.add_argument("--data-weight", type=float, default=0.3, help="loss weight of data tokens; text has 1")
    parser.add_argument("--vocabulary", type=int, default=2000, help="entries of the tokenizer")
    parser.add_argument("--width", type=int, default=96, help="size of a hidden state")
    parser.add_argument("--layers", type=int, default=3, help="transformer blocks")
    parser.add_argument("--heads", type=int, default=4, help="attention heads of a block")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args()


def train_tokenizer(seed: int, size: int) -> GPT2TokenizerFast:
    """A GPT-2 style tokenizer of ``size`` entries, learned from 20,000 documents; its end token also pads."""
    texts = (document.data + document.text for document in itertools.islice(documents(seed), 20_000))
    bpe = ByteLevelBPETokenizer(add_prefix_space=False)
    bpe.train_from_iterator(texts, vocab_size=size, min_frequency=2, special_tokens=[END], show_progress=False)
    return GPT2TokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        add_prefix_space=False,
        model_max_length=POSITIONS,
        padding_side="right",
    )


def make_batch(
    batch: list[Document], tokenizer: GPT2TokenizerFast, data_weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (batch, length) padded on the right and the loss weight of each token, same shape.

    Data and text are tokenised apart and joined, as in fine-tuning; the first token is not predicted.
    """
    rows, weights = [], []
    for document in batch:
        data = tokenizer(document.data)["input_ids"]
        text = [*tokenizer(document.text)["input_ids"], tokenizer.eos_token_id]
        rows.append((data + text)[:POSITIONS])
        weights.append(([data_weight] * len(data) + [1.0] * len(text))[:POSITIONS])
    length = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows])
    weight = torch.tensor([row + [0.0] * (length - len(row)) for row in weights])
    return ids, weight


def batches(stream: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """Batches of ``size`` documents of similar length: windows of 20 batches, sorted, in random order."""
    generator = torch.Generator().manual_seed(0)
    while True:
        window = sorted(itertools.islice(stream, 20 * size), key=lambda item: len(item.data) + len(item.text))
        for index in torch.randperm(20, generator=generator).tolist():
            yield window[index * size : (index + 1) * size]


def token_losses(model: GPT2LMHeadModel, ids: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """Cross-entropy in nats of each token but the first: (batch, length - 1). Positions start at ``offset``."""
    positions = torch.arange(offset, offset + ids.shape[1]).unsqueeze(0)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions).logits
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return losses.view(len(ids), -1)


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, tokenizer: GPT2TokenizerFast, seed: int) -> float:
    """Mean loss in nats per text token over documents that training does not see."""
    model.eval()
    stream = documents(seed + 1_000_003)
    total = count = 0.0
    for _ in range(HELD_OUT // 64):
        ids, weight = make_batch(list(itertools.islice(stream, 64)), tokenizer, data_weight=0.0)
        total += (token_losses(model, ids) * weight[:, 1:]).sum().item()
        count += weight[:, 1:].sum().item()
    model.train()
    return total / count


def pretrain(tokenizer: GPT2TokenizerFast, arguments: argparse.Namespace) -> tuple[GPT2LMHeadModel, float]:
    """The trained model (float32) and its held-out loss; prints the course of training."""
    torch.manual_seed(arguments.seed)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=POSITIONS,
        n_embd=arguments.width,
        n_layer=arguments.layers,
        n_head=arguments.heads,
        initializer_range=INIT,
        activation_function="gelu_pytorch_tanh",  # GPT-2's gelu_new in one kernel
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    config._attn_implementation = "eager"  # on a CPU faster than the fused kernel at these sizes
    model = GPT2LMHeadModel(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.01, betas=(0.9, 0.98))
    warmup = max(1, arguments.steps // 20)
    schedule = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, arguments.steps - warmup)),
        ],
        milestones=[warmup],
    )
    shift = torch.Generator().manual_seed(arguments.seed)
    stream = batches(documents(arguments.seed), arguments.batch_size)
    start = time.monotonic()
    for step, batch in enumerate(itertools.islice(stream, arguments.steps), 1):
        ids, weight = make_batch(batch, tokenizer, arguments.data_weight)
        # Half of the batches start somewhere later, so that every position up to the last one is trained.
        room = POSITIONS - ids.shape[1]
        offset = int(torch.randint(room + 1, (1,), generator=shift)) if step % 2 else 0
        loss = (token_losses(model, ids, offset) * weight[:, 1:]).sum() / weight[:, 1:].sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 200 == 0 or step == arguments.steps:
            held_out = held_out_loss(model, tokenizer, arguments.seed)
            print(f"step {step}: held-out loss {held_out:.4f}, {time.monotonic() - start:.0f} s", flush=True)
    return model.eval(), held_out


def write_card(folder: Path, model: GPT2LMHeadModel, loss: float, arguments: argparse.Namespace) -> None:
    settings = vars(arguments)
    options = " ".join(f"--{name.replace('_', '-')} {settings[name]}" for name in settings if name != "out")
    config = model.config
    (folder / "README.md").write_text(
        f"""# tiny-gpt2

The bundled base model (`model.name=tiny`): a GPT-2 with {config.n_layer} blocks, width {config.n_embd},
{config.n_head} heads, {config.n_positions} positions and a byte-level BPE vocabulary of {config.vocab_size} entries
({model.num_parameters():,} parameters, stored as bfloat16). It is meant for demonstrations and tests.

Made, without any outside data, by

    python scripts/tiny_gpt2/build.py --out assets/tiny-gpt2 {options}

on text generated by `scripts/tiny_gpt2/corpus.py` (data in several layouts, each with a description, about
thirteen domains; restaurants are not among them). Loss on {HELD_OUT} held-out documents, description tokens
only: {loss:.3f} nats per token.

Licence: that of this repository.
""",
        encoding="utf-8",
    )


def main() -> int:
    arguments = parse_arguments()
    if arguments.steps < 1 or arguments.batch_size < 1 or arguments.width % arguments.heads:
        raise UserError("--steps and --batch-size must be at least 1, and --width a multiple of --heads")
    out = arguments.out.resolve()
    if out.exists() and not (out / "config.json").exists() and any(out.iterdir()):
        raise UserError(f"--out {arguments.out} is a folder that holds something else than a model; name another")
    torch.set_num_threads(arguments.threads)
    out.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(arguments.seed, arguments.vocabulary)
    model, loss = pretrain(tokenizer, arguments)
    staging = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        model.to(torch.bfloat16).save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        write_card(staging, model, loss, arguments)
        size = sum(file.stat().st_size for file in staging.iterdir())
        if size > LIMIT:
            raise UserError(f"the folder would have {size:,} bytes, over {LIMIT:,}: choose a smaller model")
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)
        if out.exists():
            shutil.rmtree(out)
        staging.rename(out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    print(f"{arguments.out}: {size:,} bytes, held-out loss {loss:.4f}")
    return 0


if __name__ == "__main__":
    run_cli(main)
