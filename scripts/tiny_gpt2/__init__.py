"""How the bundled model, assets/tiny-gpt2, was made: ``build.py`` trains it on texts about anything but restaurants.

``corpus.py`` makes the documents, from the domains of ``domains.py`` and the words of ``values.py``.
"""
