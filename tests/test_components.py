"""Services by annotation: what may be a component, who gets it, and what is refused with which words."""

import abc
import array
import collections
import contextlib
import dataclasses
import functools
import gc
import importlib
import inspect
import pathlib
import re
import sys
import typing
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from types import ModuleType
from typing import Annotated, Any, Generic, NamedTuple, Protocol, Self, TypeVar

import anyio.lowlevel
import msgspec
import pytest

from asgiws import (
    App,
    Connection,
    Cookie,
    Depends,
    Header,
    Path,
    Query,
    Request,
    RouteError,
    Router,
    SignatureError,
    WebSocket,
    component,
    components,
)
from tests.fakes import FakeServer, HTTPAnswer, converse, request

pytestmark = pytest.mark.anyio

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
Given = list[tuple[Any, ...]]

SCOPES = ("singleton", "websocket", "prototype")
every_scope = pytest.mark.parametrize("scope", SCOPES)
every_kind = pytest.mark.parametrize("kind", ["websocket", "http"])


async def connect(app: App, path: str = "/", query: str = "", headers: Any = ()) -> FakeServer:
    """A whole connection on which the client says nothing and does not leave."""
    return await converse(app, FakeServer(path=path, query=query, headers=headers), leave=-1)


async def visit(app: App, kind: str = "websocket", path: str = "/", query: str = "") -> FakeServer | HTTPAnswer:
    """A connection of either kind."""
    return await connect(app, path, query) if kind == "websocket" else await request(app, "POST", path, query=query)


def taking(function: Function, **annotations: Any) -> Function:
    """Give a function that takes `**values` parameters with these annotations."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, annotation=one) for name, one in annotations.items()]
    function.__dict__["__signature__"] = inspect.Signature(parameters)
    function.__annotations__ = annotations
    return function


def asking(*wanted: Any, app: App | None = None, kind: str = "websocket", path: str = "/") -> tuple[App, Given]:
    """An app whose handler has a parameter for each of these annotations, and what it was given, by connection."""
    app = App() if app is None else app
    given: Given = []
    names = [f"value{n}" for n in range(len(wanted))]

    async def handler(**values: Any) -> None:
        given.append(tuple(values[name] for name in names))
        if kind == "websocket":
            await values["ws"].accept()

    annotations = dict(zip(names, wanted, strict=True)) | ({"ws": WebSocket} if kind == "websocket" else {})
    (app.websocket if kind == "websocket" else app.post)(path)(taking(handler, **annotations))
    return app, given


async def refusal(*wanted: Any) -> str:
    """What is said of a handler that asks for these, when it is registered or when its app starts."""
    with pytest.raises(SignatureError) as caught:
        async with asking(*wanted)[0].lifespan_context():
            pass
    return str(caught.value)


def says(text: str, *parts: str) -> bool:
    """Whether a text has all these parts, in this order."""
    at = 0
    for part in parts:
        at = text.find(part, at)
        assert at >= 0, f"{part!r} is missing (or out of order) in: {text}"
        at += len(part)
    return True


def line_of(function: Any) -> str:
    """Where a function or class stands, as errors tell."""
    return f"{pathlib.Path(inspect.getfile(function)).name}:{inspect.getsourcelines(function)[1]}"


@pytest.fixture
def module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Writes a module and imports it; of one that was imported already, loads it again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(name: str, source: str) -> ModuleType:
        (tmp_path / f"{name}.py").write_text(inspect.cleandoc(source))
        importlib.invalidate_caches()
        loaded = sys.modules.get(name)
        if loaded is not None:
            return importlib.reload(loaded)
        monkeypatch.delitem(sys.modules, name, raising=False)  # taken out again at the end
        return importlib.import_module(name)

    return write


# What may be a component


@component
class Part:
    """What the components here need."""


def plain() -> type:
    class Plain:
        def __init__(self, part: Part) -> None:
            self.part = part

    return Plain


def keyword_only() -> type:
    class KeywordOnly:
        def __init__(self, *, part: Part) -> None:
            self.part = part

    return KeywordOnly


def by_new() -> type:
    class ByNew:
        part: Part

        def __new__(cls, part: Part) -> Self:
            self = super().__new__(cls)
            self.part = part
            return self

    return ByNew


def dataclass() -> type:
    @dataclasses.dataclass
    class Data:
        part: Part
        names: list[str] = dataclasses.field(default_factory=list)
        later: int = dataclasses.field(init=False, default=4)

    return Data


def slotted_dataclass() -> type:
    @dataclasses.dataclass(slots=True, frozen=True, kw_only=True)
    class SlottedData:
        part: Part

    return SlottedData


def struct() -> type:
    class Record(msgspec.Struct, frozen=True):
        part: Part
        names: list[str] = []

    return Record


def named_tuple() -> type:
    class Pair(NamedTuple):
        part: Part
        n: int = 1

    return Pair


def generic() -> type:
    class Box(Generic[T]):
        def __init__(self, part: Part) -> None:
            self.part = part

    return Box


def slotted() -> type:
    class Slotted:
        __slots__ = ("part",)

        def __init__(self, part: Part) -> None:
            self.part = part

    return Slotted


def heir() -> type:
    class Parent:
        def __init__(self, part: Part) -> None:
            self.part = part

    class Heir(Parent):
        """Has the constructor of its parent, which is no component."""

    return Heir


def of_abstract() -> type:
    class Abstract(abc.ABC):
        @abc.abstractmethod
        def put(self) -> None: ...

    class Concrete(Abstract):
        def __init__(self, part: Part) -> None:
            self.part = part

        def put(self) -> None: ...

    return Concrete


CLASSES = (
    plain, keyword_only, by_new, dataclass, slotted_dataclass, struct, named_tuple, generic, slotted, heir, of_abstract,
)  # fmt: skip


@every_kind
@every_scope
@pytest.mark.parametrize("make", CLASSES, ids=lambda make: make.__name__)
async def test_every_class_may_be_a_component(make: Callable[[], Any], scope: str, kind: str) -> None:
    cls = make()
    assert component(scope=scope)(cls) is cls
    app, given = asking(cls, Part, kind=kind)
    await visit(app, kind)
    ((made, part),) = given
    assert type(made) is cls
    assert made.part is part


async def test_a_class_without_a_constructor_is_a_component_in_all_spellings() -> None:
    @component
    class Bare: ...

    @component()
    class Called: ...

    app, given = asking(Bare, Called)
    await connect(app)
    assert [type(one) for one in given[0]] == [Bare, Called]


class Made:
    """What a provider makes."""

    def __init__(self, part: Part, way: str) -> None:
        self.part = part
        self.way = way


def by_function(made: Any) -> Callable[..., Any]:
    def provider(part: Part) -> made:
        return made(part, "function")

    return provider


def by_coroutine(made: Any) -> Callable[..., Any]:
    async def provider(part: Part) -> made:
        await anyio.lowlevel.checkpoint()
        return made(part, "coroutine")

    return provider


def by_iterator(made: Any) -> Callable[..., Any]:
    def provider(part: Part) -> Iterator[made]:
        yield made(part, "iterator")

    return provider


def by_generator(made: Any) -> Callable[..., Any]:
    def provider(part: Part) -> Generator[made, None, None]:
        yield made(part, "generator")

    return provider


def by_async_iterator(made: Any) -> Callable[..., Any]:
    async def provider(part: Part) -> AsyncIterator[made]:
        await anyio.lowlevel.checkpoint()
        yield made(part, "async iterator")

    return provider


def by_async_generator(made: Any) -> Callable[..., Any]:
    async def provider(part: Part) -> AsyncGenerator[Annotated[made, "the pool"], None]:
        yield made(part, "async generator")

    return provider


def by_old_typing(made: Any) -> Callable[..., Any]:
    async def provider(part: Part) -> typing.AsyncIterator[made]:
        yield made(part, "typing")

    return provider


def by_annotated(made: Any) -> Callable[..., Any]:
    def provider(part: Part) -> Annotated[made, "metadata"]:
        return made(part, "annotated")

    return provider


def by_partial(made: Any) -> Callable[..., Any]:
    def provider(part: Part, way: str) -> made:
        return made(part, way)

    return functools.partial(provider, way="partial")


def by_object(made: Any) -> Callable[..., Any]:
    class Provider:
        def __call__(self, part: Part) -> made:
            return made(part, "object")

    return Provider()


def by_method(made: Any) -> Callable[..., Any]:
    class Factory:
        way = "method"

        def provide(self, part: Part) -> made:
            return made(part, self.way)

    return Factory().provide


def by_wrapped(made: Any) -> Callable[..., Any]:
    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return wrapper

    @decorated
    def provider(part: Part) -> made:
        return made(part, "wrapped")

    return provider


PROVIDERS = (
    by_function, by_coroutine, by_iterator, by_generator, by_async_iterator, by_async_generator, by_old_typing,
    by_annotated, by_partial, by_object, by_method, by_wrapped,
)  # fmt: skip


@every_kind
@every_scope
@pytest.mark.parametrize("make", PROVIDERS, ids=lambda make: make.__name__)
async def test_every_function_may_provide_a_component(make: Callable[..., Any], scope: str, kind: str) -> None:
    class Mine(Made): ...

    component(scope=scope)(make(Mine))
    app, given = asking(Mine, Part, kind=kind)
    await visit(app, kind)
    ((made, part),) = given
    assert type(made) is Mine
    assert made.part is part
    assert made.way == make.__name__.removeprefix("by_").replace("_", " ").replace("old ", "")


async def test_the_function_stays_what_it_was() -> None:
    class Mine: ...

    def provider() -> Mine:
        return Mine()

    assert component(provider) is provider
    assert isinstance(provider(), Mine)


async def test_a_function_with_a_base_class_in_its_annotation_provides_that() -> None:
    class Store: ...

    class Memory(Store): ...

    @component
    def store() -> Store:
        return Memory()

    app, given = asking(Store)
    await connect(app)
    assert type(given[0][0]) is Memory
    assert "cannot be made from text" in await refusal(Memory)


# How long one lives


@every_kind
@pytest.mark.parametrize(("scope", "built"), [("singleton", 1), ("websocket", 3), ("prototype", 9)])
async def test_there_is_one_for_the_app_or_the_connection_or_the_parameter(kind: str, scope: str, built: int) -> None:
    @component(scope=scope)
    class Mine: ...

    def dependency(mine: Mine) -> Mine:
        return mine

    app, given = asking(Mine, Mine, Annotated[Mine, Depends(dependency)], kind=kind)
    for _ in range(3):
        await visit(app, kind)
    everything = [one for connection in given for one in connection]
    assert len(everything) == 9
    assert len({id(one) for one in everything}) == built


async def test_a_prototype_is_made_for_each_who_needs_it() -> None:
    @component(scope="prototype")
    class Fresh: ...

    @component
    class Wide:
        def __init__(self, one: Fresh, other: Fresh) -> None:
            self.fresh = (one, other)

    @component(scope="websocket")
    class Narrow:
        def __init__(self, one: Fresh, wide: Wide) -> None:
            self.fresh = (one, *wide.fresh)

    app, given = asking(Wide, Narrow, Fresh)
    await connect(app)
    await connect(app)
    (wide, first, fresh), (same, second, other) = given
    assert wide is same
    assert first.fresh[1:] == second.fresh[1:] == wide.fresh
    assert len({*first.fresh, *second.fresh, fresh, other}) == 6


async def test_what_is_false_or_none_is_made_once_as_well() -> None:
    class Switch: ...

    built = []

    @component
    def switch() -> Switch:
        built.append("switch")
        return None  # type: ignore[return-value]

    class Empty: ...

    @component(scope="websocket")
    def empty() -> Empty:
        built.append("empty")
        return []  # type: ignore[return-value]

    app, given = asking(Switch, Switch, Empty, Empty)
    await connect(app)
    await connect(app)
    assert given == [(None, None, [], [])] * 2
    assert built == ["switch", "empty", "empty"]


# Who gets one


async def test_a_handler_that_streams_gets_one() -> None:
    @component
    class Feed:
        items = ("a", "b")

    app = App()

    @app.websocket("/")
    async def stream(feed: Feed) -> AsyncIterator[str]:
        for item in feed.items:
            yield item

    assert (await connect(app)).texts == ["a", "b"]


async def test_a_dependency_gets_one_wherever_it_stands() -> None:
    @component
    class Rooms: ...

    seen: list[Rooms] = []

    def note(rooms: Rooms) -> None:
        seen.append(rooms)

    def also(rooms: Rooms) -> None:
        seen.append(rooms)

    async def below(rooms: Rooms, _: Annotated[None, Depends(also)]) -> AsyncIterator[Rooms]:
        yield rooms

    app = App(dependencies=[Depends(note, use_cache=False)])
    router = Router(dependencies=[Depends(note, use_cache=False)])

    @router.websocket("/", dependencies=[Depends(note, use_cache=False)])
    async def handler(ws: WebSocket, rooms: Rooms, same: Annotated[Rooms, Depends(below)]) -> None:
        await ws.accept()
        seen.extend([rooms, same])

    app.include_router(router, dependencies=[Depends(note, use_cache=False)])
    await connect(app)
    assert len(seen) == 7
    assert len(set(seen)) == 1


async def test_a_path_parameter_of_the_same_name_is_the_clients_in_a_handler() -> None:
    class Wanted: ...

    component(Wanted)
    app = App()

    with pytest.raises(SignatureError, match="parameter 'room' of type Wanted"):

        @app.websocket("/<room>")
        async def handler(ws: WebSocket, room: Wanted) -> None: ...


@every_kind
async def test_a_struct_that_is_a_component_is_never_the_body_or_the_query(kind: str) -> None:
    @component
    class Settings(msgspec.Struct):
        debug: bool = False

    app, given = asking(Settings, kind=kind)
    if kind == "http":
        await request(app, "POST", "/", query="debug=true", body=b'{"debug": true}')
    else:
        await connect(app, query="debug=true")
    assert given == [(Settings(debug=False),)]


# What asks for it


class Store(Protocol):
    """A protocol for the tests below."""

    def put(self, item: str) -> None: ...


@pytest.fixture(autouse=True)
def _forget_what_stands_elsewhere() -> Iterator[None]:
    """Protocols and builtin types cannot carry their providers: what the tests give them is taken away again."""
    before = {made: providers.copy_for(made) for made, providers in components._elsewhere.items()}
    yield
    components._elsewhere.clear()
    components._elsewhere.update(before)


async def test_a_protocol_asks_for_who_provides_it() -> None:
    @component(provides=Store)
    class Memory:
        def put(self, item: str) -> None: ...

    app, given = asking(Store, Memory, Annotated[Store, "for the rooms"])
    await connect(app)
    assert type(given[0][0]) is Memory
    assert len(set(given[0])) == 1


async def test_a_protocol_is_not_changed_by_who_provides_it() -> None:
    @typing.runtime_checkable
    class Checked(Protocol):
        def put(self) -> None: ...

    @component(provides=Checked)
    class Memory:
        def put(self) -> None: ...

    class Other:
        def put(self) -> None: ...

    assert isinstance(Other(), Checked)
    assert issubclass(Other, Checked)


async def test_a_base_class_asks_for_who_provides_it() -> None:
    class Base(abc.ABC):
        @abc.abstractmethod
        def put(self) -> None: ...

    @component(provides=Base, scope="websocket")
    class Memory(Base):
        def put(self) -> None: ...

    class Other(Base):
        def put(self) -> None: ...

    component(Other)
    app, given = asking(Base, Memory, Other)
    await connect(app)
    ((base, memory, other),) = given
    assert base is memory
    assert type(other) is Other


@pytest.mark.parametrize("kind", [collections.deque, array.array, re.Pattern], ids=str)
async def test_a_type_that_takes_no_attributes_asks_for_who_provides_it(kind: Any) -> None:
    made = object()

    @component(provides=kind)
    def provider() -> Any:
        return made

    app, given = asking(kind, kind)
    await connect(app)
    assert given == [(made, made)]


async def test_one_class_may_provide_two_types() -> None:
    class Readable: ...

    class Writable: ...

    @component(provides=Readable)
    @component(provides=Writable)
    class File: ...

    app, given = asking(Readable, Writable, File)
    await connect(app)
    assert len(set(given[0])) == 1


async def test_what_a_subclass_inherits_makes_it_no_component() -> None:
    @component
    class Base: ...

    class Derived(Base): ...

    assert "cannot be made from text" in await refusal(Derived)


async def test_a_subclass_may_be_a_component_beside_its_base_class() -> None:
    @component
    class Base: ...

    @component
    class Derived(Base): ...

    app, given = asking(Base, Derived)
    await connect(app)
    assert [type(one) for one in given[0]] == [Base, Derived]


async def test_an_annotated_type_asks_for_the_same_as_the_bare_one() -> None:
    @component
    class First:
        def __init__(self, part: Annotated[Annotated[Part, "x"], "y"]) -> None:
            self.part = part

    app, given = asking(First, Part)
    await connect(app)
    assert given[0][0].part is given[0][1]


# What a constructor gets


async def test_a_chain_of_components_is_made_from_its_end() -> None:
    made: list[str] = []

    class Config: ...

    @component
    async def config() -> Config:
        await anyio.lowlevel.checkpoint()
        made.append("config")
        return Config()

    @component
    class Pool:
        def __init__(self, config: Config, app: App) -> None:
            made.append("pool")
            self.seen = (config, app)

    @component(scope="websocket")
    class Session:
        def __init__(self, pool: Pool, config: Config) -> None:
            made.append("session")
            self.seen = (pool, config)

    app, given = asking(Session, Pool, Config)
    await connect(app)
    await connect(app)
    (session, pool, config_), (second, *_) = given
    assert session.seen == second.seen == (pool, config_)
    assert pool.seen == (config_, app)
    assert made == ["config", "pool", "session", "session"]


@every_scope
@every_kind
async def test_a_client_never_sets_a_default(scope: str, kind: str) -> None:
    """A parameter of a component is not looked for in the query string, the path, the body or the headers."""

    @component(scope=scope)
    class Settings:
        def __init__(self, debug: bool = False, limit: int | None = None, names: tuple[str, ...] = ("a",)) -> None:
            self.all = (debug, limit, names)

    @component(scope=scope)
    @dataclasses.dataclass
    class Data:
        n: int = 1
        names: list[str] = dataclasses.field(default_factory=list)

    app, given = asking(Settings, Data, kind=kind, path="/<debug>/<n:int>")
    await visit(app, kind, "/true/9", "debug=true&limit=9&names=b&n=9")
    assert given[0][0].all == (False, None, ("a",))
    assert given[0][1] == Data(1, [])


async def test_a_default_gives_way_to_a_component() -> None:
    @component
    class Mine:
        def __init__(self, part: Part = None) -> None:  # type: ignore[assignment]
            self.part = part

    app, given = asking(Mine, Part)
    await connect(app)
    assert given[0][0].part is given[0][1]


async def test_a_parameter_of_a_component_is_not_the_path_parameter_of_the_same_name() -> None:
    @component
    class Mine:
        def __init__(self, room: Part) -> None:
            self.part = room

    app, given = asking(Mine, Part, path="/<room>")
    await connect(app, "/blue")
    assert given[0][0].part is given[0][1]


async def test_a_component_of_a_websocket_gets_the_connection_and_what_is_marked() -> None:
    def dependency(n: int = 3) -> int:
        return n

    @component(scope="websocket")
    class Session:
        def __init__(
            self,
            ws: WebSocket,
            connection: Connection,
            app: App,
            room: Annotated[str, Path()],
            lang: Annotated[str, Query()],
            below: Annotated[int, Depends(dependency)],
            user_agent: str = Header("nobody"),
            theme: str = Cookie("dark"),
            limit: int = 10,
        ) -> None:
            self.all = (ws, connection, app, room, lang, below, user_agent, theme, limit)

    app = App()
    seen: list[Any] = []

    @app.websocket("/<room>")
    async def handler(ws: WebSocket, session: Session) -> None:
        await ws.accept()
        seen.append((ws, ws, app, "blue", "fr", 5, "curl", "light", 10))
        seen.append(session.all)

    headers = {"user-agent": "curl", "cookie": "theme=light"}
    await connect(app, "/blue", "lang=fr&n=5&limit=99", headers)
    assert seen[0] == seen[1]
    assert (await connect(app, "/blue")).closed == (1008, "query 'lang': is missing")


async def test_a_component_of_a_request_gets_the_request() -> None:
    @component(scope="websocket")
    class Session:
        def __init__(self, request: Request, connection: Connection) -> None:
            self.all = (request, connection)

    app = App()

    @app.get("/")
    async def handler(request: Request, session: Session) -> bool:
        return session.all == (request, request)

    assert (await request(app, "GET", "/")).body == b"true"


async def test_the_connection_is_found_by_its_annotation_though_there_is_a_default() -> None:
    @component(scope="websocket")
    class Session:
        def __init__(self, ws: WebSocket = None, connection: Connection = None) -> None:  # type: ignore[assignment]
            self.all = (ws, connection)

    app, given = asking(Session, WebSocket)
    await connect(app)
    session, ws = given[0]
    assert session.all == (ws, ws)


async def test_one_component_serves_both_kinds_of_connections() -> None:
    @component(scope="websocket")
    class Session:
        def __init__(self, connection: Connection) -> None:
            self.kind = type(connection)

    app, on_websocket = asking(Session)
    _, on_http = asking(Session, app=app, kind="http")
    await visit(app, "websocket")
    await visit(app, "http")
    assert (on_websocket[0][0].kind, on_http[0][0].kind) == (WebSocket, Request)


async def test_annotations_may_be_strings(module: Callable[..., ModuleType]) -> None:
    written = module(
        "of_strings",
        """
        from __future__ import annotations
        from collections.abc import AsyncIterator
        from typing import Annotated, Protocol
        from asgiws import App, Query, WebSocket, component

        @component
        class Service:
            def __init__(self, store: Store, pool: Annotated[Pool, "of the later class"], app: App) -> None:
                self.all = (store, pool, app)

        @component(scope="websocket")
        class Session:
            def __init__(self, service: Service, ws: WebSocket, n: Annotated[int, Query()], m: int = 2) -> None:
                self.all = (service, ws, n, m)

        class Store(Protocol): ...

        @component(provides=Store)
        class Memory: ...

        class Pool: ...

        @component
        async def pool(store: Store) -> AsyncIterator[Pool]:
            yield Pool()

        app = App()
        seen = []

        @app.websocket("/")
        async def handler(ws: WebSocket, session: Session, store: Store) -> None:
            await ws.accept()
            seen.append((session, ws, store))
        """,
    )
    await connect(written.app, query="n=5&m=7")
    ((session, ws, store),) = written.seen
    service, *rest = session.all
    assert rest == [ws, 5, 2]
    assert service.all[0] is store
    assert type(service.all[1]).__name__ == "Pool"
    assert service.all[2] is written.app


async def test_annotations_may_be_strings_in_the_function_that_makes_the_app(
    module: Callable[..., ModuleType],
) -> None:
    written = module(
        "factory_of_strings",
        """
        from __future__ import annotations
        from asgiws import App, WebSocket, component

        def create_app(seen):
            @component
            class Store: ...

            @component
            class Service:
                def __init__(self, store: Store) -> None:
                    self.store = store

            @component(scope="websocket")
            class Session:
                def __init__(self, store: Store) -> None:
                    self.store = store

            app = App()

            @app.websocket("/")
            async def handler(ws: WebSocket, session: Session, service: Service, store: Store) -> None:
                await ws.accept()
                seen.append((session.store, service.store, store))

            return app
        """,
    )
    seen: Given = []
    await connect(written.create_app(seen))
    assert len(set(seen[0])) == 1


# What Depends makes of a component


@pytest.mark.parametrize("scope", ["singleton", "websocket"])
async def test_depends_on_a_component_gives_that_component(scope: str) -> None:
    """A FastAPI user writes `Depends()`: that must not make a second object, nor let the client fill its defaults."""

    @component(scope=scope)
    class Rooms:
        def __init__(self, debug: bool = False) -> None:
            self.debug = debug

    app, given = asking(Annotated[Rooms, Depends()], Annotated[Rooms, Depends(Rooms)], Rooms)
    await connect(app, query="debug=true")
    assert [one.debug for one in given[0]] == [False] * 3
    assert len(set(given[0])) == 1


async def test_a_class_that_is_no_component_is_made_by_depends_as_ever() -> None:
    class Filters:
        def __init__(self, page: int = 1, *, part: Part) -> None:
            self.all = (page, part)

    app, given = asking(Annotated[Filters, Depends()], Part)
    await connect(app, query="page=4")
    assert given[0][0].all == (4, given[0][1])


# Refused where it stands


@pytest.mark.parametrize(
    ("scope", "hint"),
    [
        ("request", "Known: 'singleton', 'websocket', 'prototype'."),
        ("singelton", "Did you mean 'singleton'?"),
        ("WebSocket", "Did you mean 'websocket'?"),
        (None, "Known: 'singleton', 'websocket', 'prototype'."),
    ],
)
async def test_an_unknown_scope_is_refused(scope: Any, hint: str) -> None:
    with pytest.raises(SignatureError) as caught:
        component(scope=scope)
    assert says(str(caught.value), f"there is no scope {scope!r} of components", hint)


@pytest.mark.parametrize("target", ["websocket", 7, object()])
async def test_what_cannot_be_called_is_refused(target: Any) -> None:
    with pytest.raises(SignatureError) as caught:
        component(target)
    assert says(str(caught.value), "@component stands above a class or a function, got", 'scope="websocket"')


def unannotated() -> Any:
    def provider():  # type: ignore[no-untyped-def]
        return Part()

    return provider


def returns_any() -> Any:
    def provider() -> Any:
        return Part()

    return provider


def returns_none() -> Any:
    def provider() -> None:
        return None

    return provider


def returns_optional() -> Any:
    def provider() -> Part | None:
        return None

    return provider


def returns_list() -> Any:
    def provider() -> list[Part]:
        return []

    return provider


def yields_nothing_known() -> Any:
    async def provider() -> AsyncIterator:  # type: ignore[type-arg]
        yield Part()

    return provider


def yields_but_returns_a_class() -> Any:
    def provider() -> Part:  # type: ignore[misc]
        yield Part()

    return provider


def context_manager() -> Any:
    @contextlib.asynccontextmanager
    async def provider() -> AsyncIterator[Part]:
        yield Part()

    return provider


def unknown_annotation() -> Any:
    def provider() -> "Unheard":  # type: ignore[name-defined]  # noqa: F821
        return None

    return provider


UNTOLD = (
    unannotated, returns_any, returns_none, returns_optional, returns_list, yields_nothing_known,
    yields_but_returns_a_class, context_manager, unknown_annotation,
)  # fmt: skip


@pytest.mark.parametrize("make", UNTOLD, ids=lambda make: make.__name__)
async def test_a_function_that_does_not_tell_what_it_makes_is_refused_with_its_place(make: Callable[[], Any]) -> None:
    provider = make()
    with pytest.raises(SignatureError) as caught:
        component(provider)
    assert "provider" in str(caught.value)
    assert line_of(inspect.unwrap(provider)) in str(caught.value)


async def test_a_function_without_an_annotation_is_told_how_to_get_one() -> None:
    with pytest.raises(SignatureError) as caught:
        component(unannotated())
    assert says(
        str(caught.value), "the component 'provider' does not tell what it makes", "`-> Pool`", "AsyncIterator[Pool]"
    )


async def test_a_function_without_an_annotation_may_be_told_what_it_provides() -> None:
    class Wanted: ...

    made = Wanted()

    @component(provides=Wanted)
    def provider():  # type: ignore[no-untyped-def]
        yield made

    app, given = asking(Wanted)
    await connect(app)
    assert given == [(made,)]


@pytest.mark.parametrize("provides", ["Store", list[int], Part | None, None.__class__, 3], ids=str)
async def test_what_is_no_class_cannot_be_provided(provides: Any) -> None:
    class Memory:
        def __init__(self) -> None: ...

    with pytest.raises(SignatureError) as caught:
        component(provides=provides)(Memory)
    assert says(str(caught.value), "a component is of a class, got", "Memory", line_of(Memory.__init__))


async def test_what_cannot_be_instantiated_is_refused() -> None:
    class Abstract(abc.ABC):
        @abc.abstractmethod
        def put(self) -> None: ...

    for cls in (Abstract, Store):
        with pytest.raises(SignatureError) as caught:
            component(cls)
        assert says(str(caught.value), cls.__name__, "provides=")


async def test_a_decorator_that_makes_another_class_does_not_make_a_component_of_the_first() -> None:
    """`slots=True` makes a second class, with all that was written on the first."""

    @dataclasses.dataclass(slots=True)
    @component
    class Data:
        n: int = 1

    app, given = asking(Data)
    await connect(app)
    assert type(given[0][0]) is Data


# Refused where it is asked for


async def test_a_handler_that_asks_for_what_is_no_component_is_told_of_components() -> None:
    class Missing: ...

    with pytest.raises(SignatureError) as caught:
        asking(Missing)
    assert says(
        str(caught.value), "parameter 'value0' of type Missing", line_of(asking).partition(":")[0], "@component"
    )


async def test_who_asks_for_a_base_class_is_told_of_the_component_below_it() -> None:
    class Base: ...

    class Middle(Base): ...

    @component
    class Leaf(Middle): ...

    @component
    class User:
        def __init__(self, base: Base) -> None: ...

    hint = "Leaf is a component of its own: write @component(provides=Base) above it."
    assert hint in await refusal(Base)
    assert hint in await refusal(User)


async def test_a_missing_component_is_told_with_the_chain_to_it() -> None:
    class Missing: ...

    @component
    class Store:
        def __init__(self, missing: Missing) -> None: ...

    @component
    class Service:
        def __init__(self, store: Store) -> None: ...

    def dependency(service: Service) -> None: ...

    text = await refusal(Annotated[None, Depends(dependency)])
    assert says(
        text,
        "no component provides parameter 'missing', annotated with Missing",
        "Service -> Store -> Missing",
        "handler", line_of(asking).partition(":")[0],
        "Store, ", line_of(Store.__init__),
        "Put @component above the class or a function that makes it",
        "import its module",
    )  # fmt: skip


@every_scope
@pytest.mark.parametrize("annotation", [str, int, bool, dict[str, Any], list[Part], "Part | None"], ids=str)
async def test_who_asks_for_a_plain_value_is_refused(annotation: Any, scope: str) -> None:
    class Pool: ...

    def make_pool(**_: Any) -> Any: ...

    component(scope=scope, provides=Pool)(taking(make_pool, dsn=annotation))
    text = await refusal(Pool)
    assert says(text, "no component provides parameter 'dsn'", "make_pool -> ", "make_pool, ", line_of(make_pool))


async def test_a_constructor_without_annotations_is_refused() -> None:
    @component
    class Pool:
        def __init__(self, dsn) -> None: ...  # type: ignore[no-untyped-def]

    assert says(await refusal(Pool), "no component provides parameter 'dsn'", line_of(Pool.__init__))


@pytest.mark.parametrize("kind", ["args", "kwargs", "positional"])
async def test_a_parameter_that_has_no_name_to_be_filled_by_is_refused(kind: str) -> None:
    class Args:
        def __init__(self, *parts: Part) -> None: ...

    class Kwargs:
        def __init__(self, **parts: Part) -> None: ...

    class Positional:
        def __init__(self, part: Part, /) -> None: ...

    cls: Any = {"args": Args, "kwargs": Kwargs, "positional": Positional}[kind]
    component(cls)
    assert says(await refusal(cls), "cannot be filled by name", line_of(cls.__init__))


async def test_two_components_for_one_type_are_refused_with_both_places() -> None:
    class Wanted: ...

    @component(provides=Wanted)
    class First:
        def __init__(self) -> None: ...

    @component
    def second() -> Wanted:
        return Wanted()

    @component
    class User:
        def __init__(self, wanted: Wanted) -> None: ...

    for asked in (Wanted, User):
        assert says(
            await refusal(asked),
            "Wanted has 2 components:", "First, ", line_of(First.__init__), "second, ", line_of(second),
            "handler", "@component(provides=...)",
        )  # fmt: skip


async def test_two_components_are_no_matter_where_nobody_asks_for_both() -> None:
    class Wanted: ...

    @component(provides=Wanted)
    class First: ...

    @component(provides=Wanted)
    class Second: ...

    app, given = asking(First, Second)
    await connect(app)
    assert [type(one) for one in given[0]] == [First, Second]


async def test_a_singleton_that_asks_for_a_connection_is_refused() -> None:
    @component
    class OfWebSocket:
        def __init__(self, ws: WebSocket) -> None: ...

    @component
    class OfConnection:
        def __init__(self, connection: Connection) -> None: ...

    @component
    class OfQuery:
        def __init__(self, page: Annotated[int, Query()] = 1) -> None: ...

    for cls, name in ((OfWebSocket, "ws"), (OfConnection, "connection"), (OfQuery, "page")):
        assert says(
            await refusal(cls),
            f"parameter {name!r} is of one connection, but a singleton is made for all of them", cls.__name__,
            line_of(cls.__init__), 'scope="websocket"',
        )  # fmt: skip


async def test_a_component_of_the_other_kind_of_connection_is_refused() -> None:
    # T35
    @component(scope="websocket")
    class Session:
        def __init__(self, request: Request) -> None: ...

    with pytest.raises(SignatureError) as caught:
        asking(Session, kind="websocket")
    assert says(str(caught.value), "parameter 'request' asks for a Request", "Session, ", line_of(Session.__init__))


async def test_a_marked_parameter_of_the_type_of_a_component_is_the_clients() -> None:
    @component
    class Settings(msgspec.Struct):
        debug: bool = False

    app, given = asking(Annotated[Settings, Query()], Settings)
    await connect(app, query="debug=true")
    assert [one.debug for one in given[0]] == [True, False]


async def test_the_text_names_the_file_of_classes_that_have_no_method_of_their_own() -> None:
    class Missing: ...

    @component
    @dataclasses.dataclass
    class Data:
        missing: Missing

    @component
    class Record(msgspec.Struct):
        missing: Missing

    @component
    class Pair(NamedTuple):
        missing: Missing

    for cls in (Data, Record, Pair):
        assert says(await refusal(cls), f"{cls.__name__}, ", line_of(cls).partition(":")[0])


# In which order things are written


async def test_a_provider_that_comes_after_the_handler_never_leaves_the_parameter_to_the_client() -> None:
    class Settings(msgspec.Struct):
        debug: bool = False

    app, given = asking(Settings, kind="http")

    @component
    def settings() -> Settings:
        return Settings()

    with contextlib.suppress(SignatureError):  # to be refused at start is fine
        async with app.lifespan_context():
            await request(app, "POST", "/", body=b'{"debug": true}')
    assert given in ([], [(Settings(debug=False),)])


async def test_components_may_be_written_in_any_order_after_those_who_need_them() -> None:
    class Late: ...

    @component
    class Service:
        def __init__(self, late: Late) -> None:
            self.late = late

    app, given = asking(Service)
    component(Late)
    await connect(app)
    assert type(given[0][0].late) is Late


# Loaded twice, made twice


SERVICES = """
from asgiws import component
from stores import Store

@component(provides=Store)
class Memory:
    version = {version}

class Pool: ...

@component
def pool() -> Pool:
    return Pool()
"""


async def test_a_module_that_is_loaded_again_brings_its_components_again(module: Callable[..., ModuleType]) -> None:
    stores = module("stores", "class Store: ...")
    services = module("services", SERVICES.format(version=1))
    first_pool = services.Pool
    app, given = asking(stores.Store)
    services = module("services", SERVICES.format(version=2))
    await connect(app)
    assert given[0][0].version == 1  # registered before
    app, given = asking(stores.Store, services.Pool)
    await connect(app)
    assert given[0][0].version == 2
    assert type(given[0][1]) is services.Pool is not first_pool


async def test_a_function_that_makes_apps_may_be_called_twice() -> None:
    class Wanted: ...

    def create_app(version: int) -> tuple[App, Given]:
        @component(provides=Wanted)
        class Memory:
            def __init__(self) -> None:
                self.version = version

        return asking(Wanted)

    first, of_first = create_app(1)
    second, of_second = create_app(2)
    await connect(first)
    await connect(second)
    assert (of_first[0][0].version, of_second[0][0].version) == (1, 2)


async def test_what_provides_a_type_is_forgotten_with_it() -> None:
    def make() -> "weakref.ref[Any]":
        @component
        class Mine: ...

        return weakref.ref(Mine)

    gone = make()
    gc.collect()
    assert gone() is None


async def test_a_router_can_ask_for_components_before_it_is_included() -> None:
    router = Router("/rooms")

    @component
    class Late: ...

    @router.websocket("/")
    async def handler(ws: WebSocket, late: Late) -> None:
        await ws.accept(late.__class__.__name__ if ws.subprotocols else None)

    app = App()
    app.include_router(router)
    assert (await connect(app, "/rooms/")).status == 101


async def test_a_component_is_no_route() -> None:
    with pytest.raises(RouteError, match="include\\(\\) takes controllers and routers"):
        App().include(Part)
