"""Our decoding gives the texts of transformers' ``generate``, and reads from the device only now and then."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from utils.generation.decoding import Decoding
from utils.generation.generate import generate, plain_generate, tree_generate
from utils.generation.tree import candidates, loop
from utils.generation.tree.support import why_not
from utils.models.loading import BUNDLED, load_model, load_tokenizer

VOCABULARY, PAD = 300, 0
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
COMMON = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": None}
MODELS = {  # what AutoConfig needs beyond COMMON
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "llama": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
    "mistral": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2, "sliding_window": 64},
    "qwen2": {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2},
    "opt": {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt_neox": {**SMALL, "intermediate_size": 48},
    "phi": {**SMALL, "intermediate_size": 48},
}
# beams, length penalty, n-gram size
SETTINGS = [(1, 1.0, 0), (1, 1.0, 2), (4, 0.8, 4), (4, -1.0, 0), (4, 1.0, 2), (10, 0.8, 4), (10, -0.5, 0), (3, 0.0, 1)]


def make(kind: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny random model; weights times four, for likelihoods as uneven as a trained one's."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **COMMON, **{**MODELS.get(kind, {}), **changes})
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    return model.eval()


def prompts(count: int, seed: int = 0, longest: int = 12) -> list[list[int]]:
    """Of unequal length; the first is one token, shorter than any n-gram."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [1, *torch.randint(2, longest + 1, (count - 1,), generator=generator).tolist()]
    return [torch.randint(2, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


def batch(rows: list[list[int]]) -> dict[str, Tensor]:
    """The rows padded on the left."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


@torch.no_grad()
def both(model: Any, rows: list[list[int]], decoding: Decoding, eos: int) -> tuple[list[list[int]], list[list[int]]]:
    """Our texts of the batch, and those of transformers one by one, all padded to the longest possible."""
    ours = tree_generate(model, batch(rows), decoding, eos, PAD).tolist()
    plain = [plain_generate(model, batch([row]), decoding, eos, PAD)[0].tolist() for row in rows]
    return ours, [text + [PAD] * (decoding.max_new_tokens - len(text)) for text in plain]


def ending(model: Any, token: int = 7, deviations: float = 2.0) -> int:
    """Make a token likelier by so many standard deviations of the logits: taken as eos, it ends texts early."""
    with torch.no_grad():
        deviation = float(model(input_ids=torch.arange(2, 40)[None]).logits.std())
    bias = torch.zeros(VOCABULARY)
    bias[token] = deviations * deviation
    model.get_output_embeddings().register_forward_hook(lambda module, args, output: output + bias)
    return token


@pytest.mark.parametrize("beams, penalty, ngram", SETTINGS)
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_texts_equal_those_of_transformers(kind: str, beams: int, penalty: float, ngram: int) -> None:
    decoding, rows = Decoding(beams, penalty, ngram, 20), prompts(5, seed=beams)
    model = make(kind, seed=beams + ngram)
    assert why_not(model, beams, ngram, 12, 20) is None
    eos = ending(model)
    ours, plain = both(model, rows, decoding, eos)
    assert ours == plain
    assert any(eos in text[:-1] for text in ours)  # some ended early


@pytest.mark.parametrize("kind", sorted(set(MODELS) - {"gpt2", "llama"}))
def test_other_models(kind: str) -> None:
    model = make(kind)
    assert why_not(model, 4, 4, 12, 16) is None
    ours, plain = both(model, prompts(3), Decoding(4, 0.8, 4, 16), VOCABULARY - 1)
    assert ours == plain


@pytest.mark.parametrize("ngram", [1, 2])
def test_padding_is_no_part_of_an_n_gram(ngram: int) -> None:
    """A model may say the token that prompts are padded with; in a batch as alone."""
    model = make("gpt2")
    ending(model, PAD, deviations=4.0)
    ours, plain = both(model, prompts(5), Decoding(4, 0.8, ngram, 12), VOCABULARY - 1)
    assert ours == plain and all(PAD in text for text in ours)


@pytest.mark.parametrize("new", [1, 2, 9])
def test_the_longest_output(new: int) -> None:
    for beams in (1, 4):
        ours, plain = both(make("gpt2"), prompts(3), Decoding(beams, 0.8, 4, new), VOCABULARY - 1)
        assert ours == plain and {len(text) for text in ours} == {new}


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_the_interval_between_reads_changes_nothing(steps: int, monkeypatch: Any) -> None:
    model, rows, decoding = make("gpt2"), prompts(6), Decoding(4, 0.8, 4, 24)
    eos = ending(model)
    with torch.no_grad():
        expected = tree_generate(model, batch(rows), decoding, eos, PAD).tolist()
        monkeypatch.setattr(loop, "STEPS", steps)
        assert tree_generate(model, batch(rows), decoding, eos, PAD).tolist() == expected


def test_eager_attention_gives_the_same() -> None:
    sdpa, eager = make("llama"), make("llama", attn_implementation="eager")
    rows, decoding = prompts(3), Decoding(4, 0.8, 4, 16)
    with torch.no_grad():
        texts = [tree_generate(model, batch(rows), decoding, VOCABULARY - 1, PAD).tolist() for model in (sdpa, eager)]
    assert eager.config._attn_implementation == "eager" and texts[0] == texts[1]


def test_items_that_are_done_are_computed_no_more(monkeypatch: Any) -> None:
    model, rows, decoding = make("gpt2"), prompts(8), Decoding(2, 0.8, 0, 60)
    eos = ending(model)
    shapes = []
    original = loop.Trees.step

    def recorded(trees: Any, tokens: Tensor) -> Tensor:
        shapes.append((len(tokens), trees.cache.span.capacity))
        return original(trees, tokens)

    monkeypatch.setattr(loop.Trees, "step", recorded)
    with torch.no_grad():
        texts = tree_generate(model, batch(rows), decoding, eos, PAD).tolist()
    ends = sorted(text.index(eos) + 1 if eos in text else 60 for text in texts)
    assert ends[0] < 20
    items = [count for count, _ in shapes]
    assert items == sorted(items, reverse=True) and items[0] == 8 > items[-1]
    # Live columns are a prompt, a text and the beams' last differences, not all that were ever computed.
    assert max(capacity for _, capacity in shapes) < 12 + 60 + 4 * loop.STEPS * 2


def test_only_one_function_reads_from_the_device(monkeypatch: Any) -> None:
    """Reading a fake tensor raises. With the one function that reads replaced, the loop runs on fake tensors."""
    with torch.no_grad(), FakeTensorMode():
        model = make("gpt2")
        inputs = {"input_ids": torch.zeros(5, 9, dtype=torch.long), "attention_mask": torch.ones(5, 9)}
        for beams in (1, 4):
            decoding = Decoding(beams, 0.8, 4, 30)
            with monkeypatch.context() as patch:
                reads = []

                def pretend(trees: Any, search: Any, reads: list[int] = reads) -> tuple[list[int], list[int]]:
                    reads.append(search.length)
                    count = len(search.open)
                    return [1] * (count - 1) + [0], [30] * count  # one item ends at each read

                patch.setattr(loop, "read_to_host", pretend)
                assert tree_generate(model, inputs, decoding, 1, PAD).shape == (5, 30)
            assert 2 <= len(reads) <= 30 // loop.STEPS
            with pytest.raises(DataDependentOutputException):  # the real function does read
                tree_generate(model, inputs, decoding, 1, PAD)


def test_autocast_converts_each_weight_once() -> None:
    model, tokenizer = load_model(str(BUNDLED["tiny"])), load_tokenizer(str(BUNDLED["tiny"]))
    model.requires_grad_(False)
    weights = {parameter.data_ptr() for parameter in model.parameters()}
    converted: Counter[int] = Counter()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in weights:
                converted[args[0].data_ptr()] += 1
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Watch():
        texts = generate(model, tokenizer, ["Input: name[A] Output:"], Decoding(num_beams=2, max_new_tokens=8), 1)
    assert texts[0] and set(converted.values()) == {1}
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    "kind, changes, reason",
    [
        ("mistral", {"sliding_window": 16}, "not over all tokens"),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "no mask and positions|may not take"),
        ("gpt2", {"vocab_size": 30}, "so small"),
    ],
)
def test_what_does_not_suit_is_left_to_transformers(kind: str, changes: dict[str, Any], reason: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(COMMON, "vocab_size", changes.pop("vocab_size", VOCABULARY))
        model = make(kind, **changes)
    assert re.search(reason, str(why_not(model, 4, 4, 12, 16)))


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_positions_or_masks_is_found_out(ignored: str, monkeypatch: Any) -> None:
    """Its signature promises both; only the trial can tell."""
    model = make("gpt2")
    original = model.transformer.forward
    monkeypatch.setattr(model.transformer, "forward", lambda *args, **options: original(**{**options, ignored: None}))
    assert re.search("in a trial|a trial ended", str(why_not(model, 4, 4, 12, 16)))


def test_the_trial_is_in_the_precision_of_the_weights(monkeypatch: Any) -> None:
    """In bfloat16 the logits of a trained model may differ by half of the largest one, by rounding alone."""
    model, asked = make("gpt2"), []
    original = model.transformer.forward

    def watched(*args: Any, **options: Any) -> Any:
        asked.append(torch.is_autocast_enabled("cpu"))
        return original(*args, **options)

    monkeypatch.setattr(model.transformer, "forward", watched)
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not(model, 4, 4, 12, 16) is None
    assert asked and not any(asked)


def test_transformers_serves_where_ours_cannot(monkeypatch: Any) -> None:
    model, tokenizer = load_model(str(BUNDLED["tiny"])), load_tokenizer(str(BUNDLED["tiny"]))
    decoding = Decoding(num_beams=3, max_new_tokens=12)
    texts = ["Input: name[A], food[French] Output:", "Input: name[B] Output:"]
    ours = generate(model, tokenizer, texts, decoding, 2)
    monkeypatch.setattr("utils.generation.tree.support.why_not", lambda *args: "a test")
    calls = []
    original = model.generate
    monkeypatch.setattr(model, "generate", lambda **options: calls.append(options["num_beams"]) or original(**options))
    assert generate(model, tokenizer, texts, decoding, 2) == ours and calls == [1, 1, 3]  # a trial, then the work


@pytest.mark.parametrize("kind", ["bart", "bloom"])
def test_texts_of_a_batch_are_those_of_single_prompts(kind: str, monkeypatch: Any) -> None:
    """A mask moves no positions in BART's decoder, which is generated for without padding."""
    bart = {"d_model": 32, **{f"{part}_layers": 2 for part in ("encoder", "decoder")}}
    own = {"bart": bart, "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4}}[kind]
    tokenizer, decoding = load_tokenizer(str(BUNDLED["tiny"])), Decoding(num_beams=2, max_new_tokens=8)
    monkeypatch.setitem(COMMON, "vocab_size", len(tokenizer))
    model = make(kind, **own)
    texts = ["a pub", "The pub near the river", "Here", "b pub"]
    batches, original = [], model.generate
    monkeypatch.setattr(model, "generate", lambda **options: batches.append(options) or original(**options))
    together = generate(model, tokenizer, texts, decoding, 4)
    assert sum(options["num_beams"] == 2 for options in batches) == {"bart": 3, "bloom": 1}[kind]
    assert together == [generate(model, tokenizer, [text], decoding, 1)[0] for text in texts]


def test_texts_keep_the_blanks_that_the_model_wrote(monkeypatch: Any) -> None:
    """Tokenizers of many older models would join "a , b" to "a, b", which is then no target of the data."""
    tokenizer, text = load_tokenizer(str(BUNDLED["tiny"])), "it 's a , b . c"
    tokenizer.clean_up_tokenization_spaces = True
    tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output = True
    monkeypatch.setattr("utils.generation.generate.generate_tokens", lambda *args: tokenizer([text])["input_ids"])
    assert generate(None, tokenizer, ["a"], Decoding(), 1) == [text]


def test_log_probabilities_in_chunks_and_blocks(monkeypatch: Any) -> None:
    torch.manual_seed(0)
    logits, banned = torch.randn(5, 3, 1000), torch.tensor([1, 7, 999, 10**6]).expand(5, 3, 4)
    expected = logits.log_softmax(-1)
    expected[..., [1, 7, 999]] = -torch.inf
    scores, tokens = expected.topk(6)
    for chunk in (1, 7000, 10**9):
        monkeypatch.setitem(candidates.CHUNK, "cpu", chunk)
        found = candidates.likeliest(logits.clone(), 6, banned)
        assert torch.equal(found[1], tokens) and torch.allclose(found[0], scores)


@pytest.mark.slow
@pytest.mark.parametrize("kind, seed", itertools.product(("gpt2", "llama"), range(4)))
def test_many_settings(kind: str, seed: int) -> None:
    model, rows = make(kind, seed), prompts(5, seed)
    eos = ending(model)
    for beams, penalty, ngram, new in itertools.product((1, 4, 10), (0.8, 1.0, -1.0), (0, 2, 4), (1, 24)):
        decoding = Decoding(beams, penalty, ngram, new)
        ours, plain = both(model, rows, decoding, eos)
        assert ours == plain, decoding
