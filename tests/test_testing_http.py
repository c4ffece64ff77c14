"""HTTP through the test clients: requests with bodies, responses in pieces, who leaves, and who answers badly.

Every test of the `client_of` fixture runs with both clients, each on asyncio and trio.
"""

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import msgspec
import pytest

from asgiws import App, Request, Response
from asgiws.testing import AsyncTestClient, ServerChokedError, StuckError, TestClient
from tests.clients import MakeClient, line_of, make_client
from tests.fakes import STRICT

pytestmark = pytest.mark.anyio

Event = dict[str, Any]
START: Event = {"type": "http.response.start", "status": 200, "headers": []}


@pytest.fixture(params=["async", "plain"])
def client_of(request: pytest.FixtureRequest, anyio_backend: str) -> MakeClient:
    return make_client(request.param, anyio_backend)


app = App()


class Note(msgspec.Struct):
    text: str
    stars: int = 0


@app.post("/notes")
async def note(note: Note) -> Note:
    return Note(note.text.upper(), note.stars + 1)


@app.route("/echo", methods=["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def echo(request: Request) -> Response:
    return Response(await request.body(), headers={"x-method": request.method})


@app.get("/page")
async def page() -> Response:
    return Response("a page", headers={"x-here": "yes"})


async def test_a_body_is_sent_and_read(client_of: MakeClient) -> None:
    client = client_of(app)
    answer = await client.post("/notes", json={"text": "hi", "stars": 4})
    assert (answer.status_code, answer.json()) == (200, {"text": "HI", "stars": 5})
    refused = await client.post("/notes", json={"text": 4})
    assert refused.status_code == 422


@pytest.mark.parametrize("method", ["post", "put", "patch"])
async def test_methods_with_a_body(client_of: MakeClient, method: str) -> None:
    answer = await getattr(client_of(app), method)("/echo", content=b"abc")
    assert (answer.content, answer.headers["x-method"]) == (b"abc", method.upper())


@pytest.mark.parametrize("method", ["delete", "options"])
async def test_methods_without_a_body(client_of: MakeClient, method: str) -> None:
    answer = await getattr(client_of(app), method)("/echo")
    assert (answer.content, answer.headers["x-method"]) == (b"", method.upper())


async def test_head_has_the_headers_of_get_and_no_body(client_of: MakeClient) -> None:
    client = client_of(app)
    head, get = await client.head("/page"), await client.get("/page")
    assert (head.status_code, head.content, head.headers["x-here"]) == (200, b"", "yes")
    assert head.headers["content-length"] == get.headers["content-length"] == "6"


async def test_a_body_comes_in_the_pieces_in_which_it_was_sent(client_of: MakeClient) -> None:
    got: list[tuple[bytes, bool]] = []

    async def read(_: Any, receive: Callable[[], Any], send: Callable[[Event], Any]) -> None:
        while True:
            event = await receive()
            got.append((event["body"], event["more_body"]))
            if not event["more_body"]:
                break
        await send(START)
        await send({"type": "http.response.body", "body": b""})

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"a", b"b", b"c"):
            yield piece

    client = client_of(read)
    content: Any = pieces() if isinstance(client, AsyncTestClient) else iter([b"a", b"b", b"c"])
    assert (await client.post("/", content=content)).status_code == 200
    assert got == [(b"a", True), (b"b", True), (b"c", False)]


async def test_the_other_kind_of_body_is_refused(client_of: MakeClient) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a"

    def plain() -> Iterator[bytes]:
        yield b"a"

    client = client_of(app)
    content: Any = plain() if isinstance(client, AsyncTestClient) else pieces()
    with pytest.raises((TypeError, RuntimeError)):
        await client.post("/echo", content=content)


# Responses in pieces


async def endless(scope: Any, receive: Callable[[], Any], send: Callable[[Event], Any]) -> None:
    """Send pieces until the client leaves."""
    await send(START)
    async with anyio.create_task_group() as group:

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            group.cancel_scope.cancel()

        group.start_soon(watch)
        while True:
            await send({"type": "http.response.body", "body": b"x" * 30_000, "more_body": True})


def test_who_leaves_a_response_half_way_is_seen_to_leave() -> None:
    with TestClient(endless) as client, client.stream("GET", "/") as response:
        chunks = response.iter_raw()
        assert {len(next(chunks)) for _ in range(10)} == {30_000}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # httpx leaves its generators open, of which trio complains
async def test_the_same_in_the_event_loop_of_the_test() -> None:
    async with AsyncTestClient(endless) as client, client.stream("GET", "/") as response:
        chunks = response.aiter_raw()
        assert {len(await anext(chunks)) for _ in range(10)} == {30_000}


async def test_the_application_waits_for_a_client_that_does_not_read() -> None:
    sent = 0

    async def big(scope: Any, receive: Any, send: Callable[[Event], Any]) -> None:
        nonlocal sent
        await send(START)
        for number in range(100):
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": number < 99})
            sent += 1

    async with AsyncTestClient(big) as client, client.stream("GET", "/") as response:
        await anyio.wait_all_tasks_blocked()
        assert 0 < sent < 10
        assert len(await response.aread()) == 1_000_000
    assert sent == 100


# Who answers badly

BAD: dict[str, tuple[list[Event], str]] = {
    "a body first": ([{"type": "http.response.body"}], "http.response.body out of order"),
    "two starts": ([START, START], "http.response.start out of order"),
    "after the end": ([START, {"type": "http.response.body"}, {"type": "http.response.body"}], "body after the end"),
    "text as a header": ([START | {"headers": [("a", "b")]}], "headers that are not bytes: [('a', 'b')]"),
    "a status of text": ([START | {"status": "200"}], "status '200'"),
    "an event of WebSockets": ([{"type": "websocket.accept"}], "websocket.accept out of order"),
}


@pytest.mark.parametrize(("events", "told"), BAD.values(), ids=BAD)
async def test_what_no_server_takes_is_told(client_of: MakeClient, events: list[Event], told: str) -> None:
    async def bad(scope: Any, receive: Any, send: Callable[[Event], Any]) -> None:
        for event in events:
            await send(event)

    with pytest.raises(ServerChokedError, match=re.escape(told)):
        await client_of(bad).get("/")


async def test_an_exception_is_raised_in_the_test_or_is_a_500(client_of: MakeClient) -> None:
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        await client_of(fails).get("/")
    answer = await client_of(fails, raise_server_exceptions=False).get("/")
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")


async def test_a_response_that_breaks_off_is_an_error_of_the_protocol(client_of: MakeClient) -> None:
    async def half(scope: Any, receive: Any, send: Callable[[Event], Any]) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"half", "more_body": True})

    with pytest.raises(httpx.RemoteProtocolError, match="ended in the middle of its response"):
        await client_of(half).get("/")


@pytest.mark.parametrize(("started", "missing"), [(False, "no answer"), (True, "no more of the response")])
async def test_an_application_that_is_stuck_is_told_with_its_place(
    client_of: MakeClient, started: bool, missing: str
) -> None:
    async def stuck(scope: Any, receive: Any, send: Callable[[Event], Any]) -> None:
        if started:
            await send(START)
        await anyio.sleep_forever()  # here it waits

    with pytest.raises(StuckError) as caught:
        await client_of(stuck, timeout=0.1).get("/")
    place = f"test_testing_http.py:{line_of(__file__, 'here it waits')}"
    assert str(caught.value).startswith(f"{missing} within 0.1 s; the application waits at ")
    assert place in str(caught.value)


async def test_an_application_that_goes_on_without_its_client_is_told() -> None:
    async def deaf(scope: Any, receive: Any, send: Callable[[Event], Any]) -> None:
        await send(START)
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await anyio.sleep_forever()

    async with AsyncTestClient(deaf, timeout=0.1) as client:
        with pytest.raises(StuckError, match=r"the client has gone, and the application has not ended within 0\.1 s"):
            async with client.stream("GET", "/"):
                pass


@pytest.mark.parametrize("server", ["uvicorn", "hypercorn", "daphne", "granian", "strict"])
async def test_a_send_to_a_client_that_has_gone_is_dropped_by_all_but_a_strict_server(server: str) -> None:
    raised: list[str] = []

    async def late(scope: Any, receive: Callable[[], Any], send: Callable[[Event], Any]) -> None:
        await send(START)
        while (await receive())["type"] != "http.disconnect":
            pass
        try:
            await send({"type": "http.response.body", "body": b"x"})
        except RuntimeError as error:
            raised.append(str(error))

    shape: Any = STRICT if server == "strict" else server
    async with AsyncTestClient(late, server=shape) as client, client.stream("GET", "/"):
        pass
    assert raised == (["Cannot call send once the client has gone"] if server == "strict" else [])
