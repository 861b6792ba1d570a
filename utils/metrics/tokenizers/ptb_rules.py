"""The patterns of the PTB tokenizer, written from its documentation and by comparison with its output.

Group 1 of a rule is the token, or the whole match if there is no group. The rest of the match is lookahead and is not
consumed. The longest match wins, lookahead included; of two with the same length, the first rule wins. Example:
in "don't", ``([A-Za-z]*[A-Za-z](?<!n))n't`` matches all five characters and gives the token "do"; "n't" is next.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from utils.metrics.tokenizers.ptb_words import (
    CAPITAL_ENDINGS,
    ENDINGS,
    FILE_ENDINGS,
    JOINED,
    NUMBERED,
    SENTENCE_STARTERS,
    TITLES,
)

Change = Callable[[str], list[str]]
Rule = tuple[re.Pattern[str], Change | None]

# Numerals that are neither digits nor letters; each is a token of its own.
NUMERAL = "²³¹⁰⁴-⁹₀-₉①-⒛⓪-⓿❶-➓⅐-ↈ¼-¾"
SOFT = "\u00ad\u0300-\u036f"  # soft hyphens and combining accents stay inside a word
ACCENTED = "&[aeiouAEIOU](?:acute|grave|uml);"  # the HTML entities that count as letters
ALPHA = rf"(?:[^\W\d_{NUMERAL}]|[{SOFT}]|{ACCENTED})"
ALNUM = rf"(?:[^\W_{NUMERAL}]|[{SOFT}]|{ACCENTED})"
BARE = rf"[^\W_{NUMERAL}]"  # ALNUM without SOFT and ACCENTED, for words with hyphens or an initial digit
ASCII = "[A-Za-z0-9]"
BLANK = "[ \\t\u00a0\u2000-\u200a\u3000]"
GAP = "[- \u00a0]"  # between the parts of one number
HYPHEN = "[-_\u058a\u2010\u2011]"
CURLY = "(?:[’\x92]|&apos;)"
APOS = "(?:['’\x92]|&apos;)"
END = "(?![A-Za-z])"
ANY_APOS = "(?:['’\x92`‘]|&apos;)"
# O'Neil, d'Artagnan, l'Eto, alone or as part of a hyphenated word.
PART = rf"(?:[dDlLoO]{ANY_APOS}{BARE})?{BARE}+"
COMPOUND = rf"{PART}(?:{HYPHEN}{PART})*"
SIMPLE = rf"{ALPHA}{ALNUM}*"
RUN_ON = rf"{SIMPLE}(?:[.!?]{SIMPLE})+"  # sentences without a blank between them: good.The
WORD = rf"(?:{COMPOUND}|{SIMPLE})"
# One word with an apostrophe inside: C'est; jusqu'au, you'all, Cote'Ouest (after a vowel); others.
INNER = (
    rf"(?:[A-HJ-XZn]{ANY_APOS}{ALPHA}{{2,}}|{ALPHA}+{ALPHA}(?<=[aeiouyAEIOUY]){ANY_APOS}[aeiouA-Z]{ALPHA}*"
    rf"|(?i:s{APOS}mores|e{APOS}er|li{APOS}l|nat{APOS}l|(?:dunk|someth)in{APOS}|cont'd\.|nor'easter|c'mon|ev'ry)"
    rf"|[oO]{ANY_APOS}[oO])"
)
# Twenty-something, 1,000-seat, U.S.-based, non-U.S.-U.K.
HYPHENED = r"[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(?:-(?:[A-Za-z](?:\.[A-Za-z])+\.|[A-Za-z0-9\u00ad]+))+"
BRACKETS = {"(": "LRB", ")": "RRB", "[": "LSB", "]": "RSB", "{": "LCB", "}": "RCB"}
FRACTIONS = {"¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
# Web addresses: the characters of a link, its last character, and the parts of a host name. A host name without "www."
# has no capitals or digits: the official character class excludes them by its range from "," to "_".
LINK = r"[^\s\"<>|(){}]|\u00a0"
LINK_END = r"[^\s\"<>|(){}.!?,-]"
LINK_TEXT = rf"(?:{LINK})+{LINK_END}"
WWW_PART = r"[^\s\"<>|.!?(){},]"
BARE_PART = r"[^\s\"`'<>|(){}!$,-_]"
EYE = "[-^x=~<>']"  # in ^_^
NAME = "[A-Za-z][A-Za-z0-9_:.-]*"  # of a tag or an attribute
ATTRIBUTE = rf"""{NAME}(?: *= *(?:"[^"\n]*"|'[^'\n]*'))?"""
TAIL = "(?:s|m|d|ll|re|ve)"


def _any(words: list[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))


def _capital(words: list[str]) -> str:
    return _any([word.title() for word in words] + [word.upper() for word in words])


def _rule(pattern: str, change: Change | None = None) -> Rule:
    return re.compile(pattern), change


def _caseless(pattern: str, change: Change | None = None) -> Rule:
    return re.compile(pattern, re.IGNORECASE), change


def _constant(token: str) -> Change:
    return lambda text: [token]


def _plain_apostrophe(text: str) -> list[str]:
    return [re.sub(CURLY, "'", text, flags=re.IGNORECASE).replace("‘", "`")]


def _plain_quotes(text: str) -> list[str]:
    for marks, plain in (("“«\x93", "``"), ("”»\x94", "''"), ("‘‛‹\x91", "`"), ("’›\x92", "'")):
        text = re.sub(f"[{marks}]", plain, text)
    return [text]


def _joined(text: str) -> list[str]:
    cut = JOINED[text.lower()]
    return [text[:cut], text[cut:]]


def _round_brackets(text: str) -> list[str]:
    return [text.replace("(", "-LRB-").replace(")", "-RRB-")]


def _one_token(text: str) -> list[str]:
    return [re.sub(BLANK, "\u00a0", _round_brackets(text)[0])]


WORDS: list[Rule] = [
    _caseless(rf"(?:{_any(list(JOINED))}){END}", _joined),
    # Contractions. This rule gives the word; a rule below gives the rest.
    _caseless(rf"({RUN_ON}|{SIMPLE}){APOS}{TAIL}"),
    _caseless(rf"([A-Za-z]*[A-Za-z](?<!n))n{ANY_APOS}t"),
    _caseless(rf"n{ANY_APOS}t{END}", _plain_apostrophe),
    _caseless(rf"'{TAIL}{END}|{CURLY}{TAIL}", _plain_apostrophe),
    _caseless("('t)(?:is|was)"),
    _caseless(rf"{APOS}(?:em|till?|cause|n{APOS}|n(?=\s|$)|\d0s)|{CURLY}n|{APOS}\d\d(?=\s|$)"),
    _rule(SIMPLE),
    _rule(COMPOUND),
    _caseless(rf"({BARE}+(?:{HYPHEN}{BARE}+)*){APOS}{TAIL}"),
    _rule(INNER),
    _caseless(rf"(?:ol|[dlj]){APOS}|y{APOS}(?={ALPHA})"),
]

FULL_STOPS: list[Rule] = [
    _rule(RUN_ON),
    _caseless(rf"((?:{_any(ENDINGS)}|ph\.d)\.)(?s:..)"),
    _rule(rf"((?:{_capital(CAPITAL_ENDINGS)})\.)(?s:..)"),
    _caseless(rf"(?:{_any(TITLES + ENDINGS)}|ph\.d|(?-i:[A-Za-z]))\."),
    _rule(rf"(?:{_capital(CAPITAL_ENDINGS)})\."),
    _rule(rf"({ALPHA})\.\s+(?:{_capital(SENTENCE_STARTERS)})(?=\s|$)"),
    _caseless(rf"((?:{_any(NUMBERED)})\.)(?:{BLANK}|\n)?\d"),
    _rule(rf"(?:{ALNUM}+-)*[A-Za-z](?:\.[A-Za-z])+\."),
    _rule(rf"({WORD}\.)[,;:]"),
    _rule(rf"({RUN_ON}(?:{HYPHEN}{ALNUM}+)*\.)[,;:]"),
]

NUMBERS: list[Rule] = [
    _rule(r"[-+]?\d+(?:[.,:\u00ad]\d+)*|[-+]?(?:[.,:\u00ad]\d+)+"),
    _caseless(rf"{BARE}+(?:\.{BARE}+)*\.(?:{_any(FILE_ENDINGS)})(?=[\s.,?!])"),
    _rule(HYPHENED),
    _rule(r"\d{1,2}[-/]\d{1,2}[-/]\d{2,4}"),
    _rule(rf"({HYPHENED}\.)[,;:]"),
    _rule(rf"(?:\d{{1,4}}{GAP})?\d{{1,4}}(?:\\?/|⁄)\d{{1,4}}", _one_token),
    # Telephone numbers and similar numbers: "20 100 1000".
    _rule(
        rf"(?:\(\d{{2,3}}\)[ \u00a0]?|(?:\+\+?)?(?:\d{{2,4}}{GAP})?\d{{2,4}}{GAP})\d{{3,4}}{GAP}?\d{{3,5}}", _one_token
    ),
    _rule(rf"{ASCII}+(?:-[A-Za-z]+){{0,2}}(?:\\?/{ASCII}+(?:-[A-Za-z]+){{0,2}}){{1,2}}"),
]

MARKS: list[Rule] = [
    _rule(rf"</?{NAME} *>|<{NAME}(?: +{ATTRIBUTE})* */?>|<[!?][A-Za-z-][^>\n]*>", _one_token),
    _caseless("&amp;", _constant("&")),
    _caseless("&lt;", _constant("<")),
    _caseless("&gt;", _constant(">")),
    _rule("&(?:quot|apos);", _constant("'")),
    _caseless("&(?:quot|apos);"),
    _caseless("&nbsp;", _constant("")),
    _caseless("&(?:[mn]dash|md);", _constant("--")),
    _rule(r"&#\d+;"),
    _rule(r"[A-Z]+(?:(?:&(?i:amp);|&|\+)[A-Z]+)+", lambda text: [re.sub("(?i)&amp;", "&", text)]),
    _rule(r"[A-Z]+\$"),
    _caseless(rf"https?://{LINK_TEXT}"),
    _rule(rf"(?:www\.(?:{WWW_PART}+\.)+[a-zA-Z]{{2,4}}|(?:{BARE_PART}+\.)+(?:com|net|org|edu))(?:/{LINK_TEXT})?"),
    _rule(r"(?:<|&lt;)?[A-Za-z0-9][^\s\"<>|(){}]*@[^\s\"<>|(){}.]+(?:\.[^\s\"<>|(){}.]+)*(?:>|&gt;)?"),
    _rule(rf"@[A-Za-z_][A-Za-z_0-9]*|#{ALPHA}+|[Cc]\+\+|[CcFf]#|#+"),
    _rule(rf"[<>]?[:;=]['o*-]?[][(){{DPpdO@|\\](?!{ASCII})", _round_brackets),
    _rule(rf"{EYE}_{EYE}|\({EYE}[_.]?{EYE}\)|\([\^x=~<>']-[\^x=~<>'`]\)", _round_brackets),
    _rule(r"[!?]+|\*+|_+|@{2,}|<<|>>|\\\*|-{5,}"),
    _rule("[⁺⁻₊₋]?(?:[⁰¹²³⁴-⁹]+|[₀-₉]+)"),
    _caseless("-[lr][rsc]b-"),
    *(_rule(f"\\{mark}", _constant(f"-{name}-")) for mark, name in BRACKETS.items()),
    _rule("[$€¤₠\x80]", _constant("$")),
    _rule("£", _constant("#")),
    _rule("¢", _constant("cents")),
    *(_rule(mark, _constant(name)) for mark, name in FRACTIONS.items()),
    _rule("-{2,4}|[–—―\x96\x97]", _constant("--")),
    _rule("\\.{3,5}|…", _constant("...")),
    # Plain quotation marks become "'", which is removed later. Two typographic marks become one token, which may stay.
    _rule("''|``|['\"`]", _constant("'")),
    _rule("[`‘-‟«»‹›\x91-\x94]{1,2}", _plain_quotes),
]

RULES: list[Rule] = [*WORDS, *FULL_STOPS, *NUMBERS, *MARKS]

# Blanks, and characters that the official tokenizer drops: format characters, private use, emoji.
DROPPED = re.compile(
    "[\\s\u00a0\u2160-\u2188\x00-\x1f\x7f\x81-\x90\x95\x98-\x9f\u2000-\u200f\u2010-\u2012\u2028-\u202f\u205f-\u206f"
    "\ue000-\uf8ff\ufe00-\ufe0f\ufeff\ufff0-\uffff\U00010000-\U0010ffff]+"
)

# A fast path for most words: letters before a blank, a comma or the full stop of a sentence, where no rule applies.
PLAIN = re.compile(r"[A-Za-z]+(?=,? )|[A-Za-z]{2,}(?=\. [A-Za-z])")
NOT_PLAIN = frozenset([*JOINED, *TITLES, *ENDINGS, *(word.lower() for word in CAPITAL_ENDINGS)])
