"""What a class or a function takes, as far as a configuration is concerned."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal, NotRequired, Required, TypeAlias, Unpack

from omegaconf import MISSING

from ldm.config.annotations import Annotation, accepts, describe, form, is_plain
from ldm.config.errors import did_you_mean
from ldm.config.targets import is_library, is_ours

__all__ = ["Signature", "parameter_problems", "signature_of"]

Stage: TypeAlias = Literal["call", "file", "part"]

_REQUIRED = inspect.Parameter.empty


@dataclass
class Signature:
    """Names a constructor takes.

    annotations, defaults: by name; a parameter without a default is absent from `defaults`.
    is_open: takes any other name as well.
    """

    annotations: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    is_open: bool = False

    def add(self, name: str, annotation: Annotation, default: object = _REQUIRED) -> None:
        """Record a parameter; the first of a name counts, as a subclass hides its base's."""
        if name not in self.annotations:
            self.annotations[name] = annotation
            if default is not _REQUIRED:
                self.defaults[name] = default


def signature_of(target: Callable[..., Any]) -> Signature:
    """What a class or function takes, with `**kwargs` followed to where they go.

    `**params: Unpack[SomeTypedDict]` takes the keys of that dictionary. A bare `**kwargs` of a
    class goes on to the constructors of its bases; where that ends, ours take nothing more, a
    user's anything. Another library's takes anything at once: it may do more than pass it on.
    """
    signature = Signature()
    for constructor in _constructors(target):
        rest = _add_parameters(signature, constructor, is_method=inspect.isclass(target))
        signature.is_open = rest is not None and not is_ours(target)
        if rest is None or is_library(target):
            break
    return signature


def parameter_problems(
    target: Callable[..., Any],
    params: Mapping[str, Any],
    *,
    path: str = "",
    given: Mapping[str, Any] | None = None,
    stage: Stage = "call",
) -> Iterator[str]:
    """What is wrong with the parameters of a target, a sentence each.

    path: of the parameters in the configuration, e.g. `model.params`.
    given: what the program adds by itself.
    stage: `call`, about to be called: everything required must be there. `file`, still in a
        file: values are judged too, against the annotations, and a missing object may yet be
        supplied (a network, an optimizer's parameters), a missing number not. `part`, a file's
        part that is completed later: anything may be missing.
    """
    signature = signature_of(target)
    name = getattr(target, "__name__", str(target))
    at = f"{path}." if path else ""
    for key, value in params.items():
        if not isinstance(key, str):
            yield f"{at}{key}: expected a name of a parameter of {name}(), got {key!r}"
        elif key in signature.annotations:
            if stage != "call" and not _fits(signature, key, value):
                yield f"{at}{key}: {_mismatch(signature.annotations[key], value)}"
        elif not signature.is_open:
            yield f"{at}{key}: {name}() got no {key!r}{did_you_mean(key, signature.annotations)}"
    for key in _needed(signature, stage):
        if key not in params and key not in (given or {}):
            what = f"{name}() needs {key!r} ({describe(signature.annotations[key])})"
            yield f"{path}: {what}" if path else what


def _needed(signature: Signature, stage: Stage) -> list[str]:
    if stage == "part":
        return []
    required = [key for key in signature.annotations if key not in signature.defaults]
    if stage == "call":
        return required
    return [key for key in required if is_plain(signature.annotations[key])]


def _constructors(target: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    if not inspect.isclass(target):
        yield target
        return
    for base in target.__mro__[:-1]:
        if "__init__" in vars(base):
            yield vars(base)["__init__"]
        elif "__new__" in vars(base):
            yield base.__new__


def _add_parameters(
    signature: Signature, constructor: Callable[..., Any], *, is_method: bool
) -> Annotation:
    """Add a constructor's parameters; return the annotation of its `**kwargs`, None without."""
    inner = inspect.unwrap(constructor)
    try:
        parameters = list(inspect.signature(inner).parameters.values())
    except ValueError:  # written in C, without a signature
        return Any
    rest = None
    for parameter in parameters[1:] if is_method else parameters:  # without `self`
        annotation = _evaluated(parameter.annotation, getattr(inner, "__globals__", {}))
        if parameter.kind is parameter.VAR_KEYWORD:
            rest = annotation
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            signature.add(parameter.name, annotation, parameter.default)
    origin, arguments = form(rest)
    if origin is Unpack:
        _add_typed_dict(signature, arguments[0])
        return None
    return rest


def _add_typed_dict(signature: Signature, typed_dict: Annotation) -> None:
    for name, annotation in typing.get_type_hints(typed_dict, include_extras=True).items():
        # a class whose annotations are kept as text does not know its `Required` keys itself
        origin, arguments = form(annotation)
        is_marked = origin in (Required, NotRequired)
        is_required = origin is Required or (not is_marked and name in typed_dict.__required_keys__)
        default = _REQUIRED if is_required else NotRequired
        signature.add(name, arguments[0] if is_marked else annotation, default)


def _evaluated(annotation: Annotation, namespace: dict[str, Any]) -> Annotation:
    """The annotation itself where it was left as text; Any when it cannot be evaluated here."""
    if annotation is _REQUIRED:
        return Any
    holder = SimpleNamespace(__annotations__={"it": annotation})
    try:
        return typing.get_type_hints(holder, globalns=namespace, include_extras=True)["it"]
    except (NameError, TypeError):  # imported for the type checker alone
        return Any


def _fits(signature: Signature, key: str, value: object) -> bool:
    annotation = signature.annotations[key]
    default = signature.defaults.get(key, _REQUIRED)
    is_default = type(default) is type(value) and default == value  # `x: int = None` takes None
    return value == MISSING or is_default or accepts(annotation, value)


def _mismatch(annotation: Annotation, value: object) -> str:
    hint = ""
    if isinstance(value, str) and is_plain(annotation) and _is_number_of(annotation, value):
        hint = "; write the number without quotes"
    elif isinstance(value, float) and value.is_integer() and accepts(annotation, int(value)):
        hint = f"; write {int(value)}"
    elif isinstance(value, str) and form(annotation)[0] is Literal:
        hint = did_you_mean(value, [str(option) for option in form(annotation)[1]])
    return f"expected {describe(annotation)}, got {value!r}{hint}"


def _is_number_of(annotation: Annotation, text: str) -> bool:
    """Whether text looks like a number that would fit."""
    for kind in (int, float):
        try:
            return accepts(annotation, kind(text))
        except ValueError:
            continue
    return False
