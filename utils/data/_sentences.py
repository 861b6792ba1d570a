"""A small sentence planner: facts with several wordings each become one to four English sentences.

A text states every given fact exactly once. The order of the facts, which of them share a sentence, the grammatical
role of each and its wording are random.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Fact:
    """One fact and its wordings, by grammatical role. Only ``clauses`` must not be empty.

    Attributes:
        clauses: verb phrases, third person singular: "serves French food".
        before: words before the noun: "riverside".
        after: phrases after the noun, true of it without a verb: "near the bridge".
        fronts: phrases that open a sentence, without the comma: "Near the bridge".
        order: position among the words before the noun; the highest is next to the noun.
        mood: 1 praise, -1 blame, 0 neither; praise and blame in one sentence are joined by "but".
    """

    clauses: Sequence[str]
    before: Sequence[str] = ()
    after: Sequence[str] = ()
    fronts: Sequence[str] = ()
    order: int = 0
    mood: int = 0

    def fill(self, value: str) -> Fact:
        """The same fact with ``{v}`` replaced by ``value`` in all its wordings."""

        def filled(wordings: Sequence[str]) -> tuple[str, ...]:
            return tuple(wording.replace("{v}", value) for wording in wordings)

        return replace(
            self,
            clauses=filled(self.clauses),
            before=filled(self.before),
            after=filled(self.after),
            fronts=filled(self.fronts),
        )


@dataclass(frozen=True)
class Subject:
    """What the text is about.

    Attributes:
        name: its name, as the text writes it.
        nouns: words for its kind: "pub".
        vague: the nouns mean little ("place"), so that the text does not say "X is a place".
        pronoun: "It", "She" or "He".
        relative: "that" or "who".
        advice: imperatives that take the name: "Try", "Go to".
    """

    name: str
    nouns: Sequence[str]
    vague: bool = False
    pronoun: str = "It"
    relative: str = "that"
    advice: Sequence[str] = ("Try",)


def article(phrase: str) -> str:
    """``phrase`` after "a" or "an"."""
    vowel = re.match(r"(?!uni|use|one\b|one-|euro)([aeiou]|hour|hono|8|11\b|18\b)", phrase.lower())
    return f"{'an' if vowel else 'a'} {phrase}"


def capital(text: str) -> str:
    """``text`` with its first letter in upper case and the rest untouched."""
    return text[:1].upper() + text[1:]


def join(items: Sequence[str]) -> str:
    """``items`` as an English list: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def describe(subject: Subject, facts: Sequence[Fact], rng: random.Random) -> str:
    """One text about ``subject`` that states each of ``facts`` once; ``rng`` makes all choices."""
    left = list(facts)
    rng.shuffle(left)
    noun = rng.choice(subject.nouns)
    front = _take(left, "fronts", int(rng.random() < 0.25))
    before = sorted(_take(left, "before", rng.choice((0, 1, 1, 2, 2))), key=lambda fact: fact.order)
    after = _take(left, "after", rng.choice((0, 1, 1, 2)))
    head = _before_noun(before, noun, rng)
    tail = [rng.choice(fact.after) for fact in after]
    tail.sort(key=lambda phrase: phrase.startswith(("with ", "that ", "for ")))  # places first
    sentences = []
    lead = f"{rng.choice(front[0].fronts)}, " if front else ""
    if subject.vague and not before and not after:
        if left:
            sentences.append(f"{lead}{subject.name} {_clauses(_take_some(left, rng), rng)}")
        else:
            sentences.append(f"{lead}{article(noun)} called {subject.name} can be found")
    else:
        sentences.append(lead + _opening(subject, head, tail, left, bool(front), rng))
    references = [subject.pronoun, subject.pronoun, f"the {noun}", f"this {noun}", subject.name]
    while left:
        unused = [reference for reference in references if not sentences[-1].startswith(reference)]
        reference = rng.choice(unused)
        sentences.append(f"{reference} {_clauses(_take_some(left, rng), rng, also=rng.random() < 0.15)}")
    return " ".join(capital(sentence) + "." for sentence in sentences)


def _opening(subject: Subject, head: str, tail: list[str], left: list[Fact], fronted: bool, rng: random.Random) -> str:
    """The sentence that names the subject and its kind. It may remove some facts from ``left``."""
    phrase = " ".join([head, *tail])
    forms = ["is", "is", "there"]
    if left:
        forms += ["inset", "relative", "relative"]
    if not fronted:  # "Near the bridge, a pub, X ..." would name the wrong thing
        forms += ["wish", "advice"]
        if left:
            forms += ["apposition", "apposition", "late", "late"]
    form = rng.choice(forms)
    name = subject.name
    if form == "there":
        verb = rng.choice(("There is", "There's", "You can find", "We know"))
        verb = verb if not fronted else verb[0].lower() + verb[1:]
        called = rng.choice(("called", "named", "by the name of"))
        return " ".join([verb, article(head), called, name, *tail])
    if form == "inset":
        return f"{name}, {article(phrase)}, {_clauses(_take_some(left, rng), rng)}"
    if form == "relative":
        return f"{name} is {article(phrase)} {subject.relative} {_clauses(_take_some(left, rng), rng)}"
    if form == "apposition":
        return f"{article(phrase)}, {name} {_clauses(_take_some(left, rng), rng)}"
    if form == "wish":
        wish = rng.choice(("If you want", "If you are looking for", "For anyone who wants", "When you need"))
        return f"{wish} {article(phrase)}, {rng.choice(subject.advice).lower()} {name}"
    if form == "advice":
        return f"{rng.choice(subject.advice)} {name}, {article(phrase)}"
    if form == "late":
        first = f"{name} {_clauses(_take_some(left, rng), rng)}"
        return f"{first}. {subject.pronoun} is {article(phrase)}"
    return f"{name} is {article(phrase)}"


def _take(facts: list[Fact], role: str, count: int) -> list[Fact]:
    """Remove and return the first ``count`` facts that have a wording for ``role``."""
    taken = [fact for fact in facts if getattr(fact, role)][:count]
    for fact in taken:
        facts.remove(fact)
    return taken


def _take_some(facts: list[Fact], rng: random.Random) -> list[Fact]:
    """Remove and return one to three facts from the front of ``facts``."""
    count = min(len(facts), rng.choice((1, 2, 2, 3)))
    taken, facts[:] = facts[:count], facts[count:]
    return taken


def _before_noun(facts: Sequence[Fact], noun: str, rng: random.Random) -> str:
    words = [rng.choice(fact.before) for fact in facts]
    opinions = len(facts) == 2 and facts[0].order == facts[1].order == 0  # two opinions are separated by a comma
    return f"{', '.join(words) if opinions else ' '.join(words)} {noun}".strip()


def _clauses(facts: Sequence[Fact], rng: random.Random, also: bool = False) -> str:
    """Join verb phrases; a repeated verb may be left out ("is cheap and near the bridge")."""
    moods = [fact.mood for fact in facts]
    facts = sorted(facts, key=lambda fact: fact.mood == -moods[0] != 0)  # praise and blame are not interleaved
    phrases = [rng.choice(fact.clauses) for fact in facts]
    opposed = len(facts) > 1 and facts[0].mood * facts[-1].mood == -1
    parts = list(phrases)
    if not opposed and rng.random() < 0.6:
        for verb in ("is ", "has "):
            if all(phrase.startswith(verb) for phrase in phrases):
                parts = [phrases[0], *(phrase[len(verb) :] for phrase in phrases[1:])]
    if also:
        parts[0] = re.sub(r"^(is |will |)", r"\1also ", parts[0])
    if opposed:
        return f"{join(parts[:-1])} but {parts[-1]}"
    return join(parts)
