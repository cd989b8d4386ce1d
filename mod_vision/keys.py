"""`key=value` words as arguments of a function, in the manner of `yolo`."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import yaml

EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?e[-+]?\d+", re.IGNORECASE)  # a number such as 1e-3, which YAML takes for text
LOWEST = {"seed": 0}  # whole numbers are counts but for these


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
        value = yaml.safe_load(text) if isinstance(text, str) else text
    except yaml.YAMLError:
        raise ValueError(f"{key}={text}: brackets or quotes are not closed.") from None
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def parse(name: str, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """Turn `key=value` words into the arguments of a function, such as that of a verb; `name` is for messages.

    Raises:
        ValueError: If a word is no key=value, a key is unknown, a value is of another type, or a needed key is missing.
    """
    parameters = inspect.signature(function).parameters
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise ValueError(f"{word!r} is not of the form key=value.")
        if key not in parameters:
            known = ", ".join(parameters) or "none"
            raise ValueError(f"{name} has no key {key!r}{similar(key, parameters)}; it has {known}.")
        arguments[key] = _checked(key, text, str(parameters[key].annotation))
    missing = [k for k, p in parameters.items() if p.default is inspect.Parameter.empty and k not in arguments]
    if missing:
        raise ValueError(f"{name} needs {' '.join(f'{key}=...' for key in missing)}")
    return arguments


def similar(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean ...?` with the known word that looks most like one, or nothing."""
    found = difflib.get_close_matches(word, list(known), 1)
    return f", did you mean {found[0]!r}?" if found else ""


def describe(name: str, function: Callable[..., Any]) -> str:
    """Return the help of a verb or a script: what it does, a line for each key with its default, and an example."""
    said = inspect.cleandoc(function.__doc__ or "").splitlines()
    example = next((line for line in said if line.startswith("Example: ")), "")
    lines = [said[0], f"usage: {name} key=value ..."]
    for key, parameter in inspect.signature(function).parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        shown = f"{key}=" if needed else f"{key}={_as_text(parameter.default)}"
        text = KEYS.get(f"{function.__name__}.{key}") or KEYS.get(key, "")
        lines.append(f"  {shown:<34} {text}{' (needed)' if needed else ''}")
    return "\n".join([*lines, *([example] if example else [])])


def _as_text(value: Any) -> str:
    """Return a default as a user writes it; what is found out at run time is left open."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return "" if value is None else str(value)


def _checked(key: str, text: str, wanted: str) -> Any:
    """Return the value of a key, which must be of the type that it is annotated with."""
    if wanted.startswith("str"):
        return text
    value, lowest = as_value(text, key), LOWEST.get(key, 1)
    is_bool = isinstance(value, bool)
    if wanted == "int" and (is_bool or not isinstance(value, int) or value < lowest):
        raise ValueError(f"{key}={text}: {key} must be a whole number of at least {lowest}.")
    if wanted == "float" and (is_bool or not isinstance(value, (int, float)) or not math.isfinite(value)):
        raise ValueError(f"{key}={text}: {key} must be a number.")
    if wanted == "bool" and not is_bool:
        raise ValueError(f"{key}={text}: {key} must be True or False.")
    return value
