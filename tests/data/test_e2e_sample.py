"""The bundled data set of restaurants and the bundled tiny base model.

``read`` recovers the meaning representation from a text, by English phrases and without the grammar.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from utils.data import SPLITS, Example, get_source
from utils.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = REPOSITORY / "assets" / "tiny-gpt2"

ATTRIBUTES = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
VALUES = {
    "eatType": {"pub", "coffee shop", "restaurant"},
    "food": {"Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"},
    "priceRange": {"cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"},
    "customer rating": {"low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"},
    "area": {"city centre", "riverside"},
    "familyFriendly": {"yes", "no"},
}
# Every phrase that states a value, searched in lower-cased text without names.
CUES = {
    ("eatType", "pub"): r"\bpub\b",
    ("eatType", "coffee shop"): r"\bcoffee shop\b",
    ("eatType", "restaurant"): r"\brestaurant\b",
    **{("food", food): rf"\b{food.lower()}\b" for food in sorted(VALUES["food"])},
    ("priceRange", "cheap"): r"\bcheap\b|inexpensive|low-cost|low prices|wallet|prices low",
    ("priceRange", "moderate"): r"moderately priced|moderate prices|mid-priced|mid-range",
    ("priceRange", "high"): r"\bexpensive|high prices|high-priced",
    ("priceRange", "less than £20"): r"(less than|below|under) £20",
    ("priceRange", "£20-25"): r"£20-25|£20 (and|to) £25",
    ("priceRange", "more than £30"): r"(more than|over|above) £30",
    ("customer rating", "low"): r"low customer rating|poorly rated|low-rated|bad reviews",
    ("customer rating", "average"): r"average (customer )?rating|rated average|average-rated|middling reviews",
    ("customer rating", "high"): r"high customer rating|highly rated|well-reviewed|excellent reviews",
    ("customer rating", "1 out of 5"): r"\b1 out of 5|\b(one|1)[ -]star",
    ("customer rating", "3 out of 5"): r"\b3 out of 5|\b(three|3)[ -]star",
    ("customer rating", "5 out of 5"): r"\b5 out of 5|\b(five|5)[ -]star",
    ("area", "city centre"): r"city centre|heart of the city|centre of the city",
    ("area", "riverside"): r"\briver(side)?\b",
    ("familyFriendly", "yes"): r"(?<!not )(family|child|kid)-friendly|welcomes families|good for children"
    r"|choice for a family|whole family",
    ("familyFriendly", "no"): r"not family-friendly|not welcome children|no place for kids"
    r"|not suitable for families|adults[ -]only",
}
NEARNESS = (
    r"(?:[Nn]ear|[Cc]lose to|[Nn]ext to|[Nn]ot far from|[Bb]eside|walk from|corner from|steps from|[Rr]ight by) {0}"
    r"|{0} as its neighbour"
)


@pytest.fixture(scope="module")
def data() -> dict[str, list[Example]]:
    source = get_source("e2e_sample")
    return {split: source.load(split, None, None) for split in SPLITS}


def parse(mr: str) -> dict[str, str]:
    return dict(re.fullmatch(r"([\w ]+)\[([^\[\]]+)\]", part).groups() for part in mr.split(", "))


def read(text: str, slots: dict[str, str]) -> tuple[set[tuple[str, str]], dict[str, int]]:
    """The slots that ``text`` states besides names, and how often it states each attribute."""
    for name in sorted((slots["name"], slots.get("near", "")), key=len, reverse=True):
        text = text.replace(name, "NAME") if name else text
    stated: set[tuple[str, str]] = set()
    times: dict[str, int] = dict.fromkeys(VALUES, 0)
    for (attribute, value), cue in CUES.items():
        found = len(re.findall(cue, text.lower()))
        if found:
            stated.add((attribute, value))
            times[attribute] += found
    return stated, times


def test_sizes_and_layout(data):
    assert {split: len(examples) for split, examples in data.items()} == {
        "train": 2000,
        "validation": 240,
        "test": 240,
    }
    example = data["train"][0]
    assert example.prompt == f"Input: {example.source} Output:"
    assert example.target == f" {example.reference}"


def test_meaning_representations_follow_e2e(data):
    for examples in data.values():
        for mr in {example.source for example in examples}:
            slots = parse(mr)
            assert 3 <= len(slots) <= 8
            assert list(slots) == [attribute for attribute in ATTRIBUTES if attribute in slots]
            assert "name" in slots
            for attribute, value in slots.items():
                if attribute in VALUES:
                    assert value in VALUES[attribute], mr


def test_every_value_occurs_in_training_and_in_test(data):
    for split in ("train", "test"):
        used = {pair for example in data[split] for pair in parse(example.source).items()}
        assert {pair for pair in used if pair[0] in VALUES} == set(CUES)


def test_texts_state_the_meaning_representation_and_nothing_else(data):
    for examples in data.values():
        for example in examples:
            slots, text = parse(example.source), example.reference
            stated, times = read(text, slots)
            expected = {(key, value) for key, value in slots.items() if key in VALUES}
            assert stated == expected, f"{example.source}\n{text}"
            once = [attribute for attribute in VALUES if attribute in slots and attribute != "eatType"]
            assert all(times[attribute] == 1 for attribute in once), f"{example.source}\n{text}"
            assert slots["name"] in text
            if "near" in slots:
                assert len(re.findall(NEARNESS.format(re.escape(slots["near"])), text)) == 1, text


def test_reader_notices_a_wrong_a_missing_and_an_extra_fact():
    slots = parse("name[Nettle], eatType[pub], priceRange[cheap], familyFriendly[no]")
    facts = {("eatType", "pub"), ("priceRange", "cheap"), ("familyFriendly", "no")}
    assert read("Nettle is a cheap pub. It is not family-friendly.", slots)[0] == facts
    assert read("Nettle is a cheap pub. It is family-friendly.", slots)[0] != facts
    assert read("Nettle is a pub. It is not family-friendly.", slots)[0] != facts
    assert read("Nettle is a cheap riverside pub. It is not family-friendly.", slots)[0] != facts


def test_texts_are_clean_english(data):
    for examples in data.values():
        for text in (example.reference for example in examples):
            assert re.fullmatch(r"\S+( \S+)*[.]", text) and text[0].isupper(), text
            assert not re.search(r"[{}\[\]]|\.\.|,,| ,| \.|,\.", text), text
            assert not re.search(r"\b[Aa] (?!one-)[aeiouAEIO]|\b[Aa]n ([^aeiouAEIOU]|one-)", text), text
            assert not re.search(r"\b(\w+) \1\b", text), text
            for sentence in re.split(r"(?<=\.) ", text):
                assert sentence[0].isupper(), text


def test_references_of_one_item_are_contiguous_and_distinct(data):
    for examples in data.values():
        sources = [example.source for example in examples]
        starts = [source for source, last in zip(sources, [None, *sources], strict=False) if source != last]
        assert len(starts) == len(set(starts))
        for source in starts:
            texts = [example.reference for example in examples if example.source == source]
            assert len(texts) == len(set(texts)) == 4


def test_no_meaning_representation_in_two_splits(data):
    def meanings(split):
        return {frozenset(parse(example.source).items()) for example in data[split]}

    assert not meanings("train") & meanings("validation")
    assert not meanings("train") & meanings("test")
    assert not meanings("validation") & meanings("test")


def test_texts_vary(data):
    texts = [example.reference for example in data["train"]]
    delexicalised = set()
    for example in data["train"]:
        slots = parse(example.source)
        text = example.reference.replace(slots["name"], "NAME")
        delexicalised.add(text.replace(slots["near"], "NEAR") if "near" in slots else text)
    assert len(set(texts)) > 1950 and len(delexicalised) > 1800
    assert len({re.split(r"[ ,]", text)[0] for text in texts}) > 20


FINGERPRINT = """
import hashlib, sys
from utils.data.e2e_sample import E2ESample
assert "torch" not in sys.modules
lines = [f"{split}|{e.source}|{e.prompt}|{e.target}" for split in ("test", "train", "validation")
         for e in E2ESample().load(split, None, None)]
print(hashlib.sha256("\\n".join(lines).encode()).hexdigest())
"""


def test_the_data_is_the_same_on_every_machine_and_in_every_process(data):
    # The hash is pinned to notice a Python version with other random numbers. A change of the grammar changes it.
    expected = "c01eb7bb1dc89e133349429f52ca9a5c6fcf3496de2eed6a8ac74ff1e2cd40c5"
    lines = [f"{split}|{e.source}|{e.prompt}|{e.target}" for split in sorted(SPLITS) for e in data[split]]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected
    for hash_seed in ("0", "1", "12345"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(
            [sys.executable, "-c", FINGERPRINT], env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected


def test_callers_cannot_change_the_data(data):
    source = get_source("e2e_sample")
    source.load("test", None, None).clear()
    assert source.load("test", None, None) == data["test"]


def test_a_path_and_an_unknown_split_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"dataset\.path=.*e2e_sample.*reads no files"):
        get_source("e2e_sample").load("train", tmp_path, None)
    with pytest.raises(UserError, match="split 'dev' is not known"):
        get_source("e2e_sample").load("dev", None, None)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Tokenizer and model, loaded offline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(TINY)
        model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    return tokenizer, model


def test_model_folder_is_small_and_has_no_pickles():
    files = [file for file in TINY.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    assert {file.name for file in files} == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_model_is_a_gpt2_with_512_positions_and_an_eos_token(tiny):
    tokenizer, model = tiny
    assert model.config.model_type == "gpt2" and model.config.n_positions >= 512
    assert tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.is_fast and tokenizer.eos_token_id == model.config.eos_token_id == model.config.pad_token_id
    assert len(tokenizer) == model.config.vocab_size


def test_tokenizer_is_lossless_and_adds_nothing(tiny, data):
    tokenizer, _ = tiny
    texts = [example.target for example in data["test"]] + [" Œuvre, 東京  \t\n…", "Café £20-25", "a", ""]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
        assert tokenizer.eos_token_id not in ids
    assert tokenizer("pub")["input_ids"] != tokenizer(" pub")["input_ids"]


def test_every_example_fits_the_positions(tiny, data):
    tokenizer, model = tiny
    for examples in data.values():
        prompts = tokenizer([example.prompt for example in examples])["input_ids"]
        targets = tokenizer([example.target for example in examples])["input_ids"]
        assert max(len(p) + len(t) + 1 for p, t in zip(prompts, targets, strict=True)) < 256 < model.config.n_positions


def test_references_can_be_generated_under_the_published_decoding(tiny, data):
    # The published decoding forbids to repeat a 4-gram, also one of the prompt, such as a name of four tokens.
    tokenizer = tiny[0]
    for example in (example for examples in data.values() for example in examples):
        prompt, target = tokenizer([example.prompt, example.target])["input_ids"]
        seen = {tuple(prompt[i : i + 4]) for i in range(len(prompt) - 3)}
        assert not seen & {tuple(target[i : i + 4]) for i in range(len(target) - 3)}, example.target


def loss_in_bits(tiny, prompt: str, target: str) -> float:
    """Bits per character of ``target`` after ``prompt``."""
    import torch

    tokenizer, model = tiny
    before, after = tokenizer(prompt)["input_ids"], tokenizer(target)["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor([before + after])).logits[0, len(before) - 1 : -1]
    nats = torch.nn.functional.cross_entropy(logits, torch.tensor(after), reduction="sum").item()
    return nats / 0.6931471805599453 / len(target)


def test_base_writes_english_copies_names_and_does_not_know_restaurants(tiny, data):
    english = " It was released in 1984 and has good reviews."
    backwards = " " + english[::-1].strip()
    film = "Input: title[Vorgeam], year[1984] Output:"
    assert loss_in_bits(tiny, film, english) < 0.7 * loss_in_bits(tiny, film, backwards)
    name = " Vorgeam is a film"
    other = "Input: title[Brunchail], year[1984] Output:"
    assert loss_in_bits(tiny, film, name) < 0.8 * loss_in_bits(tiny, other, name)
    restaurants = [loss_in_bits(tiny, e.prompt, e.target) for e in data["validation"][::8]]
    hotel = " The Vorgeam is a hotel in Tailton. It has 45 rooms and allows pets."
    seen_domain = loss_in_bits(tiny, "Input: hotel[The Vorgeam], city[Tailton], rooms[45], pets[yes] Output:", hotel)
    assert seen_domain < 0.8 * sum(restaurants) / len(restaurants)
