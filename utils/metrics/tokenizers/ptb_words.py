"""Word lists of the PTB tokenizer, found by asking the official tokenizer about 90,000 words in context."""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


# A full stop after one of these belongs to the word, in any case. Single letters are added by rule.
TITLES = _words(
    "adj adm adv asst atty attys ave brig capt cf cie cmdr col comdr cpl dept det dr drs ens ft gen gov govs hon jos "
    "lieut lt maj messrs mfg mlle mme mr mrs ms msgr mt mtg natl pfc ph pres prof profs pvt rep reps rev sen sens sfc "
    "sgt spc st ste supt treas vs wm"
)

# The same for these, which may also end a sentence: companies, months, days, states.
ENDINGS = _words(
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb "
    "fla fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc "
    "pte pty rd rt sep sept seq sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo"
)

# And for these with a capital only: "Wash." is a state, "wash." ends a sentence.
CAPITAL_ENDINGS = _words("Ark Az Del Ill La Mass Miss Ore Pa Tex Wash")

# These keep the full stop only where a number follows.
NUMBERED = _words("art ca fig figs no nos op pp prop")

# Written together, read as two words: the length of the first one.
JOINED = {"cannot": 3, "gonna": 3, "gotta": 3, "lemme": 3, "gimme": 3, "wanna": 3}

# Where one of these follows, a single letter with a full stop ended a sentence: "point b. The" against "b. the".
SENTENCE_STARTERS = _words(
    "a about according additionally after an as at but earlier he her here however if in it last many more now once "
    "one other our she since so some such that the their then there these they this we what when while yet you mr. ms."
)

# A name with a full stop and one of these is a file, even where it starts with a digit ("5.x").
FILE_ENDINGS = _words(
    "bat bmp c cgi class cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql "
    "tar txt wav x xml zip"
)
