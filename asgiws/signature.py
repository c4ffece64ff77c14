"""A handler's signature, taken apart: each parameter's name, type, default and marker."""

import contextlib
import copy
import functools
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NamedTuple

import msgspec

from .errors import SignatureError
from .params import REQUIRED, DependsMarker, Marker
from .types import Handler

EMPTY = inspect.Parameter.empty
"""The annotation of a parameter that has none."""


class Parameter(NamedTuple):
    """One parameter of a handler, its annotation taken apart."""

    name: str
    type: Any
    default: Any
    marker: Marker | DependsMarker | None

    @property
    def bare(self) -> Any:
        """The type without what `Annotated` adds to it."""
        return bare_type(self.type)

    @property
    def is_bare(self) -> bool:
        """Whether nothing but its name is known of it."""
        return self.type is EMPTY and self.default is REQUIRED and self.marker is None

    def wire_name(self) -> str:
        """The name under which the client sends it."""
        marker = self.marker
        if not isinstance(marker, Marker):
            return self.name
        if marker.alias is not None:
            return marker.alias
        if marker.place == "header" and marker.convert_underscores:
            return self.name.replace("_", "-")
        return self.name

    def default_value(self) -> Callable[[], Any] | None:
        """A function that gives the default; None if there is none."""
        if isinstance(self.marker, Marker) and self.marker.default_factory is not None:
            return self.marker.default_factory
        default = self.default
        if default is REQUIRED:
            return None
        if copy.deepcopy(default) is not default:  # it can change: each connection gets its own
            return functools.partial(copy.deepcopy, default)
        return lambda: default


def parameters_of(handler: Handler) -> list[Parameter]:
    """The parameters of a handler.

    Raises:
        SignatureError: One of them can never be filled, or an annotation is unknown.
    """
    hints = _hints(inspect.unwrap(function_of(handler)))
    bound = handler.keywords if isinstance(handler, functools.partial) else {}
    found = []
    try:
        signature = inspect.signature(handler)
    except ValueError as error:
        raise SignatureError(f"{error}", "Wrap it in a function of your own that names its parameters.") from None
    for parameter in signature.parameters.values():
        if parameter.name in bound:
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise SignatureError(
                f"parameter {str(parameter).partition(':')[0]!r} cannot be filled by name",
                "A handler has plain parameters: no *args, no **kwargs, no positional-only ones.",
            )
        found.append(_parameter(parameter.name, hints.get(parameter.name, EMPTY), parameter.default))
    return found


def function_of(handler: Any) -> Any:
    """The function behind a handler: what a partial calls, what makes an object of a class, an object's `__call__`."""
    while isinstance(handler, functools.partial):
        handler = handler.func
    if inspect.isclass(handler):
        written = (function for function in (handler.__init__, handler.__new__) if inspect.isfunction(function))
        return next(written, handler)
    return handler if inspect.isroutine(handler) else type(handler).__call__


def returned_type(function: Handler) -> Any:
    """What a function is annotated to return; `EMPTY` if it does not tell.

    Raises:
        SignatureError: An annotation is unknown.
    """
    return _hints(inspect.unwrap(function_of(function))).get("return", EMPTY)


def settle(function: Handler) -> None:
    """Evaluate the annotations of what stands in a function while the names of that are known.

    One that names what is written further down is left as it is.
    """
    function = inspect.unwrap(function_of(function))
    written = getattr(function, "__annotations__", {})
    if "<locals>" in getattr(function, "__qualname__", "") and any(isinstance(one, str) for one in written.values()):
        with contextlib.suppress(SignatureError):
            function.__annotations__ = _hints(function)


def _hints(function: Any) -> dict[str, Any]:
    """The annotations, those written as strings evaluated where the function was defined."""
    try:
        return typing.get_type_hints(function, localns=_enclosing_locals(function), include_extras=True)
    except NameError as error:
        raise SignatureError(
            f"the annotation {error.name!r} is unknown where the handler is defined",
            "Import it at run time too: an import under TYPE_CHECKING is not enough for a handler.",
        ) from None
    except Exception as error:  # noqa: BLE001 - an annotation is any expression
        raise SignatureError(
            f"an annotation cannot be evaluated: {type(error).__name__}: {error}",
            "Annotations are read at run time: write them so that Python can evaluate them.",
        ) from None


def _enclosing_locals(function: Any) -> Mapping[str, Any]:
    """The names local to the function that is just now defining the handler, if one is."""
    outer = getattr(function, "__qualname__", "").rpartition(".<locals>.")[0]
    frame = sys._getframe() if outer else None  # noqa: SLF001 - inspect.currentframe() would say the same, or None
    while frame is not None:
        if frame.f_code.co_qualname == outer and frame.f_globals is getattr(function, "__globals__", None):
            return frame.f_locals
        frame = frame.f_back
    return {}


def _parameter(name: str, annotation: Any, default: Any) -> Parameter:
    annotation = resolved_alias(annotation)
    markers = []
    if typing.get_origin(annotation) is Annotated:
        base, *extras = typing.get_args(annotation)
        markers = [extra for extra in extras if isinstance(extra, Marker | DependsMarker)]
        kept = tuple(extra for extra in extras if isinstance(extra, msgspec.Meta))
        annotation = Annotated[(base, *kept)] if kept else base
    if isinstance(default, Marker | DependsMarker):
        markers.append(default)
        default = EMPTY
    if len(markers) > 1:
        raise SignatureError(f"parameter {name!r} has {len(markers)} markers", "One says where it comes from.")
    marker = markers[0] if markers else None
    if default is EMPTY:
        default = marker.default if isinstance(marker, Marker) else REQUIRED
    if isinstance(marker, Marker) and marker.constraints:
        annotation = _constrained(annotation, marker.constraints, name)
    return Parameter(name, annotation, default, marker)


def resolved_alias(annotation: Any) -> Any:
    """What a `type X = ...` stands for (Python 3.12)."""
    while type(annotation).__name__ == "TypeAliasType":
        annotation = annotation.__value__
    return annotation


def _constrained(annotation: Any, constraints: dict[str, Any], name: str) -> Any:
    """The annotation with constraints on it, or on what it is when it is not None."""
    if annotation is EMPTY:
        annotation = str
    members = typing.get_args(annotation) if type(None) in typing.get_args(annotation) else ()
    others = [member for member in members if member is not type(None)]
    try:
        if len(others) == 1:
            return typing.Optional[Annotated[others[0], msgspec.Meta(**constraints)]]  # noqa: UP045
        constrained = Annotated[annotation, msgspec.Meta(**constraints)]
        msgspec.inspect.type_info(constrained)
    except (TypeError, ValueError, re.error) as error:
        raise SignatureError(f"the constraints of parameter {name!r} do not fit its type", f"{error}.") from None
    return constrained


def bare_type(annotation: Any) -> Any:
    """An annotation without what `Annotated` adds to it."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is Annotated else annotation


def name_of(annotation: Any) -> str:
    """What a type is called in an error."""
    return str(getattr(annotation, "__name__", annotation))
