"""Files: written whole or not at all, read with limits, locked, cached.

``files.py`` writes atomically, reads files from elsewhere safely and locks folders (``locks.py``: where the file system
has no locks); ``yaml_files.py`` and ``records.py`` read YAML, CSV and JSON lines strictly; ``array_cache.py`` keeps
arrays with a checksum; ``hub.py`` says what to do without network. Imports errors only.
"""
