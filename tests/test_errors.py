"""The exceptions: their tree, their attributes, and every text word for word."""

import functools
import http
import json
import pathlib
import types
from collections.abc import Callable
from typing import Any

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import asgiws
import asgiws.channels
from asgiws import (
    App,
    AsgiwsError,
    ConfigurationError,
    HTTPException,
    MessageError,
    ParameterError,
    ProtocolError,
    RouteError,
    SignatureError,
    WebSocket,
    WebSocketDisconnect,
    WebSocketException,
    WebSocketStateError,
)
from asgiws.errors import (
    BrokerError,
    ChannelsError,
    GapError,
    ParameterProblem,
    RegistrationError,
    SlowSubscriberError,
    did_you_mean,
    status_phrase,
    whereabouts,
)
from asgiws.messages import MessageDecoder
from tests.fakes import DEADLINE, FakeServer

HERE = pathlib.Path(__file__)
FILE = (HERE.relative_to(pathlib.Path.cwd()) if HERE.is_relative_to(pathlib.Path.cwd()) else HERE).as_posix()
"""This file, as an error names it."""


# The tree

TREE: dict[type[Exception], type[Exception]] = {
    AsgiwsError: Exception,
    RegistrationError: ValueError,
    RouteError: RegistrationError,
    SignatureError: RegistrationError,
    ConfigurationError: ValueError,
    ProtocolError: ValueError,
    WebSocketStateError: RuntimeError,
    ChannelsError: RuntimeError,
    BrokerError: ChannelsError,
    GapError: ChannelsError,
    SlowSubscriberError: ChannelsError,
    ParameterError: AsgiwsError,
    MessageError: AsgiwsError,
    WebSocketDisconnect: AsgiwsError,
    WebSocketException: AsgiwsError,
    HTTPException: AsgiwsError,
}


@pytest.mark.parametrize(("error", "base"), TREE.items())
def test_every_exception_has_its_place_in_the_tree(error: type[Exception], base: type[Exception]) -> None:
    assert issubclass(error, base)
    assert issubclass(error, AsgiwsError)


def test_the_tree_in_the_docstring_is_the_real_one() -> None:
    doc = asgiws.errors.__doc__ or ""
    lines = [line.strip("| `-") for line in doc.splitlines() if line.startswith("    ")]
    drawn = {line.split()[0]: line for line in lines}
    assert set(drawn) == {error.__name__ for error in TREE}
    for error, base in TREE.items():
        if base.__module__ == "builtins" and base is not Exception:
            assert f"{error.__name__} ({base.__name__})" in drawn[error.__name__]


@pytest.mark.parametrize("error", TREE)
def test_every_exception_but_the_umbrella_of_registration_comes_from_the_root(error: type[Exception]) -> None:
    place = asgiws.channels if issubclass(error, ChannelsError) else asgiws
    assert getattr(place, error.__name__, None) is (None if error is RegistrationError else error)


# Registration


@pytest.mark.parametrize("error", [RouteError, SignatureError])
@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("it is wrong",), "it is wrong"),
        (("it is wrong", "Do right."), "it is wrong. Do right."),
        (("it is wrong", "", "rooms.join, app/rooms.py:31"), "it is wrong (rooms.join, app/rooms.py:31)"),
        (("it is wrong", "Do right.", "rooms.join, r.py:3"), "it is wrong (rooms.join, r.py:3). Do right."),
    ],
)
def test_a_registration_error_tells_what_where_and_how(
    error: type[RegistrationError], args: tuple[str, ...], text: str
) -> None:
    caught = error(*args)
    assert str(caught) == text
    assert (caught.problem, caught.hint, caught.where) == (*args, "", "")[:3]


def test_the_place_may_be_added_by_who_knows_it() -> None:
    error = RouteError("it is wrong", "Do right.")
    error.where = "rooms.join, r.py:3"
    assert str(error) == "it is wrong (rooms.join, r.py:3). Do right."


# Parameters


def test_a_parameter_error_tells_every_problem() -> None:
    problems = [
        ParameterProblem("query", "page", "expected `int`"),
        ParameterProblem("header", "x-token", "is missing"),
        ParameterProblem("body", "", "is not JSON"),
    ]
    error = ParameterError(iter(problems))
    assert error.errors == problems
    assert str(error) == "query 'page': expected `int`; header 'x-token': is missing; body: is not JSON"


@pytest.mark.parametrize(
    ("problem", "text", "shown", "as_dict"),
    [
        (
            ParameterProblem("query", "page", "is missing"),
            "query 'page': is missing",
            "ParameterProblem('query', 'page', 'is missing')",
            {"loc": ["query", "page"], "msg": "is missing"},
        ),
        (
            ParameterProblem("body", "", "is missing"),
            "body: is missing",
            "ParameterProblem('body', '', 'is missing')",
            {"loc": ["body"], "msg": "is missing"},
        ),
    ],
)
def test_a_parameter_problem_reads_well_everywhere(
    problem: ParameterProblem, text: str, shown: str, as_dict: dict[str, Any]
) -> None:
    assert str(problem) == text
    assert repr(problem) == shown
    assert problem.as_dict() == as_dict


# Messages


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "expected `int`, got `str`"),
        ({"path": "$.x"}, "expected `int`, got `str` - at `$.x`"),
        ({"tag": "move"}, "expected `int`, got `str` in message 'move'"),
        ({"tag": 0}, "expected `int`, got `str` in message 0"),
        ({"path": "$.x", "tag": "move"}, "expected `int`, got `str` - at `$.x` in message 'move'"),
    ],
)
def test_a_message_error_tells_where_in_which_message(options: dict[str, Any], text: str) -> None:
    error = MessageError("expected `int`, got `str`", **options)
    assert str(error) == text
    assert (error.detail, error.path, error.tag) == (
        "expected `int`, got `str`",
        options.get("path"),
        options.get("tag"),
    )
    assert error.code == 1007
    assert MessageError("x", code=1003).code == 1003


# The end of a connection


# P23, T5
@pytest.mark.parametrize(
    ("args", "code", "reason", "text"),
    [
        ((), 1005, "", "the peer has gone with 1005"),
        ((1000,), 1000, "", "the peer has gone with 1000"),
        ((1001, None), 1001, "", "the peer has gone with 1001"),
        ((4000, "bye"), 4000, "bye", "the peer has gone with 4000 'bye'"),
        ((4000, "a\nb\x1b[31m"), 4000, "a\nb\x1b[31m", "the peer has gone with 4000 'a\\nb\\x1b[31m'"),
        ((http.HTTPStatus.OK, ""), 200, "", "the peer has gone with 200"),
    ],
)
def test_a_disconnect_has_an_int_code_and_a_str_reason(args: Any, code: int, reason: str, text: str) -> None:
    error = WebSocketDisconnect(*args)
    assert (error.code, error.reason, str(error)) == (code, reason, text)
    assert type(error.code) is int
    assert json.dumps(error.code) == str(code)


@pytest.mark.parametrize(
    ("args", "reason", "text"),
    [
        ((4001,), "", "4001"),
        ((1008, None), "", "1008"),
        ((4001, "who are you"), "who are you", "4001: who are you"),
        ((4001, "é" * 100), "é" * 61, "4001: " + "é" * 61),
    ],
)
def test_a_websocket_exception_has_a_code_and_a_reason_that_fit(args: Any, reason: str, text: str) -> None:
    error = WebSocketException(*args)
    assert (error.code, error.reason, str(error)) == (args[0], reason, text)


# T26, P21
@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1010, 1014, 1015, 2999, 5000, True, None, "4001"])
def test_a_websocket_exception_with_a_code_that_may_not_be_sent_is_refused_where_it_is_made(code: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        WebSocketException(code)
    assert str(caught.value) == f"a close code is one of 1000-1003, 1007-1009, 1011-1013 or 3000-4999, got {code!r}"


# T26
@pytest.mark.parametrize("reason", [5, b"bye", ["bye"]], ids=repr)
def test_a_websocket_exception_with_a_reason_that_is_no_str_is_refused_where_it_is_made(reason: Any) -> None:
    with pytest.raises(TypeError, match="reason"):
        WebSocketException(4001, reason)


def test_the_code_of_a_websocket_exception_is_a_plain_int() -> None:
    class Code(int):
        pass

    assert type(WebSocketException(Code(4001)).code) is int


@pytest.mark.parametrize(
    ("args", "status", "detail", "text"),
    [
        ((404,), 404, "Not Found", "404: Not Found"),
        ((404, "no such room"), 404, "no such room", "404: no such room"),
        ((404, ""), 404, "", "404: "),
        ((422, {"errors": [1]}), 422, {"errors": [1]}, "422: {'errors': [1]}"),
        ((599,), 599, "Error", "599: Error"),
        ((http.HTTPStatus.CONFLICT,), 409, "Conflict", "409: Conflict"),
    ],
)
def test_an_http_exception_has_a_status_and_a_detail(args: Any, status: int, detail: Any, text: str) -> None:
    error = HTTPException(*args)
    assert (error.status_code, error.detail, error.headers, str(error)) == (status, detail, None, text)
    assert type(error.status_code) is int


def test_an_http_exception_keeps_its_headers() -> None:
    headers = {"www-authenticate": "Bearer"}
    assert HTTPException(401, headers=headers).headers == headers


@pytest.mark.parametrize("status", [0, 100, 199, 600, -404, True, None, "404", 404.0])
def test_a_status_that_is_no_final_one_is_refused_where_it_is_made(status: Any) -> None:
    with pytest.raises(ProtocolError) as caught:
        HTTPException(status)
    assert str(caught.value) == f"an HTTP status is a number from 200 to 599, got {status!r}"


@given(st.integers(200, 599))
def test_every_status_has_a_phrase(status: int) -> None:
    assert status_phrase(status)
    assert HTTPException(status).detail == status_phrase(status)


# Where a handler is


def plain(ws: Any) -> None: ...


def decorated() -> Callable[..., Any]:
    @functools.wraps(plain)
    def outer(*args: Any) -> Any:
        return plain(*args)

    return outer


def nested() -> Callable[..., Any]:
    def inner() -> None: ...

    return inner


class Handlers:
    def method(self) -> None: ...

    def __call__(self) -> None: ...


def line_of(function: Any) -> int:
    code: types.CodeType = function.__code__
    return code.co_firstlineno


@pytest.mark.parametrize(
    ("handler", "name", "line"),
    [
        (plain, "plain", line_of(plain)),
        (functools.partial(plain, 1), "plain", line_of(plain)),
        (functools.partial(functools.partial(plain)), "plain", line_of(plain)),
        (decorated(), "plain", line_of(plain)),
        (nested(), "nested.inner", line_of(nested())),
        (Handlers().method, "Handlers.method", line_of(Handlers.method)),
        (Handlers(), "Handlers", line_of(Handlers.__call__)),
        (functools.partial(Handlers()), "Handlers", line_of(Handlers.__call__)),
        (lambda: None, "<lambda>", None),
    ],
)  # fmt: skip
def test_whereabouts_name_the_handler_and_its_line(handler: Any, name: str, line: int | None) -> None:
    found = whereabouts(handler)
    assert found == f"test_errors.{name}, {FILE}:{line or line_of(handler)}"


def test_whereabouts_of_what_has_no_source_is_its_name() -> None:
    assert whereabouts(len) == "builtins.len"
    assert whereabouts(5) == "int"


def test_a_file_elsewhere_is_named_in_full(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert whereabouts(plain) == f"test_errors.plain, {HERE.as_posix()}:{line_of(plain)}"


def test_a_directory_that_only_begins_alike_is_elsewhere(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "app-old" / "rooms.py"
    (tmp_path / "app").mkdir()
    monkeypatch.chdir(tmp_path / "app")
    space: dict[str, Any] = {"__name__": "rooms"}
    exec(compile("async def join(ws): ...", str(beside), "exec"), space)  # noqa: S102 - a handler of a file of its own
    assert whereabouts(space["join"]) == f"rooms.join, {beside.as_posix()}:1"


# What was meant


@pytest.mark.parametrize(
    ("word", "known", "guess"),
    [
        ("itn", ["int", "float"], " Did you mean 'int'?"),
        ("int", ["int"], " Did you mean 'int'?"),
        ("xyz", ["int", "float"], ""),
        ("", ["int"], ""),
        ("int", [], ""),
        ("rooms", iter(["room", "user"]), " Did you mean 'room'?"),
    ],
)
def test_a_word_near_a_known_one_is_guessed(word: str, known: Any, guess: str) -> None:
    assert did_you_mean(word, known) == guess


# The examples of the design, produced by the real thing


def shown(error: BaseException) -> str:
    """An exception as the last line of a traceback has it."""
    return f"{type(error).__name__}: {error}"


def test_the_route_error_of_the_design(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = "\n" * 30 + "async def join(ws, id): ...\n"
    space: dict[str, Any] = {"__name__": "app.rooms"}
    exec(compile(source, str(tmp_path / "app" / "rooms.py"), "exec"), space)  # noqa: S102 - a file with that name and line
    with pytest.raises(RouteError) as caught:
        App().websocket("/rooms/<id:itn>")(space["join"])
    assert shown(caught.value) == (
        "RouteError: unknown converter 'itn' in '/rooms/<id:itn>' (rooms.join, app/rooms.py:31). "
        "Known: float, int, path, str, uuid. Did you mean 'int'?"
    )


@pytest.mark.anyio
async def test_the_state_error_of_the_design() -> None:
    server = FakeServer()
    ws: WebSocket[Any, Any] = WebSocket(server.scope, server.receive, server.send)
    with anyio.fail_after(DEADLINE):
        await ws.accept()
        await ws.close(1000)
        with pytest.raises(WebSocketStateError) as caught:
            await ws.send_text("too late")
    assert shown(caught.value) == (
        "WebSocketStateError: cannot send: this WebSocket is closed (you closed it with 1000)"
    )


class Move(msgspec.Struct, tag="move"):
    x: int
    y: int


class Say(msgspec.Struct, tag="say"):
    text: str


@pytest.mark.parametrize("declared", [Move, Say | Move])
def test_the_message_error_of_the_design(declared: Any) -> None:
    event = {"type": "websocket.receive", "text": '{"type": "move", "x": "1", "y": 2}'}
    with pytest.raises(MessageError) as caught:
        MessageDecoder(declared)(event)
    assert shown(caught.value) == "MessageError: expected `int`, got `str` - at `$.x` in message 'move'"
