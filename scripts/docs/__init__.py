"""The documentation site: ``collect.py`` gathers its pages, ``keys.py`` and ``api.py`` write the pages of every key and
of every name of the library, and ``draw_resample.py`` the picture of a resample. ``make docs`` builds it."""
