"""Settings in words, ``damp=0.05, order=natural``: how solvers, blocks, rotations and ranges of inputs are asked for.

The fields of a dataclass say which settings there are, of which type, and which words one takes; nothing is listed
twice.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")
USUAL = "usual"  # all settings as they are unless named


def read(kind: type[T], text: str, name: str) -> T:
    """Settings from words with commas between them; those that are not named stay as is usual.

    Args:
        kind: a dataclass whose fields all have defaults.
        text: ``key=value, key=value``; empty or ``usual`` for all as usual.
        name: of what is set, for messages.

    Raises:
        ValueError: no such setting, a value of another type, a word that is not among those allowed; the message lists
            what there is.

    Example:
        >>> from isoloss.compress.rotations import Rotation
        >>> read(Rotation, "residual=false, seed=3", "rotate")
        Rotation(residual=False, heads=True, seed=3)
        >>> read(Rotation, "turn=2", "rotate")
        Traceback (most recent call last):
            ...
        ValueError: rotate has no setting 'turn=2'. There are: residual=true, heads=true, seed=0
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    settings: dict[str, Any] = {}
    for entry in filter(None, (entry.strip() for entry in text.split(","))):
        if entry == USUAL and text.strip() == USUAL:
            break
        key, equals, value = (part.strip() for part in entry.partition("="))
        if key not in fields or not equals:
            known = ", ".join(f"{key}={word(field.default)}" for key, field in fields.items())
            raise ValueError(f"{name} has no setting {entry!r}. There are: {known or 'none'}")
        if key in settings:
            raise ValueError(f"{name}({key}) is given twice. Give it once")
        settings[key] = _value(value, fields[key].default, f"{name}({key})")
    _refuse(kind, settings, name)
    return kind(**settings)


def check(made: Any, name: str) -> None:
    """Refuse numbers that are not finite, and words other than those that the type of a field allows.

    Raises:
        ValueError: says which setting, and the words that it takes.

    Example:
        >>> from isoloss.compress.activations import Activations
        >>> Activations(when="row")
        Traceback (most recent call last):
            ...
        ValueError: activations(when) needs static or token, got 'row'
    """
    _refuse(type(made), {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}, name)


def words(made: Any) -> str:
    """The settings that are not as usual, as :func:`read` takes them.

    Example:
        >>> from isoloss.compress.rotations import Rotation
        >>> words(Rotation(heads=False))
        'heads=false'
    """
    return ", ".join(
        f"{field.name}={word(getattr(made, field.name))}"
        for field in dataclasses.fields(made)
        if getattr(made, field.name) != field.default
    )


def word(value: object) -> str:
    """A value as it is written."""
    return str(value).lower() if isinstance(value, bool) else str(value)


@functools.cache
def _allowed(kind: type) -> dict[str, tuple[Any, ...]]:
    """Field -> the words that it takes, for those that take words."""
    hints = get_type_hints(kind)
    return {
        field.name: get_args(hints[field.name])
        for field in dataclasses.fields(kind)
        if get_origin(hints[field.name]) is Literal
    }


def _refuse(kind: type, settings: dict[str, Any], name: str) -> None:
    allowed = _allowed(kind)
    for key, value in settings.items():
        if key in allowed and value not in allowed[key]:
            *most, last = allowed[key]
            raise ValueError(f"{name}({key}) needs {', '.join(most)} or {last}, got {value!r}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}({key}) needs a finite number, got {value}")


def _value(value: str, default: Any, where: str) -> Any:
    """A setting's word as its default's type."""
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{where} needs true or false, got {value!r}")
        return value.lower() == "true"
    try:
        return type(default)(value)
    except ValueError:
        raise ValueError(f"{where} needs a number ({type(default).__name__}), got {value!r}") from None
