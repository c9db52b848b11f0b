"""Exporters: one module (or package) a format, its file name is its key.

This folder is the package `bcquant.exporters`; inside it imports of each other are relative.
"""

if __name__ != "bcquant.exporters":
    raise ImportError(
        f"exporters was imported as {__name__!r}; import bcquant.exporters (pip install -e .)"
    )
