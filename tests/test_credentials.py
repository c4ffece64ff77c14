"""Credentials in headers, query strings and cookies: how they are read, and how a client without is refused."""

import base64
import copy
import functools
import hmac
import json
import logging
import pickle
import pprint
import re
import traceback
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asgiws import App, ConfigurationError, Connection, Depends, HTTPException, JSONResponse, Request, WebSocket
from asgiws.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    FirstMessageToken,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBasicCredentials,
    HTTPBearer,
    OAuth2PasswordBearer,
    SecurityBase,
    SubprotocolToken,
    constant_time_compare,
)
from tests.fakes import DAPHNE, HYPERCORN, SHAPES, UVICORN, FakeServer, Shape, converse, request

pytestmark = pytest.mark.anyio

every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)

Pairs = list[tuple[Any, Any]]

BEARER = HTTPBearer()
OAUTH2 = OAuth2PasswordBearer("token")
BASIC = HTTPBasic()
BEARER_CHALLENGE = 'Bearer realm="restricted"'
BASIC_CHALLENGE = 'Basic realm="restricted", charset="UTF-8"'
KEY_CHALLENGE = "APIKey"
TOO_LONG = "x" * 8193


def connection(headers: Iterable[tuple[Any, Any]] = (), query: str = "") -> Connection:
    """A connection with these headers and this query string."""
    pairs = [tuple(part if isinstance(part, bytes) else part.encode() for part in pair) for pair in headers]
    return Connection({"type": "http", "path": "/", "query_string": query.encode(), "headers": pairs})


def authorization(*lines: str | bytes) -> Connection:
    """A connection with these lines of Authorization."""
    return connection([("authorization", line) for line in lines])


def basic(text: str | bytes) -> str:
    """What a client sends for user name and password."""
    return f"Basic {base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()}"


async def refusal(helper: Callable[[Any], Any], sent: Connection) -> HTTPException:
    """What a helper raises."""
    with pytest.raises(HTTPException) as refused:
        await helper(sent)
    return refused.value


# Bearer


@pytest.mark.parametrize(
    ("line", "scheme", "token"),
    [
        ("Bearer abc", "Bearer", "abc"),
        # The name of a scheme is in any case: RFC 9110, 11.1.
        ("bearer abc", "bearer", "abc"),
        ("BEARER abc", "BEARER", "abc"),
        ("Bearer   abc", "Bearer", "abc"),
        (" \tBearer abc \t", "Bearer", "abc"),
        ("Bearer eyJh.eyJz_dWI-.c2ln~+/==", "Bearer", "eyJh.eyJz_dWI-.c2ln~+/=="),
        # Wider than RFC 6750: there are such tokens.
        ("Bearer 1|abc:def", "Bearer", "1|abc:def"),
        ("Bearer Bearer", "Bearer", "Bearer"),
        (f"Bearer {'x' * 8185}", "Bearer", "x" * 8185),
    ],
)
async def test_a_bearer_token_is_read(line: str, scheme: str, token: str) -> None:
    found = await BEARER(authorization(line))
    assert found is not None
    assert (found.scheme, found.credentials) == (scheme, token)


NO_BEARER: list[tuple[str | bytes, ...]] = [
    (),
    ("",),
    (" ",),
    ("Bearer",),
    ("Bearer ",),
    ("Bearer   ",),
    ("Bearerabc",),
    ("Bearer\tabc",),
    ("Bearer\u00a0abc".encode("latin-1"),),
    ("abc",),
    ("Basic abc",),
    ("Bearers abc",),
    ("Bearer abc def",),
    ("Bearer abc\tdef",),
    ("Bearer abc\x00",),
    ("Bearer é",),
    (b"Bearer \xe9",),
    (b"B\xe9arer abc",),
    (f"Bearer {TOO_LONG}",),
    # Two lines; daphne makes them one.
    ("Bearer abc", "Bearer abc"),
    ("Bearer abc", "Basic abc"),
    ("", "Bearer abc"),
    ("Bearer abc,Bearer abc",),
    ("Bearer abc, Basic abc",),
    ("Bearer abc,",),
]


@pytest.mark.parametrize("lines", NO_BEARER)
@pytest.mark.parametrize("helper", [BEARER, OAUTH2], ids=lambda helper: type(helper).__name__)
async def test_what_is_no_bearer_token_is_refused_with_a_challenge(helper: Any, lines: tuple[str | bytes, ...]) -> None:
    error = await refusal(helper, authorization(*lines))
    assert (error.status_code, error.detail) == (401, "Not authenticated")
    assert error.headers == {"WWW-Authenticate": BEARER_CHALLENGE}


@pytest.mark.parametrize("lines", NO_BEARER)
async def test_what_is_no_bearer_token_is_none_without_auto_error(lines: tuple[str | bytes, ...]) -> None:
    assert await HTTPBearer(auto_error=False)(authorization(*lines)) is None
    assert await OAuth2PasswordBearer("token", auto_error=False)(authorization(*lines)) is None


@pytest.mark.parametrize("line", ["Bearer abc.def", "bearer abc.def", "BEARER   abc.def"])
async def test_a_bearer_token_as_a_str(line: str) -> None:
    assert await OAUTH2(authorization(line)) == "abc.def"


# Basic


@pytest.mark.parametrize(
    ("text", "username", "password"),
    [
        ("ann:secret", "ann", "secret"),
        # The first colon parts them: RFC 7617, 2.
        ("ann:se:cr:et", "ann", "se:cr:et"),
        ("ann:", "ann", ""),
        (":secret", "", "secret"),
        (":", "", ""),
        ("änn:pässwörd €😀", "änn", "pässwörd €😀"),
        ("ann:two\u00a0words", "ann", "two\u00a0words"),
        (" ann : secret ", " ann ", " secret "),
        ("ann:a,b", "ann", "a,b"),
    ],
)
async def test_user_name_and_password_are_read(text: str, username: str, password: str) -> None:
    for line in (basic(text), basic(text).replace("Basic", "bASIC  ")):
        found = await BASIC(authorization(line))
        assert found is not None
        assert (found.username, found.password) == (username, password)


NO_BASIC: list[tuple[str | bytes, ...]] = [
    (),
    ("",),
    ("Basic",),
    ("Basic ",),
    ("Bearer YTpi",),
    ("YTpi",),
    ("Basic YTpi YTpi",),
    ("Basic YTp",),
    ("Basic YTpiYw",),
    ("Basic YTpi!",),
    ("Basic YTp\u00ef",),
    ("Basic =",),
    ("Basic ann:secret",),
    ("Basic YTpi", "Basic YTpi"),
    ("Basic YTpi,Basic YTpi",),
    (basic(""),),
    (basic("no colon"),),
    (basic("ann:a\nb"),),
    (basic("a\x00nn:b"),),
    (basic("ann:\x7f"),),
    (basic(b"ann:\xe9"),),
    (basic(b"\xff\xfe:b"),),
    (basic(f"ann:{TOO_LONG}"),),
]


@pytest.mark.parametrize("lines", NO_BASIC)
async def test_what_is_no_basic_credentials_is_refused_with_a_challenge(lines: tuple[str | bytes, ...]) -> None:
    error = await refusal(BASIC, authorization(*lines))
    assert (error.status_code, error.detail) == (401, "Not authenticated")
    assert error.headers == {"WWW-Authenticate": BASIC_CHALLENGE}


@pytest.mark.parametrize("lines", NO_BASIC)
async def test_what_is_no_basic_credentials_is_none_without_auto_error(lines: tuple[str | bytes, ...]) -> None:
    assert await HTTPBasic(auto_error=False)(authorization(*lines)) is None


# The realm


@pytest.mark.parametrize(
    ("realm", "quoted"),
    [
        ("chat", '"chat"'),
        ("the chat, please", '"the chat, please"'),
        ("", '""'),
        # RFC 9110, 5.6.4
        ('the "chat"', r'"the \"chat\""'),
        ("a\\b", r'"a\\b"'),
        (r"\1", r'"\\1"'),
    ],
)
async def test_the_realm_is_quoted(realm: str, quoted: str) -> None:
    assert (await refusal(HTTPBearer(realm=realm), connection())).headers == {
        "WWW-Authenticate": f"Bearer realm={quoted}"
    }
    assert (await refusal(HTTPBasic(realm=realm), connection())).headers == {
        "WWW-Authenticate": f'Basic realm={quoted}, charset="UTF-8"'
    }


@pytest.mark.parametrize("cls", [HTTPBearer, HTTPBasic, functools.partial(OAuth2PasswordBearer, "token")])
@pytest.mark.parametrize("realm", ["two\nlines", "a\r\nset-cookie: x", "nul\x00", "tab\t", "é", "€", 5, b"chat"])
def test_a_realm_that_no_header_can_carry_is_refused(cls: Callable[..., Any], realm: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        cls(realm=realm)
    name = getattr(cls, "func", cls).__name__
    assert str(refused.value) == f"{name}(realm=...) takes printable ASCII, got {realm!r}"


# Keys


def keyed(*values: str, name: str = "x-key") -> list[tuple[Callable[..., SecurityBase], Connection]]:
    """The helpers for keys, each with a connection on which the client sends these values."""
    cookies = "; ".join([f"{name}={value}" for value in values] + [f"other{name}=no", f"{name}other=no"])
    return [
        (APIKeyHeader, connection([(name, value) for value in values])),
        (APIKeyQuery, connection(query="&".join(f"{name}={value}" for value in values))),
        (APIKeyCookie, connection([("cookie", cookies)])),
    ]


@pytest.mark.parametrize("key", ["abc", "1|abc:def", "abc.DEF-_~/x", "x" * 8192])
async def test_a_key_is_read(key: str) -> None:
    for cls, sent in keyed(key):
        helper: Any = cls(name="x-key")
        assert await helper(sent) == key


async def test_the_name_of_a_header_is_in_any_case_that_of_others_is_not() -> None:
    found = []
    for cls, sent in keyed("abc", name="x-key"):
        helper: Any = cls(name="X-Key", auto_error=False)
        found.append(await helper(sent))
    assert found == ["abc", None, None]


async def test_a_key_may_be_a_whole_authorization_header() -> None:
    # What users of FastAPI do for schemes of their own.
    helper = APIKeyHeader(name="Authorization")
    assert await helper(authorization("Token abc")) == "Token abc"


async def test_a_key_in_the_query_string_is_percent_decoded() -> None:
    assert await APIKeyQuery(name="the key")(connection(query="the%20key=a%2Fb%3D")) == "a/b="


@pytest.mark.parametrize(
    ("cookie", "key"),
    [
        (["k=abc"], "abc"),
        (["a=1; k=abc; b=2"], "abc"),
        (['k="abc"'], "abc"),
        (["k = abc"], "abc"),
        (["k=a=b"], "a=b"),
        # Several headers: HTTP/2 (RFC 9113, 8.2.3).
        (["a=1", "k=abc"], "abc"),
        (["k=abc", "k=abc"], None),
        (["k=abc; k=evil"], None),
        (["k=evil; k=abc"], None),
        (["k=abc; k"], None),
        (["k"], None),
        (["k="], None),
        (['k=""'], None),
        (["K=abc"], None),
        (["ak=abc; kb=abc; =k; k k=abc"], None),
    ],
)
async def test_a_key_is_in_the_one_cookie_of_its_name(cookie: list[str], key: str | None) -> None:
    helper = APIKeyCookie(name="k", auto_error=False)
    assert await helper(connection([("cookie", line) for line in cookie])) == key


@pytest.mark.parametrize(
    "values",
    [
        (),
        ("",),
        (" ",),
        ("abc", "abc"),
        ("abc", "def"),
        ("", "abc"),
        # Two headers on daphne.
        ("abc,def",),
        ("é",),
        ("a\x00b",),
        ("a\tb",),
        ("a\x7f",),
        (TOO_LONG,),
    ],
)
async def test_what_is_no_key_is_refused_with_a_challenge(values: tuple[str, ...]) -> None:
    for cls, sent in keyed(*values):
        strict: Any = cls(name="x-key")
        error = await refusal(strict, sent)
        assert (error.status_code, error.detail) == (401, "Not authenticated")
        assert error.headers == {"WWW-Authenticate": KEY_CHALLENGE}
        lax: Any = cls(name="x-key", auto_error=False)
        assert await lax(sent) is None


@pytest.mark.parametrize("name", ["", "a b", "a\n", "é", "a:b", 5, None, b"x"])
@pytest.mark.parametrize("cls", [APIKeyHeader, APIKeyCookie])
def test_a_name_that_no_client_can_send_is_refused(cls: Any, name: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        cls(name=name)
    assert str(refused.value) == f"{cls.__name__}(name=...): no client can send {name!r}"


@pytest.mark.parametrize("name", ["", 5, None])
def test_a_query_parameter_has_a_name(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=re.escape("APIKeyQuery(name=...)")):
        APIKeyQuery(name=name)


# All helpers


HELPERS: list[Any] = [
    HTTPBearer,
    HTTPBasic,
    APIKeyHeader,
    APIKeyQuery,
    APIKeyCookie,
    SubprotocolToken,
    FirstMessageToken,
]


def test_what_a_browser_sends_by_itself_is_marked() -> None:
    # S18
    assert [cls.__name__ for cls in HELPERS if cls.ambient] == ["HTTPBasic", "APIKeyCookie"]
    assert not SecurityBase.ambient
    assert HTTPBasic().ambient
    assert not HTTPBearer().ambient


def test_the_arguments_of_fastapi_are_taken() -> None:
    common: dict[str, Any] = {"scheme_name": "Mine", "description": "of mine", "auto_error": False}
    helpers = [
        HTTPBearer(bearerFormat="JWT", **common),
        OAuth2PasswordBearer(tokenUrl="token", scopes={"read": "to read"}, refreshUrl="refresh", **common),
        HTTPBasic(realm="chat", **common),
        APIKeyHeader(name="x-key", **common),
        APIKeyQuery(name="key", **common),
        APIKeyCookie(name="key", **common),
    ]
    for helper in helpers:
        assert (helper.scheme_name, helper.description, helper.auto_error) == ("Mine", "of mine", False)
    assert HTTPBearer().scheme_name == "HTTPBearer"
    assert HTTPBearer().auto_error


@pytest.mark.parametrize("cls", HELPERS)
def test_no_argument_is_taken_by_place(cls: Any) -> None:
    with pytest.raises(TypeError):
        cls("abc")


async def test_a_subclass_may_go_further_as_with_fastapi() -> None:
    class JWTBearer(HTTPBearer):
        async def __call__(self, request: Connection) -> Any:
            credentials = await super().__call__(request)
            if credentials is None or credentials.credentials != "good":
                raise HTTPException(403, "Invalid token")
            return credentials.credentials.upper()

        def make_not_authenticated_error(self) -> HTTPException:
            return HTTPException(418, headers=self.make_authenticate_headers())

    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, token: Annotated[str, Depends(JWTBearer())]) -> None:
        await ws.accept()
        await ws.send_text(token)

    good, bad, none = [
        await converse(app, FakeServer(headers=headers), leave=-1)
        for headers in ({"authorization": "Bearer good"}, {"authorization": "Bearer bad"}, {})
    ]
    assert (good.texts, bad.status, none.status) == (["GOOD"], 403, 418)


anything = st.one_of(st.binary(max_size=40), st.text(st.characters(codec="latin-1")).map(lambda t: t.encode("latin-1")))
schemes = st.sampled_from([b"", b"Bearer ", b"basic ", b"Basic  ", b"Basic YTpi", b"Bearer a"])
lines = st.tuples(schemes, st.one_of(anything, anything.map(base64.b64encode))).map(b"".join)


@given(st.lists(lines, max_size=3), st.lists(anything, max_size=3), st.binary(max_size=40))
def test_whatever_is_sent_is_credentials_or_a_refusal(values: list[bytes], cookies: list[bytes], query: bytes) -> None:
    scope: dict[str, Any] = {"type": "http", "path": "/", "query_string": b"key=" + query}
    scope["headers"] = [(b"authorization", line) for line in values] + [(b"cookie", line) for line in cookies]
    scope["headers"] += [(b"cookie", b"key=" + line) for line in cookies] + [(b"key", line) for line in values]
    helpers: list[Any] = [BEARER, BASIC, *(cls(name="key") for cls in (APIKeyHeader, APIKeyQuery, APIKeyCookie))]
    for helper in helpers:
        found = driven(helper(Connection(scope)))
        if isinstance(found, HTTPException):
            assert (found.status_code, found.__context__) == (401, None)
        else:
            assert found


def driven(running: Any) -> Any:
    """What a coroutine that waits for nothing returns, or the refusal that it raises."""
    try:
        running.send(None)
    except StopIteration as done:
        return done.value
    except HTTPException as refused:
        return refused
    raise AssertionError("it waited")


@given(st.text(), st.text())
def test_every_user_name_and_password_that_rfc_7617_allows_comes_through(username: str, password: str) -> None:
    username = username.replace(":", "")
    allowed = not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", username + password)
    try:
        line = basic(f"{username}:{password}")
    except UnicodeEncodeError:
        return
    found = driven(HTTPBasic(auto_error=False)(authorization(line)))
    assert (found is not None) == allowed
    assert found is None or (found.username, found.password) == (username, password)


# Comparing


@pytest.mark.parametrize(
    ("given_", "expected", "same"),
    [
        ("abc", "abc", True),
        (b"abc", b"abc", True),
        ("abc", b"abc", True),
        (bytearray(b"abc"), memoryview(b"abc"), True),
        ("pässwörd €😀", "pässwörd €😀", True),
        ("é", "é".encode(), True),
        ("é", "é".encode("latin-1"), False),
        ("\ud800", "\ud800", True),
        ("\ud800", "?", False),
        ("", "", True),
        ("abc", "abd", False),
        ("abc", "ab", False),
        ("abc", "ABC", False),
        ("abc", "", False),
        (b"\xff", "\xff", False),
        (None, "abc", False),
        ("abc", None, False),
        (None, None, False),
        (None, "", False),
        ("", None, False),
    ],
)
def test_secrets_are_compared_by_their_bytes(given_: Any, expected: Any, same: bool) -> None:
    # S7
    assert constant_time_compare(given_, expected) is same


@given(st.one_of(st.text(), st.binary()), st.one_of(st.text(), st.binary()))
def test_a_comparison_is_that_of_the_bytes(one: str | bytes, other: str | bytes) -> None:
    first, second = (v.encode("utf-8", "surrogatepass") if isinstance(v, str) else v for v in (one, other))
    assert constant_time_compare(one, other) is (first == second)
    assert constant_time_compare(one, one)


@pytest.mark.parametrize("other", [3, 3.5, ["secret"], object()])
def test_what_is_no_secret_is_not_compared_and_not_shown(other: Any) -> None:
    for pair in (("secret", other), (other, "secret")):
        with pytest.raises(TypeError) as refused:
            constant_time_compare(*pair)
        assert str(refused.value) == f"a secret is str, bytes or None, got {type(other).__name__}"


def test_a_comparison_goes_through_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[bytes, bytes]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        calls.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    assert not constant_time_compare("xbc", "abc")
    assert HTTPBasicCredentials("x", "y") != HTTPBasicCredentials("a", "b")
    assert len(calls) == 3


# What the helpers give


def test_credentials_are_equal_by_what_they_hold() -> None:
    one = HTTPAuthorizationCredentials(scheme="Bearer", credentials="é")
    assert one == HTTPAuthorizationCredentials(scheme="Bearer", credentials="é")
    assert one != HTTPAuthorizationCredentials(scheme="Bearer", credentials="e")
    assert one != HTTPAuthorizationCredentials(scheme="bearer", credentials="é")
    assert HTTPBasicCredentials(username="a", password="b") == HTTPBasicCredentials("a", "b")
    assert HTTPBasicCredentials("a", "b") != HTTPBasicCredentials("a", "c")
    assert HTTPBasicCredentials("a", "b") != ("a", "b")
    assert one != HTTPBasicCredentials("Bearer", "é")


SECRET = "5ecret"


@pytest.mark.parametrize(
    "credentials", [HTTPAuthorizationCredentials("Bearer", SECRET), HTTPBasicCredentials(f"ann-{SECRET}", SECRET)]
)
def test_nothing_shows_what_credentials_hold(credentials: Any) -> None:
    shown = [repr(credentials), str(credentials), f"{credentials}", "%s %r" % (credentials, credentials)]  # noqa: UP031
    shown += [pprint.pformat([credentials]), repr({"user": credentials}), repr(dir(credentials))]
    assert not [text for text in shown if SECRET in text]
    assert repr(credentials) == f"<{type(credentials).__name__}, hidden>"
    assert not hasattr(credentials, "__dict__")
    for leak in (pickle.dumps, copy.copy, copy.deepcopy, hash):
        with pytest.raises(TypeError) as refused:
            leak(credentials)
        assert SECRET not in str(refused.value)


# Through an app


def secured() -> tuple[App, list[str]]:
    """An app whose routes of both kinds ask for a user by a chain of dependencies, and what has run."""
    ran: list[str] = []

    async def current_user(sent: Annotated[HTTPAuthorizationCredentials, Depends(BEARER)]) -> str:
        ran.append("current_user")
        if not constant_time_compare(sent.credentials, "good"):
            raise HTTPException(403, "who is that?")
        return "ann"

    def later() -> None:
        ran.append("later")

    app = App()
    options: dict[str, Any] = {"dependencies": [Depends(current_user), Depends(later)]}

    @app.websocket("/", **options)
    async def handler(ws: WebSocket, user: Annotated[str, Depends(current_user)]) -> None:
        ran.append("handler")
        await ws.accept()
        await ws.send_text(user)

    @app.get("/", **options)
    async def page(user: Annotated[str, Depends(current_user)]) -> str:
        ran.append("handler")
        return user

    return app, ran


@every_shape
async def test_a_chain_of_dependencies_lets_a_good_token_in(shape: Shape) -> None:
    app, ran = secured()
    headers = {"Authorization": "Bearer good"}
    server = await converse(app, FakeServer(shape, headers=headers), leave=-1)
    assert (server.texts, server.closed) == (["ann"], (1000, ""))
    assert ran == ["current_user", "later", "handler"]
    answer = await request(app, "GET", "/", headers=headers)
    assert (answer.status, answer.body) == (200, b"ann")


@every_shape
@pytest.mark.parametrize("sent", [{}, {"authorization": "Bearer"}, {"authorization": "Bearer good,Bearer good"}])
async def test_a_client_without_credentials_is_refused_with_a_401_and_nothing_later_runs(
    shape: Shape, sent: dict[str, str]
) -> None:
    # S7, T29
    app, ran = secured()
    server = await converse(app, FakeServer(shape, headers=sent), leave=-1)
    if shape is DAPHNE:  # T28
        assert (server.status, server.types) == (403, ["websocket.close"])
    else:
        assert server.status == 401
        assert json.loads(server.body) == {"detail": "Not authenticated"}
        assert (b"www-authenticate", BEARER_CHALLENGE.encode()) in server.sent[0]["headers"]
    assert ran == []


async def test_a_request_without_credentials_is_answered_with_a_401() -> None:
    app, ran = secured()
    answer = await request(app, "GET", "/")
    assert (answer.status, json.loads(answer.body)) == (401, {"detail": "Not authenticated"})
    assert answer.header("www-authenticate") == BEARER_CHALLENGE
    assert ran == []


@every_shape
async def test_a_token_that_the_application_refuses_is_refused_as_it_says(shape: Shape) -> None:
    app, ran = secured()
    server = await converse(app, FakeServer(shape, headers={"authorization": "Bearer bad"}), leave=-1)
    assert server.status == 403
    assert ran == ["current_user"]


async def test_credentials_may_come_in_one_of_several_ways() -> None:
    bearer = HTTPBearer(auto_error=False)
    cookie = APIKeyCookie(name="session", auto_error=False)

    def user(
        token: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)],
        session: Annotated[str | None, Depends(cookie)],
    ) -> str:
        if token is not None:
            return f"token {token.credentials}"
        return "nobody" if session is None else f"session {session}"

    app = App()

    @app.websocket("/")
    async def handler(ws: WebSocket, who: Annotated[str, Depends(user)]) -> None:
        await ws.accept()
        await ws.send_text(who)

    @app.get("/")
    async def page(who: Annotated[str, Depends(user)]) -> str:
        return who

    for headers, who in [
        ({"authorization": "Bearer abc"}, "token abc"),
        ({"cookie": "session=def"}, "session def"),
        ({"authorization": "Bearer abc", "cookie": "session=def"}, "token abc"),
        ({"authorization": "Bearer"}, "nobody"),
        ({}, "nobody"),
    ]:
        server = await converse(app, FakeServer(headers=headers), leave=-1)
        assert server.texts == [who]
        assert (await request(app, "GET", "/", headers=headers)).body == who.encode()


async def test_a_helper_is_replaced_in_a_test_as_any_dependency() -> None:
    app, _ = secured()
    app.dependency_overrides[BEARER] = lambda: HTTPAuthorizationCredentials("Bearer", "good")
    assert (await converse(app, FakeServer(), leave=-1)).texts == ["ann"]


async def test_an_exception_handler_of_the_app_takes_the_place_of_the_refusal() -> None:
    app, _ = secured()

    @app.exception_handler(401)
    async def unauthorized(connection: Any, error: HTTPException) -> JSONResponse:
        return JSONResponse({"login": "/login"}, 401, error.headers)

    server = await converse(app, FakeServer(), leave=-1)
    assert (server.status, json.loads(server.body)) == (401, {"login": "/login"})
    assert (b"www-authenticate", BEARER_CHALLENGE.encode()) in server.sent[0]["headers"]


# Tokens appear in no log, repr or error

PREFIX = "base64url.bearer.authorization.k8s.io."


def encoded(text: str | bytes) -> str:
    """As a page sends it in a subprotocol."""
    data = text if isinstance(text, bytes) else text.encode()
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def sent_as(name: str, token: str) -> dict[str, Any]:
    """How a client sends a token to a helper: the arguments of a fake server."""
    protocols = ["chat", PREFIX + encoded(token)]
    sent: dict[str, dict[str, Any]] = {
        "bearer": {"headers": [("authorization", f"Bearer {token}")]},
        "two bearers": {"headers": [("authorization", f"Bearer {token}"), ("authorization", f"Bearer {token}")]},
        "bearer with a space": {"headers": [("authorization", f"Bearer {token} {token}")]},
        "basic": {"headers": [("authorization", basic(f"{token}:{token}"))]},
        "basic without a colon": {"headers": [("authorization", basic(token))]},
        "basic in no UTF-8": {"headers": [("authorization", basic(b"\xff:" + token.encode()))]},
        "basic in no base64": {"headers": [("authorization", f"Basic {token}!")]},
        "header": {"headers": [("x-key", token)]},
        "two headers": {"headers": [("x-key", token), ("x-key", token)]},
        "query": {"query": f"key={token}"},
        "two in the query": {"query": f"key={token}&key={token}"},
        "cookie": {"headers": [("cookie", f"key={token}")]},
        "two cookies": {"headers": [("cookie", f"key={token}; key={token}")]},
        "subprotocol": {
            "headers": [("sec-websocket-protocol", ", ".join(protocols))],
            "subprotocols": protocols,
        },
        "subprotocol alone": {
            "headers": [("sec-websocket-protocol", protocols[1])],
            "subprotocols": protocols[1:],
        },
        "two subprotocols": {"subprotocols": [*protocols, PREFIX + encoded(f"{token}2")]},
        "subprotocol in no base64": {"subprotocols": ["chat", f"{PREFIX}{token}!"]},
        "subprotocol in no UTF-8": {"subprotocols": ["chat", PREFIX + encoded(b"\xff" + token.encode())]},
        "message": {"messages": [token]},
        "message in JSON": {"messages": [json.dumps({"token": token})]},
        "message in no JSON": {"messages": [f'{{"token": "{token}"']},
        "message of the wrong type": {"messages": [json.dumps({"token": [token]})]},
        "message too long": {"messages": [token * 1000]},
        "message of bytes": {"messages": [token.encode()]},
    }
    return sent[name]


GUARDS: dict[str, Any] = {
    "bearer": HTTPBearer(),
    "basic": HTTPBasic(),
    "header": APIKeyHeader(name="x-key"),
    "query": APIKeyQuery(name="key"),
    "cookie": APIKeyCookie(name="key"),
    "subprotocol": SubprotocolToken(),
    "message": FirstMessageToken(),
}
GOOD = list(GUARDS)
BAD = [
    "two bearers", "bearer with a space", "basic without a colon", "basic in no UTF-8", "basic in no base64",
    "two headers", "two in the query", "two cookies", "subprotocol alone", "two subprotocols",
    "subprotocol in no base64", "subprotocol in no UTF-8", "message in no JSON", "message of the wrong type",
    "message too long", "message of bytes",
]  # fmt: skip
TOKEN = "t0pSecretT0ken"


def guard_for(name: str) -> Any:
    """The helper that a client sends to in this way."""
    return next(guard for word, guard in GUARDS.items() if word in name.replace("cookies", "cookie"))


def shown_of(error: BaseException) -> list[str]:
    """What a report could print of an exception: also the variables of the functions that raise it."""
    report = traceback.TracebackException.from_exception(error)
    frames = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), capture_locals=True)
    ours = [frame for frame in frames if frame.filename.endswith(("/credentials.py", "/tokens.py"))]
    return [str(error), repr(error), repr(vars(error)), "".join(report.format()), "".join(map(repr_of, ours))]


def repr_of(frame: traceback.FrameSummary) -> str:
    """A function of the helpers and its variables."""
    return f"{frame.name}: {frame.locals}"


def leaked(texts: Iterable[str]) -> list[str]:
    """The texts with a token in them, in any form in which a client sends it."""
    forms = [TOKEN, encoded(TOKEN), basic(f"{TOKEN}:{TOKEN}")[6:], basic(TOKEN)[6:].rstrip("="), PREFIX]
    return [text for text in texts if any(form in text for form in forms)]


class Watched:
    """An app with a helper before a handler that fails, and all that can be printed of what it sees."""

    def __init__(self, guard: Any) -> None:
        self.app = App()
        self.texts: list[str] = []
        self.ran = 0

        @self.app.websocket("/")
        async def handler(ws: WebSocket, token: Annotated[Any, Depends(guard)]) -> None:
            self.note(ws, token)
            if ws.application_state.name == "CONNECTING":
                await ws.accept()
            raise RuntimeError("a fault of the handler")

        @self.app.exception_handler(401)
        @self.app.exception_handler(400)
        async def refused(connection: Any, error: HTTPException) -> None:
            self.note(connection)
            self.texts += shown_of(error)
            raise error

        if not isinstance(guard, SubprotocolToken | FirstMessageToken):

            @self.app.get("/")
            async def page(request: Request, token: Annotated[Any, Depends(guard)]) -> None:
                self.note(request, token)
                raise RuntimeError("a fault of the handler")

    def note(self, connection: Connection, token: Any = None) -> None:
        """Note what can be printed of a connection."""
        self.ran += token is not None
        self.texts += map(repr, (connection, connection.url, connection.headers, connection.query_params))
        self.texts += map(str, (connection, connection.headers, connection.state, connection.path_params))
        if isinstance(connection, WebSocket):
            self.texts += [repr(connection.subprotocols)]
        if not isinstance(token, str):
            self.texts += [repr(token), str(token)]

    async def serve(self, kind: str, shape: Shape, sent: dict[str, Any]) -> None:
        """Serve one connection; what the app raises is a fault of the handler."""
        messages = sent.pop("messages", [])
        try:
            if kind == "websocket":
                server = FakeServer(shape, **sent)
                self.texts += [repr(self.app)]
                await converse(self.app, server, *messages)
                self.texts += map(repr, server.sent)
            else:
                answer = await request(self.app, "GET", "/", **sent)
                self.texts += [repr(answer)]
        except RuntimeError as error:
            self.texts += [str(error), "".join(traceback.format_exception(error))]


def ways() -> list[tuple[str, str, Shape]]:
    """Every way to send a token, with the kind of connection and the server."""
    both = [name for name in GOOD + BAD if not isinstance(guard_for(name), SubprotocolToken | FirstMessageToken)]
    on_websockets = [(name, "websocket", shape) for name in GOOD + BAD for shape in (UVICORN, HYPERCORN, DAPHNE)]
    return on_websockets + [(name, "http", UVICORN) for name in both]


@pytest.mark.parametrize(("name", "kind", "shape"), ways(), ids=lambda value: getattr(value, "name", value))
async def test_a_token_appears_in_no_log_repr_or_error(
    name: str, kind: str, shape: Shape, caplog: pytest.LogCaptureFixture
) -> None:
    # S8, S9
    guard = guard_for(name)
    watched = Watched(guard)
    with caplog.at_level(logging.DEBUG):
        await watched.serve(kind, shape, sent_as(name, TOKEN))
    assert watched.ran == (name in GOOD)
    formatter = logging.Formatter("%(message)s %(args)s %(pathname)s")
    logged = [formatter.format(record) for record in caplog.records] + [repr(vars(r)) for r in caplog.records]
    assert watched.texts
    assert not leaked(watched.texts + logged)


def test_the_search_for_leaks_finds_them() -> None:
    assert leaked([f"a {TOKEN}", f"b {encoded(TOKEN)}", f"c {basic(f'{TOKEN}:{TOKEN}')}", "nothing"]) == [
        f"a {TOKEN}", f"b {encoded(TOKEN)}", f"c {basic(f'{TOKEN}:{TOKEN}')}",
    ]  # fmt: skip


async def test_the_search_for_leaks_looks_at_the_variables_of_the_helpers() -> None:
    class Leaking(HTTPBearer):
        def make_not_authenticated_error(self) -> HTTPException:
            return HTTPException(401, TOKEN)

        def __repr__(self) -> str:
            return TOKEN

    shown = shown_of(await refusal(Leaking(), connection()))
    assert len(leaked(shown)) == len(shown) == 5
    assert "self" in shown[-1]
    assert "_missing" in shown[-1]
