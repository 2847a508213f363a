"""The version of the package; `pyproject.toml` reads it here."""

EXACT_VERSION = "3.0.0"
VERSION = tuple(int(part) for part in EXACT_VERSION.split("."))
