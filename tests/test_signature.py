"""Handlers of every make, their annotations as types and as strings, and the signatures that are refused."""

import functools
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, TypeVar

import msgspec
import pytest

from asgiws import App, Header, Query, Request, Router, SignatureError, WebSocket
from asgiws.errors import RegistrationError
from tests import stringified
from tests.fakes import FakeServer, converse, request

H = TypeVar("H", bound=Callable[..., Any])


# What may be a handler


async def plain(ws: WebSocket, room: str, n: int = 1) -> None:
    await ws.accept()
    await ws.send_json([room, n])


async def generator(room: str, n: int = 1) -> AsyncIterator[list[Any]]:
    yield [room, n]


async def generator_with_socket(ws: WebSocket, room: str, n: int = 1) -> AsyncIterator[list[Any]]:
    assert ws.path_params == {"room": room}
    yield [room, n]


async def keywords(*, n: int = 1, ws: WebSocket, room: str) -> None:
    await plain(ws, room, n)


async def three(greeting: str, ws: WebSocket, room: str, n: int = 1) -> None:
    assert greeting == "hello"
    await plain(ws, room, n)


def noting(handler: H) -> H:
    """A decorator as users write them."""

    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return await handler(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def noting_generator(handler: H) -> H:
    """The same for a stream."""

    @functools.wraps(handler)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        async for item in handler(*args, **kwargs):
            yield item

    return wrapper  # type: ignore[return-value]


class Callee:
    async def __call__(self, ws: WebSocket, room: str, n: int = 1) -> None:
        await plain(ws, room, n)

    async def method(self, ws: WebSocket, room: str, n: int = 1) -> None:
        await plain(ws, room, n)

    @classmethod
    async def of_class(cls, ws: WebSocket, room: str, n: int = 1) -> None:
        await plain(ws, room, n)

    @staticmethod
    async def static(ws: WebSocket, room: str, n: int = 1) -> None:
        await plain(ws, room, n)


class Stream:
    async def __call__(self, room: str, n: int = 1) -> AsyncIterator[list[Any]]:
        yield [room, n]


class Inheriting(Callee):
    pass


MAKES: dict[str, Callable[..., Any]] = {
    "function": plain,
    "generator": generator,
    "generator-with-socket": generator_with_socket,
    "keyword-only": keywords,
    "bound-method": Callee().method,
    "class-method": Callee.of_class,
    "static-method": Callee.static,
    "object": Callee(),
    "object-generator": Stream(),
    "inherited-object": Inheriting(),
    "inherited-method": Inheriting().method,
    "wrapped": noting(plain),
    "wrapped-twice": noting(noting(plain)),
    "wrapped-method": noting(Callee().method),
    "wrapped-generator": noting_generator(generator),
    "partial": functools.partial(plain),
    "partial-of-position": functools.partial(three, "hello"),
    "partial-of-method": functools.partial(Callee().method),
    "partial-of-partial": functools.partial(functools.partial(three, "hello")),
    "partial-of-object": functools.partial(Callee()),
    "partial-of-generator": functools.partial(generator),
    "partial-of-wrapped": functools.partial(noting(plain)),
}


@pytest.mark.anyio
@pytest.mark.parametrize("make", MAKES)
async def test_a_handler_may_be_made_in_many_ways(make: str) -> None:
    app = App()
    app.websocket("/<room>")(MAKES[make])
    for query, wanted in (("", 1), ("n=2", 2)):
        server = await converse(app, FakeServer(path="/lobby", query=query), leave=-1)
        assert [json.loads(text) for text in server.texts] == [["lobby", wanted]]
        assert server.closed == (1000, "")
    server = await converse(app, FakeServer(path="/lobby", query="n=x"), leave=-1)
    assert server.closed == (1008, "query 'n': expected `int`")


@pytest.mark.anyio
async def test_what_a_partial_has_bound_is_not_the_clients_to_send() -> None:
    async def handler(ws: WebSocket, room: str, *, admin: bool) -> None:
        await plain(ws, room, int(admin))

    app = App()
    app.websocket("/<room>")(functools.partial(handler, admin=False))
    server = await converse(app, FakeServer(path="/lobby", query="admin=true"), leave=-1)
    assert server.texts == ['["lobby",0]']


@pytest.mark.anyio
async def test_what_a_partial_has_bound_may_be_of_any_type() -> None:
    class Pool:
        size = 7

    async def handler(ws: WebSocket, room: str, pool: Pool) -> None:
        await plain(ws, room, pool.size)

    app = App()
    app.websocket("/<room>")(functools.partial(handler, pool=Pool()))
    server = await converse(app, FakeServer(path="/lobby"), leave=-1)
    assert server.texts == ['["lobby",7]']


@pytest.mark.anyio
async def test_a_decorated_handler_over_http_keeps_its_signature() -> None:
    app = App()

    @app.get("/<room>")
    @noting
    async def page(asked: Request, room: str, n: int = 1) -> list[Any]:
        return [asked.method, room, n]

    answer = await request(app, "GET", "/lobby", query="n=2")
    assert json.loads(answer.body) == ["GET", "lobby", 2]


def test_registration_gives_the_handler_back_as_it_was() -> None:
    app = App()
    assert app.websocket("/a")(plain) is plain
    assert app.get("/b")(plain_http) is plain_http
    assert app.routes[0].handler is plain  # type: ignore[union-attr]


async def plain_http() -> str:
    return "hello"


@pytest.mark.anyio
async def test_a_signature_is_read_at_registration_and_never_again(monkeypatch: pytest.MonkeyPatch) -> None:
    app = App()

    @app.websocket("/<room>")
    async def handler(ws: WebSocket, room: str, n: Annotated[int, Query(ge=1)] = 1, *, x: str = Header("")) -> None:
        await plain(ws, room, n)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the signature was read again")

    server = FakeServer(path="/lobby", query="n=2")
    with monkeypatch.context() as patched:
        patched.setattr("inspect.signature", never)
        patched.setattr("typing.get_type_hints", never)
        patched.setattr("msgspec.inspect.type_info", never)
        await converse(app, server, leave=-1)
    assert server.texts == ['["lobby",2]']


# Annotations as strings


@pytest.mark.anyio
async def test_annotations_as_strings_name_types_of_their_module() -> None:
    seen: list[Any] = []
    app = stringified.of_the_module(seen)
    await converse(app, FakeServer(path="/values/lobby/3", query="colour=blue&near=1&near=2&kind=b"), leave=-1)
    assert seen.pop() == ("lobby", 3, stringified.Colour.BLUE, None, [1, 2], "none", "b")
    await converse(app, FakeServer(path="/struct", query="colour=blue&near=1"), leave=-1)
    assert seen.pop() == stringified.Filters(stringified.Colour.BLUE, [1])
    await converse(app, FakeServer(path="/messages"), '{"type":"say","text":"hi"}', '{"type":"move","x":1}')
    assert seen == [stringified.Say("hi"), stringified.Move(1)]
    server = await converse(app, FakeServer(path="/stream", query="colour=red"), leave=-1)
    assert server.texts == ['{"type":"say","text":"red"}']
    answer = await request(app, "POST", "/body", query="filters=red", body=b'{"value":1}')
    assert json.loads(answer.body) == ["POST", 1, ["red"]]
    assert (await request(app, "PUT", "/body", body=b'{"value":2}')).body == b'{"value":2}'
    assert (await request(app, "PUT", "/body")).status == 204


@pytest.mark.anyio
async def test_annotations_as_strings_are_checked_as_types_are() -> None:
    app = stringified.of_the_module([])
    server = await converse(app, FakeServer(path="/values/lobby/0", query="colour=green&ident=x"), leave=-1)
    reason = (
        "path 'count': expected `int` >= 1; query 'colour': expected one of 'red', 'blue'; query 'ident': invalid UUID"
    )
    assert server.closed == (1008, reason)


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/plain/1", [("ONE", 1)]),
        ("/wrapped/1", ["wrapped", "ONE"]),
        ("/method/1", ["ONE"]),
        ("/object/1", ["ONE"]),
        ("/partial/1", ["ONE"]),
        ("/deeper/2", ["TWO"]),
    ],
)
async def test_annotations_as_strings_name_types_of_the_function_around_them(path: str, wanted: list[Any]) -> None:
    seen: list[Any] = []
    app = stringified.of_a_function(seen)
    await converse(app, FakeServer(path=path))
    assert seen == wanted
    server = await converse(app, FakeServer(path=path[:-1] + "9"), leave=-1)
    assert server.closed is not None
    assert server.closed[1].startswith(("path 'kind': expected one of '1'", "path 'kind': expected one of '2'"))


@pytest.mark.anyio
async def test_messages_and_markers_of_a_local_type_work_as_strings() -> None:
    seen: list[Any] = []
    app = stringified.of_a_function(seen)
    await converse(app, FakeServer(path="/plain/1", query="page-no=3"), '{"n":1}', '{"n":2}')
    assert seen == [("ONE", 3), 1, 2]


@pytest.mark.anyio
async def test_a_string_inside_of_an_annotation_is_evaluated_too() -> None:
    app = App()
    seen: list[Any] = []

    class Message(msgspec.Struct):
        n: int

    @app.websocket("/")
    async def handler(ws: 'WebSocket["Message"]', numbers: "list[int]", name: "Annotated[str, Query()]" = "") -> None:
        seen.append((numbers, name))
        await ws.accept()
        async for message in ws:
            seen.append(message)

    await converse(app, FakeServer(query="numbers=1&name=x"), '{"n":2}')
    assert seen == [([1], "x"), Message(2)]


# What is refused


async def with_args(ws: WebSocket, *names: str) -> None: ...
async def with_kwargs(ws: WebSocket, **names: str) -> None: ...
async def with_positional_only(ws: WebSocket, name: str, /) -> None: ...
async def two_in_one(ws: WebSocket, n: Annotated[int, Query(), Header()]) -> None: ...
async def two_apart(ws: WebSocket, n: Annotated[int, Query()] = Header(1)) -> None: ...
async def no_such_name(ws: WebSocket, n: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821
async def no_such_attribute(ws: WebSocket, n: "msgspec.Strct") -> None: ...  # type: ignore[name-defined]
async def no_expression(ws: WebSocket, n: "int |") -> None: ...  # type: ignore[valid-type]  # noqa: F722
async def no_union(ws: WebSocket, n: "int | 3") -> None: ...  # type: ignore[valid-type]
async def no_type(ws: WebSocket, n: 3) -> None: ...  # type: ignore[valid-type]


def synchronous(ws: WebSocket) -> None: ...


@pytest.mark.parametrize(
    ("handler", "problem", "hint"),
    [
        (with_args, "parameter '*names' cannot be filled by name", "no *args, no **kwargs, no positional-only ones."),
        (
            with_kwargs,
            "parameter '**names' cannot be filled by name",
            "no *args, no **kwargs, no positional-only ones.",
        ),
        (with_positional_only, "parameter 'ws' cannot be filled by name", "no positional-only ones."),
        (two_in_one, "parameter 'n' has 2 markers", "One says where it comes from."),
        (two_apart, "parameter 'n' has 2 markers", "One says where it comes from."),
        (no_such_name, "the annotation 'Missing' is unknown where the handler is defined", "under TYPE_CHECKING"),
        (no_such_attribute, "", "Strct"),
        (no_expression, "", "int |"),
        (no_union, "", ""),
        (no_type, "parameter 'n' has a type that msgspec refuses", "3"),
        (synchronous, "a handler must be async, got a plain function", "Write `async def`"),
        (stringified.unknown_name, "the annotation 'Missing' is unknown", "under TYPE_CHECKING"),
        (stringified.unknown_attribute, "", "Enumeration"),
        (stringified.no_type, "", ""),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_a_signature_that_cannot_work_is_refused_with_its_place(handler: Any, problem: str, hint: str) -> None:
    app = App()
    with pytest.raises(SignatureError) as caught:
        app.websocket("/")(handler)
    text = str(caught.value)
    assert text.startswith(problem)
    assert hint in text
    module = handler.__module__.rpartition(".")[2]
    place = rf"\({module}\.{handler.__name__}, \S*{module}\.py:{handler.__code__.co_firstlineno}\)"
    assert re.search(place, text), text
    assert app.routes == []


def test_messages_with_a_field_that_msgspec_cannot_resolve_are_refused_with_their_place() -> None:
    async def handler(ws: WebSocket) -> None: ...

    generic: Any = WebSocket
    handler.__annotations__["ws"] = generic[stringified.unknown_field()]
    with pytest.raises(SignatureError) as caught:
        App().websocket("/")(handler)
    text = str(caught.value)
    assert text.startswith("parameter 'ws' declares messages that cannot be decoded (test_signature.")
    assert "Inner" in text


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (None, "a handler is an async function, got None"),
        ("name", "a handler is an async function, got 'name'"),
        (Callee, "a handler is an async function, got the class Callee (test_signature.Callee"),
    ],
)
def test_what_is_no_function_at_all_is_refused(handler: Any, text: str) -> None:
    with pytest.raises(SignatureError) as caught:
        App().websocket("/")(handler)
    assert str(caught.value).startswith(text)


def test_a_stream_over_http_is_refused() -> None:
    with pytest.raises(SignatureError, match=r"a handler of HTTP cannot be a generator \(test_signature\.generator, "):
        App().get("/<room>")(generator)


def test_a_sync_handler_is_refused_over_http_and_as_object_too() -> None:
    class Sync:
        def __call__(self, ws: WebSocket) -> None: ...

    with pytest.raises(SignatureError, match=r"a handler must be async, got a plain function \(.*synchronous, "):
        App().get("/")(synchronous)
    with pytest.raises(SignatureError, match=r"a handler must be async, got a plain function \(.*Sync, .*py:\d+\)"):
        App().websocket("/")(Sync())
    with pytest.raises(SignatureError, match="a handler must be async, got a plain function"):
        App().websocket("/")(lambda ws: ws.accept())


def test_a_refused_handler_of_a_router_is_told_when_the_router_is_included() -> None:
    router = Router()
    router.websocket("/ok/<room>")(plain)
    router.websocket("/bad")(with_args)
    app = App()
    with pytest.raises(RegistrationError) as caught:
        app.include_router(router)
    text = str(caught.value)
    assert re.search(rf"\(test_signature\.with_args, \S*py:{with_args.__code__.co_firstlineno}\)", text), text


def test_a_types_own_error_tells_how_many_messages_a_socket_declares() -> None:
    three_types: Any = (int, str, bytes)
    with pytest.raises(TypeError, match=r"WebSocket\[In, Out\] takes two types, got 3"):
        WebSocket[three_types]
