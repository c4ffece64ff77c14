"""Components that live as long as the app: made once, opened when it starts, closed when it ends."""

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from asgiws import App, ConfigurationError, HTTPException, SignatureError, cleanup, component
from tests.fakes import DAPHNE, DEADLINE, SHAPES, UVICORN, FakeServer, Shape, converse, request, soon
from tests.test_components import asking, connect, refusal, says, taking, visit

pytestmark = pytest.mark.anyio

Log = list[str]
Lifespan = tuple[list[dict[str, Any]], Exception | None]

every_kind = pytest.mark.parametrize("kind", ["websocket", "http"])
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)

STARTED = {"type": "lifespan.startup.complete"}
STOPPED = {"type": "lifespan.shutdown.complete"}


async def live(app: App, during: Callable[[], Awaitable[Any]] = anyio.lowlevel.checkpoint) -> Lifespan:
    """What an app tells the server when it is started and stopped, and what it raises."""
    kinds = iter(["lifespan.startup", "lifespan.shutdown"])
    told: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        kind = next(kinds)
        if kind == "lifespan.shutdown":
            await during()
        return {"type": kind}

    async def send(event: Any) -> None:
        told.append(dict(event))

    with anyio.fail_after(DEADLINE):
        try:
            await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
        except Exception as error:
            return told, error
    return told, None


async def status_of(app: App, path: str = "/", shape: Shape = UVICORN) -> int | None:
    """How a handshake ends, whatever the app raises to the server."""
    server = FakeServer(shape, path)
    with contextlib.suppress(Exception):
        await converse(app, server, leave=-1)
    return server.status


def opening(log: Log, made: Any, *needs: Any, plain: bool = False) -> Any:
    """A component of this class that notes when it is opened and closed; both take a turn of the event loop."""
    name = made.__name__

    async def open_async(**_: Any) -> AsyncIterator[Any]:
        await anyio.lowlevel.checkpoint()
        log.append(f"+{name}")
        try:
            yield made()
        finally:
            await anyio.lowlevel.checkpoint()
            log.append(f"-{name}")

    def open_plain(**_: Any) -> Iterator[Any]:
        log.append(f"+{name}")
        try:
            yield made()
        finally:
            log.append(f"-{name}")

    opens = taking(open_plain if plain else open_async, **{f"need{n}": one for n, one in enumerate(needs)})
    component(provides=made)(opens)
    return made


# Made once


async def test_one_is_made_when_it_is_first_asked_for() -> None:
    made: Log = []

    @component
    class Lazy:
        def __init__(self) -> None:
            made.append("Lazy")

    app, given = asking(Lazy)

    async def during() -> None:
        assert made == []
        await connect(app)
        await connect(app)

    assert await live(app, during) == ([STARTED, STOPPED], None)
    assert made == ["Lazy"]
    assert given[0] == given[1]


async def test_fifty_connections_at_once_make_one() -> None:
    going = anyio.Event()
    made: Log = []

    class Pool: ...

    @component
    async def pool() -> Pool:
        made.append("Pool")
        await going.wait()
        return Pool()

    @component
    class Service:
        def __init__(self, pool: Pool) -> None:
            made.append("Service")
            self.pool = pool

    app, on_websocket = asking(Service, Pool)
    _, on_http = asking(Pool, Service, app=app, kind="http")
    async with anyio.create_task_group() as group:
        for n in range(50):
            group.start_soon(visit, app, "http" if n % 2 else "websocket")
        await anyio.wait_all_tasks_blocked()
        assert made == ["Pool"]
        going.set()
    assert made == ["Pool", "Service"]
    everything = {id(one) for connection in (*on_websocket, *on_http) for one in connection}
    assert (len(on_websocket), len(on_http), len(everything)) == (25, 25, 2)


async def test_two_that_are_made_at_once_do_not_wait_for_each_other() -> None:
    going = anyio.Event()

    class Slow: ...

    @component
    async def slow() -> Slow:
        await going.wait()
        return Slow()

    @component
    class Quick: ...

    app, given = asking(Slow)
    _, quick = asking(Quick, app=app, path="/quick")
    async with anyio.create_task_group() as group:
        group.start_soon(connect, app)
        await anyio.wait_all_tasks_blocked()
        await connect(app, "/quick")
        assert (len(given), len(quick)) == (0, 1)
        going.set()
    assert len(given) == 1


@pytest.mark.parametrize("failures", [1, 3])
async def test_one_that_fails_is_made_again_by_the_next_who_waits(failures: int) -> None:
    going = anyio.Event()
    tries: Log = []

    class Pool: ...

    @component
    async def pool() -> Pool:
        tries.append("try")
        await going.wait()
        if len(tries) <= failures:
            raise OSError("no route to the database")
        return Pool()

    app, given = asking(Pool)
    statuses: list[int | None] = []

    async def visitor() -> None:
        statuses.append(await status_of(app))

    async with anyio.create_task_group() as group:
        for _ in range(50):
            group.start_soon(visitor)
        await anyio.wait_all_tasks_blocked()
        going.set()
    assert sorted(statuses, key=str) == [101] * (50 - failures) + [500] * failures
    assert len(tries) == failures + 1
    assert len({id(one) for (one,) in given}) == 1


async def test_one_whose_maker_is_cancelled_is_made_by_the_next_who_waits() -> None:
    tries: Log = []

    class Pool: ...

    @component
    async def pool() -> Pool:
        tries.append("try")
        if len(tries) == 1:
            await anyio.sleep_forever()
        return Pool()

    app, given = asking(Pool)
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as first:

            async def leave() -> None:
                await soon(lambda: tries)
                for _ in range(10):
                    group.start_soon(connect, app)
                await anyio.wait_all_tasks_blocked()
                first.cancel()

            group.start_soon(leave)
            await converse(app, FakeServer(), leave=-1)
    assert len(tries) == 2
    assert len(given) == 10
    assert len({id(one) for (one,) in given}) == 1


async def test_one_who_waits_may_be_cancelled() -> None:
    going = anyio.Event()

    class Pool: ...

    @component
    async def pool() -> Pool:
        await going.wait()
        return Pool()

    app, given = asking(Pool)
    async with anyio.create_task_group() as group:
        group.start_soon(connect, app)
        await anyio.wait_all_tasks_blocked()
        with anyio.CancelScope() as scope:
            scope.cancel()
            await connect(app)
        going.set()
    assert len(given) == 1


@every_kind
async def test_one_may_refuse_who_asks_for_it(kind: str) -> None:
    class Closed: ...

    @component
    def closed() -> Closed:
        raise HTTPException(503, "not yet", {"retry-after": "5"})

    app, given = asking(Closed, kind=kind)
    if kind == "http":
        answer = await request(app, "POST", "/")
        assert (answer.status, answer.body, answer.header("retry-after")) == (503, b'{"detail":"not yet"}', "5")
    else:
        server = await connect(app)
        assert (server.status, server.body) == (503, b'{"detail":"not yet"}')
    assert given == []


@every_kind
@every_shape
async def test_no_client_is_told_why_one_cannot_be_made(
    kind: str, shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    class Pool: ...

    @component
    def pool() -> Pool:
        raise OSError("postgres://admin:hunter2@db")

    app, _ = asking(Pool, kind=kind)
    if kind == "http":
        answer = await request(app, "POST", "/", raises=OSError)
        assert answer.status == 500
        assert b"hunter2" not in answer.body
    else:
        server = FakeServer(shape)
        with pytest.raises(OSError, match="hunter2"):
            await converse(app, server, leave=-1)
        assert server.status == (500 if shape.denial else 403)
        assert "hunter2" not in repr(server.sent)
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


# One for each app


async def test_two_apps_have_their_own() -> None:
    @component
    class Rooms: ...

    log: Log = []

    class Pool: ...

    opening(log, Pool)
    first, of_first = asking(Rooms, Pool)
    second, of_second = asking(Rooms, Pool)
    async with first.lifespan_context():
        async with second.lifespan_context():
            await connect(first)
            await connect(second)
        assert log == ["+Pool", "+Pool", "-Pool"]
        await connect(first)
    assert of_first[0] == of_first[1]
    assert not {*of_first[0]} & {*of_second[0]}


@pytest.mark.parametrize("order", ["outside first", "inside first"])
async def test_a_mounted_app_shares_those_of_the_app_around_it(order: str) -> None:
    log: Log = []

    class Pool: ...

    opening(log, Pool)

    @component
    class Rooms: ...

    outer, middle, inner = App(), App(), App()
    everything = [asking(Rooms, Pool, app=app)[1] for app in (outer, middle, inner)]
    mounts = [(outer, "/middle", middle), (middle, "/inner", inner)]
    for around, path, within in mounts if order == "outside first" else reversed(mounts):
        around.mount(path, within)
    async with outer.lifespan_context():
        assert log == ["+Pool"]
        for path in ("/", "/middle", "/middle/inner"):
            await connect(outer, path)
    assert log == ["+Pool", "-Pool"]
    assert everything[0] == everything[1] == everything[2]


async def test_a_mounted_app_opens_what_it_alone_needs() -> None:
    log: Log = []

    class Pool: ...

    class Queue: ...

    opening(log, Queue, opening(log, Pool))
    app, inner = App(), App()
    asking(Pool, app=app)
    asking(Queue, app=inner)
    app.mount("/inner", inner)
    async with app.lifespan_context():
        assert log == ["+Pool", "+Queue"]
        await connect(app, "/inner")
    assert log == ["+Pool", "+Queue", "-Queue", "-Pool"]


async def test_an_app_that_is_mounted_twice_has_one() -> None:
    log: Log = []

    class Pool: ...

    app, (inner, given) = App(), asking(opening(log, Pool))
    app.mount("/a", inner)
    app.mount("/b", inner)
    async with app.lifespan_context():
        await connect(app, "/a")
        await connect(app, "/b")
    assert log == ["+Pool", "-Pool"]
    assert given[0] == given[1]


async def test_the_app_is_what_the_handler_knows_as_the_app() -> None:
    @component
    class Aware:
        def __init__(self, app: App) -> None:
            self.app = app

    app, given = asking(Aware, App)
    await connect(app)
    assert given[0][0].app is app is given[0][1]


# Opened at the start, closed at the end


async def test_what_cleans_up_is_opened_in_the_order_of_needs_and_closed_in_reverse() -> None:
    log: Log = []

    class Config: ...

    class Pool: ...

    class Cache: ...

    class Unneeded: ...

    @component
    class Between:
        """Does not clean up, but stands between two that do."""

        def __init__(self, pool: Pool) -> None:
            log.append("Between")

    opening(log, Config, plain=True)
    opening(log, Pool, Config)
    opening(log, Cache, Between, Config)
    opening(log, Unneeded)
    app, given = asking(Cache, Pool)

    async def during() -> None:
        assert log == ["+Config", "+Pool", "Between", "+Cache"]
        await connect(app)
        await connect(app)
        log.append("served")

    assert await live(app, during) == ([STARTED, STOPPED], None)
    assert log == ["+Config", "+Pool", "Between", "+Cache", "served", "-Cache", "-Pool", "-Config"]
    assert given[0] == given[1]
    assert [type(one) for one in given[0]] == [Cache, Pool]


async def test_the_lifespan_of_the_app_is_around_its_components() -> None:
    log: Log = []

    @contextlib.asynccontextmanager
    async def lifespan(_: App) -> AsyncIterator[None]:
        log.append("+lifespan")
        yield
        log.append("-lifespan")

    class Pool: ...

    app, _ = asking(opening(log, Pool), app=App(lifespan=lifespan))
    await live(app)
    assert log == ["+lifespan", "+Pool", "-Pool", "-lifespan"]


async def test_what_is_needed_in_many_places_is_opened_once() -> None:
    log: Log = []

    class Pool: ...

    opening(log, Pool)
    app = App()
    for n in range(3):
        asking(Pool, Pool, app=app, path=f"/{n}")
        asking(Pool, app=app, kind="http", path=f"/{n}")
    await live(app)
    assert log == ["+Pool", "-Pool"]


async def test_a_prototype_that_cleans_up_is_opened_with_the_singleton_that_needs_it() -> None:
    log: Log = []

    class Link: ...

    async def link() -> AsyncIterator[Link]:
        log.append("+Link")
        yield Link()
        await anyio.lowlevel.checkpoint()
        log.append("-Link")

    component(scope="prototype")(link)

    @component
    class Wide:
        def __init__(self, one: Link, other: Link) -> None:
            log.append("Wide")
            assert one is not other

    app, _ = asking(Wide, Link)

    async def during() -> None:
        assert log == ["+Link", "+Link", "Wide"]
        await connect(app)

    assert (await live(app, during))[1] is None
    assert log == ["+Link", "+Link", "Wide", "+Link", "-Link", "-Link", "-Link"]


async def test_it_is_opened_and_closed_in_one_task_which_may_have_tasks_of_its_own() -> None:
    # T36
    log: Log = []

    class Worker: ...

    @component
    async def worker() -> AsyncIterator[Worker]:
        task = anyio.get_current_task().id

        async def work() -> None:
            log.append("works")
            await anyio.sleep_forever()

        async with anyio.create_task_group() as group:
            group.start_soon(work)
            yield Worker()
            group.cancel_scope.cancel()
        assert anyio.get_current_task().id == task
        log.append("done")

    app, given = asking(Worker)

    async def during() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(connect, app)

    assert await live(app, during) == ([STARTED, STOPPED], None)
    assert log == ["works", "done"]
    assert len({id(one) for (one,) in given}) == 1


async def test_when_a_later_one_fails_the_earlier_ones_are_closed() -> None:
    log: Log = []

    class Config: ...

    class Pool: ...

    class Broken: ...

    @component
    async def broken(pool: Pool) -> AsyncIterator[Broken]:
        raise OSError("no such host")
        yield Broken()

    opening(log, Pool, opening(log, Config, plain=True))
    app, _ = asking(Broken)
    told, error = await live(app)
    assert told == [{"type": "lifespan.startup.failed", "message": "OSError: no such host"}]
    assert isinstance(error, OSError)
    assert log == ["+Config", "+Pool", "-Pool", "-Config"]


async def test_a_start_after_one_that_failed_opens_everything_anew() -> None:
    log: Log = []
    failures = [OSError("no such host")]

    class Pool: ...

    class Broken: ...

    @component
    async def broken(pool: Pool) -> AsyncIterator[Broken]:
        for failure in failures:
            raise failure
        yield Broken()

    opening(log, Pool)
    app, given = asking(Pool, Broken)
    await live(app)
    assert log == ["+Pool", "-Pool"]
    failures.clear()

    async def during() -> None:
        assert log == ["+Pool", "-Pool", "+Pool"]
        await connect(app)

    assert await live(app, during) == ([STARTED, STOPPED], None)
    assert log == ["+Pool", "-Pool"] * 2
    assert len(given) == 1


@pytest.mark.parametrize("plain", [False, True])
async def test_a_start_that_fails_tells_why_though_a_component_swallows_exceptions(plain: bool) -> None:
    class Careless: ...

    class Broken: ...

    async def careless() -> AsyncIterator[Careless]:
        with contextlib.suppress(Exception):
            yield Careless()

    def careless_too() -> Iterator[Careless]:
        with contextlib.suppress(Exception):
            yield Careless()

    component(careless_too if plain else careless)

    @component
    async def broken(careless: Careless) -> AsyncIterator[Broken]:
        raise OSError("no such host")
        yield Broken()

    told, error = await live(asking(Broken)[0])
    assert told == [{"type": "lifespan.startup.failed", "message": "OSError: no such host"}]
    assert isinstance(error, OSError)


async def test_one_whose_clean_up_fails_leaves_none_open() -> None:
    log: Log = []

    class Config: ...

    class Sticky: ...

    class Cache: ...

    @component
    async def sticky(config: Config) -> AsyncIterator[Sticky]:
        yield Sticky()
        log.append("Sticky fails")
        raise OSError("cannot flush")

    opening(log, Config)
    opening(log, Cache, Sticky)
    told, error = await live(asking(Cache)[0])
    assert told == [STARTED, {"type": "lifespan.shutdown.failed", "message": "OSError: cannot flush"}]
    assert isinstance(error, OSError)
    assert log == ["+Config", "+Cache", "-Cache", "Sticky fails", "-Config"]


async def test_the_clean_up_is_shielded_when_the_server_cancels_the_app() -> None:
    # T38
    log: Log = []

    class Pool: ...

    class Cache: ...

    app, _ = asking(opening(log, Cache, opening(log, Pool)))

    async def serve(task_status: anyio.abc.TaskStatus[None]) -> None:
        async with app.lifespan_context():
            task_status.started()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        await group.start(serve)
        group.cancel_scope.cancel()
    assert log == ["+Pool", "+Cache", "-Cache", "-Pool"]


async def test_a_clean_up_that_hangs_is_cut_and_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # T38
    log: Log = []

    class Pool: ...

    class Stuck: ...

    @component
    async def stuck(pool: Pool) -> AsyncIterator[Stuck]:
        yield Stuck()
        await anyio.sleep_forever()

    monkeypatch.setattr(cleanup, "CLEAN_UP", 0.01)
    opening(log, Pool)
    assert await live(asking(Stuck)[0]) == ([STARTED, STOPPED], None)
    assert log == ["+Pool", "-Pool"]
    assert "the app: the clean-up took over 0.01 s and was cut" in caplog.text


async def test_an_app_that_is_started_again_has_new_ones() -> None:
    log: Log = []

    class Pool: ...

    @component
    class Lazy: ...

    app, given = asking(opening(log, Pool), Lazy)
    for _ in range(2):
        await live(app, functools.partial(connect, app))
    assert log == ["+Pool", "-Pool"] * 2
    assert not {*given[0]} & {*given[1]}


# Refused at the start


async def test_a_component_that_cannot_be_made_fails_the_start() -> None:
    class Missing: ...

    @component
    class Service:
        def __init__(self, missing: Missing) -> None: ...

    app, _ = asking(Service)
    told, error = await live(app)
    assert isinstance(error, SignatureError)
    assert [one["type"] for one in told] == ["lifespan.startup.failed"]
    assert says(told[0]["message"], "SignatureError: no component provides parameter 'missing'", "Service -> Missing")


@every_shape
async def test_where_no_lifespan_comes_the_connections_fail_and_the_log_tells_why(
    shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    class Missing: ...

    @component
    class Service:
        def __init__(self, missing: Missing) -> None: ...

    app, _ = asking(Service)
    _, fine = asking(app=app, path="/fine")
    for path in ("/", "/fine"):
        caplog.clear()
        server = FakeServer(shape, path)
        with pytest.raises(SignatureError, match="no component provides parameter 'missing'"):
            await converse(app, server, leave=-1)
        assert server.status == (500 if shape.denial else 403)
        assert "Missing" not in repr(server.sent)
        assert "Service -> Missing" in caplog.text
    assert fine == []


async def test_a_component_of_a_mounted_app_that_cannot_be_made_fails_the_start_of_the_app_around_it() -> None:
    class Missing: ...

    @component
    class Service:
        def __init__(self, missing: Missing) -> None: ...

    app = App()
    app.mount("/inner", asking(Service)[0])
    told, error = await live(app)
    assert isinstance(error, SignatureError)
    assert [one["type"] for one in told] == ["lifespan.startup.failed"]


async def test_a_component_that_comes_after_a_start_that_failed_is_found_by_the_next() -> None:
    class Late: ...

    @component
    class Service:
        def __init__(self, late: Late) -> None:
            self.late = late

    app, given = asking(Service)
    assert (await live(app))[1] is not None
    component(Late)
    assert (await live(app, functools.partial(connect, app)))[1] is None
    assert type(given[0][0].late) is Late


# Without a lifespan


@every_shape
async def test_without_lifespan_events_the_first_connections_open_them_once(shape: Shape) -> None:
    # T53
    log: Log = []

    class Pool: ...

    app, given = asking(opening(log, Pool))
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(functools.partial(converse, app, FakeServer(shape), leave=-1))
    assert log == ["+Pool"]
    assert len(given) == 20
    assert len({id(one) for (one,) in given}) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_without_lifespan_events_they_are_closed_with_the_event_loop(backend: str) -> None:
    log: Log = []

    class Pool: ...

    async def main() -> None:
        app, _ = asking(opening(log, Pool))
        await converse(app, FakeServer(DAPHNE), leave=-1)
        assert log == ["+Pool"]

    anyio.run(main, backend=backend)
    assert log == ["+Pool", "-Pool"]


async def test_without_lifespan_events_a_start_that_failed_is_tried_again_by_the_next_connection() -> None:
    log: Log = []
    failures = [OSError("no such host")]

    class Pool: ...

    class Broken: ...

    @component
    async def broken(pool: Pool) -> AsyncIterator[Broken]:
        while failures:
            raise failures.pop()
        yield Broken()

    app, given = asking(opening(log, Pool), Broken)
    assert await status_of(app, shape=DAPHNE) == 403
    assert log == ["+Pool", "-Pool"]
    assert await status_of(app, shape=DAPHNE) == 101
    assert log == ["+Pool", "-Pool", "+Pool"]
    assert len(given) == 1


async def test_without_lifespan_events_two_mounted_apps_may_start_at_once() -> None:
    log: Log = []
    going = {"a": anyio.Event(), "b": anyio.Event()}

    class Slow: ...

    class First: ...

    class Second: ...

    @component
    async def slow() -> AsyncIterator[Slow]:
        await going["a"].wait()
        yield Slow()

    @component
    async def first() -> AsyncIterator[First]:
        await going["b"].wait()
        yield First()

    opening(log, Second, First)
    app = App()
    app.mount("/a", asking(Slow)[0])
    app.mount("/b", asking(Second)[0])
    statuses: dict[str, int | None] = {}

    async def visitor(path: str) -> None:
        statuses[path] = await status_of(app, path)

    async with anyio.create_task_group() as group:
        group.start_soon(visitor, "/a")
        await anyio.wait_all_tasks_blocked()
        group.start_soon(visitor, "/b")
        await anyio.wait_all_tasks_blocked()
        going["a"].set()
        await soon(lambda: "/a" in statuses)
        going["b"].set()
    assert statuses == {"/a": 101, "/b": 101}
    assert log == ["+Second"]


async def test_one_that_does_not_clean_up_needs_no_lifespan_task(caplog: pytest.LogCaptureFixture) -> None:
    @component
    class Rooms: ...

    app, given = asking(Rooms)
    with caplog.at_level(logging.INFO, "asgiws"):
        await converse(app, FakeServer(DAPHNE), leave=-1)
    assert len(given) == 1
    assert caplog.text == ""


# Replaced


class Replaced:
    """What a test puts in the place of a component."""


def by_class() -> Any:
    return Replaced


def by_lambda() -> Any:
    return lambda: Replaced()


def by_coroutine() -> Any:
    async def fake() -> Replaced:
        await anyio.lowlevel.checkpoint()
        return Replaced()

    return fake


def by_generator() -> Any:
    def fake() -> Iterator[Replaced]:
        yield Replaced()

    return fake


def by_async_generator() -> Any:
    async def fake() -> AsyncIterator[Replaced]:
        await anyio.lowlevel.checkpoint()
        yield Replaced()

    return fake


every_fake = pytest.mark.parametrize(
    "fake", [by_class, by_lambda, by_coroutine, by_generator, by_async_generator], ids=lambda fake: fake.__name__
)


@every_fake
@pytest.mark.parametrize("by", ["annotation", "provider"])
async def test_a_pool_that_is_replaced_is_never_opened(fake: Callable[[], Any], by: str) -> None:
    log: Log = []

    class Pool: ...

    @component
    async def pool() -> AsyncIterator[Pool]:
        log.append("the real one")
        yield Pool()

    @component
    class Service:
        def __init__(self, pool: Pool) -> None:
            self.pool = pool

    app, given = asking(Service, Pool)
    app.dependency_overrides[Pool if by == "annotation" else pool] = fake()
    assert (await live(app, functools.partial(connect, app)))[1] is None
    ((service, one),) = given
    assert type(one) is Replaced
    assert service.pool is one
    assert log == []


@every_fake
async def test_an_override_that_comes_between_two_starts_counts_for_the_second(fake: Callable[[], Any]) -> None:
    """One app at module level, a test with the real pool, then one with a fake: the real one must stay closed."""
    log: Log = []

    class Pool: ...

    app, given = asking(opening(log, Pool))
    await live(app, functools.partial(connect, app))
    assert log == ["+Pool", "-Pool"]

    app.dependency_overrides[Pool] = fake()
    assert (await live(app, functools.partial(connect, app)))[1] is None
    assert log == ["+Pool", "-Pool"]
    assert type(given[1][0]) is Replaced

    app.dependency_overrides.clear()
    assert (await live(app, functools.partial(connect, app)))[1] is None
    assert log == ["+Pool", "-Pool"] * 2
    assert type(given[2][0]) is Pool


async def test_an_override_that_comes_after_the_start_counts_for_what_is_not_made_yet() -> None:
    @component
    class Store: ...

    @component
    class Service:
        def __init__(self, store: Store) -> None:
            self.store = store

    app, given = asking(Service, Store)
    async with app.lifespan_context():
        app.dependency_overrides[Store] = Replaced
        await connect(app)
        app.dependency_overrides.clear()
        await connect(app)
    (first, fake), (second, real) = given
    assert first is second  # made with what it was given then
    assert first.store is fake
    assert (type(fake), type(real)) == (Replaced, Store)


async def test_an_override_that_cleans_up_and_comes_after_the_start_is_refused_with_a_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @component
    class Store: ...

    async def fake() -> AsyncIterator[Store]:
        yield Store()

    app, given = asking(Store)
    async with app.lifespan_context():
        app.dependency_overrides[Store] = fake
        server = FakeServer()
        with pytest.raises(ConfigurationError) as caught:
            await converse(app, server, leave=-1)
    assert says(str(caught.value), "fake, ", "test_singletons.py:", "set overrides before the app starts")
    assert (server.status, given) == (500, [])
    assert "fake" not in repr(server.sent)
    assert "set overrides before" in caplog.text


async def test_a_route_that_comes_after_the_start_and_needs_what_is_not_open_is_not_told_of_overrides() -> None:
    log: Log = []

    class Pool: ...

    app = App()
    async with app.lifespan_context():
        asking(opening(log, Pool), app=app)
        with pytest.raises(ConfigurationError) as caught:
            await connect(app)
    assert says(str(caught.value), "open_async, ", "route")
    assert log == []


@pytest.mark.parametrize("when", ["before the start", "after the start"])
async def test_an_override_that_leads_back_to_who_needs_it_is_refused(when: str) -> None:
    @component
    class Store: ...

    @component
    class Service:
        def __init__(self, store: Store) -> None: ...

    def fake(service: Service) -> None: ...

    app, _ = asking(Service)
    if when == "before the start":
        app.dependency_overrides[Store] = fake

    async def serve() -> None:
        async with app.lifespan_context():
            app.dependency_overrides[Store] = fake
            await connect(app)

    with pytest.raises(SignatureError) as caught, anyio.fail_after(1):
        await serve()
    assert says(str(caught.value), "a dependency needs itself", "Service -> fake -> Service", "overrides")


async def test_an_override_is_a_function_not_an_object() -> None:
    @component
    class Store: ...

    app, _ = asking(Store)
    app.dependency_overrides[Store] = Replaced()  # type: ignore[assignment]
    told, error = await live(app)
    assert isinstance(error, SignatureError | ConfigurationError)
    assert says(told[0]["message"], "dependency_overrides", "Store", "lambda")


async def test_what_an_override_needs_is_opened_at_the_start_too() -> None:
    log: Log = []

    class Config: ...

    class Pool: ...

    opening(log, Pool)
    opening(log, Config)

    async def fake(config: Config, n: int = 3) -> AsyncIterator[tuple[Config, int]]:
        log.append("+fake")
        yield config, n
        log.append("-fake")

    app, given = asking(Pool)
    app.dependency_overrides[Pool] = fake
    await live(app, functools.partial(connect, app, query="n=9"))
    assert log == ["+Config", "+fake", "-fake", "-Config"]
    assert given[0][0][1] == 3


async def test_an_override_with_a_missing_component_is_refused_at_the_start() -> None:
    class Missing: ...

    @component
    class Store: ...

    def fake(missing: Missing) -> None: ...

    app, _ = asking(Store)
    app.dependency_overrides[Store] = fake
    told, error = await live(app)
    assert isinstance(error, SignatureError)
    assert says(told[0]["message"], "no component provides parameter 'missing'", "fake -> Missing")


async def test_two_who_are_replaced_by_one_function_share_what_it_gives() -> None:
    @component
    class One: ...

    @component
    class Other: ...

    app, given = asking(One, Other)
    app.dependency_overrides = {One: Replaced, Other: Replaced}
    await connect(app)
    assert given[0][0] is given[0][1]


async def test_a_refusal_names_nothing_that_is_replaced() -> None:
    class Missing: ...

    @component
    class Broken:
        def __init__(self, missing: Missing) -> None: ...

    app, given = asking(Broken)
    app.dependency_overrides[Broken] = Replaced
    assert (await live(app, functools.partial(connect, app)))[1] is None
    assert type(given[0][0]) is Replaced
    assert "no component provides parameter 'missing'" in await refusal(Broken)
