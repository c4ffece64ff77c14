"""What is planned once and run for each connection: order, lifetimes, circles, overrides, and what ends with it."""

import contextlib
import contextvars
import dataclasses
import functools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from asgiws import (
    App,
    Connection,
    Depends,
    HTTPException,
    Query,
    SignatureError,
    WebSocket,
    WebSocketException,
    cleanup,
    component,
)
from asgiws.errors import ParameterError, ParameterProblem, told_with
from asgiws.plans import Dependency, Plan, every_dependency, itself, style_of
from asgiws.signature import parameters_of
from tests.fakes import DEADLINE, SHAPES, FakeServer, Shape, converse, request
from tests.test_components import asking, connect, line_of, refusal, says, taking, visit

pytestmark = pytest.mark.anyio

Log = list[str]

every_kind = pytest.mark.parametrize("kind", ["websocket", "http"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def label(error: BaseException) -> str:
    """What a test calls an exception, on either event loop."""
    return "cancelled" if isinstance(error, anyio.get_cancelled_exc_class()) else type(error).__name__


def opening(log: Log, made: Any, *needs: Any, plain: bool = False, scope: str = "websocket") -> Any:
    """A component of this class that notes how it was opened and closed."""
    name = made.__name__

    async def open_async(**_: Any) -> AsyncIterator[Any]:
        log.append(f"+{name}")
        try:
            yield made()
        except BaseException as error:
            log.append(f"{name}: {label(error)}")
            raise
        finally:
            await anyio.lowlevel.checkpoint()
            log.append(f"-{name}")

    def open_plain(**_: Any) -> Iterator[Any]:
        log.append(f"+{name}")
        try:
            yield made()
        except BaseException as error:
            log.append(f"{name}: {label(error)}")
            raise
        finally:
            log.append(f"-{name}")

    opens = taking(open_plain if plain else open_async, **{f"need{n}": one for n, one in enumerate(needs)})
    component(scope=scope, provides=made)(opens)
    return made


# What lives with a connection ends with it


async def returns(ws: WebSocket) -> None:
    await ws.accept()


async def fails(ws: WebSocket) -> None:
    await ws.accept()
    raise ValueError("a bug")


async def refuses(ws: WebSocket) -> None:
    raise HTTPException(401)


async def reads(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive_text()


async def waits(ws: WebSocket) -> None:
    await ws.accept()
    await anyio.sleep_forever()


ENDINGS = {
    returns: None,
    fails: "ValueError",
    refuses: "HTTPException",
    reads: "WebSocketDisconnect",
    waits: "cancelled",
}


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("handler", ENDINGS, ids=lambda handler: handler.__name__)
async def test_a_component_of_a_connection_is_closed_however_it_ends(handler: Callable[..., Any], plain: bool) -> None:
    # T37, T38
    log: Log = []
    outer = opening(log, type("Outer", (), {}), plain=plain)
    inner = opening(log, type("Inner", (), {}), outer, plain=plain)
    app = App()
    app.websocket("/")(_with(handler, inner))
    server = FakeServer()
    if handler is reads:
        server.leave(1001)

    async def serve() -> None:
        with contextlib.suppress(ValueError):
            await app(server.scope, server.receive, server.send)

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as group:
            group.start_soon(serve)
            if handler is waits:
                await server.until(lambda server: server.status == 101)
                group.cancel_scope.cancel()
    seen = ENDINGS[handler]
    sees = [f": {seen}"] if seen else []
    assert log == [
        "+Outer", "+Inner", *(f"Inner{one}" for one in sees), "-Inner", *(f"Outer{one}" for one in sees), "-Outer",
    ]  # fmt: skip


def _with(handler: Callable[..., Any], needed: Any) -> Callable[..., Any]:
    """A handler that needs a component besides."""

    async def with_component(ws: WebSocket, **_: Any) -> None:
        await handler(ws)

    return taking(with_component, ws=WebSocket, needed=needed)


@every_shape
async def test_a_component_of_a_connection_is_closed_when_the_client_breaks_it(shape: Shape) -> None:
    log: Log = []
    app = App()
    app.websocket("/")(_with(reads, opening(log, type("Inner", (), {}))))
    server = FakeServer(shape)
    server.abort()
    await converse(app, server, leave=-1)
    assert log == ["+Inner", "Inner: WebSocketDisconnect", "-Inner"]


async def test_a_request_closes_its_components_too() -> None:
    log: Log = []
    app, _ = asking(opening(log, type("Inner", (), {}), opening(log, type("Outer", (), {}))), kind="http")
    for _ in range(2):
        await request(app, "POST", "/")
    assert log == ["+Outer", "+Inner", "-Inner", "-Outer"] * 2


async def test_a_stream_closes_its_components_when_the_client_leaves() -> None:
    # T39
    log: Log = []
    feed = opening(log, type("Feed", (), {}))
    app = App()

    async def stream(**_: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield "tick"
        finally:
            log.append("stream ends")

    app.websocket("/")(taking(stream, feed=feed))
    await converse(app, FakeServer(), leave=1000)
    assert [one for one in log if ":" not in one] == ["+Feed", "stream ends", "-Feed"]


async def test_when_one_cannot_be_made_those_before_it_are_closed() -> None:
    log: Log = []

    class Broken: ...

    class Later: ...

    def broken(**_: Any) -> Any:
        raise HTTPException(409, "taken")

    outer = opening(log, type("Outer", (), {}))
    component(scope="websocket", provides=Broken)(taking(broken, outer=outer))
    app, seen = asking(Broken, opening(log, Later))
    server = await connect(app)
    assert (server.status, server.body) == (409, b'{"detail":"taken"}')
    assert log == ["+Outer", "Outer: HTTPException", "-Outer"]
    assert seen == []


async def test_a_clean_up_that_hangs_is_cut(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    # T38
    log: Log = []

    class Stuck: ...

    outer = opening(log, type("Outer", (), {}))

    async def stuck(**_: Any) -> AsyncIterator[Stuck]:
        yield Stuck()
        await anyio.sleep_forever()

    component(scope="websocket", provides=Stuck)(taking(stuck, outer=outer))
    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)
    app, _ = asking(Stuck)
    assert (await connect(app)).closed == (1000, "")
    assert "the clean-up took over 0.01 s and was cut" in caplog.text
    assert log[0] == "+Outer"


async def test_each_prototype_is_closed_in_reverse_order() -> None:
    log: Log = []
    serial = iter("abcdef")

    class Link: ...

    async def link() -> AsyncIterator[Link]:
        name = next(serial)
        log.append(f"+{name}")
        yield Link()
        log.append(f"-{name}")

    component(scope="prototype", provides=Link)(link)
    app, _ = asking(Link, Link, Link)
    await connect(app)
    assert log == ["+a", "+b", "+c", "-c", "-b", "-a"]


# What may refuse


@every_kind
@pytest.mark.parametrize("scope", ["websocket", "prototype"])
async def test_a_constructor_may_refuse_the_connection(kind: str, scope: str) -> None:
    # T29
    ran: Log = []

    @component(scope=scope)
    class Session:
        def __init__(self, token: Annotated[str, Query()]) -> None:
            if token != "right":
                raise HTTPException(403, "no entry", {"x-why": "token"})

    @component(scope="websocket")
    class Later:
        def __init__(self) -> None:
            ran.append("Later")

    app, seen = asking(Session, Later, kind=kind)
    answer: Any = await visit(app, kind, query="token=wrong")
    assert (answer.status, answer.body) == (403, b'{"detail":"no entry"}')
    assert (ran, seen) == ([], [])
    await visit(app, kind, query="token=right")
    assert (ran, len(seen)) == (["Later"], 1)


async def test_a_constructor_may_close_with_a_code_of_its_own() -> None:
    @component(scope="websocket")
    class Session:
        def __init__(self) -> None:
            raise WebSocketException(4401, "who are you")

    assert (await connect(asking(Session)[0])).closed == (4401, "who are you")


async def test_a_component_that_ends_the_connection_itself_lets_nothing_more_run() -> None:
    # T29
    log: Log = []

    class Gate: ...

    @component(scope="websocket")
    async def gate(ws: WebSocket) -> Gate:
        await ws.close(4000, "shut")
        return Gate()

    app, seen = asking(Gate, opening(log, type("Later", (), {})))
    server = await connect(app)
    assert server.closed == (4000, "shut")
    assert (log, seen) == ([], [])


@every_kind
async def test_every_value_that_does_not_validate_is_told_at_once(kind: str) -> None:
    @component(scope="websocket")
    class First:
        def __init__(self, n: Annotated[int, Query()]) -> None: ...

    @component(scope="websocket")
    class Second:
        def __init__(self, first: First, m: Annotated[int, Query()]) -> None: ...

    app, seen = asking(Second, kind=kind)
    answer: Any = await visit(app, kind, query="m=x")
    if kind == "http":
        assert answer.status == 422
        assert answer.body.count(b'"msg"') == 2
    else:
        assert answer.closed[0] == 1008
        assert says(answer.closed[1], "query 'n': is missing; query 'm': ")
    assert seen == []


# No connection sees another's


async def test_two_hundred_interleaved_connections_keep_to_their_own() -> None:
    # S23
    context: contextvars.ContextVar[str] = contextvars.ContextVar("user", default="nobody")
    ended: list[str] = []

    class Session: ...

    @component(scope="websocket")
    class User:
        def __init__(self, connection: Connection, name: Annotated[str, Query()]) -> None:
            self.name = name
            self.connection = connection
            self.said: list[str] = []
            context.set(name)

    @component(scope="websocket")
    async def session(user: User, ws: WebSocket) -> AsyncIterator[Session]:
        await anyio.lowlevel.checkpoint()
        assert user.connection is ws
        yield Session()
        await anyio.lowlevel.checkpoint()
        assert context.get() == user.name
        ended.append(user.name)

    def greeting(user: User) -> str:
        return f"hello {user.name}"

    app = App()
    users: set[User] = set()
    sessions: set[int] = set()
    alive: list[Any] = []

    async def handler(ws: WebSocket, user: User, session: Any, hello: str) -> None:
        users.add(user)
        alive.append(session)
        sessions.add(id(session))
        await ws.accept()
        ws.state.name = user.name
        async for text in ws.iter_text():
            user.said.append(text)
            await ws.send_text(f"{hello} {context.get()} {ws.state.name} {' '.join(user.said)}")

    annotations = {"ws": WebSocket, "user": User, "session": Session, "hello": Annotated[str, Depends(greeting)]}
    app.websocket("/")(taking(handler, **annotations))
    servers = {f"user{n}": FakeServer(query=f"name=user{n}") for n in range(200)}
    order = list(servers.values())
    chance = random.Random(23)  # noqa: S311 - an order, not a secret
    with anyio.fail_after(DEADLINE * 2):
        async with anyio.create_task_group() as group:
            for server in order:
                group.start_soon(app, server.scope, server.receive, server.send)
            for word in ("a", "b", "c"):
                chance.shuffle(order)
                for server in order:
                    server.say(f"{word}{id(server)}")
                    if chance.random() < 0.3:
                        await anyio.lowlevel.checkpoint()
            chance.shuffle(order)
            for server in order:
                await server.until(lambda server: len(server.texts) == 3)
                server.leave()
    for name, server in servers.items():
        said = [f"{word}{id(server)}" for word in ("a", "b", "c")]
        assert server.texts == [f"hello {name} {name} {name} {' '.join(said[: n + 1])}" for n in range(3)]
    assert (len(users), len(sessions)) == (200, 200)
    assert sorted(ended) == sorted(servers)


# How long one lives, and who may need it


async def test_a_singleton_that_needs_something_of_a_connection_is_refused_with_the_chain() -> None:
    @component(scope="websocket")
    class Session:
        def __init__(self) -> None: ...

    @component(scope="prototype")
    class Between:
        def __init__(self, session: Session) -> None: ...

    @component
    class Wide:
        def __init__(self, between: Between) -> None: ...

    def dependency(wide: Wide) -> None: ...

    text = await refusal(Annotated[None, Depends(dependency)])
    assert says(
        text,
        "Between lives as long as the app, but needs Session, which lives as long as its connection",
        "Wide -> Between -> Session",
        "handler", "test_components.py:", "dependency, ", line_of(dependency), line_of(Wide.__init__),
        "Give what is needed the wider scope, or what needs it the narrower one.",
    )  # fmt: skip
    asking(Between)  # for one connection that is fine


async def test_a_component_that_needs_what_is_over_with_the_handshake_is_refused() -> None:
    async def login() -> AsyncIterator[str]:
        yield "ann"

    @component(scope="websocket")
    class Session:
        def __init__(self, user: Annotated[str, Depends(login, scope="handshake")]) -> None: ...

    assert says(
        await refusal(Session),
        "Session lives as long as its connection, but needs login, which lives until the handshake is answered",
        "Session -> login", line_of(Session.__init__),
    )  # fmt: skip


async def test_what_is_over_with_the_handshake_may_need_any_component() -> None:
    log: Log = []
    pool = opening(log, type("Pool", (), {}), scope="singleton")
    link = opening(log, type("Link", (), {}), pool, scope="prototype")
    session = opening(log, type("Session", (), {}))

    async def login(**_: Any) -> AsyncIterator[str]:
        log.append("+login")
        yield "ann"
        log.append("-login")

    app, _ = asking(Annotated[str, Depends(taking(login, link=link, session=session), scope="handshake")])
    async with app.lifespan_context():
        await connect(app)
    assert log == ["+Pool", "+Link", "+Session", "+login", "-login", "-Link", "-Session", "-Pool"]


# Circles


def circle(*scopes: str) -> list[Any]:
    """Components that need each other in a circle, by the classes A, B, ... that they provide."""
    kinds = [type(name, (), {}) for name, _ in zip("ABCDEF", scopes, strict=False)]
    for at, scope in enumerate(scopes):

        def make(**_: Any) -> Any: ...

        make.__name__ = make.__qualname__ = f"make_{kinds[at].__name__.lower()}"
        component(scope=scope, provides=kinds[at])(taking(make, other=kinds[(at + 1) % len(kinds)]))
    return kinds


CIRCLES = [
    ("singleton",),
    ("websocket",),
    ("prototype",),
    ("singleton", "singleton"),
    ("websocket", "websocket"),
    ("prototype", "prototype"),
    ("singleton", "prototype"),
    ("websocket", "prototype", "websocket"),
    ("singleton", "singleton", "singleton", "singleton"),
]


@pytest.mark.parametrize("scopes", CIRCLES, ids="-".join)
async def test_a_circle_is_refused_and_drawn(scopes: tuple[str, ...]) -> None:
    kinds = circle(*scopes)
    names = [f"make_{kind.__name__.lower()}" for kind in kinds]
    chain = " -> ".join([*names, names[0]])
    text = await refusal(kinds[0])
    assert says(text, f"a dependency needs itself: {chain}", "Take one of them out of the circle.")


@pytest.mark.parametrize("scope", ["singleton", "websocket", "prototype"])
async def test_a_circle_is_told_with_the_place_of_all_who_make_it(scope: str) -> None:
    text = await refusal(circle(scope, scope, scope)[0])
    for name in ("make_a", "make_b", "make_c"):
        assert says(text, "test_components.py:", f"{name}, ", "test_plans.py:")


async def test_a_circle_further_down_is_drawn_with_the_way_to_it() -> None:
    first, *_ = circle("websocket", "websocket")

    class Door: ...

    def door(**_: Any) -> Any: ...

    component(scope="websocket", provides=Door)(taking(door, first=first))
    text = await refusal(Door)
    assert says(text, "door -> make_a -> make_b -> make_a")


async def test_a_circle_through_depends_is_refused() -> None:
    class Session: ...

    def dependency(**_: Any) -> None: ...

    def session(**_: Any) -> Any: ...

    taking(dependency, session=Session)
    component(scope="websocket", provides=Session)(taking(session, x=Annotated[None, Depends(dependency)]))
    assert says(await refusal(Session), "session -> dependency -> session")


async def test_two_ways_to_one_component_are_no_circle() -> None:
    log: Log = []
    bottom = opening(log, type("Bottom", (), {}), scope="singleton")
    sides = [opening(log, type(name, (), {}), bottom) for name in ("Left", "Right")]
    app, _ = asking(opening(log, type("Top", (), {}), *sides))
    async with app.lifespan_context():
        await connect(app)
    assert log == ["+Bottom", "+Left", "+Right", "+Top", "-Top", "-Right", "-Left", "-Bottom"]


# Planned once


@pytest.mark.parametrize("scope", ["singleton", "websocket"])
async def test_what_many_need_is_planned_once_not_once_a_way(scope: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight layers of two, each needing both below: 510 ways down, but 16 components."""
    planned: Counter[Any] = Counter()

    def counting(handler: Any) -> Any:
        planned[handler] += 1
        return parameters_of(handler)

    monkeypatch.setattr("asgiws.injection.parameters_of", counting)
    below: list[Any] = []
    for layer in range(8):
        kinds = [type(f"L{layer}{side}", (), {}) for side in "ab"]
        for kind in kinds:

            def make(**_: Any) -> Any:
                return object()

            needs = {f"need{n}": one for n, one in enumerate(below)}
            component(scope=scope, provides=kind)(taking(make, **needs))
        below = kinds
    app, _ = asking(*below)
    await connect(app)
    await connect(app)
    assert len(planned) == 17
    assert max(planned.values()) <= 2, planned.most_common(3)


async def test_nothing_is_inspected_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    @component
    class Rooms: ...

    @component(scope="websocket")
    class Session:
        def __init__(self, rooms: Rooms, ws: WebSocket) -> None: ...

    app, seen = asking(Session)
    await connect(app)

    def inspected(handler: Any) -> Any:
        raise AssertionError(handler)

    monkeypatch.setattr("asgiws.injection.parameters_of", inspected)
    await connect(app)
    assert len(seen) == 2


# Overrides


class Fake:
    """What a test puts in the place of a component."""


@pytest.mark.parametrize("scope", ["singleton", "websocket", "prototype"])
@pytest.mark.parametrize("by", ["annotation", "class", "function"])
@pytest.mark.parametrize("deep", [False, True])
async def test_an_override_reaches_a_component_wherever_it_is_needed(scope: str, by: str, deep: bool) -> None:
    class Store: ...

    class Memory(Store): ...

    def store() -> Any:
        return Memory()

    component(scope=scope, provides=Store)(store if by == "function" else Memory)

    @component(scope="prototype")
    class Service:
        def __init__(self, store: Store) -> None:
            self.store = store

    @component(scope="prototype")
    class Session:
        def __init__(self, service: Service) -> None:
            self.store = service.store

    app, seen = asking(Session if deep else Store)
    app.dependency_overrides[{"annotation": Store, "class": Memory, "function": store}[by]] = Fake
    await connect(app)
    app.dependency_overrides.clear()
    await connect(app)
    values = [one.store if deep else one for (one,) in seen]
    assert [type(one) for one in values] == [Fake, Memory]


@every_kind
async def test_an_override_lives_as_long_as_what_it_replaces(kind: str) -> None:
    log: Log = []

    async def fake() -> AsyncIterator[Fake]:
        log.append("+fake")
        yield Fake()
        log.append("-fake")

    for scope, made in (("singleton", 1), ("websocket", 2), ("prototype", 4)):
        kind_ = type("Store", (), {})
        component(scope=scope)(kind_)
        app, _ = asking(kind_, kind_, kind=kind)
        app.dependency_overrides[kind_] = fake
        log.clear()
        async with app.lifespan_context():
            await visit(app, kind)
            await visit(app, kind)
        assert (log.count("+fake"), log.count("-fake")) == (made, made)


async def test_an_override_takes_the_parameters_of_a_component() -> None:
    @component
    class Rooms: ...

    @component(scope="websocket")
    class Session: ...

    def fake(ws: WebSocket, rooms: Rooms, n: Annotated[int, Query()], limit: int = 3) -> Any:
        return ws, rooms, n, limit

    app, seen = asking(Session, WebSocket, Rooms)
    app.dependency_overrides[Session] = fake
    await connect(app, query="n=5&limit=9")
    assert seen[0][0] == (seen[0][1], seen[0][2], 5, 3)


async def test_an_override_of_a_singleton_may_not_ask_for_a_connection() -> None:
    @component
    class Store: ...

    def fake(ws: WebSocket) -> Any: ...

    app, _ = asking(Store)
    app.dependency_overrides[Store] = fake
    with pytest.raises(SignatureError, match="parameter 'ws' is of one connection, but a singleton"):
        await connect(app)


async def test_an_override_may_take_a_component_out_of_a_circle_that_it_is_in() -> None:
    first, second = circle("singleton", "singleton")
    app, seen = asking(first, second)
    app.dependency_overrides[second] = Fake
    async with app.lifespan_context():
        await connect(app)
    assert type(seen[0][1]) is Fake


@pytest.mark.parametrize("scope", ["websocket", "prototype"])
@pytest.mark.parametrize("when", ["before the start", "after the start"])
async def test_an_override_that_leads_back_is_refused(when: str, scope: str) -> None:
    @component(scope=scope)
    class Store: ...

    @component(scope=scope)
    class Service:
        def __init__(self, store: Store) -> None: ...

    def fake(service: Service) -> None: ...

    app, seen = asking(Service)
    if when == "after the start":
        await connect(app)
        assert len(seen) == 1
    app.dependency_overrides[Store] = fake
    server = FakeServer()
    with pytest.raises(SignatureError) as caught:
        await converse(app, server, leave=-1)
    assert says(str(caught.value), "a dependency needs itself: Service -> fake -> Service", "out of the overrides")
    assert server.status == 500
    assert "fake" not in repr(server.sent)


# Any graph of components works, or is refused

STYLES = ("function", "coroutine", "generator", "asyncgen")
LIVES = {"websocket": 1, "singleton": 2}


@dataclasses.dataclass(frozen=True)
class Node:
    """One component: how long it lives, how it is made, and what it needs, by number."""

    scope: str
    style: str
    needs: tuple[int, ...]

    def life(self, user: int) -> int:
        """How long it lives for this user of it."""
        return LIVES.get(self.scope, user)


@dataclasses.dataclass(frozen=True)
class Graph:
    """Components, and which of them a handler asks for."""

    nodes: tuple[Node, ...]
    asked: tuple[int, ...]

    def is_circular(self) -> bool:
        """Whether what is asked for leads to something that needs itself."""

        def below(at: int, above: tuple[int, ...]) -> bool:
            return at in above or any(below(need, (*above, at)) for need in self.nodes[at].needs)

        return any(below(at, ()) for at in self.asked)

    def is_sound(self) -> bool:
        """Whether all that is needed lives as long as what needs it; only asked of what is not circular."""

        def below(at: int, user: int) -> bool:
            life = self.nodes[at].life(user)
            return life >= user and all(below(need, life) for need in self.nodes[at].needs)

        return all(below(at, 1) for at in self.asked)


@st.composite
def graphs(draw: st.DrawFn, *, circular: bool) -> Graph:
    """A graph of up to six components; if it must not be circular, each needs only those before it."""
    count = draw(st.integers(1, 6))
    nodes = []
    for at in range(count):
        numbers = st.integers(0, (count if circular else at) - 1)
        needs = draw(st.lists(numbers, max_size=3)) if circular or at else []
        nodes.append(Node(draw(st.sampled_from([*LIVES, "prototype"])), draw(st.sampled_from(STYLES)), tuple(needs)))
    return Graph(tuple(nodes), tuple(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=3))))


@dataclasses.dataclass(eq=False)
class Thing:
    """What one component made."""

    number: int
    needs: list["Thing"]
    is_open: bool = True


class System:
    """The components of a graph, an app that asks for them, and what happens to them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.kinds = [type(f"C{at}", (), {}) for at in range(len(graph.nodes))]
        self.made: list[Thing] = []
        self.opened: list[Thing] = []
        self.closed: list[Thing] = []
        for at, node in enumerate(graph.nodes):
            component(scope=node.scope, provides=self.kinds[at])(self.provider(at, node))

    def ask(self) -> tuple[App, list[tuple[Thing, ...]]]:
        """An app, and what its handler is given."""
        return asking(*(self.kinds[at] for at in self.graph.asked))

    def provider(self, at: int, node: Node) -> Any:
        """What makes a component."""

        def function(**needs: Thing) -> Thing:
            return self.make(at, needs)

        async def coroutine(**needs: Thing) -> Thing:
            await anyio.lowlevel.checkpoint()
            return self.make(at, needs)

        def generator(**needs: Thing) -> Iterator[Thing]:
            thing = self.make(at, needs)
            self.opened.append(thing)
            yield thing
            self.close(thing)

        async def asyncgen(**needs: Thing) -> AsyncIterator[Thing]:
            thing = self.make(at, needs)
            self.opened.append(thing)
            yield thing
            await anyio.lowlevel.checkpoint()
            self.close(thing)

        styles: dict[str, Any] = {one.__name__: one for one in (function, coroutine, generator, asyncgen)}
        return taking(styles[node.style], **{f"need{n}": self.kinds[need] for n, need in enumerate(node.needs)})

    def make(self, at: int, needs: dict[str, Thing]) -> Thing:
        """All that it needs is there, in its place, and open."""
        given = [needs[f"need{n}"] for n in range(len(needs))]
        assert [one.number for one in given] == list(self.current(at).needs)
        assert all(one.is_open for one in given)
        self.made.append(Thing(at, given))
        return self.made[-1]

    def current(self, at: int) -> Node:
        """What stands in the place of a component."""
        return self.graph.nodes[at]

    def close(self, thing: Thing) -> None:
        """All that it needs is open still, and nothing that needs it."""
        assert all(one.is_open for one in thing.needs)
        cleaning = {one for one in self.opened if one.is_open}
        assert not any(thing in user.needs for user in cleaning)
        thing.is_open = False
        self.closed.append(thing)


def expected(graph: Graph, connections: int) -> Counter[int]:
    """How often each component is made."""
    made: Counter[int] = Counter()
    wide: set[int] = set()

    def make(at: int, narrow: set[int]) -> None:
        kept = {"singleton": wide, "websocket": narrow}.get(graph.nodes[at].scope, set())
        if at in kept:
            return
        kept.add(at)
        for need in graph.nodes[at].needs:
            make(need, narrow)
        made[at] += 1

    for _ in range(connections):
        narrow: set[int] = set()
        for at in graph.asked:
            make(at, narrow)
    return made


def cleaning(graph: Graph) -> set[int]:
    """The singletons that the handler needs, at any depth, and that clean up."""
    found: set[int] = set()
    pending = list(graph.asked)
    while pending:
        at = pending.pop()
        node = graph.nodes[at]
        pending += node.needs
        if node.scope == "singleton" and node.style in ("generator", "asyncgen"):
            found.add(at)
    return found


async def serve(system: System, app: App, given: list[tuple[Thing, ...]]) -> None:
    """Run an app whose components can be made, and see to it that all comes and goes as it should."""
    graph = system.graph
    async with app.lifespan_context():
        assert cleaning(graph) <= {one.number for one in system.made}
        at_start = list(system.opened)
        for _ in range(3):
            system.opened.clear()
            system.closed.clear()
            await connect(app)
            assert system.closed == system.opened[::-1]
            assert not {*system.closed} & {*at_start}
        system.opened[:] = at_start
        system.closed.clear()
    assert system.closed == at_start[::-1]
    assert Counter(one.number for one in system.made) == expected(graph, 3)
    assert [[one.number for one in connection] for connection in given] == [list(graph.asked)] * 3
    check_sharing(graph, given)


def check_sharing(graph: Graph, given: list[tuple[Thing, ...]]) -> None:
    """What is asked for twice is one thing, or two, as its scope says."""
    for at in graph.asked:
        by_connection = [[one for one in connection if one.number == at] for connection in given]
        distinct = {one for connection in by_connection for one in connection}
        times = len(by_connection[0])
        assert len(distinct) == {"singleton": 1, "websocket": 3, "prototype": 3 * times}[graph.nodes[at].scope]


async def refused(system: System) -> str:
    """What is said of a graph, before anything is made."""
    with pytest.raises(SignatureError) as caught:
        async with system.ask()[0].lifespan_context():
            pass
    assert system.made == []
    return str(caught.value)


@given(graphs(circular=False))
@settings(max_examples=80)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_any_graph_without_a_circle_works_or_is_refused_for_its_lifetimes(backend: str, graph: Graph) -> None:
    async def main() -> None:
        system = System(graph)
        if graph.is_sound():
            event("sound")
            await serve(system, *system.ask())
        else:
            assert "but needs" in await refused(system)

    anyio.run(main, backend=backend)


@given(graphs(circular=True))
@settings(max_examples=80)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_any_graph_with_a_circle_is_refused_before_anything_is_made(backend: str, graph: Graph) -> None:
    assume(graph.is_circular())
    # Whichever is found first: a wide one that needs a narrow one may be in the circle, or before it.
    texts = ("a dependency needs itself", "but needs")
    text = anyio.run(refused, System(graph), backend=backend)
    assert text.startswith(texts[0]) or texts[1] in text


@given(graphs(circular=False).filter(Graph.is_sound), st.data())
@settings(max_examples=80)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_any_override_works_or_is_refused(backend: str, graph: Graph, data: st.DataObject) -> None:
    """One component is replaced by a function that needs any others, also those that need the component."""
    numbers = st.integers(0, len(graph.nodes) - 1)
    at = data.draw(numbers)
    node = graph.nodes[at]
    fake = Node(node.scope, data.draw(st.sampled_from(STYLES)), tuple(data.draw(st.lists(numbers, max_size=2))))
    after = dataclasses.replace(graph, nodes=(*graph.nodes[:at], fake, *graph.nodes[at + 1 :]))

    async def main() -> None:
        system = System(graph)
        app, given = system.ask()
        system.graph = after
        app.dependency_overrides[system.kinds[at]] = system.provider(at, fake)
        if not after.is_circular() and after.is_sound():
            event("sound")
            await serve(system, app, given)
            return
        with pytest.raises(SignatureError, match=r"a dependency needs itself|but needs"):
            async with app.lifespan_context():
                pass
        assert system.made == []

    anyio.run(main, backend=backend)


# The parts


class Callee:
    async def method(self) -> None: ...

    async def __call__(self) -> None: ...


async def a_coroutine() -> None: ...


async def an_asyncgen() -> AsyncIterator[None]:
    yield


def a_generator() -> Iterator[None]:
    yield


def a_function() -> None: ...


@pytest.mark.parametrize(
    ("call", "style"),
    [
        (Callee, "class"),
        (a_coroutine, "coroutine"),
        (an_asyncgen, "asyncgen"),
        (a_generator, "generator"),
        (a_function, "function"),
        (Callee().method, "coroutine"),
        (Callee(), "coroutine"),
        (functools.partial(an_asyncgen), "asyncgen"),
        (functools.partial(functools.partial(a_coroutine)), "coroutine"),
        (functools.partial(Callee), "function"),
        (int, "class"),
    ],
)
async def test_the_style_of_a_callable_says_how_it_gives_its_value(call: Any, style: str) -> None:
    assert style_of(call) == style
    assert Dependency(call, Plan()).cleans_up == (style in ("generator", "asyncgen"))


async def test_a_plan_reads_every_value_and_tells_of_every_problem() -> None:
    def broken(name: str) -> Callable[[Any], Any]:
        def read(_: Connection) -> Any:
            raise ParameterError([ParameterProblem("query", name, "is missing")])

        return read

    connection = Connection({"type": "http"})
    assert Plan((("whole", itself),))(connection) == {"whole": connection}
    plan = Plan((("a", broken("a")), ("whole", itself), ("b", broken("b"))))
    with pytest.raises(ParameterError) as caught:
        plan(connection)
    assert [problem.name for problem in caught.value.errors] == ["a", "b"]
    assert plan.takes_websocket
    assert not Plan().takes_websocket


async def test_every_dependency_comes_after_what_it_needs() -> None:
    bottom = Dependency(a_function, Plan())
    middle = Dependency(a_coroutine, Plan((), (("bottom", bottom),)))
    top = Dependency(a_generator, Plan((), ((None, middle), ("bottom", bottom))))
    order = list(every_dependency(Plan((), (("top", top),)), {}))
    assert [one.call for one in order if one is not bottom] == [a_coroutine, a_generator]
    assert order[0] is bottom


async def test_what_cannot_be_hashed_is_its_own_key() -> None:
    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> None: ...

    call = Unhashable()
    assert Dependency(call, Plan()).key == Dependency(call, Plan()).key != Dependency(Unhashable(), Plan()).key


async def test_an_error_is_told_with_the_way_to_it() -> None:
    def raise_through(*handlers: Any) -> None:
        if not handlers:
            raise SignatureError("it cannot work")
        with told_with(handlers[0]):
            raise_through(*handlers[1:])

    with pytest.raises(SignatureError) as caught:
        raise_through(a_function, a_coroutine)
    assert says(
        str(caught.value), "it cannot work (", "a_function, ", line_of(a_function), " -> ", line_of(a_coroutine)
    )
