"""Next-token loss. The output head is computed at labelled positions only, some hundred at a time."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rosa.fused import compute_dtype, full_precision
from utils.log import log
from utils.models.attention import additive_mask, causal_attention
from utils.models.compilation import compile_blocks
from utils.models.frozen_blocks import FrozenBlocks
from utils.models.modes import evaluation_mode
from utils.models.sharing_trial import why_not_shared
from utils.tokens.batches import Batch, Collator
from utils.tokens.encoding import Encoded
from utils.tokens.shared_prompts import Layout, sharing_pays

CHUNK_LOGITS = 2**25  # logits in memory at a time: 128 MiB in float32, 667 positions of GPT-2's vocabulary
CACHED_LOGITS = 2**18  # of those that a CPU's softmax reads at a time: 1 MiB in float32


ChunkLoss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def cross_entropy_and_softmax(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy (N,) in float32 and softmax (N, V) in the logits' type, of logits (N, V) and labels (N,).

    On a CPU it takes a few rows at a time, so that their float32 values stay in the cache, and overwrites ``logits``.
    """
    if logits.device.type != "cpu" or torch.compiler.is_compiling():
        return _cross_entropy_and_softmax(logits, labels)
    losses, rows = torch.empty(len(labels)), max(1, CACHED_LOGITS // logits.shape[1])
    for start in range(0, len(labels), rows):
        part = slice(start, start + rows)
        losses[part], softmax = _cross_entropy_and_softmax(logits[part], labels[part])
        logits[part] = softmax
    return losses, logits


def _cross_entropy_and_softmax(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    log_probabilities = F.log_softmax(logits, 1, dtype=torch.float32)
    losses = -log_probabilities.gather(1, labels[:, None]).squeeze(1)
    return losses, log_probabilities.exp_().to(logits.dtype)


class KeptCast:
    """The cast of a frozen weight, kept between calls on a CPU, where casting takes as long as products of few rows."""

    def __init__(self) -> None:
        self.values: Tensor | None = None
        self.source: tuple[Any, ...] = ()
        self.weight: Tensor | None = None  # kept, so that no other weight can come to lie at its address

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """``weight`` in ``dtype``: kept values if it is frozen and unwritten since (writes to .data are not seen)."""
        if weight.requires_grad or weight.device.type != "cpu" or weight.dtype == dtype or weight.is_inference():
            return weight.to(dtype)
        source = weight.data_ptr(), weight._version, dtype
        if self.values is None or self.source != source:
            self.values, self.source, self.weight = weight.to(dtype), source, weight
        return self.values


class _HeadLoss(torch.autograd.Function):
    """Cross entropy of a linear head, chunk by chunk. The forward pass computes the gradient of each chunk too.

    d loss / d logits = softmax(logits) − onehot(label), so that logits are neither kept nor computed twice.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        grad: bool,
        chunk_loss: ChunkLoss,
        cast: KeptCast,
    ) -> tuple[Tensor, Tensor]:
        dtype = compute_dtype(hidden)
        hidden, w, b = hidden.to(dtype), cast(weight, dtype), None if bias is None else bias.to(dtype)
        needs = [grad and needed for needed in ctx.needs_input_grad[:3]]
        losses = torch.empty(len(labels), device=hidden.device)
        grads = (
            torch.empty_like(hidden) if needs[0] else None,
            torch.zeros_like(weight, dtype=torch.float32) if needs[1] else None,  # chunks add up in full precision
            torch.zeros_like(bias, dtype=torch.float32) if bias is not None and needs[2] else None,
        )
        rows = max(1, CHUNK_LOGITS // len(weight))
        with full_precision(hidden.device):
            for start in range(0, len(labels), rows):
                part = slice(start, start + rows)
                losses[part], grad_logits = chunk_loss(F.linear(hidden[part], w, b), labels[part])
                if any(needs):
                    wanted = torch.arange(len(grad_logits), device=labels.device), labels[part]
                    grad_logits[wanted] = torch.expm1(-losses[part]).to(dtype)
                if grads[0] is not None:
                    torch.mm(grad_logits, w, out=grads[0][part])
                if grads[1] is not None:
                    grads[1].add_(grad_logits.T @ hidden[part])
                if grads[2] is not None:
                    grads[2].add_(grad_logits.sum(0, dtype=torch.float32))
        ctx.save_for_backward(*grads)
        ctx.mark_non_differentiable(losses)
        return losses.sum(), losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_output: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return (
            *(None if grad_logits is None else grad_logits * grad_output for grad_logits in ctx.saved_tensors),
            None,
            None,
            None,
            None,
        )


def head_loss(
    head: Any, hidden: Tensor, labels: Tensor, chunk_loss: ChunkLoss, cast: KeptCast
) -> tuple[Tensor, Tensor]:
    """The sum and the values (N,) of the cross entropy of ``labels`` (N,), from the last hidden states (N, d).

    Both are in nats and float32. Only the sum carries gradients. The logits (N, V) never exist as a whole, neither here
    nor in the backward pass.

    Args:
        head: the model's output embeddings. A plain Linear computes its gradients in the forward pass. Any other head
            (an adapted one) is computed again in the backward pass.
        chunk_loss: ``cross_entropy_and_softmax``, compiled or not.
        cast: keeps the weight of a plain Linear in autocast's dtype for the next call.
    """
    if type(head) is nn.Linear:
        return _HeadLoss.apply(hidden, head.weight, head.bias, labels, torch.is_grad_enabled(), chunk_loss, cast)

    def chunk(part: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(head(part).float(), wanted, reduction="none")

    rows = max(1, CHUNK_LOGITS // head.out_features)
    parts = zip(hidden.split(rows), labels.split(rows), strict=True)
    losses = torch.cat([checkpoint(chunk, part, wanted, use_reentrant=False) for part, wanted in parts])
    return losses.sum(), losses.detach()


class TokenLoss(nn.Module):
    """Cross entropy in nats of the labelled positions of a causal language model.

    Logits take most of the memory and much of the time. Here they are computed for labelled positions only, and for a
    chunk of those at a time. ``try_head_only`` finds models whose head is more than a linear map of the last hidden
    state (scaled or capped logits). Their logits are computed at every position.

    Attributes:
        head_only: whether the head alone gives the model's logits, as a trial showed.
        shares_prompts: whether samples with one prompt may share a row, as a trial showed.
        frozen: keeps the outputs of the blocks before the first trained one; None: they are computed each time.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.head_only = True
        self.shares_prompts = False
        self.frozen: FrozenBlocks | None = None
        self.chunk_loss: ChunkLoss = cross_entropy_and_softmax
        self.cast = KeptCast()

    def forward(
        self, input_ids: Tensor, positions: Tensor, labels: Tensor, layout: Layout | None = None
    ) -> tuple[Tensor, Tensor]:
        """The summed loss, with gradients, and the loss of each position (N,), without; float32.

        Args:
            input_ids: (B, T), padded on the right.
            positions: (N,), indices into the flattened B · T axis.
            labels: (N,), token ids.
            layout: which tokens see which; None: each sees all before it.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        attention: AbstractContextManager[None] = nullcontext()
        frozen: AbstractContextManager[None] = nullcontext()
        if layout is None:
            attention = causal_attention(self.model, input_ids.shape[1])
            frozen = frozen if self.frozen is None else self.frozen.reused(input_ids, positions)
        else:
            mask = additive_mask(layout.sees(), self.model.dtype)
            inputs |= {"attention_mask": mask, "position_ids": layout.position_ids}
        with attention, frozen:
            if self.head_only:
                hidden = self.model.base_model(**inputs).last_hidden_state
                head = self.model.get_output_embeddings()
                return head_loss(head, _rows(hidden, positions), labels, self.chunk_loss, self.cast)
            logits = self.model(**inputs).logits
        losses = F.cross_entropy(_rows(logits, positions).float(), labels, reduction="none")
        return losses.sum(), losses.detach()

    def compile(self) -> TokenLoss:  # type: ignore[override]
        """Compile the model's blocks and the loss of a chunk. Returns itself."""
        compile_blocks(self.model)
        self.chunk_loss = torch.compile(cross_entropy_and_softmax, dynamic=True)
        return self

    def choose_fast_paths(self, encoded: Encoded, pad_id: int) -> TokenLoss:
        """Set ``head_only`` and, if ``encoded`` makes sharing pay, ``shares_prompts``, by trials. Returns itself."""
        if not self.try_head_only(Collator(pad_id, "all", self.model.device)(encoded, range(min(2, len(encoded))))):
            log.info("this model's head is not a plain linear map: logits are computed at every position")
        if sharing_pays(encoded):
            why = why_not_shared(self, max(encoded.lengths))
            self.shares_prompts = why is None
            if why:
                log.info("losses are computed without sharing prompts, which takes longer: %s", why)
        return self

    def shares(self, encoded: Encoded) -> bool:
        """Whether samples of ``encoded`` with one prompt share a row."""
        return self.shares_prompts and sharing_pays(encoded)

    @torch.no_grad()
    def try_head_only(self, batch: Batch) -> bool:
        """Set ``head_only`` and return it: whether the head alone gives the losses of ``batch`` as the model does."""
        self.head_only = False
        if _caps_logits(self.model.config):
            return False  # the logits of a trial may be too small to show it
        with evaluation_mode(self.model):
            _, plain = self(batch.input_ids, batch.positions, batch.labels)
            self.head_only = True
            try:
                _, fast = self(batch.input_ids, batch.positions, batch.labels)
                self.head_only = torch.allclose(plain, fast, rtol=1e-3, atol=1e-3)
            except (AttributeError, TypeError):  # a model without a bare trunk or output embeddings
                self.head_only = False
        return self.head_only


def _caps_logits(config: Any) -> bool:
    """Whether a model's configuration limits its logits (Gemma 2: final_logit_softcapping)."""
    values = config.get_text_config(decoder=True).to_dict()
    return any(value for key, value in values.items() if re.fullmatch("(final_|output_)?logits?_.*cap(ping)?", key))


def _rows(values: Tensor, positions: Tensor) -> Tensor:
    """The rows of ``values`` (B, T, d) at ``positions``, indices into the flattened B · T axis: (N, d)."""
    return values.flatten(0, 1).index_select(0, positions)


def unwrapped(token_loss: nn.Module) -> TokenLoss:
    """``token_loss`` itself, without the wrapper of DistributedDataParallel."""
    return cast(TokenLoss, getattr(token_loss, "module", token_loss))
