"""Which versions of torch and Ultralytics this package works with."""

from __future__ import annotations

from packaging.specifiers import SpecifierSet

SUPPORTED = {"torch": ">=2.7", "ultralytics": ">=8.4.190,<8.5"}  # as in pyproject.toml


def check_version(name: str, version: str) -> None:
    """Refuse a version that is known to break, or that nobody has tried.

    Args:
        name: `torch` or `ultralytics`.
        version: The installed one, such as `2.14.1+cpu`.

    Raises:
        ImportError: If it is not supported.
    """
    wanted = SUPPORTED[name]
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        raise ImportError(f'{name} {version} is not supported: pip install "{name}{wanted}".')
