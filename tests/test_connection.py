"""`Connection`: headers, query, cookies, addresses, state and URL, decoded only when asked for."""

import copy
import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws import App, Connection, Request, WebSocket
from asgiws.connection import URL, Address, Headers, MultiDict, State, parse_authority
from tests.fakes import SHAPES, FakeServer, Shape, converse, request

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def connection(**scope: Any) -> Connection:
    """A connection whose scope has just these keys and those that ASGI demands."""
    return Connection({"type": "websocket", "path": "/", "headers": [], **scope})


def query(text: str | bytes) -> MultiDict:
    """The query parameters of a raw query string."""
    return connection(query_string=text.encode() if isinstance(text, str) else text).query_params


def cookies(*lines: str) -> dict[str, str]:
    """The cookies of these header lines."""
    return connection(headers=[(b"cookie", line.encode("latin-1")) for line in lines]).cookies


# Keys that a scope may lack; P9


MINIMAL = {"type": "websocket", "path": "/x"}


def test_a_scope_with_only_the_keys_that_asgi_demands_gives_empty_values() -> None:
    bare = Connection(dict(MINIMAL))
    assert dict(bare.headers) == {}
    assert dict(bare.query_params) == {}
    assert bare.cookies == {}
    assert bare.path_params == {}
    assert bare.client is None
    assert bare.app is None
    assert bare.url == URL("ws", "", None, "/x", "")
    assert repr(bare.state) == "<State of nothing>"


@pytest.mark.parametrize("key", ["headers", "query_string", "client", "server", "state", "scheme", "path_params"])
def test_a_key_that_is_none_is_as_good_as_missing(key: str) -> None:
    bare = Connection({**MINIMAL, key: None})
    assert (dict(bare.headers), dict(bare.query_params), bare.cookies) == ({}, {}, {})
    assert bare.path_params == {}
    assert bare.client is None
    assert bare.url == URL("ws", "", None, "/x", "")
    bare.state.user = "ann"
    assert bare.state.user == "ann"


def test_a_websocket_and_a_request_work_on_a_minimal_scope() -> None:
    async def never() -> Any:
        raise AssertionError

    async def nothing(_: Any) -> None:
        raise AssertionError

    ws = WebSocket(dict(MINIMAL), never, nothing)
    assert (ws.url.scheme, ws.subprotocols) == ("ws", [])
    asked = Request({"type": "http", "method": "GET", "path": "/x"}, never)
    assert (asked.url.scheme, asked.method) == ("http", "GET")


# Headers; P10


@pytest.mark.parametrize(
    "raw",
    [
        [(b"x-one", b"1"), (b"x-two", b"2")],
        [[b"x-one", b"1"], [b"x-two", b"2"]],
        ((b"X-One", b"1"), (b"X-TWO", b"2")),
        (pair for pair in [(b"x-one", b"1"), (b"x-two", b"2")]),
    ],
    ids=["tuples", "lists", "upper-case", "generator"],
)
def test_headers_come_as_any_iterable_of_pairs_in_any_case(raw: Any) -> None:
    headers = connection(headers=raw).headers
    assert dict(headers) == {"x-one": "1", "x-two": "2"}
    assert headers["X-One"] == headers["x-one"] == "1"
    assert "X-TWO" in headers
    assert "x-three" not in headers
    number: Any = 1
    assert number not in headers
    assert headers.get("X-Three", "no") == "no"
    assert headers.get("X-Three") is None


def test_a_header_that_comes_more_than_once_keeps_all_its_values_and_shows_the_first() -> None:
    headers = Headers([(b"Accept", b"a"), (b"x", b"y"), (b"accept", b"b")])
    assert headers["accept"] == headers.get("ACCEPT") == "a"
    assert headers.getlist("Accept") == ["a", "b"]
    assert headers.getlist("none") == []
    assert sorted(headers.multi_items()) == [("accept", "a"), ("accept", "b"), ("x", "y")]
    assert len(headers) == 2
    with pytest.raises(KeyError):
        headers["none"]


def test_header_bytes_beyond_ascii_are_latin_1() -> None:
    assert connection(headers=[(b"x-name", b"Ren\xe9 \xff")]).headers["x-name"] == "René ÿ"


@given(st.lists(st.tuples(st.binary(), st.binary())))
def test_no_header_bytes_raise(raw: list[tuple[bytes, bytes]]) -> None:
    some = connection(headers=raw)
    assert sum(len(some.headers.getlist(name)) for name in some.headers) == len(raw)
    assert all(isinstance(value, str) for value in some.cookies.values())
    assert isinstance(str(some.url), str)


def test_the_repr_of_headers_and_query_shows_names_and_no_values() -> None:
    secret = connection(headers=[(b"authorization", b"Bearer s3cret")], query_string=b"token=s3cret")
    assert repr(secret.headers) == "<Headers of 'authorization'>"
    assert repr(secret.query_params) == "<MultiDict of 'token'>"
    assert repr(MultiDict()) == "<MultiDict of nothing>"
    assert "s3cret" not in repr(secret.url)


# The query string


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", []),
        ("a=1", [("a", "1")]),
        ("a=1&a=2&b=3", [("a", "1"), ("a", "2"), ("b", "3")]),
        ("a=1&&b=2&", [("a", "1"), ("b", "2")]),
        ("&&&", []),
        ("a=", [("a", "")]),
        ("a", [("a", "")]),
        ("=1", [("", "1")]),
        ("a=b=c", [("a", "b=c")]),
        ("a+b=c+d", [("a b", "c d")]),
        ("a=%2B", [("a", "+")]),
        ("a%3Db=%26", [("a=b", "&")]),
        ("a=%C3%A9&%C3%A9=b", [("a", "é"), ("é", "b")]),
        ("a=1;b=2", [("a", "1;b=2")]),
        ("a=%", [("a", "%")]),
        ("a=%zz", [("a", "%zz")]),
        (b"a=\xc3\xa9", [("a", "é")]),
        (b"a=\xff", [("a", "\ufffd")]),
        ("a=%ff%fe", [("a", "\ufffd\ufffd")]),
        ("a=%ED%A0%80", [("a", "\ufffd\ufffd\ufffd")]),
        ("a=%00", [("a", "\0")]),
    ],
)
def test_the_query_string_is_decoded_as_forms_are(text: str | bytes, pairs: list[tuple[str, str]]) -> None:
    assert query(text).multi_items() == pairs


def test_a_query_parameter_shows_its_last_value_and_keeps_all() -> None:
    params = query("a=1&b=x&a=2")
    assert params["a"] == params.get("a") == "2"
    assert params.getlist("a") == ["1", "2"]
    assert params.getlist("none") == []
    assert params.get("none", "no") == "no"
    assert list(params) == ["a", "b"]
    assert "A" not in params
    with pytest.raises(KeyError):
        params["none"]


def test_a_blank_value_is_a_value() -> None:
    assert query("a=").get("a", "default") == ""
    assert "a" in query("a")


def test_the_pairs_of_a_query_keep_the_order_in_which_they_came() -> None:
    assert query("a=1&b=2&a=3").multi_items() == [("a", "1"), ("b", "2"), ("a", "3")]


@given(st.lists(st.tuples(st.text(), st.text())))
def test_what_urlencode_writes_is_read_back(pairs: list[tuple[str, str]]) -> None:
    pairs = [(key, value) for key, value in pairs if not _surrogate(key + value)]
    params = query(urllib.parse.urlencode(pairs))
    wanted: dict[str, list[str]] = {}
    for key, value in pairs:
        wanted.setdefault(key, []).append(value)
    assert {key: params.getlist(key) for key in params} == wanted


@given(st.binary())
def test_no_query_bytes_raise(raw: bytes) -> None:
    for key, value in query(raw).multi_items():
        (key + value).encode()


def _surrogate(text: str) -> bool:
    return any("\ud800" <= char <= "\udfff" for char in text)


# Cookies


@pytest.mark.parametrize(
    ("lines", "wanted"),
    [
        ([], {}),
        (["a=1"], {"a": "1"}),
        (["a=1; b=2"], {"a": "1", "b": "2"}),
        (["a=1;b=2;"], {"a": "1", "b": "2"}),
        (["a=1", "b=2; c=3"], {"a": "1", "b": "2", "c": "3"}),
        (['a="1"; b="x y"'], {"a": "1", "b": "x y"}),
        (['a=""'], {"a": ""}),
        (["a="], {"a": ""}),
        (["a=b=c=="], {"a": "b=c=="}),
        (["  a = 1 "], {"a": "1"}),
        (["a; b=2; =3; ;;"], {"b": "2"}),
        (["a=\xe9"], {"a": "é"}),
        (["A=1; a=2"], {"A": "1", "a": "2"}),
    ],
)
def test_cookies_come_from_one_header_line_or_several(lines: list[str], wanted: dict[str, str]) -> None:
    # P9: HTTP/2 may split them over several lines.
    assert cookies(*lines) == wanted


# Addresses


@pytest.mark.parametrize(
    ("given_as", "wanted"),
    [
        (("127.0.0.1", 51578), Address("127.0.0.1", 51578)),
        (["127.0.0.1", 51578], Address("127.0.0.1", 51578)),
        (("127.0.0.1", "51578"), Address("127.0.0.1", 51578)),
        (("::1", 51578), Address("::1", 51578)),
        (["/run/app.sock", None], Address("/run/app.sock", 0)),
        (("", 0), Address("", 0)),
        (None, None),
        ([], None),
        ("", None),
    ],
)
def test_the_client_is_an_address_however_the_server_writes_it(given_as: Any, wanted: Address | None) -> None:
    assert connection(client=given_as).client == wanted


@pytest.mark.anyio
@every_shape
async def test_a_client_is_told_alike_on_every_server(shape: Shape) -> None:
    app = App()
    seen: list[Any] = []

    @app.websocket("/<name>")
    async def handler(ws: WebSocket) -> None:
        seen.append((ws.client, ws.url, ws.path_params, dict(ws.headers), ws.query_params["q"]))
        await ws.accept()

    await converse(app, FakeServer(shape, "/ann", query="q=1"), leave=-1)
    url = URL("ws", "testserver", None, "/ann", "q=1")
    assert seen == [(Address("127.0.0.1", 51578), url, {"name": "ann"}, {"host": "testserver"}, "1")]


# State


def test_the_state_is_the_scopes_own_mapping_with_attributes() -> None:
    scope = {**MINIMAL, "state": {"pool": 1}}
    state = Connection(scope).state
    assert state.pool == state["pool"] == 1
    state.user = "ann"
    state["room"] = "lobby"
    assert scope["state"] == {"pool": 1, "user": "ann", "room": "lobby"}
    assert "room" in state
    assert "none" not in state
    del state.user
    assert "user" not in state
    assert repr(state) == "<State of pool, room>"


def test_a_name_that_the_state_lacks_is_told_with_those_that_it_has() -> None:
    state = connection(state={"pool": 1}).state
    with pytest.raises(AttributeError, match="the state has no 'pol'; it holds pool"):
        _ = state.pol
    with pytest.raises(AttributeError, match="the state has no 'pol'"):
        del state.pol
    with pytest.raises(KeyError):
        state["pol"]
    assert getattr(state, "pol", None) is None


def test_what_one_look_puts_into_the_state_the_next_one_finds() -> None:
    one = connection()
    one.state.user = "ann"
    assert one.state.user == "ann"


def test_the_state_can_be_copied() -> None:
    copied = copy.copy(State({"pool": 1}))
    assert copied.pool == 1


@pytest.mark.anyio
@every_shape
async def test_no_connection_sees_what_another_put_into_its_state(shape: Shape) -> None:
    # P11, S23: the servers give each connection a shallow copy, or nothing at all.
    app = App()
    seen: list[bool] = []

    @app.websocket("/")
    async def handler(ws: WebSocket) -> None:
        seen.append("user" in ws.state)
        ws.state.user = "ann"
        await ws.accept()

    for _ in range(2):
        await converse(app, FakeServer(shape), leave=-1)
    assert seen == [False, False]


# The URL


def url(*hosts: str | bytes, **scope: Any) -> URL:
    """The URL of a handshake with these Host lines, on a server at 10.0.0.1:8000."""
    headers = [(b"host", host if isinstance(host, bytes) else host.encode("latin-1")) for host in hosts]
    return connection(headers=headers, server=("10.0.0.1", 8000), **scope).url


@pytest.mark.parametrize(
    ("host", "hostname", "port"),
    [
        ("example.com", "example.com", None),
        ("Example.COM:8000", "example.com", 8000),
        ("localhost:80", "localhost", 80),
        ("127.0.0.1:8000", "127.0.0.1", 8000),
        ("[::1]:8000", "::1", 8000),
        ("[2001:DB8::1]", "2001:db8::1", None),
        ("my_service", "my_service", None),
        ("example.com:65535", "example.com", 65535),
    ],
)
def test_the_url_takes_host_and_port_from_the_host_header(host: str, hostname: str, port: int | None) -> None:
    assert (url(host).hostname, url(host).port) == (hostname, port)
    assert parse_authority(host) == (hostname, port)


# S5: what is no host and port, and what would change the URL if it were put into one as it is.
ODD_HOSTS = [
    "",
    " ",
    "example.com ",
    " example.com",
    "example.com/path",
    "example.com?a=b",
    "example.com#a",
    "user@example.com",
    "user:secret@example.com",
    "example.com\\evil.com",
    "example.com:",
    "example.com:80:80",
    "example.com:99999",
    "example.com:-1",
    "example.com:8x",
    "example.com:١",
    "example.com, evil.com",
    "[::1",
    "::1",
    "[::1]evil.com",
    "[example.com]",
    "[dead.beef]",
    "[]",
    "http://example.com",
    "exämple.com",
    "example.com\n",
    "example.com\0",
]


@pytest.mark.parametrize("host", ODD_HOSTS)
def test_an_odd_host_header_is_not_believed(host: str) -> None:
    found = url(host.encode("utf-8"))
    assert (found.hostname, found.port) == ("10.0.0.1", 8000)


@pytest.mark.parametrize("hosts", [(), ("a.example", "b.example"), ("a.example", "a.example")])
def test_no_host_header_or_more_than_one_gives_the_servers_own_address(hosts: tuple[str, ...]) -> None:
    assert (url(*hosts).hostname, url(*hosts).port) == ("10.0.0.1", 8000)


def test_forwarded_headers_are_not_believed() -> None:
    # S5
    forwarded = [(b"x-forwarded-host", b"evil.com"), (b"x-forwarded-proto", b"https"), (b"forwarded", b"host=evil.com")]
    found = connection(headers=[(b"host", b"example.com"), *forwarded]).url
    assert (found.scheme, found.hostname) == ("ws", "example.com")


def test_a_server_on_a_unix_socket_has_no_host_name() -> None:
    # P9: `server` may be `[path, None]`.
    found = connection(server=["/run/app.sock", None]).url
    assert (found.hostname, found.port) == ("", None)


@pytest.mark.parametrize(
    ("kind", "scheme", "wanted"),
    [
        ("websocket", None, "ws"),
        ("websocket", "wss", "wss"),
        ("http", None, "http"),
        ("http", "https", "https"),
    ],
)
def test_the_scheme_is_the_scopes_or_that_of_its_type(kind: str, scheme: str | None, wanted: str) -> None:
    given_scheme = {} if scheme is None else {"scheme": scheme}
    assert Connection({"type": kind, "path": "/", **given_scheme}).url.scheme == wanted


@pytest.mark.parametrize("path", ["/api/x", "/x"], ids=["prepended", "untouched"])
def test_the_path_of_the_url_has_the_root_path_on_every_server(path: str) -> None:
    # uvicorn puts the root path before the path, the other servers leave the path as it came.
    assert url("example.com", path=path, root_path="/api").path == "/api/x"


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (url("example.com", path="/a b/é", query_string=b"q=1&r=%20"), "ws://example.com/a%20b/%C3%A9?q=1&r=%20"),
        (url("[::1]:8000"), "ws://[::1]:8000/"),
        (url("example.com", scheme="wss"), "wss://example.com/"),
        (url("example.com", path="/?#"), "ws://example.com/%3F%23"),
        (url("example.com", path="//evil.com/x"), "ws://example.com//evil.com/x"),
    ],
)
def test_a_url_is_text_again(found: URL, text: str) -> None:
    assert str(found) == text


def test_the_url_knows_its_query_but_never_shows_it_in_a_repr() -> None:
    found = url("example.com", path="/chat", query_string=b"token=s3cret")
    assert found.query == "token=s3cret"
    assert repr(found) == "<URL 'ws://example.com/chat'>"
    assert "s3cret" not in repr([found])


@given(st.binary(), st.text(), st.binary())
def test_no_host_path_or_query_raises(host: bytes, path: str, raw: bytes) -> None:
    if not _surrogate(path):
        found = url(host, path=f"/{path}", query_string=raw)
        assert str(found).startswith("ws://")
        assert "?" not in repr(found)


# Only when asked for


class Untouched(list[Any]):
    """Headers that must not be looked at."""

    def __iter__(self) -> Iterator[Any]:
        raise AssertionError("the headers were decoded before anybody asked")


class UntouchedBytes(bytes):
    """A query string that must not be looked at."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise AssertionError("the query string was decoded before anybody asked")


def test_nothing_is_decoded_before_it_is_asked_for() -> None:
    lazy = connection(headers=Untouched([(b"a", b"b")]), query_string=UntouchedBytes(b"a=1"), path_params={"a": 1})
    assert lazy.path_params == {"a": 1}
    assert lazy.client is None
    assert lazy.app is None
    assert len(lazy.id) == 16
    for ask in (lambda: lazy.headers, lambda: lazy.query_params, lambda: lazy.cookies, lambda: lazy.url):
        with pytest.raises(AssertionError, match="before anybody asked"):
            ask()


def test_what_was_decoded_once_is_kept() -> None:
    one = connection(headers=[(b"cookie", b"a=1")], query_string=b"a=1")
    assert one.headers is one.headers
    assert one.query_params is one.query_params
    assert one.cookies is one.cookies
    assert one.id == one.id


@pytest.mark.anyio
async def test_a_handler_that_asks_for_nothing_costs_no_decoding() -> None:
    app = App(allowed_origins=["*"])

    @app.websocket("/<name>")
    async def handler(ws: WebSocket, name: str) -> None:
        await ws.accept()
        await ws.send_text(name)

    server = FakeServer(path="/ann")
    server.scope["query_string"] = UntouchedBytes(b"a=1")
    await converse(app, server, leave=-1)
    assert server.texts == ["ann"]


# Who it is


def test_every_connection_has_an_id_of_16_hex_digits_and_its_own() -> None:
    ids = {connection().id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(one) == 16 and int(one, 16) >= 0 for one in ids)


def test_the_app_is_the_one_that_serves_or_the_scopes() -> None:
    served = App()
    assert Connection(dict(MINIMAL), served).app is served
    assert connection(app=served).app is served


def test_path_params_are_the_routers_or_the_scopes() -> None:
    assert Connection(dict(MINIMAL), path_params={"a": 1}).path_params == {"a": 1}
    assert connection(path_params={"a": 1}).path_params == {"a": 1}


@pytest.mark.anyio
async def test_no_repr_of_a_connection_shows_its_query() -> None:
    app = App()
    shown: list[str] = []

    @app.websocket("/chat")
    async def handler(ws: WebSocket) -> None:
        shown.append(repr(ws))
        await ws.accept()

    @app.get("/page")
    async def page(asked: Request) -> None:
        shown.append(repr(asked))

    await converse(app, FakeServer(path="/chat", query="token=s3cret"), leave=-1)
    await request(app, "GET", "/page", query="token=s3cret")
    assert shown == ["<WebSocket '/chat' OPENING>", "<Request GET '/page'>"]
