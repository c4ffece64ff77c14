"""What a test is told when the application fails, and when it is stuck: the line where it waits.

Every test of the `client_of` fixture runs with both clients, each on asyncio and trio.
"""

import asyncio
import contextlib
import re
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
import trio

from asgiws import App, Depends, WebSocket, WebSocketDisconnect
from asgiws.testing import (
    AsyncTestClient,
    ServerChokedError,
    StuckError,
    TestClient,
    WebSocketDenied,
    conversation,
    portal,
)
from asgiws.testing.waiting import raised_at, waits_at
from tests.clients import MakeClient, line_of, make_client
from tests.fakes import DEADLINE

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["async", "plain"])
def client_of(request: pytest.FixtureRequest, anyio_backend: str) -> MakeClient:
    return make_client(request.param, anyio_backend)


@pytest.fixture(autouse=True)
def quick() -> Iterator[None]:
    """No test here may take long: that is what they are about."""
    before = time.monotonic()
    yield
    assert time.monotonic() - before < DEADLINE


def serving(handler: Callable[..., Any]) -> App:
    app = App()
    app.websocket("/")(handler)
    return app


def at(mark: str) -> str:
    """The place of a line of this file, as a pattern."""
    return rf"tests/test_testing_errors\.py:{line_of(__file__, mark)} in "


# T54: exceptions of the application


class BoomError(Exception):
    pass


async def boom_before_accept(ws: WebSocket) -> None:
    raise BoomError


async def boom_after_accept(ws: WebSocket) -> None:
    await ws.accept()
    raise BoomError


async def boom_at_a_message(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive_text()
    raise BoomError


async def boom_in_clean_up(ws: WebSocket) -> None:
    await ws.accept()
    try:
        await ws.receive_text()
    finally:
        raise BoomError


async def broken_pool() -> AsyncIterator[int]:
    yield 1
    raise BoomError


async def boom_in_the_clean_up_of_a_dependency(ws: WebSocket, pool: Annotated[int, Depends(broken_pool)]) -> None:
    await ws.accept()
    with contextlib.suppress(WebSocketDisconnect):
        await ws.receive_text()


async def raw_before_accept(scope: Any, receive: Any, send: Any) -> None:
    raise BoomError


async def raw_after_accept(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    raise BoomError


async def raw_in_clean_up(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (await receive())["type"] == "websocket.receive":
        pass
    raise BoomError


def frames(caught: pytest.ExceptionInfo[BaseException]) -> list[str]:
    return [entry.name for entry in caught.traceback]


@pytest.mark.parametrize("make", [serving(boom_before_accept), raw_before_accept], ids=["asgiws", "raw"])
async def test_an_exception_before_accept_is_raised_on_entering(client_of: MakeClient, make: Any) -> None:
    with pytest.raises(BoomError) as caught:
        async with client_of(make).websocket_connect("/"):
            pytest.fail("the handshake was not answered")
    assert {"boom_before_accept", "raw_before_accept"} & set(frames(caught))


@pytest.mark.parametrize("make", [serving(boom_after_accept), raw_after_accept], ids=["asgiws", "raw"])
@pytest.mark.parametrize(
    "wait",
    [
        lambda ws: ws.receive(),
        lambda ws: ws.receive_json(),
        lambda ws: ws.expect_close(),
        lambda ws: ws.expect_no_message(within=DEADLINE),
        lambda ws: anyio.lowlevel.checkpoint(),
    ],
    ids=["receive", "receive_json", "expect_close", "expect_no_message", "leave"],
)
async def test_an_exception_after_accept_is_raised_at_once_where_the_test_waits(
    client_of: MakeClient, make: Any, wait: Callable[[Any], Awaitable[Any]]
) -> None:
    before = time.monotonic()
    with pytest.raises(BoomError) as caught:
        async with client_of(make).websocket_connect("/") as ws:
            await wait(ws)
    assert time.monotonic() - before < 1
    assert {"boom_after_accept", "raw_after_accept"} & set(frames(caught))


async def test_what_was_sent_before_the_exception_is_read_before_it(client_of: MakeClient) -> None:
    async def raw(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "a"})
        raise BoomError

    ws = client_of(raw).websocket_connect("/")
    await ws.__aenter__()
    await anyio.sleep(0.01)
    assert await ws.receive_text() == "a"
    for wait in (ws.receive_text, lambda: ws.__aexit__(None, None, None)):
        with pytest.raises(BoomError):
            await wait()


@pytest.mark.parametrize(
    "make",
    [serving(boom_in_clean_up), serving(boom_in_the_clean_up_of_a_dependency), raw_in_clean_up],
    ids=["handler", "dependency", "raw"],
)
async def test_an_exception_in_the_clean_up_is_raised_on_leaving(client_of: MakeClient, make: Any) -> None:
    left = False
    with pytest.raises(BoomError) as caught:
        async with client_of(make).websocket_connect("/"):
            left = True
    assert left
    assert {"boom_in_clean_up", "broken_pool", "raw_in_clean_up"} & set(frames(caught))


async def test_the_exception_is_the_applications_own_object(client_of: MakeClient) -> None:
    error = BoomError("mine")

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        raise error

    with pytest.raises(BoomError) as caught:
        await client_of(raw).websocket_connect("/").__aenter__()
    assert caught.value is error


async def test_a_group_of_exceptions_and_what_pytest_raises_come_out_as_they_are(client_of: MakeClient) -> None:
    async def group(scope: Any, receive: Any, send: Any) -> None:
        raise ExceptionGroup("two", [BoomError(), KeyError()])

    async def failing(scope: Any, receive: Any, send: Any) -> None:
        pytest.fail("inside of the application")

    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        raise SystemExit(3)

    with pytest.raises(ExceptionGroup):
        await client_of(group).websocket_connect("/").__aenter__()
    with pytest.raises(pytest.fail.Exception, match="inside of the application"):
        await client_of(failing).websocket_connect("/").__aenter__()
    with pytest.raises(SystemExit):
        await client_of(leaving).websocket_connect("/").__aenter__()


async def test_a_failure_of_the_test_wins_and_tells_of_the_applications(client_of: MakeClient) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        async with client_of(raw_in_clean_up).websocket_connect("/"):
            raise ZeroDivisionError
    assert caught.value.__notes__ == ["Besides: BoomError: "]
    assert isinstance(caught.value.__context__, BoomError)
    with pytest.raises(ZeroDivisionError) as caught:
        async with client_of(raw_in_clean_up).websocket_connect("/"):
            raise ZeroDivisionError from KeyError("why")
    assert caught.value.__notes__ == ["Besides: BoomError: "]
    assert isinstance(caught.value.__cause__, KeyError)


async def test_a_failure_that_the_test_made_of_the_applications_tells_it_once(client_of: MakeClient) -> None:
    async def wraps(ws: Any) -> None:
        try:
            await ws.receive()
        except BoomError as error:
            raise ZeroDivisionError from error

    with pytest.raises(ZeroDivisionError) as caught:
        async with client_of(raw_after_accept).websocket_connect("/") as ws:
            await wraps(ws)
    assert not hasattr(caught.value, "__notes__")


async def test_two_sessions_that_both_fail_are_both_told(client_of: MakeClient) -> None:
    async with client_of(raw_in_clean_up) as client:
        with pytest.raises(BoomError) as caught:
            async with client.websocket_connect("/"), client.websocket_connect("/"):
                pass
    assert caught.value.__notes__ == ["Besides: BoomError: "]


@pytest.mark.parametrize(
    ("make", "code"), [(serving(boom_at_a_message), 1011), (raw_after_accept, 1006)], ids=["asgiws", "raw"]
)
async def test_without_raising_the_test_sees_what_a_client_sees(client_of: MakeClient, make: Any, code: int) -> None:
    async with client_of(make, raise_server_exceptions=False).websocket_connect("/") as ws:
        await ws.send_text("a")
        await ws.expect_close(code)
    for before in (serving(boom_before_accept), raw_before_accept):
        with pytest.raises(WebSocketDenied) as caught:
            await client_of(before, raise_server_exceptions=False).websocket_connect("/").__aenter__()
        assert caught.value.status_code == 500
        assert "boom" not in caught.value.text.lower()


async def test_that_the_client_has_gone_is_no_failure_of_an_application_that_sends(client_of: MakeClient) -> None:
    sent = 0

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await send({"type": "websocket.send", "text": "a"})
            sent += 1

    async with client_of(raw).websocket_connect("/") as ws:
        assert await ws.receive_text() == "a"
    assert sent


async def test_an_application_that_cancels_itself_fails_as_such(client_of: MakeClient) -> None:
    async def raw(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError if not trio.lowlevel.in_trio_run() else BoomError

    with pytest.raises((RuntimeError, BoomError), match=r"cancellation that no server asked for|^$"):
        await client_of(raw).websocket_connect("/").__aenter__()


# What the server could not take


async def test_what_the_server_cannot_take_is_raised_into_the_application_and_fails_the_test(
    client_of: MakeClient,
) -> None:
    seen: list[BaseException] = []

    async def careless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await send({"type": "websocket.send", "text": b"bytes"})
        except Exception as error:
            seen.append(error)
            raise

    async def swallowing(scope: Any, receive: Any, send: Any) -> None:
        with contextlib.suppress(Exception):
            await careless(scope, receive, send)
        await send({"type": "websocket.close"})

    for raw in (careless, swallowing):
        for raising in (True, False):
            seen.clear()
            with pytest.raises(ServerChokedError, match=r"uvicorn.* chokes on: text is <class 'bytes'>") as caught:
                async with client_of(raw, raise_server_exceptions=raising).websocket_connect("/") as ws:
                    await ws.expect_close()
            assert caught.value is seen[0]


async def test_an_exception_made_of_what_the_server_could_not_take_tells_of_both(client_of: MakeClient) -> None:
    async def careless(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        with contextlib.suppress(ServerChokedError):
            await send({"type": "websocket.send", "text": "a"})
        raise BoomError

    with pytest.raises(BoomError) as caught:
        await client_of(careless).websocket_connect("/").__aenter__()
    assert "websocket.send while new" in caught.value.__notes__[0]


# Stuck: where the application stands


async def never_accepts(ws: WebSocket) -> None:
    await anyio.sleep_forever()  # never accepts


async def asks_first(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive_text()  # asks first


async def deep(ws: WebSocket) -> None:
    await ws.accept()
    await one_deeper()


async def one_deeper() -> None:
    queue = anyio.Event()
    await queue.wait()  # one deeper


async def in_a_group(ws: WebSocket) -> None:
    await ws.accept()
    async with anyio.create_task_group() as group:  # in a group
        group.start_soon(anyio.sleep_forever)


async def numbers() -> AsyncIterator[int]:
    yield 1
    await anyio.sleep_forever()  # in a generator


async def over_a_generator(ws: WebSocket) -> None:
    await ws.accept()
    await ws.receive()
    async for number in numbers():
        await ws.send_json(number)


async def a_stream() -> AsyncIterator[int]:
    yield 1
    await anyio.sleep_forever()  # in a stream


async def slow_user() -> int:
    await anyio.sleep_forever()  # in a dependency
    return 1


async def with_a_dependency(ws: WebSocket, user: Annotated[int, Depends(slow_user)]) -> None:
    await ws.accept()


@contextlib.asynccontextmanager
async def slow_lock() -> AsyncIterator[None]:
    await anyio.sleep_forever()  # in a context manager
    yield


async def with_a_lock(ws: WebSocket) -> None:
    await ws.accept()
    async with slow_lock():
        pass


async def in_a_thread(ws: WebSocket) -> None:
    await ws.accept()
    await anyio.to_thread.run_sync(threading.Event().wait, 0.3)  # in a thread


NEVER = "the application waits at "
ASKS = "the application itself waits for the client to send, at "


@pytest.mark.parametrize(
    ("handler", "mark", "function", "does", "source"),
    [
        (asks_first, "asks first", "asks_first", ASKS, "await ws.receive_text()  # asks first"),
        (deep, "one deeper", "one_deeper", NEVER, "await queue.wait()  # one deeper"),
        (in_a_group, "in a group", "in_a_group", NEVER, "async with anyio.create_task_group() as group:  # in a group"),
        (over_a_generator, "in a generator", "numbers", NEVER, "await anyio.sleep_forever()  # in a generator"),
        (a_stream, "in a stream", "a_stream", ASKS, "await anyio.sleep_forever()  # in a stream"),
        (with_a_lock, "in a context manager", "slow_lock", NEVER, "await anyio.sleep_forever()  # in a "),
        (in_a_thread, "in a thread", "in_a_thread", NEVER, "await anyio.to_thread.run_sync(threading."),
    ],
    ids=lambda one: getattr(one, "__name__", ""),
)  # fmt: skip
async def test_a_session_that_waits_in_vain_says_where_the_application_waits(
    client_of: MakeClient, handler: Callable[..., Any], mark: str, function: str, does: str, source: str
) -> None:
    async def waits(ws: Any) -> None:
        if handler in (over_a_generator, a_stream):
            await ws.send_text("go")
            await ws.receive()
        await ws.receive_text(timeout=0.05)

    with pytest.raises(StuckError) as caught:
        async with client_of(serving(handler), timeout=1).websocket_connect("/") as ws:
            await waits(ws)
    assert re.match(f"no message within 0.05 s; {does}{at(mark)}{function}: `{re.escape(source)}", str(caught.value))
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize(
    ("handler", "mark"), [(never_accepts, "never accepts"), (with_a_dependency, "in a dependency")]
)
async def test_a_handshake_without_an_answer_says_where_the_application_waits(
    client_of: MakeClient, handler: Callable[..., Any], mark: str
) -> None:
    before = time.monotonic()
    with pytest.raises(StuckError, match=f"^no answer to the handshake within 0.1 s; {NEVER}{at(mark)}"):
        async with client_of(serving(handler), timeout=0.1).websocket_connect("/"):
            pytest.fail("the handshake was not answered")
    assert time.monotonic() - before < 1


@pytest.mark.parametrize(
    ("wait", "missing"),
    [
        (lambda ws: ws.receive(timeout=0.05), "no message"),
        (lambda ws: ws.receive_bytes(0.05), "no message"),
        (lambda ws: ws.receive_json(timeout=0.05), "no message"),
        (lambda ws: ws.expect_close(timeout=0.05), "no close"),
    ],
)
async def test_every_wait_has_its_own_timeout(
    client_of: MakeClient, wait: Callable[[Any], Awaitable[Any]], missing: str
) -> None:
    async with client_of(serving(asks_first)).websocket_connect("/") as ws:
        for _ in range(2):  # the session goes on
            with pytest.raises(StuckError, match=f"^{missing} within 0.05 s; "):
                await wait(ws)


async def test_the_timeout_of_the_client_holds_where_none_is_given(client_of: MakeClient) -> None:
    async with client_of(serving(asks_first), timeout=0.05).websocket_connect("/") as ws:
        for receive in (ws.receive, ws.receive_text, ws.expect_close, ws.__aiter__().__anext__):
            with pytest.raises(StuckError, match=r" within 0\.05 s; "):
                await receive()


async def test_an_application_that_ignores_the_close_is_told_of_and_cancelled(client_of: MakeClient) -> None:
    cleaned: list[str] = []

    async def ignores(ws: WebSocket) -> None:
        await ws.accept()
        try:
            await anyio.sleep_forever()  # ignores the close
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            cleaned.append("up")

    with pytest.raises(StuckError) as caught:
        async with client_of(serving(ignores), timeout=0.1).websocket_connect("/"):
            pass
    text = "^the client has gone, and the application has not ended within 0.1 s; "
    assert re.match(f"{text}{NEVER}{at('ignores the close')}.*ignores: `await anyio.sleep_forever", str(caught.value))
    assert cleaned == ["up"]


async def test_a_handshake_that_is_refused_by_an_application_that_does_not_end_says_so(client_of: MakeClient) -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.close"})
        await anyio.sleep_forever()  # refused

    with pytest.raises(
        StuckError, match=f"the handshake is refused, but there is no end within 0.1 s; {NEVER}{at('refused')}"
    ):
        await client_of(refuses, timeout=0.1).websocket_connect("/").__aenter__()


async def test_an_exception_of_the_cancelled_clean_up_is_told_too(client_of: MakeClient) -> None:
    async def ignores(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await anyio.sleep_forever()
        finally:
            raise BoomError("in the clean-up")

    with pytest.raises(StuckError) as caught:
        async with client_of(ignores, timeout=0.05).websocket_connect("/"):
            pass
    assert caught.value.__notes__ == ["Besides: BoomError: in the clean-up"]
    with pytest.raises(StuckError) as caught:
        async with client_of(ignores, timeout=0.05).websocket_connect("/") as ws:
            await ws.receive()
    assert caught.value.__notes__ == ["Besides: BoomError: in the clean-up"]


async def test_a_receive_after_the_disconnect_that_no_server_answers_is_named(client_of: MakeClient) -> None:
    async def asks_again(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while True:
            await receive()  # asks again

    text = "it called receive\\(\\) again after the disconnect, which uvicorn-websockets-sansio never answers, at "
    with pytest.raises(
        StuckError, match=f"has not ended within 0.05 s; the application waits for ever: {text}{at('asks again')}"
    ):
        async with client_of(asks_again, timeout=0.05).websocket_connect("/"):
            pass


async def test_an_application_that_returned_where_the_server_keeps_the_connection_is_named(
    client_of: MakeClient,
) -> None:
    async def returns(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async with client_of(returns, server="daphne").websocket_connect("/") as ws:
        with pytest.raises(StuckError, match="has returned without a close, and daphne keeps the connection open then"):
            await ws.receive(timeout=0.05)


async def test_a_test_that_is_cancelled_does_not_hang_on_an_application_that_does_not_end(anyio_backend: str) -> None:
    ended: list[bool] = []

    async def ignores(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(True)

    before = time.monotonic()
    with anyio.move_on_after(0.05) as scope:
        async with AsyncTestClient(ignores) as client, client.websocket_connect("/") as ws:
            await ws.receive()
    assert scope.cancelled_caught
    assert ended == [True]
    assert time.monotonic() - before < 2


# What ignores its cancellation


def catches_all(over: list[bool]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        while not over:
            with contextlib.suppress(BaseException):
                await anyio.sleep_forever()  # catches all

    return app


def shields_itself(over: list[bool]) -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        with anyio.CancelScope(shield=True):
            await anyio.sleep_forever()  # shields itself

    return app


@pytest.mark.parametrize(("make", "mark"), [(catches_all, "catches all"), (shields_itself, "shields itself")])
async def test_an_application_that_ignores_its_cancellation_is_given_up(
    client_of: MakeClient, make: Any, mark: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "GRACE", 0.1)
    given_up = "it did not end within 0.1 s of its cancellation either, and was given up$"
    over: list[bool] = []
    with pytest.raises(StuckError, match=f"(?s)within 0.05 s; {NEVER}{at(mark)}.*; {given_up}"):
        async with client_of(make(over), timeout=0.05).websocket_connect("/"):
            pass
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("asgiws")]
    over.append(True)  # the coroutine is kept to the end of the process, which closes it


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_application_that_blocks_the_event_loop_fails_the_test_with_its_line(
    backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portal, "_PULSE", 0.2)
    free = threading.Event()

    async def blocks(ws: WebSocket) -> None:
        await ws.accept()
        await ws.receive_text()
        free.wait(DEADLINE)  # blocks

    before = time.monotonic()
    text = f"the application blocks the event loop, for over 0.2 s, at {at('blocks')}"
    client = TestClient(serving(blocks), backend=backend, timeout=0.05)
    ws = client.__enter__().websocket_connect("/").__enter__()
    ws.send_text("a")
    for call in (ws.receive_text, lambda: client.get("/"), lambda: ws.__exit__(None, None, None)):
        with pytest.raises(StuckError, match=text):
            call()
    with pytest.raises(StuckError, match=text) as caught:
        client.__exit__(None, None, None)
    assert "its thread is left behind" in caught.value.__notes__[0]
    assert time.monotonic() - before < 3
    free.set()
    for thread in threading.enumerate():
        if thread.name.startswith("asgiws"):
            thread.join(DEADLINE)
            assert not thread.is_alive()


def test_an_application_that_blocks_the_event_loop_at_the_end_leaves_its_thread_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(portal, "_PULSE", 0.2)
    free = threading.Event()

    async def blocks(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await receive()
        sooner = asyncio.get_running_loop().call_soon
        sooner(free.wait, DEADLINE)

    ws = TestClient(blocks, timeout=0.05).websocket_connect("/").__enter__()
    with pytest.raises(StuckError, match=r"blocks the event loop, for over 0\.2 s"):
        ws.__exit__(None, None, None)
    free.set()
    for thread in threading.enumerate():
        if thread.name.startswith("asgiws"):
            thread.join(DEADLINE)


# The parts


async def test_the_line_of_a_coroutine_that_waits_for_nothing_is_none_or_its_first() -> None:
    async def nothing() -> None:
        pass

    coroutine = nothing()
    assert waits_at(None) is None
    place = waits_at(coroutine)
    assert place is not None
    assert place.function.endswith("nothing")
    await coroutine
    assert waits_at(coroutine) is None


def test_the_line_that_raised_is_the_innermost_of_the_users_own() -> None:
    try:
        re.compile("(")  # raised here
    except re.error as error:
        place = raised_at(error)
    assert place is not None
    assert str(place) == (
        f"tests/test_testing_errors.py:{line_of(__file__, 'raised here')} in "
        'test_the_line_that_raised_is_the_innermost_of_the_users_own: `re.compile("(")  # raised here`'
    )
    assert raised_at(BoomError()) is None
