"""The two tokenizers of the official E2E scorer.

``mteval.py`` is that of BLEU and NIST. ``ptb.py`` is that of METEOR, ROUGE_L and CIDEr, with its patterns in
``ptb_rules.py`` and its word lists in ``ptb_words.py``.
"""
