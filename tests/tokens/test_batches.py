"""Batches: order, padding, and which positions and labels carry loss."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from utils.tokens.batches import Collator, epoch_batches, target_labels
from utils.tokens.encoding import Encoded, Sample

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
def test_target_labels_are_the_labels_of_a_batch_with_loss_on_targets(encoded: Encoded) -> None:
    indices = range(len(encoded))
    marked = Collator(PAD, "all")(encoded, indices).labels[target_labels(encoded, indices, CPU)]
    assert torch.equal(marked, Collator(PAD, "target")(encoded, indices).labels)
    counted = sum(encoded.loss_tokens(i, "target") for i in indices if encoded.samples[i].prompt_length)
    assert len(marked) == counted + sum(len(s.ids) - 1 for s in encoded.samples if not s.prompt_length)


def test_a_batch_of_no_samples_has_an_input_and_no_loss() -> None:
    """A process without a share of a batch makes this forward pass, so that sharded models meet in each."""
    batch = Collator(PAD, "all")(Encoded([], 0), [])
    assert batch.input_ids.tolist() == [[PAD]]
    assert len(batch.positions) == len(batch.labels) == len(target_labels(Encoded([], 0), [], CPU)) == 0


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
