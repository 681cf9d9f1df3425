"""Whether a value from a configuration fits the annotation of the parameter it is meant for.

Only what is certain is judged: an annotation that is not understood fits everything.
"""

from __future__ import annotations

import os
import types
import typing
from collections.abc import Collection, Iterable, Mapping
from typing import Annotated, Any, Literal, TypeAlias, Union, get_args, get_origin

from ldm.ranges import Minimum

__all__ = ["Annotation", "accepts", "describe", "form", "is_plain"]

Annotation: TypeAlias = Any  # a class, a union, a generic alias: Python has no common type

_PLAIN = (bool, int, float, complex, str, bytes, type(None))


def form(annotation: Annotation) -> tuple[Annotation, tuple[Annotation, ...]]:
    """What a generic annotation is made of: `list[int]` is (list, (int,)), `int` is (None, ())."""
    return get_origin(annotation), get_args(annotation)


def accepts(annotation: Annotation, value: object) -> bool:
    """Whether a value (None, bool, int, float, str, list or dict) fits an annotation.

    An int serves as a float, a list as a tuple, text as a path, and a mapping as any object, for
    it may describe one; text that looks like a number is not a number.
    """
    origin, arguments = form(annotation)
    if origin in (Union, types.UnionType):
        return any(accepts(option, value) for option in arguments)
    if origin is Literal:
        return any(type(option) is type(value) and option == value for option in arguments)
    if origin is Annotated:
        return accepts(arguments[0], value) and _is_in_range(arguments[1:], value)
    if isinstance(origin, type):
        return _fits_generic(origin, arguments, value)
    if annotation is None or annotation is Any:
        return annotation is Any or value is None
    if typing.is_typeddict(annotation):
        return isinstance(value, Mapping)
    return not isinstance(annotation, type) or _fits_class(annotation, value)


def describe(annotation: Annotation) -> str:
    """An annotation in the words of an error message: `int`, `float or None`, `'l1' or 'l2'`."""
    origin, arguments = form(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(option) for option in arguments))
    if origin is Literal:
        return " or ".join(repr(option) for option in arguments)
    if origin is Annotated:
        ranges = [f" >= {each.value}" for each in arguments[1:] if isinstance(each, Minimum)]
        return describe(arguments[0]) + "".join(ranges)
    if isinstance(origin, type):
        if issubclass(origin, Mapping) or not issubclass(origin, Iterable):
            return "mapping" if issubclass(origin, Mapping) else origin.__name__
        return f"list of {describe(arguments[0])}" if arguments else "list"
    if annotation in (None, type(None)):
        return "None"
    return getattr(annotation, "__name__", str(annotation))


def is_plain(annotation: Annotation) -> bool:
    """Whether YAML can write such a value down, so that no program needs to supply it."""
    origin, arguments = form(annotation)
    if origin in (Union, types.UnionType):
        return any(is_plain(option) for option in arguments)
    if origin is Annotated:
        return is_plain(arguments[0])
    if origin is not None:
        return origin is Literal or (isinstance(origin, type) and issubclass(origin, Collection))
    if annotation in (Any, None) or typing.is_typeddict(annotation):
        return True
    return isinstance(annotation, type) and issubclass(
        annotation, (*_PLAIN, list, tuple, Mapping, os.PathLike)
    )


def _is_in_range(marks: tuple[Annotation, ...], value: Any) -> bool:
    return all(value >= mark.value for mark in marks if isinstance(mark, Minimum))


def _fits_generic(origin: type, arguments: tuple[Annotation, ...], value: object) -> bool:
    if issubclass(origin, Mapping):
        item = arguments[1] if len(arguments) == 2 else Any
        return isinstance(value, Mapping) and all(accepts(item, each) for each in value.values())
    if issubclass(origin, tuple) and arguments and Ellipsis not in arguments:
        return isinstance(value, list | tuple) and (
            len(value) == len(arguments)
            and all(accepts(item, each) for item, each in zip(arguments, value, strict=True))
        )
    if issubclass(origin, Iterable):
        item = arguments[0] if arguments else Any
        return isinstance(value, list | tuple) and all(accepts(item, each) for each in value)
    return True


def _fits_class(expected: type, value: object) -> bool:
    if expected in (int, float):
        numbers = (int,) if expected is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    if expected in _PLAIN:
        return type(value) is expected
    if issubclass(expected, list | tuple):
        return isinstance(value, list | tuple)
    if issubclass(expected, os.PathLike) and isinstance(value, str):
        return True
    if getattr(expected, "_is_protocol", False) and not getattr(
        expected, "_is_runtime_protocol", False
    ):
        return not isinstance(value, _PLAIN)
    return isinstance(value, expected) or not isinstance(value, _PLAIN)
