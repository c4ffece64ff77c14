"""Tokens that a page can send: as a subprotocol and as the first message, in memory and on real servers."""

import base64
import json
import re
from collections.abc import Iterator
from typing import Annotated, Any
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from asgiws import App, ConfigurationError, Depends, HTTPException, SignatureError, WebSocket, WebSocketStateError
from asgiws.security import FirstMessageToken, SubprotocolToken
from tests.apps_security import TOKEN
from tests.fakes import DAPHNE, GRANIAN, HYPERCORN, SHAPES, UVICORN, UVICORN_WSPROTO, FakeServer, Shape, converse
from tests.servers import DEADLINE, ServerProcess, daphne, granian, hypercorn, running, uvicorn

pytestmark = pytest.mark.anyio

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)

some_shapes = pytest.mark.parametrize("shape", [UVICORN, HYPERCORN, DAPHNE], ids=lambda shape: shape.name)

PREFIX = "base64url.bearer.authorization.k8s.io."


def entry(token: str | bytes, prefix: str = PREFIX) -> str:
    """A token as a page sends it in a subprotocol."""
    data = token if isinstance(token, bytes) else token.encode()
    return prefix + base64.urlsafe_b64encode(data).decode().rstrip("=")


def handshake(shape: Shape, *lines: str) -> FakeServer:
    """A handshake with these lines of Sec-WebSocket-Protocol, as the server hands them over."""
    joined = ",".join(lines[-1:] if shape is HYPERCORN else lines)
    names = [name.strip() for name in joined.split(",")] if joined else []
    if shape is DAPHNE:
        lines = (",".join(lines),)
        names = [unquote(name) for name in names]
    if shape is GRANIAN:
        names = [name for name in names if name]
    if shape is UVICORN_WSPROTO:
        lines = ()
    headers = [("Sec-WebSocket-Protocol", line.encode("latin-1")) for line in lines]
    return FakeServer(shape, headers=[*headers, ("x-other", "kept")], subprotocols=names)


def asking(helper: Any) -> tuple[App, list[Any]]:
    """An app that asks a helper for a token, and what its handler saw."""
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(ws: WebSocket, token: Annotated[Any, Depends(helper)]) -> None:
        seen.append((token, ws.subprotocols, ws.headers.get("sec-websocket-protocol")))
        assert ws.headers["x-other"] == "kept"
        await ws.accept(ws.subprotocols[0] if ws.subprotocols else None)

    return app, seen


def status(server: FakeServer, code: int) -> int:
    """What a client sees of a denial: daphne has but one."""
    return code if server.shape.denial else 403


# A subprotocol


@every_shape
@pytest.mark.parametrize(
    ("line", "token"),
    [
        ("chat.v1, {token}", "abc"),
        ("{token}, chat.v1", "ab"),
        ("chat.v1,{token}", "a"),
        (" {token} ,, chat.v1 , ", "eyJh.eyJz_dWI-.c2ln~+/=="),
        ("chat.v1, {token}, {token}", "é€😀"),
        ("chat.v1, {token}", "x" * 6144),
    ],
)
async def test_a_token_is_taken_out_of_the_subprotocols(shape: Shape, line: str, token: str) -> None:
    # S9
    app, seen = asking(SubprotocolToken())
    server = handshake(shape, line.format(token=entry(token)))
    before = repr(server.scope)
    await converse(app, server, leave=-1)
    assert seen == [(token, ["chat.v1"], None if shape is UVICORN_WSPROTO else "chat.v1")]
    assert server.sent[0] == {"type": "websocket.accept", "subprotocol": "chat.v1"}
    assert entry(token) not in repr(server.sent)
    assert repr(server.scope) == before  # the server's own scope is left alone


@every_shape
async def test_all_other_subprotocols_stay_in_their_order(shape: Shape) -> None:
    app, seen = asking(SubprotocolToken())
    await converse(app, handshake(shape, f"b, a, {entry('abc')}, c"), leave=-1)
    assert seen == [("abc", ["b", "a", "c"], None if shape is UVICORN_WSPROTO else "b, a, c")]


@every_shape
async def test_several_lines_of_the_header_are_one_offer(shape: Shape) -> None:
    app, seen = asking(SubprotocolToken())
    server = await converse(app, handshake(shape, entry("abc"), "chat.v1"), leave=-1)
    # hypercorn hands over the header but a list of the last line alone.
    assert seen == [("abc", ["chat.v1"], None if shape is UVICORN_WSPROTO else "chat.v1")]
    assert server.status == 101


NO_TOKENS = [
    "chat.v1",
    f"chat.v1, {PREFIX}",
    f"chat.v1, {PREFIX}=",
    f"chat.v1, {entry('abc')}=",
    f"chat.v1, {entry('ab')}=",
    f"chat.v1, {PREFIX}A",
    f"chat.v1, {PREFIX}AAAAA",
    f"chat.v1, {PREFIX}a+b/",
    f"chat.v1, {PREFIX}a.bc",
    f"chat.v1, {PREFIX}a bc",
    f"chat.v1, {PREFIX}YWJj\u00e9",
    *[f"chat.v1, {entry(data)}" for data in (b"\xff\xfe", b"abc\xe9", b"\xed\xa0\x80", "a\nb", "a\x00b", "x" * 6145)],
    # Two of them.
    f"chat.v1, {entry('abc')}, {entry('def')}",
    f"chat.v1, {entry('abc')}, {PREFIX}",
    f"chat.v1, {entry('abc')}, {entry('def')}, {entry('abc')}",
    # Other prefixes.
    f"chat.v1, {entry('abc', PREFIX.upper())}",
    f"chat.v1, x{entry('abc')}",
    "",
]


@some_shapes
@pytest.mark.parametrize("line", NO_TOKENS)
async def test_what_is_no_token_is_refused(shape: Shape, line: str) -> None:
    app, seen = asking(SubprotocolToken())
    server = await converse(app, handshake(shape, line), leave=-1)
    assert server.status == status(server, 401)
    assert seen == []
    if shape.denial:
        assert json.loads(server.body) == {"detail": "Not authenticated"}
        assert (b"www-authenticate", b'Bearer realm="restricted"') in server.sent[0]["headers"]


@every_shape
@pytest.mark.parametrize("line", NO_TOKENS)
async def test_what_is_no_token_is_taken_out_all_the_same(shape: Shape, line: str) -> None:
    app, seen = asking(SubprotocolToken(auto_error=False))
    server = await converse(app, handshake(shape, line), leave=-1)
    assert server.status == 101
    ((token, subprotocols, header),) = seen
    assert token is None
    assert not any(name.startswith(PREFIX) for name in [*subprotocols, *re.split(", ?", header or "")])


@every_shape
async def test_two_tokens_in_two_lines_are_refused(shape: Shape) -> None:
    app, seen = asking(SubprotocolToken())
    server = await converse(app, handshake(shape, f"chat.v1, {entry('abc')}", f"chat.v1, {entry('def')}"), leave=-1)
    assert server.status == status(server, 401)
    assert seen == []


@every_shape
@pytest.mark.parametrize("auto_error", [True, False])
@pytest.mark.parametrize("line", ["{token}", "{token},", "a b, {token}"])
async def test_a_token_without_a_subprotocol_to_accept_is_told_what_is_missing(
    shape: Shape, auto_error: bool, line: str
) -> None:
    # S9
    app, seen = asking(SubprotocolToken(auto_error=auto_error))
    server = await converse(app, handshake(shape, line.format(token=entry("abc"))), leave=-1)
    assert server.status == status(server, 400)
    assert seen == []
    if shape.denial:
        detail = "offer another subprotocol besides the token: the answer must name one"
        assert json.loads(server.body) == {"detail": detail}


async def test_the_prefix_may_be_another() -> None:
    app, seen = asking(SubprotocolToken(prefix="token."))
    await converse(app, handshake(UVICORN, f"chat.v1, {entry('abc', 'token.')}, {entry('def')}"), leave=-1)
    assert seen == [("abc", ["chat.v1", entry("def")], f"chat.v1, {entry('def')}")]


@pytest.mark.parametrize("prefix", ["", "a b", "a,b", "a=", "é", "a\n", None, 5, b"token."])
def test_a_prefix_that_begins_no_subprotocol_is_refused(prefix: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SubprotocolToken(prefix=prefix)
    assert str(refused.value) == f"SubprotocolToken(prefix=...) begins a subprotocol, got {prefix!r}"


async def test_who_asks_again_on_the_same_connection_gets_the_token_again() -> None:
    one, other, third = SubprotocolToken(), SubprotocolToken(auto_error=False), SubprotocolToken(prefix="token.")
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        first: Annotated[str, Depends(one, use_cache=False)],
        second: Annotated[str, Depends(one, use_cache=False)],
        by_another: Annotated[str | None, Depends(other)],
        by_prefix: Annotated[str, Depends(third)],
    ) -> None:
        await ws.accept("chat.v1")
        seen.extend([first, second, by_another, by_prefix, await one(ws)])
        seen.append(ws.subprotocols)

    offer = f"chat.v1, {entry('abc')}, {entry('def', 'token.')}"
    await converse(app, handshake(UVICORN, offer), leave=-1)
    await converse(app, handshake(UVICORN, offer.replace(entry("abc"), entry("xyz"))), leave=-1)
    assert seen == [*["abc"] * 3, "def", "abc", ["chat.v1"], *["xyz"] * 3, "def", "xyz", ["chat.v1"]]


async def test_who_was_refused_once_is_refused_again() -> None:
    ws: WebSocket = WebSocket(*driving(handshake(UVICORN, f"chat.v1, {entry('abc')}, {entry('def')}")))
    for _ in range(2):
        with pytest.raises(HTTPException, match="401"):
            await SubprotocolToken()(ws)
    assert ws.subprotocols == ["chat.v1"]


async def test_the_scope_shows_no_token_and_keeps_all_else() -> None:
    server = handshake(UVICORN, f"chat.v1, {entry('abc')}")
    ws: WebSocket = WebSocket(*driving(server))
    assert entry("abc") in ws.headers["sec-websocket-protocol"]  # decoded before, and not kept
    assert await SubprotocolToken()(ws) == "abc"
    assert entry("abc") not in repr(ws.scope)
    assert "'abc'" not in repr(ws.scope)
    changed = {key for key in ws.scope if ws.scope[key] != server.scope.get(key)}
    assert changed == {"subprotocols", "headers", "asgiws.tokens"}
    assert ws.scope["state"] is server.scope["state"]
    assert ws.scope["headers"] == [
        (b"host", b"testserver"), (b"x-other", b"kept"), (b"sec-websocket-protocol", b"chat.v1"),
    ]  # fmt: skip


async def test_an_offer_of_nothing_but_a_bad_token_leaves_no_header() -> None:
    ws: WebSocket = WebSocket(*driving(handshake(UVICORN, f"{PREFIX}A")))
    assert await SubprotocolToken(auto_error=False)(ws) is None
    assert (ws.subprotocols, ws.headers.getlist("sec-websocket-protocol")) == ([], [])


def driving(server: FakeServer) -> tuple[Any, Any, Any]:
    """The arguments of an ASGI application."""
    return server.scope, server.receive, server.send


async def test_a_handshake_without_the_header_list_or_keys_has_no_token() -> None:
    scopes: list[dict[str, Any]] = [{}, {"subprotocols": None, "headers": None}, {"subprotocols": [], "headers": []}]
    for scope in scopes:
        ws: WebSocket = WebSocket({"type": "websocket", "path": "/", **scope}, *driving(handshake(UVICORN))[1:])
        assert await SubprotocolToken(auto_error=False)(ws) is None


def test_no_request_can_carry_such_tokens() -> None:
    # T35
    app = App()
    for helper in (SubprotocolToken(), FirstMessageToken()):
        with pytest.raises(SignatureError, match="asks for a WebSocket, but this serves HTTP requests"):

            @app.get("/")
            async def handler(token: Annotated[str, Depends(helper)]) -> None: ...


def driven(running: Any) -> Any:
    """What a coroutine that waits for nothing returns, or the refusal that it raises."""
    try:
        running.send(None)
    except StopIteration as done:
        return done.value
    except HTTPException as refused:
        return refused
    raise AssertionError("it waited")


anything = st.one_of(st.text(max_size=20), st.binary(max_size=20).map(lambda data: data.decode("latin-1")))
tokens = st.builds(lambda data: entry(data), st.one_of(st.binary(max_size=12), st.text(max_size=6).filter(str.isascii)))
entries = st.one_of(anything, anything.map(PREFIX.__add__), tokens, tokens.map(" {} ".format), st.just("chat.v1"))


@given(
    names=st.one_of(st.none(), st.lists(st.one_of(entries, st.binary(max_size=5), st.none()), max_size=4)),
    lines=st.lists(st.lists(entries, max_size=3).map(",".join), max_size=2),
    auto_error=st.booleans(),
)
def test_whatever_is_offered_is_a_token_or_a_refusal(names: Any, lines: list[str], auto_error: bool) -> None:
    # S10
    headers = [(b"Sec-WebSocket-Protocol", line.encode("utf-8", "replace")) for line in lines]
    scope = {"type": "websocket", "path": "/", "subprotocols": names, "headers": headers}
    ws: WebSocket = WebSocket(scope, *driving(handshake(UVICORN))[1:])
    found = driven(SubprotocolToken(auto_error=auto_error)(ws))
    if isinstance(found, HTTPException):
        assert found.status_code in ({400, 401} if auto_error else {400})
    else:
        assert (found is None and not auto_error) or (found and ws.subprotocols)
    assert not any(name.startswith(PREFIX) for name in ws.subprotocols)
    left = [name.strip() for line in ws.headers.getlist("sec-websocket-protocol") for name in line.split(",")]
    assert not any(name.startswith(PREFIX) for name in left)


@given(st.text(min_size=1))
def test_every_text_without_control_characters_is_a_token(token: str) -> None:
    allowed = not re.search(r"[\x00-\x1f\x7f]", token)
    ws: WebSocket = WebSocket(*driving(handshake(UVICORN, f"{entry(token)}, chat.v1")))
    assert driven(SubprotocolToken(auto_error=False)(ws)) == (token if allowed else None)


# The first message


def chat(helper: Any) -> tuple[App, list[Any]]:
    """An app that asks a helper for a token, and what its handler saw."""
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(ws: WebSocket, token: Annotated[str, Depends(helper)]) -> None:
        seen.append(token)
        async for text in ws.iter_text():
            seen.append(text)
        seen.append("end")

    return app, seen


@some_shapes
@pytest.mark.parametrize(
    ("message", "token"),
    [
        ("abc", "abc"),
        (" abc\n", "abc"),
        ("two words", "two words"),
        ("é€😀", "é€😀"),
        ("eyJh.eyJz_dWI-.c2ln", "eyJh.eyJz_dWI-.c2ln"),
        ("null", "null"),
        ("5", "5"),
        ("[]", "[]"),
        ('"abc"', "abc"),
        (r'"\u00e9"', "é"),
        ('{"token":"abc"}', "abc"),
        (' {"token": "a\\u00e9c"} ', "aéc"),
        ('{"type": "auth", "token": "abc", "more": [1, {}]}', "abc"),
        ("x" * 4096, "x" * 4096),
        ("é" * 2048, "é" * 2048),
    ],
)
async def test_the_first_message_is_the_token_and_the_rest_is_for_the_handler(
    shape: Shape, message: str, token: str
) -> None:
    # S11
    app, seen = chat(FirstMessageToken())
    server = await converse(app, FakeServer(shape), message, "hello", "you")
    assert seen == [token, "hello", "you", "end"]
    assert server.sent[0] == {"type": "websocket.accept"}


@some_shapes
@pytest.mark.parametrize(
    "message",
    [
        "",
        " \n",
        "a\x00b",
        "two\nlines",
        "\x7f",
        '""',
        '"abc',
        r'"\u0000"',
        r'"\ud800"',
        "{}",
        "{",
        '{"token":',
        '{"token": null}',
        '{"token": 5}',
        '{"token": ""}',
        '{"token": ["abc"]}',
        r'{"token": "a\nb"}',
        '{"Token": "abc"}',
        '{"token": "abc"} {}',
        '{"x":' + "[" * 4000,
        b"abc",
        b'{"token": "abc"}',
        b"",
        "x" * 4097,
        "é" * 2049,
        # Characters are not bytes.
        "😀" * 1025,
        " " * 4090 + '"abc..."',
    ],
)
async def test_any_other_first_message_closes_with_4401(shape: Shape, message: str | bytes) -> None:
    # S11, S13
    app, seen = chat(FirstMessageToken())
    server = await converse(app, FakeServer(shape), message, "abc", leave=-1)
    reason = "the first message is the token: text, at most 4096 bytes, within 10 s"
    assert server.closed == (4401, reason)
    assert server.types == ["websocket.accept", "websocket.close"]
    assert seen == []


@every_shape
async def test_a_client_that_says_nothing_is_closed_with_4401_at_the_deadline(shape: Shape) -> None:
    # S11
    app, seen = chat(FirstMessageToken(deadline=0.01, max_bytes=100))
    server = await converse(app, FakeServer(shape), leave=-1)
    assert server.closed == (4401, "the first message is the token: text, at most 100 bytes, within 0.01 s")
    assert seen == []


@every_shape
@pytest.mark.parametrize("code", [1000, 1001, 4321, None])
async def test_a_client_that_leaves_instead_is_a_normal_end(
    shape: Shape, code: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    app, seen = chat(FirstMessageToken())
    server = await converse(app, FakeServer(shape), leave=code)
    assert server.types in (["websocket.accept"], ["websocket.accept", "websocket.close"])
    assert seen == []
    assert not [record for record in caplog.records if record.levelname != "DEBUG"]


@every_shape
async def test_a_client_that_left_before_accept_is_a_normal_end(shape: Shape) -> None:
    app, seen = chat(FirstMessageToken())
    server = FakeServer(shape)
    server.vanish()
    await converse(app, server, leave=-1)
    assert seen == []


@pytest.mark.parametrize(
    ("offered", "accepted"),
    [
        ([], None),
        (["other"], None),
        (["chat.v1"], "chat.v1"),
        (["chat.v1", "chat.v2"], "chat.v2"),
        (["chat.v1", entry("abc")], "chat.v1"),
        (["a b", "chat.v1"], "chat.v1"),
    ],
)
async def test_the_service_chooses_the_subprotocol(offered: list[str], accepted: str | None) -> None:
    # S10
    app, seen = chat(FirstMessageToken(subprotocols=["chat.v2", "chat.v1"]))
    server = await converse(app, FakeServer(subprotocols=offered), "abc")
    assert server.sent[0].get("subprotocol") == accepted
    assert seen == ["abc", "end"]


async def test_who_asks_for_the_first_message_again_gets_the_token_again() -> None:
    one = FirstMessageToken()
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        first: Annotated[str, Depends(one, use_cache=False)],
        second: Annotated[str, Depends(one, use_cache=False)],
        third: Annotated[str, Depends(FirstMessageToken())],
    ) -> None:
        seen.extend([first, second, third, await ws.receive_text()])
        assert "abc" not in repr(ws.scope)

    await converse(app, FakeServer(), "abc", "next")
    assert seen == ["abc", "abc", "abc", "next"]


async def test_both_kinds_of_token_may_come_on_one_connection() -> None:
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        offered: Annotated[str, Depends(SubprotocolToken())],
        said: Annotated[str, Depends(FirstMessageToken(subprotocols=["chat.v1"]))],
    ) -> None:
        seen.extend([offered, said])

    server = await converse(app, handshake(UVICORN, f"{entry('abc')}, chat.v1"), "def")
    assert seen == ["abc", "def"]
    assert server.sent[0]["subprotocol"] == "chat.v1"


async def test_a_handler_that_accepts_again_is_told_so() -> None:
    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, token: Annotated[str, Depends(FirstMessageToken())]) -> None:
        await ws.accept()

    server = FakeServer()
    with pytest.raises(WebSocketStateError, match="already accepted"):
        await converse(app, server, "abc")
    assert server.closed == (1011, "internal error")


async def test_a_stream_may_wait_for_a_token_first() -> None:
    app = App()

    @app.websocket("/")
    async def ticks(token: Annotated[str, Depends(FirstMessageToken())]) -> Any:
        yield f"for {token}"

    server = await converse(app, FakeServer(), "abc", leave=-1)
    assert (server.texts, server.closed) == (["for abc"], (1000, ""))


async def test_a_dependency_before_it_refuses_the_handshake_one_after_it_closes() -> None:
    def refusing() -> None:
        raise HTTPException(403, "not you")

    orders: list[tuple[Any, Any, Any]] = [
        (refusing, FirstMessageToken(), (403, None)),
        (FirstMessageToken(), refusing, (101, (4403, "not you"))),
    ]
    for first, second, expected in orders:
        app = App()

        @app.websocket("/", dependencies=[Depends(first), Depends(second)])
        async def handler(ws: WebSocket) -> None: ...

        server = await converse(app, FakeServer(), "abc", leave=-1)
        assert (server.status, server.closed) == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"deadline": 0}, "(deadline=...) takes seconds above 0, got 0"),
        ({"deadline": -1.5}, "(deadline=...) takes seconds above 0, got -1.5"),
        ({"deadline": float("inf")}, "(deadline=...) takes seconds above 0, got inf"),
        ({"deadline": float("nan")}, "(deadline=...) takes seconds above 0, got nan"),
        ({"deadline": True}, "(deadline=...) takes seconds above 0, got True"),
        ({"deadline": None}, "(deadline=...) takes seconds above 0, got None"),
        ({"deadline": "5"}, "(deadline=...) takes seconds above 0, got '5'"),
        ({"max_bytes": 0}, "(max_bytes=...) takes at least 1, got 0"),
        ({"max_bytes": 1.5}, "(max_bytes=...) takes at least 1, got 1.5"),
        ({"max_bytes": True}, "(max_bytes=...) takes at least 1, got True"),
        ({"subprotocols": "chat"}, "(subprotocols=...) takes a list of names such as ['chat.v1'], got 'chat'"),
        ({"subprotocols": ["a b"]}, "(subprotocols=...) takes a list of names such as ['chat.v1'], got ['a b']"),
        ({"subprotocols": [""]}, "(subprotocols=...) takes a list of names such as ['chat.v1'], got ['']"),
        ({"subprotocols": [b"a"]}, "(subprotocols=...) takes a list of names such as ['chat.v1'], got [b'a']"),
    ],
)
def test_settings_that_cannot_work_are_refused(arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        FirstMessageToken(**arguments)
    assert str(refused.value) == f"FirstMessageToken{problem}"


def test_settings_at_their_limit_are_taken() -> None:
    helper = FirstMessageToken(deadline=1, max_bytes=1, subprotocols=iter(["a", "b"]))
    assert (helper.deadline, helper.max_bytes, helper.subprotocols) == (1, 1, ("a", "b"))


messages = st.one_of(
    st.text(), st.binary(), st.text().map(json.dumps), st.text().map(lambda t: json.dumps({"token": t}))
)


@given(message=st.one_of(messages, messages.map(lambda m: m[:-1])))
async def test_whatever_is_said_first_is_a_token_or_the_end(message: str | bytes) -> None:
    app, seen = chat(FirstMessageToken())
    server = await converse(app, FakeServer(), message)
    if server.closed is not None and server.closed[0] == 4401:
        assert seen == []
    else:
        assert isinstance(seen[0], str)
        assert seen[0]


# On real servers

APP = "tests.apps_security:app"
COMMANDS = {
    "uvicorn": uvicorn(APP),
    "uvicorn-wsproto": uvicorn(APP, ws="wsproto"),
    "hypercorn": hypercorn(APP),
    "daphne": daphne(APP),
    "granian": granian(APP),
}


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[str, ServerProcess]]:
    with running(**COMMANDS) as processes:
        yield processes


class Server:
    """A running server and its client."""

    def __init__(self, name: str, process: ServerProcess) -> None:
        self.name = name
        self.process = process
        self.mark = process.mark

    def connect(self, path: str, *subprotocols: str, **headers: str) -> ClientConnection:
        """A client of the server."""
        return connect(
            f"ws://127.0.0.1:{self.process.port}{path}",
            additional_headers=headers,
            subprotocols=[Subprotocol(name) for name in subprotocols] or None,
            open_timeout=DEADLINE,
            proxy=None,
        )

    def reason(self, text: str) -> str:
        """What a client sees of the reason of a close: daphne sends none."""
        return "" if self.name == "daphne" else text

    def refused(self, path: str, *subprotocols: str, **headers: str) -> tuple[int, str | None]:
        """Status and challenge of a handshake that is refused."""
        with pytest.raises(InvalidStatus) as refused, self.connect(path, *subprotocols, **headers):
            pass
        response = refused.value.response
        return response.status_code, response.headers.get("www-authenticate")


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, servers: dict[str, ServerProcess]) -> Iterator[Server]:
    chosen = Server(request.param, servers[request.param])
    yield chosen
    log = chosen.process.log(chosen.mark)
    print(log)  # noqa: T201 - pytest shows it with a failure
    assert chosen.process.process.poll() is None, "the server has died"
    # S9
    assert TOKEN not in log
    assert "t0pSecretT0ken" not in log
    assert entry(TOKEN)[-12:] not in log
    assert "Traceback" not in log


def closing(ws: ClientConnection) -> tuple[int, str]:
    """Code and reason of the server's close."""
    with pytest.raises(ConnectionClosed) as closed:
        ws.recv(DEADLINE)
    assert closed.value.rcvd is not None, "the connection broke"
    return closed.value.rcvd.code, closed.value.rcvd.reason


def test_a_subprotocol_brings_the_token_to_a_real_server(server: Server) -> None:
    with server.connect("/subprotocol", entry(TOKEN), "chat.v1") as ws:
        assert ws.subprotocol == "chat.v1"
        assert json.loads(ws.recv(DEADLINE)) == ["ann", ["chat.v1"], "chat.v1"]


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (["chat.v1"], 401),
        (["chat.v1", entry("abc"), entry("def")], 401),
        ([entry(TOKEN)], 400),
        (["chat.v1", entry("somebody else's")], 403),
    ],
)
def test_a_real_server_refuses_the_handshake(server: Server, offered: list[str], expected: int) -> None:
    found = server.refused("/subprotocol", *offered)
    challenge = 'Bearer realm="restricted"' if expected == 401 else None
    assert found == ((403, None) if server.name == "daphne" else (expected, challenge))


@pytest.mark.parametrize("message", [TOKEN, json.dumps({"type": "auth", "token": TOKEN})])
def test_the_first_message_brings_the_token_to_a_real_server(server: Server, message: str) -> None:
    with server.connect("/first-message", "chat.v1", "chat.v2") as ws:
        assert ws.subprotocol == "chat.v2"
        ws.send(message)
        ws.send("hello")
        assert ws.recv(DEADLINE) == "ann: hello"


def test_a_real_server_closes_with_4401_or_with_what_the_application_says(server: Server) -> None:
    with server.connect("/first-message") as ws:
        ws.send(b"no text")
        reason = "the first message is the token: text, at most 4096 bytes, within 10 s"
        assert closing(ws) == (4401, server.reason(reason))
    with server.connect("/first-message") as ws:
        ws.send("somebody else's")
        assert closing(ws) == (4403, server.reason("who is that?"))
    with server.connect("/too-late") as ws:
        assert closing(ws)[0] == 4401


def test_a_real_server_hands_over_a_bearer_token(server: Server) -> None:
    with server.connect("/bearer", Authorization="bearer t0pSecretT0ken") as ws:
        assert ws.recv(DEADLINE) == "ann"
    found = server.refused("/bearer", Authorization="Bearer t0pSecretT0ken t0pSecretT0ken")
    assert found == ((403, None) if server.name == "daphne" else (401, 'Bearer realm="chat"'))
