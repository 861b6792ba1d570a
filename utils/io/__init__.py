"""Files: atomic writes, safe reads, locks and caches.

``files.py`` writes files atomically, reads files from elsewhere with limits, and locks folders; ``locks.py`` locks them
on file systems without locks. ``yaml_files.py`` and ``rows.py`` read YAML, CSV and JSON lines strictly.
``archives.py`` reads a folder of records from
one compressed file. ``array_cache.py`` keeps arrays with a checksum. ``hub.py`` reads from the Hugging Face hub.
"""
