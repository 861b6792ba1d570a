"""Batches: order, padding, and which positions and labels carry loss."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.tokens.batches import Collator, epoch_batches, micro_batches, padded
from utils.tokens.encoding import Encoded, Sample
from utils.tokens.shared_prompts import ROW_TOKENS, collate_rows, row_batches, row_tokens

PAD = 0
CPU = torch.device("cpu")


@st.composite
def splits(draw: st.DrawFn) -> Encoded:
    """Samples of different tokens (never the padding), with prompts from none to all but one token."""
    samples = []
    for number in range(draw(st.integers(1, 4))):
        size = draw(st.integers(2, 7))
        ids = list(range(10 * number + 1, 10 * number + 1 + size))
        samples.append(Sample(ids, draw(st.integers(0, size - 1)), 0, 0))
    return Encoded(samples, 0)


@given(splits())
def test_each_label_is_the_token_after_its_position(encoded: Encoded) -> None:
    batch = Collator(PAD, "all")(encoded, range(len(encoded)))
    assert batch.labels.tolist() == [token for sample in encoded.samples for token in sample.ids[1:]]
    assert (batch.input_ids.flatten()[batch.positions] + 1).tolist() == batch.labels.tolist()
    assert (batch.input_ids != PAD).sum(1).tolist() == [len(sample.ids) for sample in encoded.samples]


@given(splits())
def test_an_evaluation_batch_of_single_samples_marks_the_targets(encoded: Encoded) -> None:
    indices = range(len(encoded))
    batch, plain = collate_rows(encoded, [[index] for index in indices], PAD, CPU), Collator(PAD, "all")
    for name, expected in vars(plain(encoded, indices)).items():
        assert torch.equal(getattr(batch, name), expected)
    assert torch.equal(batch.labels[batch.weights[0] == 1], Collator(PAD, "target")(encoded, indices).labels)
    assert set(batch.weights[0].tolist()) <= {0, 1} and set(batch.weights[1].tolist()) == {1}
    assert batch.layout is None
    marked = int(batch.weights[0].sum())
    counted = sum(encoded.loss_tokens(i, "target") for i in indices if encoded.samples[i].prompt_length)
    assert marked == counted + sum(len(s.ids) - 1 for s in encoded.samples if not s.prompt_length)


def test_a_batch_of_no_samples_has_an_input_and_no_loss() -> None:
    """A process without a share of a batch makes this forward pass, so that sharded models meet in each."""
    for batch in (Collator(PAD, "all")(Encoded([], 0), []), collate_rows(Encoded([], 0), [], PAD, CPU)):
        assert batch.input_ids.tolist() == [[PAD]]
        assert len(batch.positions) == len(batch.labels) == 0


def test_batches_are_a_partition_of_little_padding() -> None:
    lengths = torch.randint(5, 120, (1003,), generator=torch.Generator().manual_seed(0)).tolist()
    sorted_batches = epoch_batches(lengths, 16, 50, seed=1, epoch=0)
    random_batches = epoch_batches(lengths, 16, 0, seed=1, epoch=0)

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)

    for batches in (sorted_batches, random_batches):
        assert sorted(i for batch in batches for i in batch) == list(range(1003))
        assert sorted(map(len, batches), reverse=True)[:-1] == [16] * 62
    assert padded(sorted_batches) < 1.1 * sum(lengths) < padded(random_batches)
    assert epoch_batches(lengths, 16, 50, 1, 0) == sorted_batches
    assert epoch_batches(lengths, 16, 50, 1, 1) != sorted_batches != epoch_batches(lengths, 16, 50, 2, 0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 5), st.integers(1, 200), st.data())
def test_micro_batches_divide_each_share_and_keep_the_limit(
    lengths: list[int], processes: int, limit: int, data: st.DataObject
) -> None:
    """In tokens or samples: every process has as many parts, and only a sample that is too long is alone above it."""
    batch = data.draw(st.permutations(range(len(lengths))))
    device = torch.device(data.draw(st.sampled_from(["cpu", "cuda"])))
    by_tokens = micro_batches(batch, lengths, processes, 1, limit, device)
    by_samples = micro_batches(batch, lengths, processes, limit, None, device)
    for divided in (by_tokens, by_samples):
        shares = [sorted(index for part in parts for index in part) for parts in divided]
        assert shares == [sorted(batch[process::processes]) for process in range(processes)]
        assert len({len(parts) for parts in divided}) == 1
        assert any(all(parts) for parts in divided)  # one process at least has samples in each pass
    for parts in by_tokens:
        widths = [padded(max(lengths[index] for index in part), device) for part in parts if part]
        for number, width in enumerate(widths):
            assert len(parts[number]) == 1 or len(parts[number]) * width <= limit
            assert number + 1 == len(widths) or (len(parts[number]) + 1) * width > limit  # it is full
    assert all(len(part) <= limit for parts in by_samples for part in parts)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 300)), max_size=30),
    st.integers(1, 9),
    st.none() | st.integers(1, 600),
)
def test_each_sample_is_in_one_row_of_its_prompt(
    pairs: list[tuple[int, int]], batch_size: int, tokens: int | None
) -> None:
    samples = [Sample([prompt] * prompt + [9] * size, prompt, 0, 0) for prompt, size in pairs]
    encoded = Encoded(samples, 0)
    batches = row_batches(encoded, batch_size, True, tokens)
    rows = [row for batch in batches for row in batch]
    assert sorted(index for row in rows for index in row) == list(range(len(samples)))
    for row in rows:
        assert len({samples[index].prompt_length for index in row}) == 1
        assert len(row) == 1 or (row_tokens(encoded, row) <= (tokens or ROW_TOKENS) and samples[row[0]].prompt_length)
        assert row_tokens(encoded, row) <= ROW_TOKENS
    sizes = [row_tokens(encoded, row) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    budget = tokens * len(samples) if tokens else batch_size * sum(len(sample.ids) for sample in samples)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * row_tokens(encoded, batch[0]) * len(samples) <= budget
