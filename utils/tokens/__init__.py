"""From examples to batches.

``encoding.py`` tokenises pairs, ``packing.py`` packs documents into blocks, ``cache.py`` keeps both on disk,
``batches.py`` orders samples into batches and pads them, ``shared_prompts.py`` makes those of an evaluation, where
samples with one prompt lie in one row.
"""
