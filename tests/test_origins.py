"""Who may open a WebSocket: the check of `Origin`, alone and through `App` on every server."""

import json
import logging
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws import App, ConfigurationError, WebSocket
from asgiws.security import OriginPolicy, parse_origin
from tests.fakes import DAPHNE, HYPERCORN, SHAPES, UVICORN_WSPROTO, FakeServer, Shape, converse, request

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)

SETTING = "App(allowed_origins=[...])"


def handshake(*origins: str | bytes, hosts: tuple[str | bytes, ...] = ("testserver",)) -> dict[str, Any]:
    """The scope of a handshake with these lines of Origin and Host."""
    pairs = [("host", value) for value in hosts] + [("origin", value) for value in origins]
    headers = [(name.encode(), value if isinstance(value, bytes) else value.encode("utf-8")) for name, value in pairs]
    return {"type": "websocket", "path": "/", "headers": headers}


def passes(allowed: list[str] | None, *origins: str | bytes, hosts: tuple[str | bytes, ...] = ("testserver",)) -> bool:
    """Whether a policy lets a handshake through."""
    return OriginPolicy(allowed).refused(handshake(*origins, hosts=hosts)) is None


def echo_app(allowed: Any = None) -> tuple[App, list[str]]:
    """An app with one handler, and the calls of that handler."""
    app = App(allowed_origins=allowed)
    calls: list[str] = []

    @app.websocket("/<name>")
    async def handler(ws: WebSocket, name: str) -> None:
        calls.append(name)
        await ws.accept()

    return app, calls


# The same origin, which is the default


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://testserver", "testserver"),
        ("https://testserver", "testserver"),
        ("http://testserver:8000", "testserver:8000"),
        ("https://testserver:8000", "testserver:8000"),
        ("HTTP://TestServer", "testserver"),
        ("http://testserver", "TESTSERVER"),
        ("http://testserver:80", "testserver"),
        ("http://testserver", "testserver:80"),
        ("https://testserver:443", "testserver"),
        ("https://testserver", "testserver:443"),
        ("http://127.0.0.1:8000", "127.0.0.1:8000"),
        ("http://[::1]:8000", "[::1]:8000"),
        ("http://[2001:DB8::1]", "[2001:db8::1]:80"),
        ("http://xn--exmple-cua.com", "xn--exmple-cua.com"),
        ("http://my_service:1", "my_service:1"),
    ],
)
def test_a_page_of_the_same_host_and_port_passes(origin: str, host: str) -> None:
    assert passes(None, origin, hosts=(host,))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("http://evil.com", "testserver"),
        ("http://testserver:8001", "testserver:8000"),
        ("http://testserver:8000", "testserver"),
        ("http://testserver", "testserver:8000"),
        # The default port is that of the origin's own scheme.
        ("http://testserver:443", "testserver"),
        ("http://testserver", "testserver:443"),
        ("https://testserver", "testserver:80"),
        ("http://testserver.evil.com", "testserver"),
        ("http://sub.testserver", "testserver"),
        ("http://eviltestserver", "testserver"),
        ("http://testserver@evil.com", "testserver"),
        ("http://evil.com@testserver", "testserver"),
        ("http://testserver:80.evil.com", "testserver"),
        ("http://testserver.", "testserver"),
        ("http://[::1]", "[::2]"),
        ("http://::1", "[::1]"),
        ("http://[dead.beef]", "dead.beef"),
        ("http://exämple.com", "xn--exmple-cua.com"),
    ],
)
def test_a_page_of_any_other_host_or_port_is_refused(origin: str, host: str) -> None:
    # S1, T49
    assert not passes(None, origin, hosts=(host,))


# What is no origin at all (RFC 6454, 7.1), or not one of a page.
NO_ORIGINS = [
    "",
    " ",
    "null",
    "NULL",
    "*",
    "testserver",
    "//testserver",
    "://testserver",
    "http:testserver",
    "http:/testserver",
    "http:///testserver",
    "http://",
    "http://testserver/",
    "http://testserver/path",
    "http://testserver?",
    "http://testserver#",
    "http://testserver ",
    " http://testserver",
    "http://testserver\t",
    "http://testserver\n",
    "http://testserver\0",
    "http://test server",
    "http://testserver\\",
    "http://testserver:",
    "http://testserver:80:80",
    "http://testserver:http",
    "http://testserver:99999",
    "http://testserver:١",
    "http://user:secret@testserver",
    "http://testserver, http://testserver",
    "http://testserver,http://testserver",
    "http://testserver http://testserver",
    "http://[::1",
    "http://::1]",
    "http://%74estserver",
    "1http://testserver",
    "http://test\u0131erver",
    "http://testserver\u200b",
]


@pytest.mark.parametrize("origin", NO_ORIGINS)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    # S2, S3
    assert not passes(None, origin)
    assert not passes(["http://testserver"], origin)
    assert not passes(["http://*.testserver"], origin)


@pytest.mark.parametrize(
    "origins",
    [
        ("http://testserver", "http://evil.com"),
        ("http://evil.com", "http://testserver"),
        ("http://testserver", "http://testserver"),
        ("http://testserver", ""),
        ("null", "null"),
    ],
)
def test_two_origin_headers_are_refused_whichever_comes_first(origins: tuple[str, ...]) -> None:
    # S3
    assert not passes(None, *origins)
    assert not passes(["http://testserver", "null"], *origins)


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        ("",),
        ("testserver", "testserver"),
        ("testserver", "evil.com"),
        ("testserver,testserver",),
        ("testserver/",),
        ("testserver ",),
        ("testserver#",),
        ("testserver?",),
        ("testserver\\evil.com",),
        ("user@testserver",),
        ("testserver:",),
        (b"test\xff",),
    ],
)
def test_the_same_origin_needs_one_sound_host_header(hosts: tuple[str | bytes, ...]) -> None:
    # S5
    assert not passes(None, "http://testserver", hosts=hosts)
    # A list of origins does not ask for the host.
    assert passes(["http://testserver"], "http://testserver", hosts=hosts)


def test_forwarded_headers_make_no_origin_the_same() -> None:
    # S5
    scope = handshake("https://public.example", hosts=("10.0.0.1:8000",))
    scope["headers"] += [(b"x-forwarded-host", b"public.example"), (b"x-forwarded-proto", b"https")]
    assert OriginPolicy(None).refused(scope) == ("https://public.example", "10.0.0.1:8000")


@pytest.mark.parametrize("allowed", [None, [], ["https://good.example"], ["null"], ["*"]])
def test_a_handshake_without_origin_comes_from_no_browser_and_passes(allowed: list[str] | None) -> None:
    # S4
    assert passes(allowed)
    assert OriginPolicy(allowed).refused({"type": "websocket", "path": "/"}) is None


@pytest.mark.parametrize("name", [b"origin", b"Origin", b"ORIGIN"])
def test_the_header_counts_in_any_case(name: bytes) -> None:
    # P10: the case of names is not guaranteed, and a pair may be a list.
    scope = {"type": "websocket", "headers": [[b"HOST", b"testserver"], [name, b"http://evil.com"]]}
    assert OriginPolicy(None).refused(scope) == ("http://evil.com", "testserver")
    scope = {"type": "websocket", "headers": [[b"HOST", b"testserver"], [name, b"http://testserver"]]}
    assert OriginPolicy(None).refused(scope) is None


# A list of origins


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("https://good.example", "https://good.example"),
        ("https://good.example", "HTTPS://GOOD.EXAMPLE:443"),
        ("https://good.example", "https://good.example:443"),
        ("https://good.example:443", "https://good.example"),
        ("HTTPS://Good.Example", "https://good.example"),
        ("http://good.example", "http://good.example:80"),
        ("https://good.example:8443", "https://good.example:8443"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("null", "null"),
        ("*", "https://evil.com"),
        ("*", "null"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)
def test_an_origin_of_the_list_passes(entry: str, origin: str) -> None:
    # S2
    assert passes([entry], origin)
    assert passes(["https://other.example", entry], origin)


@pytest.mark.parametrize(
    "origin",
    [
        "https://good.example.evil.com",
        "https://evilgood.example",
        "https://good.example@evil.com",
        "https://good.example:444",
        "https://good.example:80",
        "https://good.example:80.evil.com",
        "http://good.example",
        "wss://good.example",
        "https://sub.good.example",
        "https://good.example.",
        "https://good.example/",
        "https://good.example?",
        "https://good.example#",
        "https://good.example ",
        "https://good.example\t",
        "https://good.example\0",
        "//good.example",
        "good.example",
        "https://good.exampl",
        "https://example",
        "https://",
        "null",
        "",
        "https://xn--god-tna.example",
        "https://gööd.example",
    ],
)
def test_an_origin_that_only_looks_like_one_of_the_list_is_refused(origin: str) -> None:
    # S2, T49
    assert not passes(["https://good.example"], origin)


def test_a_list_does_not_let_the_same_origin_in_by_itself() -> None:
    assert not passes(["https://good.example"], "http://testserver")


@pytest.mark.parametrize("origin", ["http://testserver", "https://good.example", "null", ""])
def test_an_empty_list_means_none(origin: str) -> None:
    # S4
    assert not passes([], origin)


@pytest.mark.parametrize(
    "origin",
    [
        "https://a.example.com",
        "https://a.b.example.com",
        "https://A.EXAMPLE.com:443",
        "https://xn--bcher-kva.example.com",
        "https://a_b.example.com",
    ],
)
def test_a_pattern_lets_every_subdomain_in(origin: str) -> None:
    # S6
    assert passes(["https://*.example.com"], origin)


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.com",
        "https://.example.com",
        "https://..example.com",
        "https://evilexample.com",
        "https://a.example.com.evil.com",
        "https://a.example.com@evil.com",
        "https://evil.com/a.example.com",
        "https://evil.com#a.example.com",
        "https://a.example.com:8443",
        "http://a.example.com",
        "https://*.example.com",
        "https://a.examplexcom",
        "https://a.b\n.example.com",
    ],
)
def test_a_pattern_lets_nothing_but_subdomains_in(origin: str) -> None:
    # S6
    assert not passes(["https://*.example.com"], origin)


def test_a_pattern_with_a_port_is_for_that_port() -> None:
    assert passes(["https://*.example.com:8443"], "https://a.example.com:8443")
    assert not passes(["https://*.example.com:8443"], "https://a.example.com")
    assert passes(["https://*.example.com:443"], "https://a.example.com")


@pytest.mark.parametrize(
    ("allowed", "everybody"),
    [
        (None, False),
        ([], False),
        (["https://good.example", "https://*.example.com", "null"], False),
        (["*"], True),
        (["https://good.example", "*"], True),
    ],
)
def test_a_policy_tells_whether_it_lets_everybody_in(allowed: list[str] | None, everybody: bool) -> None:
    # S18
    policy = OriginPolicy(allowed)
    assert policy.allows_all is everybody
    with pytest.raises(AttributeError):
        policy.allows_all = True  # type: ignore[misc]


# Settings that cannot work


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "good.example",
        "https://",
        "https://good.example/",
        "https://good.example/path",
        "https://good.example ",
        "https://*",
        "https://*.",
        "https://*.*.example.com",
        "https://*example.com",
        "https://a.*.example.com",
        "https://good.example:*",
        "*.example.com",
        "**",
        "NULL",
        "https://good.example:99999",
        "https://user@good.example",
        "https://good.example, https://other.example",
        "https://exämple.com",
    ],
)
def test_an_entry_that_is_no_origin_is_refused(entry: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App(allowed_origins=["https://good.example", entry])
    text = str(caught.value)
    assert text.endswith(f"got {entry!r}")
    assert "'https://example.com', 'https://*.example.com', 'null' or '*'" in text


@pytest.mark.parametrize("entry", [None, b"https://good.example", re.compile("https://.*")])
def test_an_entry_that_is_no_text_is_refused(entry: Any) -> None:
    with pytest.raises(ConfigurationError, match="got "):
        App(allowed_origins=[entry])


@pytest.mark.parametrize("setting", ["*", "https://good.example", ""])
def test_one_text_in_place_of_a_list_is_refused(setting: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        App(allowed_origins=setting)
    assert str(caught.value) == f"allowed_origins takes a list, got a str: write [{setting!r}]"


@pytest.mark.parametrize("setting", [True, b"https://good.example"])
def test_a_setting_that_is_no_list_is_refused(setting: Any) -> None:
    with pytest.raises(ConfigurationError, match="allowed_origins"):
        App(allowed_origins=setting)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset, iter])
def test_any_iterable_of_origins_will_do(kind: Any) -> None:
    policy = OriginPolicy(kind(["https://good.example", "https://*.example.com"]))
    assert policy.refused(handshake("https://good.example")) is None
    assert policy.refused(handshake("https://a.example.com")) is None
    assert policy.refused(handshake("https://evil.com")) == ("https://evil.com", "testserver")


# What a stranger may send

_label = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
_near = st.sampled_from(["good.example", "example.com", "a.example.com", "evil.com", "testserver", "[::1]"])
_host = _near | st.lists(_label, min_size=1, max_size=4).map(".".join) | _label.map("{}.example.com".format)
_port = st.sampled_from(["", ":443", ":80", ":8000", ":444"])
_junk = st.sampled_from(["", "/", " ", "@evil.com", ".evil.com", "#", "?", "\\", ",", "\t", "%00", ".", "*"])
_almost = st.builds(
    "{}{}{}{}{}".format, _junk, st.sampled_from(["https://", "http://", "HTTPS://", "//", ""]), _host, _port, _junk
)


@given(st.one_of(_almost.map(str.encode), st.text().map(lambda text: text.encode("utf-8", "replace")), st.binary()))
def test_only_an_exact_triple_or_a_true_subdomain_passes(raw: bytes) -> None:
    # S2, S3, S6, T49
    origin = raw.decode("latin-1").lower()
    exact = re.fullmatch(r"https://good\.example(:443)?", origin) is not None
    subdomain = re.fullmatch(r"http://([a-z0-9_-]+\.)+example\.com:8000", origin) is not None
    assert passes(["https://good.example", "http://*.example.com:8000"], raw) == (exact or subdomain)


@given(st.one_of(_almost.map(str.encode), st.binary()), st.sampled_from(["testserver", "[::1]:8000", "example.com:80"]))
def test_only_the_hosts_own_pages_pass_by_default(raw: bytes, host: str) -> None:
    # S1
    origin = raw.decode("latin-1").lower()
    own = {
        "testserver": r"(http://testserver(:80)?|https://testserver(:443)?)",
        "[::1]:8000": r"https?://\[::1\]:8000",
        "example.com:80": r"(http://example\.com(:80)?|https://example\.com:80)",
    }[host]
    assert passes(None, raw, hosts=(host,)) == (re.fullmatch(own, origin) is not None)


@given(st.lists(st.binary(), max_size=3), st.lists(st.binary(), max_size=3))
def test_no_origin_or_host_raises(origins: list[bytes], hosts: list[bytes]) -> None:
    for allowed in (None, [], ["https://good.example", "https://*.example.com", "null"], ["*"]):
        found = OriginPolicy(allowed).refused(handshake(*origins, hosts=tuple(hosts)))
        assert found is None or all(isinstance(text, str) for text in found)


@given(st.text())
def test_no_entry_of_the_list_raises_anything_but_its_own_error(entry: str) -> None:
    try:
        policy = OriginPolicy([entry])
    except ConfigurationError:
        return
    let_in = re.fullmatch(r"\*|https://(evil|\*)\.com(:443)?", entry.lower()) is not None
    assert (policy.refused(handshake("https://evil.com")) is None) == let_in


@given(st.text())
def test_what_parses_as_an_origin_is_put_together_again(text: str) -> None:
    parsed = parse_origin(f"https://{text}")
    if parsed is not None:
        scheme, host, port = parsed
        shown = f"[{host}]" if ":" in host else host
        assert parse_origin(f"{scheme}://{shown}" + (f":{port}" if port is not None else "")) == parsed


# Through the app


@pytest.mark.anyio
@every_shape
async def test_a_foreign_origin_is_denied_before_the_handler_runs(
    shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    # S1
    app, calls = echo_app()
    with caplog.at_level(logging.INFO, "asgiws"):
        server = await converse(app, FakeServer(shape, "/ann", headers={"origin": "https://evil.com"}), leave=-1)
    assert server.status == 403
    assert calls == []
    if shape.denial:
        assert json.loads(server.body) == {"detail": "origin 'https://evil.com' is not allowed"}
        assert server.types == ["websocket.http.response.start", "websocket.http.response.body"]
    else:
        assert server.types == ["websocket.close"]
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "'https://evil.com'" in warnings[0]
    assert "'testserver'" in warnings[0]
    assert SETTING in warnings[0]


@pytest.mark.anyio
async def test_a_server_that_sends_no_denial_gets_a_line_with_the_cause(caplog: pytest.LogCaptureFixture) -> None:
    app, _ = echo_app()
    with caplog.at_level(logging.INFO, "asgiws"):
        await converse(app, FakeServer(DAPHNE, "/ann", headers={"origin": "https://evil.com"}), leave=-1)
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert len(lines) == 1
    assert "403" in lines[0]


@pytest.mark.anyio
@every_shape
@pytest.mark.parametrize("headers", [{}, {"origin": "http://testserver"}, {"origin": "HTTPS://TESTSERVER:443"}])
async def test_the_same_origin_and_no_origin_are_let_in(shape: Shape, headers: dict[str, str]) -> None:
    app, calls = echo_app()
    server = await converse(app, FakeServer(shape, "/ann", headers=headers), leave=-1)
    assert (server.status, calls) == (101, ["ann"])


@pytest.mark.anyio
@pytest.mark.parametrize("shape", [UVICORN_WSPROTO, HYPERCORN], ids=lambda shape: shape.name)
async def test_two_origin_headers_are_denied(shape: Shape) -> None:
    # S3
    app, calls = echo_app(["http://testserver"])
    lines = [("origin", "http://testserver"), ("origin", "https://evil.com")]
    server = await converse(app, FakeServer(shape, "/ann", headers=lines), leave=-1)
    assert (server.status, calls) == (403, [])
    detail = json.loads(server.body)["detail"]
    assert "http://testserver" in detail
    assert "https://evil.com" in detail


@pytest.mark.anyio
@pytest.mark.parametrize("merged", ["http://testserver,https://evil.com", "https://evil.com, http://testserver"])
async def test_origins_that_the_server_merged_are_denied(merged: str) -> None:
    # S3: daphne makes one line of two.
    app, calls = echo_app()
    server = await converse(app, FakeServer(DAPHNE, "/ann", headers={"origin": merged}), leave=-1)
    assert (server.status, calls) == (403, [])


@pytest.mark.anyio
@every_shape
@pytest.mark.parametrize("hosts", [("testserver", "testserver"), ("testserver", "evil.com")])
async def test_several_host_headers_are_denied(shape: Shape, hosts: tuple[str, ...]) -> None:
    # S5
    app, calls = echo_app()
    lines = [*(("host", host) for host in hosts), ("origin", "http://testserver")]
    server = await converse(app, FakeServer(shape, "/ann", headers=lines), leave=-1)
    assert (server.status, calls) == (403, [])


@pytest.mark.anyio
@every_shape
@pytest.mark.parametrize("origin", ["http://evil.com", "null", ""])
async def test_a_star_lets_every_origin_in(shape: Shape, origin: str) -> None:
    app, calls = echo_app(["*"])
    server = await converse(app, FakeServer(shape, "/ann", headers={"origin": origin}), leave=-1)
    assert (server.status, calls) == (101, ["ann"])


@pytest.mark.anyio
async def test_a_path_without_a_route_does_not_tell_a_foreign_page_so() -> None:
    app, _ = echo_app()
    server = await converse(app, FakeServer(path="/no/such/path", headers={"origin": "https://evil.com"}), leave=-1)
    assert server.status == 403


@pytest.mark.anyio
async def test_the_check_comes_before_middleware() -> None:
    # S1: no code of the user's runs for a foreign page.
    app, _ = echo_app()
    seen: list[str] = []

    class Noting:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            seen.append(scope["path"])
            await self.inner(scope, receive, send)

    app.add_middleware(Noting)
    await converse(app, FakeServer(path="/evil", headers={"origin": "https://evil.com"}), leave=-1)
    await converse(app, FakeServer(path="/good", headers={"origin": "http://testserver"}), leave=-1)
    assert seen == ["/good"]


@pytest.mark.anyio
async def test_the_check_covers_what_is_mounted() -> None:
    app = App()
    child, calls = echo_app(["*"])
    app.mount("/child", child)
    server = await converse(app, FakeServer(path="/child/ann", headers={"origin": "https://evil.com"}), leave=-1)
    assert (server.status, calls) == (403, [])


@pytest.mark.anyio
async def test_http_requests_are_not_checked() -> None:
    # CORS is what protects those.
    app = App()

    @app.get("/")
    async def page() -> str:
        return "hello"

    assert (await request(app, "GET", "/", headers={"origin": "https://evil.com"})).status == 200


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("origin", "host"),
    [
        (b"https://evil.com\nforged line", b"testserver"),
        (b"https://evil.com\r\x1b[31mred", b"testserver"),
        (b"\x00\x07\x9b31m\x85", b"testserver"),
        (b"https://evil.com", b"test\r\nserver\x1b[0m"),
        (b"%s %d %(name)s {0}", b"%s"),
    ],
)
async def test_no_header_can_forge_a_line_of_the_log(
    origin: bytes, host: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    # S20
    app, _ = echo_app()
    headers = [(b"host", host), (b"origin", origin)]
    server = await converse(app, FakeServer(path="/a\n\x1b[31mb", headers=headers), leave=-1)
    assert server.status == 403
    assert caplog.records
    for record in caplog.records:
        assert record.getMessage().isprintable()
    assert repr(origin.decode("latin-1")) in caplog.records[0].getMessage()
    assert repr(host.decode("latin-1")) in caplog.records[0].getMessage()
    assert json.loads(server.body)["detail"].isprintable()


@pytest.mark.anyio
@given(origin=st.binary(), host=st.binary())
async def test_no_origin_or_host_upsets_the_app(origin: bytes, host: bytes) -> None:
    app, calls = echo_app(["https://good.example"])
    server = await converse(app, FakeServer(path="/ann", headers=[(b"host", host), (b"origin", origin)]), leave=-1)
    assert (server.status, calls) == (403, [])
    assert json.loads(server.body) == {"detail": f"origin {origin.decode('latin-1')!r} is not allowed"}
