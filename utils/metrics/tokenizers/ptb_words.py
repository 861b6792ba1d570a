"""Word lists of the PTB tokenizer, found by running the official tokenizer on 90,000 words in context."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


# A full stop after one of these words belongs to the word. A rule adds single letters.
TITLES = _words(
    "adj adm adv asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs ens ft gen gov govs hon jos "
    "lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt rep reps rev sen sens sfc "
    "sgt spc st ste supt treas vs wm"
)

# The same for these words, which may also end a sentence: companies, months, days, states.
ENDINGS = _words(
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb "
    "fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc "
    "pte pty rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)

# The same for these words if capitalised: "Wash." is a state, "wash." ends a sentence.
CAPITAL_ENDINGS = _words("Ark Az Del Ill La Mass Miss Ore Pa Tex Wash")

# These words keep the full stop only before a number.
NUMBERED = _words("art ca fig figs no nos op pp prop")

# One word that becomes two tokens, with the length of the first token.
JOINED = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}

# Before one of these words with a capital, a single letter with a full stop ends a sentence: "point b. The".
SENTENCE_STARTERS = _words(
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    "one other our she since so some such that the their then there these they this we what when while yet you mr. ms."
)

# A name that ends in a full stop and one of these is a file, even if it starts with a digit ("5.x").
FILE_ENDINGS = _words(
    "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql "
    "tar txt wav x xml zip"
)
