"""Services by annotation: `@component` on a class, or on a function that makes what it is annotated to return.

What provides a type is written down on the type itself, so that it is forgotten with it.
"""

import inspect
import typing
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from typing import Any, TypeVar, overload

import msgspec

from .errors import SignatureError, did_you_mean, told_with, whereabouts
from .params import CONNECTION, SINGLETON
from .signature import EMPTY, bare_type, function_of, name_of, returned_type, settle

P = TypeVar("P", bound=Callable[..., Any])

COMPONENT_SCOPES = {"singleton": SINGLETON, "websocket": CONNECTION, "prototype": None}
"""How long a component lives; None for as long as what it is made for."""

_YIELDS = (AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator)
_PROVIDERS = "__asgiws_providers__"
_MADE = "__asgiws_made__"


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


class _Providers:
    """What provides a type.

    Args:
        made: The type.
    """

    __slots__ = ("known", "made")

    def __init__(self, made: type) -> None:
        self.made = made
        self.known: list[Provider] = []

    def add(self, provider: Provider) -> None:
        """Add one; it takes the place of its older self, where a module is loaded or a function called again."""
        same = _identity(provider.call)
        self.known[:] = [one for one in self.known if _identity(one.call) != same]
        self.known.append(provider)

    def copy_for(self, made: type) -> "_Providers":
        """The same for a class that was made out of the type, as `dataclass(slots=True)` does."""
        copy = _Providers(made)
        copy.known = [
            msgspec.structs.replace(one, call=made) if one.call is self.made else one for one in self.known
        ]  # fmt: skip
        return copy


# Types that take no attributes, and protocols: of those every attribute is a part of what is asked of others.
_elsewhere: dict[type, _Providers] = {}


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
        with told_with(target):
            _check_instantiable(target)
            settle(target)
            made = provides if provides is not None else _made_by(target)
            provider = Provider(target, COMPONENT_SCOPES[scope])
            _providers_of(made).add(provider)
            if inspect.isclass(target):
                _providers_of(target).known[:] = [provider]
            elif inspect.isfunction(target):
                setattr(target, _MADE, made)
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


def component_of(call: Any) -> tuple[Provider, Any] | None:
    """For a class or function that is a component, what provides it and the type that asks for it; else None."""
    made = getattr(call, _MADE, None) if inspect.isfunction(call) else call
    provider = provider_of(made)
    return None if provider is None else (provider, made)


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
    found = _found(annotation) if isinstance(annotation, type) else None
    return [] if found is None else found.known


def _found(made: type) -> _Providers | None:
    """What is written down for a type; None if nothing is."""
    written: _Providers | None = vars(made).get(_PROVIDERS)
    if written is not None and written.made is not made:
        written = written.copy_for(made)
        setattr(made, _PROVIDERS, written)
    return written or _elsewhere.get(made)


def _providers_of(made: Any) -> _Providers:
    """What provides a type; written down from now on."""
    if not isinstance(made, type) or made is type(None):
        raise SignatureError(f"a component is of a class, got {made!r}", "Write @component(provides=Class).")
    found = _found(made)
    if found is None:
        found = _Providers(made)
        if getattr(made, "_is_protocol", False):
            _elsewhere[made] = found
        else:
            try:
                setattr(made, _PROVIDERS, found)
            except TypeError:
                _elsewhere[made] = found
    return found


def _check_instantiable(target: Any) -> None:
    if inspect.isclass(target) and (inspect.isabstract(target) or getattr(target, "_is_protocol", False)):
        name = name_of(target)
        raise SignatureError(
            f"nobody can make a {name}: it is abstract",
            f"Put @component(provides={name}) above a class that can be made, or above a function.",
        )


def _made_by(target: Any) -> Any:
    """The class that a provider makes."""
    if inspect.isclass(target):
        return target
    annotation = bare_type(returned_type(target))
    function = function_of(target)
    if inspect.isgeneratorfunction(inspect.unwrap(function)) or inspect.isasyncgenfunction(inspect.unwrap(function)):
        _check_bare(target)
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        yielded = typing.get_args(annotation) if typing.get_origin(annotation) in _YIELDS else ()
        annotation = bare_type(yielded[0]) if yielded else EMPTY
    if annotation in (EMPTY, Any, None):
        raise SignatureError(
            f"the component {name_of(target)!r} does not tell what it makes",
            "Annotate what it returns: `-> Pool`, or `-> AsyncIterator[Pool]` if it yields.",
        )
    return annotation


def _check_bare(target: Any) -> None:
    if hasattr(target, "__wrapped__"):
        raise SignatureError(
            f"the component {name_of(target)!r} is a generator behind a decorator",
            "Leave @contextmanager or @asynccontextmanager out: a component is the bare generator.",
        )


def _identity(call: Any) -> tuple[Any, ...]:
    """What stays the same when a module is loaded again, or the function called that has it inside."""
    name = getattr(call, "__qualname__", "")
    if not name:
        return (id(call),)
    # Of one name inside one function there may be two.
    return getattr(call, "__module__", None), name, whereabouts(call) if "<locals>" in name else None
