"""Services by annotation: `@component` on a class, or on a function that makes what it is annotated to return.

What provides a type is written down on the type itself, so that it is forgotten with it.
"""

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar, overload

import msgspec

from .errors import SignatureError, did_you_mean, whereabouts
from .params import CONNECTION, SINGLETON
from .signature import EMPTY, bare_type, function_of, name_of, returned_type

P = TypeVar("P", bound=Callable[..., Any])

COMPONENT_SCOPES = {"singleton": SINGLETON, "websocket": CONNECTION, "prototype": None}
"""How long a component lives; None for as long as what it is made for."""

_YIELDS = (AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator)
_PROVIDERS = "__asgiws_providers__"
# Types that take no attributes, and protocols: of those every attribute is a part of what is asked of others.
_elsewhere: dict[type, "list[Provider]"] = {}


class Provider(msgspec.Struct, frozen=True, eq=False):
    """What makes a component.

    Attributes:
        call: The class or function.
        lifetime: `SINGLETON` or `CONNECTION`; None for a prototype.
    """

    call: Callable[..., Any]
    lifetime: int | None

    @property
    def where(self) -> str:
        """Name and place, for errors."""
        return whereabouts(self.call)


@overload
def component(target: P, /) -> P: ...


@overload
def component(*, scope: str = "singleton", provides: type | None = None) -> Callable[[P], P]: ...


def component(target: Any = None, /, *, scope: str = "singleton", provides: type | None = None) -> Any:
    """Make a class, or what a function returns or yields, a service that others get by its annotation.

    A constructor or function gets what its own parameters are annotated with: other components, the `App`; but for a
    singleton also the `WebSocket`, `Request` or `Connection`, and whatever is marked (`Query()`, `Depends(...)`).
    Other parameters keep their defaults. A function may be async, and a generator, which cleans up after its `yield`:
    that of a singleton is opened when the app starts and closed when it ends. Other singletons are made when they are
    first asked for.

    Args:
        target: The class or function.
        scope: "singleton": one for the app. "websocket": one for each connection. "prototype": one for each parameter.
        provides: The annotation that asks for it, such as a protocol or a base class; left out, the class itself or
            what the function is annotated to return or yield.

    Raises:
        SignatureError: The scope is unknown, or a function does not tell what it makes.
    """
    if scope not in COMPONENT_SCOPES:
        known = ", ".join(map(repr, COMPONENT_SCOPES))
        raise SignatureError(
            f"there is no scope {scope!r} of components", f"Known: {known}.{did_you_mean(str(scope), COMPONENT_SCOPES)}"
        )

    def register(target: P) -> P:
        if not callable(target):
            raise SignatureError(
                f"@component stands above a class or a function, got {target!r}",
                'Its options have names: @component(scope="websocket", provides=Store).',
            )
        made = provides if provides is not None else _made_by(target)
        providers: list[Provider] = _providers_of(made)
        # A module that is loaded again brings its components again.
        providers[:] = [one for one in providers if _identity(one.call) != _identity(target)]
        providers.append(Provider(target, COMPONENT_SCOPES[scope]))
        if inspect.isclass(target):
            _providers_of(target)[:] = providers[-1:]
        return target

    return register if target is None else register(target)


def provider_of(annotation: Any) -> Provider | None:
    """What provides an annotated type; None if it is no component.

    Raises:
        SignatureError: There are two.
    """
    providers = _standing(annotation)
    if len(providers) > 1:
        raise SignatureError(
            f"{name_of(annotation)} has {len(providers)} components: {'; '.join(one.where for one in providers)}",
            "Let one provide it, and the others a type of their own: @component(provides=...).",
        )
    return providers[0] if providers else None


def near_components(annotation: Any) -> str:
    """A hint to the components of subclasses, for who asks for the base class."""
    near = [one for one in _subclasses(annotation) if _standing(one)]
    if not near:
        return ""
    name = name_of(near[0])
    return f" {name} is a component of its own: write @component(provides={name_of(annotation)}) above it."


def _subclasses(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and annotation is not object:
        found: list[type] = type.__subclasses__(annotation)
        for one in found:
            yield one
            yield from _subclasses(one)


def _standing(annotation: Any) -> "list[Provider]":
    if not isinstance(annotation, type):
        return []
    found: list[Provider] = vars(annotation).get(_PROVIDERS) or _elsewhere.get(annotation, [])
    return found


def _providers_of(made: Any) -> "list[Provider]":
    """The list of what provides a type, made if there is none."""
    if not isinstance(made, type) or made is type(None):
        raise SignatureError(f"a component is of a class, got {made!r}", "Write @component(provides=Class).")
    if getattr(made, "_is_protocol", False):
        return _elsewhere.setdefault(made, [])
    if _PROVIDERS not in vars(made):
        try:
            setattr(made, _PROVIDERS, [])
        except TypeError:
            return _elsewhere.setdefault(made, [])
    found: list[Provider] = vars(made)[_PROVIDERS]
    return found


def _made_by(target: Any) -> Any:
    """The class that a provider makes."""
    if inspect.isclass(target):
        return target
    annotation = bare_type(returned_type(target))
    function = function_of(target)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        yielded = typing.get_args(annotation) if typing.get_origin(annotation) in _YIELDS else ()
        annotation = bare_type(yielded[0]) if yielded else EMPTY
    if annotation in (EMPTY, Any, None):
        raise SignatureError(
            f"the component {name_of(target)!r} does not tell what it makes",
            "Annotate what it returns: `-> Pool`, or `-> AsyncIterator[Pool]` if it yields.",
            whereabouts(target),
        )
    return annotation


def _identity(call: Any) -> tuple[Any, ...]:
    """What stays the same when a module is loaded again; two of one name inside a function are two."""
    name = getattr(call, "__qualname__", "")
    return (getattr(call, "__module__", None), name) if name and "<locals>" not in name else (id(call),)
