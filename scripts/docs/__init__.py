"""The documentation site: ``collect.py`` gathers its pages, ``keys.py`` writes the page of every key, and
``draw_resample.py`` the picture of a resample. ``make docs`` builds it."""
