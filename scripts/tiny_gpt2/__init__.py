"""How the bundled model, assets/tiny-gpt2, was made: ``build.py`` trains it on texts that never mention restaurants.

``corpus.py`` makes the documents from the domains in ``domains.py``, which have slots (``slots.py``) and values
(``values.py``).
"""
