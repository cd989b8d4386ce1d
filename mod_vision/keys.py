"""`key=value` words as arguments of a function, in the manner of `yolo`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import yaml


def as_list(value: Any) -> list[Any]:
    """Return the values of a key that takes several, joined by commas."""
    value = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return list(value) if isinstance(value, (list, tuple)) else [] if value in (None, "") else [value]


def as_value(text: Any, key: str) -> Any:
    """Return a number, list, ... of a text, and what is no text as it is.

    Raises:
        ValueError: If the text is no YAML.
    """
    try:
        return yaml.safe_load(text) if isinstance(text, str) else text
    except yaml.YAMLError:
        raise ValueError(f"{key}={text}: brackets or quotes are not closed.") from None


def parse(name: str, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """Turn `key=value` words into the arguments of a function, such as that of a verb; `name` is for messages.

    Raises:
        ValueError: If a word is no key=value, a key is unknown or a needed one is missing.
    """
    parameters = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form key=value.")
        if key not in parameters:
            raise ValueError(f"{name} has no key {key!r}; it has {', '.join(parameters) or 'none'}.")
        wanted = str(parameters[key].annotation)
        value = text if wanted.startswith("str") else as_value(text, key)
        if wanted == "int" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"{key}={text}: {key} must be a whole number of at least 1.")
        if wanted == "bool" and not isinstance(value, bool):
            raise ValueError(f"{key}={text}: {key} must be True or False.")
        arguments[key] = value
    missing = [k for k, p in parameters.items() if p.default is inspect.Parameter.empty and k not in arguments]
    if missing:
        raise ValueError(f"{name} needs {' '.join(f'{key}=...' for key in missing)}")
    return arguments
