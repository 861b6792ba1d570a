"""Regular expressions for E2E slot values in English texts, written from the challenge's training references.

A name may contain a word of another slot (Raja Indian Cuisine), so ``mentions`` removes names from a text first.
"""

from __future__ import annotations

import re

# Every value of "near" in the data. A text adds a slot if it names one that the meaning representation does not have.
PLACES = (
    "All Bar One", "Avalon", "Burger King", "Café Adriatic", "Café Brazil", "Café Rouge", "Café Sicilia",
    "Clare Hall", "Crowne Plaza Hotel", "Express by Holiday Inn", "Raja Indian Cuisine", "Rainbow Vegetarian Café",
    "Ranch", "The Bakers", "The Portland Arms", "The Rice Boat", "The Six Bells", "The Sorrento",
    "Yippee Noodle Bar",
)  # fmt: skip

# "restaurant" is also the general word for a place: not an added slot if the meaning representation has no eatType.
GENERIC = frozenset({("eatType", "restaurant")})

# Values with the same meaning: a cheap place costs less than £20. A text may use either.
SAME = {
    "cheap": "less than £20",
    "moderate": "£20-25",
    "high": "more than £30",
}
SAME_RATING = {"low": "1 out of 5", "average": "3 out of 5", "high": "5 out of 5"}

_GAP = r"[\w',-]*"
_BETWEEN = rf"(?:\s+(?!price|cost){_GAP}){{0,4}}?\s+"  # up to four words that are not about the price
_RATING = r"(?:rat(?:ed|es|ings?)|reviews?|reviewed|scores?|regarded|recommended|feedback|stars?)\b"
_LOW = (
    r"(?:low|lowly|lowest|poor|poorly|bad|badly|worst|negative|terrible"
    r"|not\s+(?:very\s+)?(?:well|good|highly|high|great))"
)
_AVERAGE = (
    r"(?:average|averagely|mediocre|moderate|moderately|medium|decent|decently|okay|ok|fair|fairly|mixed|middling)"
)
_HIGH = r"(?:high|highly|highest|higher|excellent|great|good|well|very\s+well|top|best|outstanding|superb|positive)"


def _rated(words: str) -> str:
    near = rf"{words}[\s-]+(?:customer[\s-]+|consumer[\s-]+|guest[\s-]+|overall[\s-]+)*{_RATING}"
    after = rf"(?:rat(?:ed|es|ings?)|reviews?|scores?)\b{_BETWEEN}{words}\b(?![\s-]+(?:price|cost|end))"
    return rf"\b{near}|\b(?:rat(?:ed|es|ings?)|reviews?|scores?)[\s:]+{words}\b(?![\s-]+(?:price|cost))|\b{after}"


def _out_of_five(number: str, word: str) -> str:
    count = rf"(?:{number}|{word})"
    return rf"\b{count}(?:\s*/\s*|\s+out\s+of\s+|\s+of\s+|\s+outta\s+)(?:5|five)\b|\b{count}(?:\s+|-)star(?:s|red)?\b"


def _compile(patterns: dict[str, str]) -> dict[str, re.Pattern[str]]:
    return {value: re.compile(pattern, re.IGNORECASE) for value, pattern in patterns.items()}


_CENTRE = r"cent(?:re|er)"
_MONEY = r"(?:£|gbp|pounds?|euros?|\$)?\s*"

PATTERNS: dict[str, dict[str, re.Pattern[str]]] = {
    "eatType": _compile(
        {
            "restaurant": r"\brestaurants?\b|\beatery\b|\beateries\b|\bdiner\b|\bdining\b|\bbistro\b",
            "pub": r"\bpubs?\b|\btavern\b|\bbars?\b|\binn\b",
            "coffee shop": r"\bcoffee\b|\bcaf[eé]s?\b",
        }
    ),
    "food": _compile(
        {
            "English": r"\benglish\b|\bbritish\b|\bfull breakfast\b|\bfish (?:and|&|'?n'?) chips\b",
            "French": r"\bfrench\b|\bfrance\b",
            "Indian": r"\bindian\b|\bcurr(?:y|ies)\b|\bindia\b",
            "Italian": r"\bitalian\b|\bpasta\b|\bpizzas?\b|\bitaly\b",
            "Japanese": r"\bjapanese\b|\bsushi\b|\bjapan\b",
            "Chinese": r"\bchinese\b|\bchina\b|\bnoodles?\b",
            "Fast food": r"\bfast[\s-]*foods?\b|\bburgers?\b|\bquick\b.{0,12}\bfood\b",
        }
    ),
    "priceRange": _compile(
        {
            "less than £20": (
                r"\b(?:less|lower|cheaper|no more|fewer)\s+(?:than|then)\s+" + _MONEY + r"20"
                r"|\b(?:under|below|up to|within|beneath|maximum of)\s+" + _MONEY + r"20"
                r"|£?\s*20\s+(?:or less|and under|or under|and below|maximum)"
                r"|\bcheap(?:ly|er|est)?\b|\binexpensive(?:ly)?\b|\baffordabl[ey]\b|\bbudget\b|\beconomical\b"
                r"|\blow(?:er|ly)?[\s-]*(?:cost|pric(?:e|es|ed|ing)|in price|on price)"
                r"|\bpric\w*(?:[\s-]+range)?\s+(?:is\s+|are\s+|that is\s+)?(?:quite\s+|very\s+)?low\b"
            ),
            "£20-25": (
                r"20\s*(?:-|–|—|to|and|through|or)\s*" + _MONEY + r"25"
                r"|\bmoderate(?:ly)?(?:[\s-]*(?:\w+\s)?pric\w*)?(?!\s+(?:customer|rat|review))\b"
                r"|\bmid(?:dle|dling|dle of the)?[\s-]*(?:range|pric\w*|level pric\w*)|\bmedium[\s-]*(?:pric\w*|range)"
                r"|\b(?:average|averagely|reasonabl[ey]|fair(?:ly)?|decent(?:ly)?|medium)[\s-]+(?:\w+\s)?pric\w*"
                r"|\bpric\w*(?:[\s-]+range)?\s+(?:is\s+|are\s+|of\s+)?(?:an?\s+)?(?:average|moderate|reasonable|fair|medium)"
            ),
            "more than £30": (
                r"\b(?:more|greater|higher|upwards?|starting|start|starts|at least|upward)\s+"
                r"(?:than|then|of|from|at)?\s*" + _MONEY + r"30"
                r"|\b(?:over|above|exceeds?|exceeding|beyond|from|least|minimum of|costs?|around)\s+" + _MONEY + r"30"
                r"|30\s*(?:pounds?\s*)?(?:or more|and up|and above|and over|or above|or over|plus|\+|upwards?)"
                r"|\bexpensive(?:ly)?\b|\bpric[e]?y\b|\bcostly\b|\bupscale\b|\bhigh[\s-]*end\b|\bupmarket\b"
                r"|\bhigh(?:er|ly)?[\s-]*(?:cost|(?:than\s+)?(?:average\s+)?pric(?:e|es|ed|ing|ey)|in price)"
                r"|\bpric\w*(?:[\s-]+range)?\s+(?:is\s+|are\s+|that is\s+)?(?:on the\s+|quite\s+|very\s+)?high"
            ),
        }
    ),
    "customer rating": _compile(
        {
            "1 out of 5": f"{_out_of_five('1', 'one')}|{_rated(_LOW)}",
            "3 out of 5": f"{_out_of_five('3', 'three')}|{_rated(_AVERAGE)}",
            "5 out of 5": f"{_out_of_five('5', 'five')}|{_rated(_HIGH)}",
        }
    ),
    "area": _compile(
        {
            "city centre": (
                rf"\b(?:city|town|downtown)['s]*[\s-]*{_CENTRE}|\b{_CENTRE}\s+of\s+(?:the\s+|a\s+)?(?:city|town|cambridge)"
                rf"|\bin\s+(?:the\s+)?{_CENTRE}\b|\bcentral(?:ly)?\b|\bcity\b|\bdowntown\b|\b{_CENTRE}\s+city\b"
            ),
            "riverside": r"\briver\w*|\bwaterfront\b|\bwaterside\b",
        }
    ),
}

FAMILY = re.compile(
    r"\bfamil(?:y|ies)\b|\bkids?\b|\bchild(?:ren)?s?\b|\bchildren's\b|\badults?\b|\ball ages\b|\byoungsters?\b",
    re.IGNORECASE,
)
NOT_FOR_FAMILIES = re.compile(
    r"\b(?:not|non|no|never|without|isn't|aren't|doesn't|don't|isnt|n't|un|lacks?|discourage[sd]?|prohibit\w*|nor|neither)"
    r"[\s-]+(?:[\w'-]+\s+){0,6}?(?:\w+-)?(?:famil|kid|child)"
    r"|\b(?:famil\w*|kids?|child\w*)(?:[\s-]+[\w'-]+){0,4}?[\s-]+(?:not|un\w+|isn't|aren't|non|unwelcome|prohibited)\b"
    r"|\b(?:famil\w*|kids?|child\w*)[\s-]*(?:un(?:friendly)?|free)\b"
    r"|\b(?:family|kids?|child\w*)[\s-]*(?:friendly)?\s*[:,-]\s*no\b"
    r"|\badults?\b(?!\s+and\s+(?:kids|child))",
    re.IGNORECASE,
)
