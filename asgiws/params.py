"""Markers that say where the value of a handler's parameter comes from.

They stand in `Annotated[int, Query(ge=1)]` or as a default: `page: int = Query(1, ge=1)`. The functions are typed to
return Any so that the second form type-checks whatever the parameter's own type is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

REQUIRED: Any = ...
"""The default that FastAPI's users write for "there is none": `Query(...)`."""


class Marker(msgspec.Struct, frozen=True, eq=False):
    """Where a value comes from, under which name, and what else is known of it.

    Attributes:
        place: `path`, `query`, `header`, `cookie` or `body`.
        default: The value where the client sends none; `...` if it must send one.
        default_factory: Called for the default instead.
        alias: The name under which the client sends it, if it is not the parameter's.
        convert_underscores: A header's name: `_` becomes `-`.
        constraints: The arguments of the `msgspec.Meta` that is applied to the type.
        title: For documentation.
        description: For documentation.
    """

    place: str
    default: Any = REQUIRED
    default_factory: Callable[[], Any] | None = None
    alias: str | None = None
    convert_underscores: bool = True
    constraints: dict[str, Any] = {}
    title: str | None = None
    description: str | None = None


_CONSTRAINTS = ("gt", "ge", "lt", "le", "multiple_of", "min_length", "max_length", "pattern")


def _marker(place: str, default: Any, options: dict[str, Any]) -> Marker:
    constraints = {key: options.pop(key) for key in _CONSTRAINTS if options.get(key) is not None}
    known = {"default_factory", "alias", "title", "description", "convert_underscores"}
    for key in options:
        if key not in known and key not in _CONSTRAINTS:
            raise TypeError(
                f"{place.capitalize()}() has no option {key!r}. Known: {', '.join(sorted(known | set(_CONSTRAINTS)))}",
            )
    options = {key: value for key, value in options.items() if key in known}
    return Marker(place, default, constraints=constraints, **options)


def Path(default: Any = REQUIRED, **options: Any) -> Any:
    """A value from the path; see `Query` for the options. A path value is always there: it has no default."""
    return _marker("path", default, options)


def Query(default: Any = REQUIRED, **options: Any) -> Any:
    """A value from the query string; on a `msgspec.Struct`, the whole query string.

    Args:
        default: The value where the client sends none. Left out or `...`: it must send one.
        options: `alias`, `default_factory`, `title`, `description`, and the constraints of `msgspec.Meta`:
            `gt ge lt le multiple_of min_length max_length pattern`.

    Raises:
        TypeError: An option is unknown.
    """
    return _marker("query", default, options)


def Header(default: Any = REQUIRED, **options: Any) -> Any:
    """A value from a header; `_` in the name stands for `-`. See `Query` for the options."""
    return _marker("header", default, options)


def Cookie(default: Any = REQUIRED, **options: Any) -> Any:
    """A value from a cookie; see `Query` for the options."""
    return _marker("cookie", default, options)


def Body(default: Any = REQUIRED, **options: Any) -> Any:
    """The JSON body of an HTTP request, decoded into the annotated type; see `Query` for the options."""
    return _marker("body", default, options)


MESSAGE, HANDSHAKE, CONNECTION, SINGLETON = range(4)
"""How long a value lives: for one message, until the handshake is answered, with the connection, with the app."""

SCOPES: Mapping[str, int] = {
    "connection": CONNECTION,
    "handshake": HANDSHAKE,
    "function": CONNECTION,
    "request": CONNECTION,
}
"""The scopes that `Depends` takes; the last two are FastAPI's."""


class DependsMarker(msgspec.Struct, frozen=True, eq=False):
    """What `Depends` gives.

    Attributes:
        dependency: The function; None for the annotated class.
        use_cache: Whether one connection asks the function once.
        scope: How long the value lives; None for as long as what `Depends` stands in.
        thread: Whether the function is run in a worker thread.
    """

    dependency: Callable[..., Any] | None
    use_cache: bool
    scope: int | None = None
    thread: bool = False


def Depends(
    dependency: Callable[..., Any] | None = None,
    *,
    use_cache: bool = True,
    scope: str | None = None,
    thread: bool = False,
) -> Any:
    """A value that another function gives.

    It stands in `user: Annotated[User, Depends(current_user)]` or as a default. The function takes the same parameters
    as a handler, other dependencies among them. It may be async or not, a class, or a generator that yields the value
    and cleans up behind it.

    Args:
        dependency: The function; left out, the annotated class.
        use_cache: Whether one connection asks the function once, or anew for each who depends on it.
        scope: When a generator cleans up. "connection", the default: when the connection ends, however it ends.
            "handshake": as soon as the handshake is answered. FastAPI's "function" and "request" mean "connection".
            Left out at a parameter of `on_message`, the function is asked for each message and cleans up behind it.
        thread: Whether to run it, if it is not async, in a worker thread: for code that blocks.

    Raises:
        ValueError: There is no such scope.
    """
    if scope is not None and scope not in SCOPES:
        raise ValueError(f"Depends() has no scope {scope!r}. Known: {', '.join(map(repr, SCOPES))}")
    return DependsMarker(dependency, use_cache, SCOPES[scope] if scope is not None else None, thread)
