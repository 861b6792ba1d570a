"""From examples to batches.

``encoding.py`` tokenises pairs, ``packing.py`` packs documents into blocks, ``cache.py`` keeps both on disk,
``batches.py`` orders samples into batches and pads them.
"""
