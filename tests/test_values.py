"""Values of query, path, headers and cookies: what they are converted to, what is refused, and with which words."""

import copy
import datetime as dt
import decimal
import enum
import json
import math
import urllib.parse
import uuid
from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, Optional, TypeVar

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct
from typing_extensions import TypeAliasType

from asgiws import App, Cookie, Header, Path, Query, Request, SignatureError, WebSocket
from tests.fakes import FakeServer, converse, request

pytestmark = pytest.mark.anyio

NOTHING: Any = object()
"""No default."""


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Picky(enum.Enum):
    ONLY = "only"

    @classmethod
    def _missing_(cls, value: object) -> "Picky":
        raise RuntimeError(f"no {value}")


def handler_of(annotation: Any, default: Any = NOTHING) -> tuple[Any, list[Any]]:
    """A handler with one parameter, `value`, of this annotation; and the list of the values that it got."""
    seen: list[Any] = []

    async def handler(ws: WebSocket, value: Any = None) -> None:
        seen.append(value)
        await ws.accept()

    handler.__annotations__["value"] = annotation
    handler.__defaults__ = None if default is NOTHING else (default,)
    return handler, seen


async def outcome(
    annotation: Any,
    *,
    default: Any = NOTHING,
    query: str = "",
    headers: Any = (),
    template: str = "/",
    path: str = "/",
) -> Any:
    """The value that a handler gets; or, as a str in a list, the reason why the handshake was refused."""
    handler, seen = handler_of(annotation, default)
    app = App()
    app.websocket(template)(handler)
    server = await converse(app, FakeServer(path=path, query=query, headers=headers), leave=-1)
    if server.status == 101:
        assert len(seen) == 1
        return seen[0]
    assert seen == []
    assert server.closed is not None
    code, reason = server.closed
    assert code == 1008
    return [reason]


def refused(annotation: Any, default: Any = NOTHING, template: str = "/") -> str:
    """The error with which a handler with a parameter of this annotation is refused."""
    handler, _ = handler_of(annotation, default)
    with pytest.raises(SignatureError) as caught:
        App().websocket(template)(handler)
    return str(caught.value)


def same(found: Any, wanted: Any) -> bool:
    """Equal and of one type; NaN is NaN."""
    if isinstance(wanted, float) and math.isnan(wanted):
        return isinstance(found, float) and math.isnan(found)
    return type(found) is type(wanted) and found == wanted


# What values become

UTC = dt.UTC
ONE = uuid.UUID(int=1)


@pytest.mark.parametrize(
    ("annotation", "text", "wanted"),
    [
        (str, "ann", "ann"),
        (str, "", ""),
        (str, "5", "5"),
        (str, "%00%0A", "\0\n"),
        (Any, "5", "5"),
        (int, "5", 5),
        (int, "-5", -5),
        (int, "0", 0),
        (int, "99999999999999999999", 99999999999999999999),
        (float, "1.5", 1.5),
        (float, "3", 3.0),
        (float, "-1e3", -1000.0),
        (float, "nan", math.nan),
        (bool, "true", True),
        (bool, "false", False),
        (bool, "1", True),
        (bool, "0", False),
        (Colour, "red", Colour.RED),
        (Level, "2", Level.HIGH),
        (Literal["a", "b"], "b", "b"),
        (Literal[1, 2], "2", 2),
        (Literal["a", 1], "1", 1),
        (uuid.UUID, str(ONE), ONE),
        (uuid.UUID, ONE.hex, ONE),
        (dt.datetime, "2024-02-29T12:00:00Z", dt.datetime(2024, 2, 29, 12, tzinfo=UTC)),
        (dt.datetime, "2024-02-29T12:00:00", dt.datetime(2024, 2, 29, 12)),  # noqa: DTZ001
        (dt.date, "2024-02-29", dt.date(2024, 2, 29)),
        (dt.time, "12:30:00", dt.time(12, 30)),
        (dt.timedelta, "PT90S", dt.timedelta(seconds=90)),
        (decimal.Decimal, "1.10", decimal.Decimal("1.10")),
        (int | None, "5", 5),
        (Optional[int], "5", 5),  # noqa: UP045
        (str | None, "null", "null"),
        (str | None, "", ""),
        (Colour | None, "blue", Colour.BLUE),
        (int | str, "x", "x"),
        (float | int, "2", 2),
    ],
)
async def test_a_query_value_becomes_its_annotation(annotation: Any, text: str, wanted: Any) -> None:
    assert same(await outcome(annotation, query=f"value={text}"), wanted)


@pytest.mark.parametrize(
    ("annotation", "query", "wanted"),
    [
        (list[int], "value=1&value=2&value=1", [1, 2, 1]),
        (list[int], "value=1", [1]),
        (list[str], "value=a,b&value=", ["a,b", ""]),
        (list[Colour], "value=red&value=blue", [Colour.RED, Colour.BLUE]),
        (list[Literal[1, 2]], "value=1", [1]),
        (list[int] | None, "value=1", [1]),
        (set[int], "value=1&value=2&value=1", {1, 2}),
        (frozenset[str], "value=a", frozenset({"a"})),
        (tuple[int, ...], "value=2&value=1", (2, 1)),
        (Sequence[int], "value=1&value=2", [1, 2]),
        (list, "value=1&value=2", ["1", "2"]),
        (list[int | None], "value=1", [1]),
    ],
)
async def test_repeated_keys_become_a_collection(annotation: Any, query: str, wanted: Any) -> None:
    assert same(await outcome(annotation, query=query), wanted)


async def test_a_single_value_is_the_last_of_repeated_keys() -> None:
    assert await outcome(int, query="value=1&value=2") == 2


@pytest.mark.parametrize("place", [Header(), Cookie(), Path(), Query()], ids=["header", "cookie", "path", "query"])
@pytest.mark.parametrize(
    ("annotation", "text", "wanted"),
    [
        (int, "7", 7),
        (Colour, "red", Colour.RED),
        (uuid.UUID, str(ONE), ONE),
        (Literal[1, 7], "7", 7),
        (bool | None, "true", True),
        (decimal.Decimal, "7.0", decimal.Decimal("7.0")),
    ],
)
async def test_every_place_converts_alike(place: Any, annotation: Any, text: str, wanted: Any) -> None:
    marked = Annotated[annotation, place]
    headers = {"value": text, "cookie": f"value={text}"}
    found = await outcome(marked, query=f"value={text}", headers=headers, template="/<value>", path=f"/{text}")
    assert same(found, wanted)


@pytest.mark.parametrize(
    ("converter", "segment", "annotation", "wanted"),
    [
        ("int", "5", int, 5),
        ("int", "5", float, 5.0),
        ("int", "5", decimal.Decimal, decimal.Decimal(5)),
        ("int", "5", int | None, 5),
        ("int", "2", Level, Level.HIGH),
        ("int", "2", Literal[1, 2], 2),
        ("int", "5", Any, 5),
        ("float", "1.5", float, 1.5),
        ("uuid", str(ONE), uuid.UUID, ONE),
        ("str", "5", int, 5),
        ("str", "blue", Colour, Colour.BLUE),
        ("str", "2024-02-29", dt.date, dt.date(2024, 2, 29)),
        ("path", "a/b/c", str, "a/b/c"),
        ("path", "5", int, 5),
    ],
)
async def test_a_path_value_goes_through_its_converter_and_its_annotation(
    converter: str, segment: str, annotation: Any, wanted: Any
) -> None:
    assert same(await outcome(annotation, template=f"/<value:{converter}>", path=f"/{segment}"), wanted)


async def test_a_named_alias_is_what_it_stands_for() -> None:
    positive: Any = TypeAliasType("positive", Annotated[int, Query(alias="n", ge=1)])
    assert await outcome(positive, query="n=1") == 1
    assert await outcome(positive, query="n=0") == ["query 'n': expected `int` >= 1"]


@given(st.integers(-(2**63), 2**64 - 1))
async def test_every_whole_number_of_64_bits_goes_through_a_query(number: int) -> None:
    assert await outcome(int, query=f"value={number}") == number


# What is refused

HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("annotation", "text", "problem"),
    [
        (int, "x", "expected `int`"),
        (int, "", "expected `int`"),
        (int, "%205", "expected `int`"),
        (int, "1_000", "expected `int`"),
        (int, "%D9%A3", "expected `int`"),
        (int, "1.5", "expected `int`"),
        (int, HUGE, "integer value out of range"),
        (float, "x", "expected `float`"),
        (float, "1e999", "number out of range"),
        (bool, "yes", "expected `bool`"),
        (bool, "2", "expected `bool`"),
        (Colour, "green", "expected one of 'red', 'blue'"),
        (Colour, "RED", "expected one of 'red', 'blue'"),
        (Level, "3", "expected one of 1, 2"),
        (Level, "x", "expected `int`"),
        (Picky, "x", "expected one of 'only'"),
        (Literal["a", "b"], "c", "expected one of 'a', 'b'"),
        (Literal[1, 2], "3", "expected one of 1, 2"),
        (uuid.UUID, "x", "invalid UUID"),
        (dt.datetime, "2024-02-30T00:00:00Z", "invalid RFC3339 encoded datetime"),
        (dt.datetime, "9999-12-31T23:59:59.9999999Z", "invalid RFC3339 encoded datetime"),
        (dt.date, "tomorrow", "invalid RFC3339 encoded date"),
        (dt.timedelta, "P9999999999999D", "duration is out of range"),
        (decimal.Decimal, "1,5", "invalid decimal string"),
        (decimal.Decimal, "1e9999999999999999999", "invalid decimal string"),
        (int | None, "", "expected `int | null`"),
        (Colour | None, "green", "expected one of 'red', 'blue'"),
        (list[int], "x", "expected `int` at $[0]"),
        (list[Colour], "green", "expected one of 'red', 'blue' at $[0]"),
        (Annotated[int, Meta(ge=1)], "0", "expected `int` >= 1"),
        (Annotated[str, Meta(min_length=2)], "x", "expected `str` of length >= 2"),
        (Annotated[str, Meta(pattern="^a+$")], "b", "expected `str` matching regex '^a+$'"),
    ],
)
async def test_a_value_that_is_not_of_its_type_closes_with_1008(annotation: Any, text: str, problem: str) -> None:
    assert await outcome(annotation, query=f"value={text}") == [f"query 'value': {problem}"]


@pytest.mark.parametrize(
    ("annotation", "place"),
    [
        (str, "query"),
        (int | None, "query"),
        (list[int], "query"),
        (Annotated[str, Header()], "header"),
        (Annotated[str, Cookie()], "cookie"),
        (Annotated[str, Query(...)], "query"),
        (Annotated[list[str], Header()], "header"),
        (Annotated[list[str], Cookie()], "cookie"),
    ],
)
async def test_a_value_that_is_missing_is_told_with_its_place(annotation: Any, place: str) -> None:
    assert await outcome(annotation) == [f"{place} 'value': is missing"]


async def test_a_wrong_path_value_is_told_as_one_of_the_path() -> None:
    assert await outcome(int, template="/<value>", path="/x") == ["path 'value': expected `int`"]


SECRET = "s3cret-token"


@pytest.mark.parametrize(
    "annotation",
    [
        int, float, bool, Colour, Level, Picky, Literal["a"], Literal[1], uuid.UUID, dt.datetime, dt.date,
        dt.time, dt.timedelta, decimal.Decimal, int | None, list[int], list[Colour], set[uuid.UUID],
        Annotated[str, Meta(max_length=3)], Annotated[str, Meta(pattern="^x$")],
        Annotated[list[str], Meta(min_length=2)],
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("place", [Query(), Header(), Cookie()], ids=["query", "header", "cookie"])
async def test_no_value_stands_in_the_text_of_its_error(annotation: Any, place: Any) -> None:
    found = await outcome(
        Annotated[annotation, place],
        query=f"value={SECRET}",
        headers={"value": SECRET, "cookie": f"value={SECRET}"},
    )
    assert isinstance(found, list)
    assert SECRET not in found[0]


# Defaults


@pytest.mark.parametrize(
    ("annotation", "default", "wanted"),
    [
        (int, 5, 5),
        (int | None, None, None),
        (int, None, None),
        (str, "", ""),
        (list[int], [], []),
        (list[int] | None, None, None),
        (tuple[int, ...], (), ()),
        (Colour, Colour.RED, Colour.RED),
        (int, Query(5), 5),
        (int | None, Query(None), None),
        (int, Query(default=5), 5),
        (Annotated[int, Query()], 5, 5),
        (Annotated[int, Query(5)], NOTHING, 5),
        (Annotated[int, Query(ge=1)], 0, 0),
        (list[int], Query(default_factory=lambda: [1]), [1]),
        (Annotated[list[int], Query(default_factory=lambda: [1])], NOTHING, [1]),
        (str, Header("none"), "none"),
        (str | None, Cookie(None), None),
        (Annotated[str, Header()], "none", "none"),
    ],
)
async def test_a_default_stands_in_for_what_the_client_does_not_send(
    annotation: Any, default: Any, wanted: Any
) -> None:
    assert same(await outcome(annotation, default=default), wanted)


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (int, 5),
        (int, Query(5)),
        (Annotated[int, Query()], 5),
        (int, Query(...)),
        (int, Query(..., description="how many", title="Count")),
        (Annotated[int, Query(..., description="how many")], NOTHING),
        (int, Query(default_factory=lambda: 5)),
    ],
)
async def test_a_value_that_is_sent_beats_the_default(annotation: Any, default: Any) -> None:
    assert await outcome(annotation, default=default, query="value=7") == 7
    assert await outcome(annotation, default=default, query="value=x") == ["query 'value': expected `int`"]


@pytest.mark.parametrize("marker", [Query(...), Query(), Query(..., description="how many"), Query(ge=1)])
async def test_an_ellipsis_or_no_default_means_required(marker: Any) -> None:
    assert await outcome(int, default=marker) == ["query 'value': is missing"]
    assert await outcome(Annotated[int, marker]) == ["query 'value': is missing"]


async def test_a_parameter_without_annotation_is_text() -> None:
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(ws: WebSocket, lang="en", *, page=Query(1)) -> None:  # type: ignore[no-untyped-def]  # noqa: B008
        seen.append((lang, page))
        await ws.accept()

    await converse(app, FakeServer(), leave=-1)
    await converse(app, FakeServer(query="lang=fr&page=2"), leave=-1)
    assert seen == [("en", 1), ("fr", "2")]


class Options(Struct):
    tags: list[str] = []


@pytest.mark.parametrize("default", [[1], {1}, [[1]]], ids=repr)
async def test_no_two_connections_share_a_mutable_default(default: Any) -> None:
    # S23
    handler, seen = handler_of(Annotated[Any, Query()], default)
    app = App()
    app.websocket("/")(handler)
    for _ in range(2):
        await converse(app, FakeServer(), leave=-1)
    before = copy.deepcopy(default)
    _spoil(seen[0])
    assert seen[1] == before
    assert default == before


def _spoil(value: Any) -> None:
    """Change a value in its depth."""
    if isinstance(value, set):
        value.add(2)
    else:
        (value[0] if isinstance(value[0], list) else value).append(2)


async def test_no_two_requests_share_a_struct_as_default() -> None:
    # S23
    app = App()

    @app.post("/")
    async def handler(options: Options = Options()) -> list[str]:  # noqa: B008
        options.tags.append("x")
        return options.tags

    answers = [(await request(app, "POST", "/")).body for _ in range(2)]
    assert answers == [b'["x"]', b'["x"]']


# Markers


@pytest.mark.parametrize(
    ("annotation", "default"),
    [
        (Annotated[int, Query(alias="page-no")], NOTHING),
        (Annotated[int, Query(alias="page-no")], 3),
        (int, Query(alias="page-no")),
        (int, Query(3, alias="page-no")),
    ],
)
async def test_an_alias_is_the_name_that_the_client_sends(annotation: Any, default: Any) -> None:
    assert await outcome(annotation, default=default, query="page-no=7&value=8") == 7
    assert await outcome(annotation, default=default, query="page-no=x") == ["query 'page-no': expected `int`"]


@pytest.mark.parametrize(
    ("name", "marker"),
    [
        ("x-trace-id", Header(alias="x-trace-id")),
        ("X-Trace-Id", Header(alias="x-trace-id")),
        ("x-trace-id", Header(alias="X-Trace-Id")),
        ("x_trace", Header(alias="x_trace")),
    ],
)
async def test_a_headers_alias_is_taken_as_it_is_but_for_its_case(name: str, marker: Any) -> None:
    assert await outcome(Annotated[str, marker], headers=[(name.encode(), b"7")]) == "7"


async def test_the_name_of_a_header_has_hyphens_for_underscores() -> None:
    app = App()
    seen: list[Any] = []

    @app.websocket("/")
    async def handler(
        ws: WebSocket,
        user_agent: Annotated[str, Header()],
        x_raw_name: Annotated[str, Header(convert_underscores=False)] = "none",
        *,
        user_name: Annotated[str, Cookie()] = "none",
        page_no: Annotated[str, Query()] = "none",
    ) -> None:
        seen.append((user_agent, x_raw_name, user_name, page_no))
        await ws.accept()

    headers = {"user-agent": "test", "x-raw-name": "hyphens", "cookie": "user_name=ann; user-name=bob"}
    await converse(app, FakeServer(headers=headers, query="page_no=1&page-no=2"), leave=-1)
    await converse(app, FakeServer(headers={"User-Agent": "test", "x_raw_name": "raw"}), leave=-1)
    assert seen == [("test", "none", "ann", "1"), ("test", "raw", "none", "none")]


async def test_a_header_that_comes_twice_is_a_list_or_its_first_line() -> None:
    lines = [("value", "1"), ("VALUE", "2")]
    assert await outcome(Annotated[list[int], Header()], headers=lines) == [1, 2]
    assert await outcome(Annotated[int, Header()], headers=lines) == 1


async def test_a_cookie_comes_from_any_of_the_header_lines() -> None:
    lines = [("cookie", "a=1"), ("cookie", 'value="7"; b=2')]
    assert await outcome(Annotated[int, Cookie()], headers=lines) == 7
    assert await outcome(Annotated[list[int], Cookie()], headers=lines) == [7]


@pytest.mark.parametrize(
    ("annotation", "marker", "good", "bad", "problem"),
    [
        (int, {"ge": 1}, "1", "0", "expected `int` >= 1"),
        (int, {"gt": 1}, "2", "1", "expected `int` >= 2"),
        (int, {"le": 5}, "5", "6", "expected `int` <= 5"),
        (int, {"lt": 5}, "4", "5", "expected `int` <= 4"),
        (float, {"gt": 0, "lt": 1}, "0.5", "1", "expected `float` < 1.0"),
        (int, {"multiple_of": 5}, "10", "11", "expected `int` that's a multiple of 5"),
        (str, {"min_length": 2}, "ab", "a", "expected `str` of length >= 2"),
        (str, {"max_length": 2}, "ab", "abc", "expected `str` of length <= 2"),
        (str, {"pattern": "^[a-z]+$"}, "ab", "A", "expected `str` matching regex '^[a-z]+$'"),
        (Any, {}, "x", None, ""),
    ],
)
async def test_a_marker_takes_the_constraints_of_msgspec(
    annotation: Any, marker: dict[str, Any], good: str, bad: str | None, problem: str
) -> None:
    forms: list[tuple[Any, Any]] = [
        (Annotated[annotation, Query(**marker)], NOTHING),
        (annotation, Query(**marker)),
        (Annotated[annotation | None, Query(**marker)], None),
        (annotation | None, Query(None, **marker)),
        (Optional[annotation], Query(None, **marker)),  # noqa: UP045
        (Annotated[annotation | None, Query(**marker)], NOTHING),
    ]
    for form, default in forms:
        found = await outcome(form, default=default, query=f"value={good}")
        assert str(found) == good
        if bad is not None:
            (reason,) = await outcome(form, default=default, query=f"value={bad}")
            assert reason == f"query 'value': {problem}"
    assert await outcome(annotation | None, default=Query(None, **marker)) is None


async def test_constraints_on_a_collection_are_for_its_length() -> None:
    few = Annotated[list[int], Query(min_length=2, max_length=3)]
    assert await outcome(few, query="value=1&value=2") == [1, 2]
    assert await outcome(few, query="value=1") == ["query 'value': expected `array` of length >= 2"]
    each = list[Annotated[int, Meta(ge=1)]]
    assert await outcome(each, query="value=1&value=0") == ["query 'value': expected `int` >= 1 at $[1]"]


async def test_the_markers_and_the_metas_constraints_both_hold() -> None:
    both = Annotated[int, Meta(le=5), Query(ge=1)]
    assert await outcome(both, query="value=3") == 3
    assert await outcome(both, query="value=0") == ["query 'value': expected `int` >= 1"]
    assert await outcome(both, query="value=6") == ["query 'value': expected `int` <= 5"]


async def test_constraints_hold_for_values_of_the_path_too() -> None:
    positive = Annotated[int, Path(ge=1)]
    assert await outcome(positive, template="/<value:int>", path="/1") == 1
    assert await outcome(positive, template="/<value:int>", path="/0") == ["path 'value': expected `int` >= 1"]


async def test_a_constraint_without_an_annotation_is_one_on_text() -> None:
    app = App()
    seen: list[str] = []

    @app.websocket("/")
    async def handler(ws: WebSocket, name=Query(min_length=2)) -> None:  # type: ignore[no-untyped-def]  # noqa: B008
        seen.append(name)
        await ws.accept()

    assert (await converse(app, FakeServer(query="name=ann"), leave=-1)).status == 101
    server = await converse(app, FakeServer(query="name=a"), leave=-1)
    assert server.closed == (1008, "query 'name': expected `str` of length >= 2")
    assert seen == ["ann"]


@pytest.mark.parametrize(
    "annotation",
    [
        Annotated[str, Query(ge=1)],
        Annotated[int, Query(min_length=1)],
        Annotated[list[int], Query(ge=1)],
        Annotated[Literal["a"], Query(pattern="a")],
        Annotated[int | str | None, Query(ge=1)],
        Annotated[int, Query(ge="one")],
        Annotated[str, Query(min_length=-1)],
        Annotated[str, Query(pattern="(")],
    ],
    ids=[
        "ge-str",
        "min_length-int",
        "ge-list",
        "pattern-literal",
        "ge-union",
        "ge-text",
        "min_length-1",
        "bad-pattern",
    ],
)
def test_constraints_that_do_not_fit_are_refused_at_registration(annotation: Any) -> None:
    text = refused(annotation)
    assert text.startswith("the constraints of parameter 'value' do not fit its type (test_values.handler_of.handler, ")


def test_an_unknown_option_of_a_marker_is_refused_at_once() -> None:
    with pytest.raises(TypeError, match=r"Query\(\) has no option 'minimum'\. Known: .*alias.*ge.*"):
        Query(minimum=1)


# A Struct that takes the whole query string


class Filters(Struct, rename="camel"):
    page_no: int = 1
    tags: list[str] = []
    colour: Colour | None = None
    q: Annotated[str, Meta(max_length=5)] = ""


class Strict(Struct, forbid_unknown_fields=True):
    a: int
    b: int = msgspec.field(name="bee", default=2)


class Range(Struct):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low must not be above high")


class Made(Struct, kw_only=True):
    at: list[int] = msgspec.field(default_factory=lambda: [1])
    name: str


T = TypeVar("T")


class Box(Struct, Generic[T], forbid_unknown_fields=True):
    item: T


@pytest.mark.parametrize(
    ("cls", "query", "wanted"),
    [
        (Filters, "", Filters()),
        (Filters, "pageNo=2&tags=a&tags=b&colour=red&q=x", Filters(2, ["a", "b"], Colour.RED, "x")),
        (Filters, "page_no=2&other=3", Filters()),
        (Strict, "a=1", Strict(1)),
        (Strict, "a=1&bee=3", Strict(1, 3)),
        (Range, "low=1&high=2", Range(1, 2)),
        (Made, "name=x", Made(name="x")),
        (Made, "name=x&at=2&at=3", Made(name="x", at=[2, 3])),
        (Box[int], "item=1", Box(1)),
    ],
)
async def test_a_struct_with_query_takes_the_whole_query_string(cls: Any, query: str, wanted: Any) -> None:
    assert same(await outcome(Annotated[cls, Query()], query=query), wanted)
    assert same(await outcome(cls, default=Query(), query=query), wanted)


@pytest.mark.parametrize(
    ("cls", "query", "problem"),
    [
        (Filters, "pageNo=x", "query 'pageNo': expected `int`"),
        (Filters, "q=abcdef", "query 'q': expected `str` of length <= 5"),
        (Filters, "colour=green", "query 'colour': expected one of 'red', 'blue'"),
        (
            Filters,
            "pageNo=x&colour=green",
            "query 'pageNo': expected `int`; query 'colour': expected one of 'red', 'blue'",
        ),
        (Strict, "", "query 'a': is missing"),
        (Strict, "a=1&b=2", "query 'b': is unknown"),
        (Strict, "a=x&c=1&d=2", "query 'a': expected `int`; query 'c': is unknown; query 'd': is unknown"),
        (Range, "low=2&high=1", "query: low must not be above high"),
        (Range, "low=x", "query 'low': expected `int`; query 'high': is missing"),
        (Box[int], "item=x", "query 'item': expected `int`"),
        (Box[int], "item=1&other=2", "query 'other': is unknown"),
    ],
)
async def test_every_wrong_field_of_a_struct_is_told(cls: Any, query: str, problem: str) -> None:
    assert await outcome(Annotated[cls, Query()], query=query) == [problem]


async def test_no_two_connections_share_the_default_of_a_field() -> None:
    # S23
    handler, seen = handler_of(Annotated[Made, Query()])
    app = App()
    app.websocket("/")(handler)
    for _ in range(2):
        await converse(app, FakeServer(query="name=x"), leave=-1)
    seen[0].at.append(2)
    assert seen[1].at == [1]


async def test_a_struct_beside_other_parameters_does_not_take_their_place() -> None:
    app = App()
    seen: list[Any] = []

    @app.websocket("/<room>")
    async def handler(ws: WebSocket, room: str, filters: Annotated[Filters, Query()], q: str = "none") -> None:
        seen.append((room, filters, q))
        await ws.accept()

    await converse(app, FakeServer(path="/lobby", query="pageNo=2&q=x"), leave=-1)
    assert seen == [("lobby", Filters(page_no=2, q="x"), "x")]


class Nested(Struct):
    inner: Filters


class Mapped(Struct):
    table: dict[str, int]


class Unknown:
    pass


class Item(Struct):
    a: int


class Other(Struct):
    b: int


@pytest.mark.parametrize(
    ("annotation", "start", "hint"),
    [
        (dict[str, int], "parameter 'value' of type dict cannot be made from text", "or a list of these"),
        (Unknown, "parameter 'value' of type Unknown cannot be made from text", "or a list of these"),
        (bytes, "parameter 'value' of type bytes cannot be made from text", "or a list of these"),
        (tuple[int, str], "parameter 'value' of type tuple cannot be made from text", "or a list of these"),
        (list[list[int]], "parameter 'value' of type list cannot be made from text", "or a list of these"),
        (list[Item], "parameter 'value' of type list cannot be made from text", "or a list of these"),
        (int | list[int], "parameter 'value' of type int | list[int] cannot be made from text", "or a list of these"),
        (Item, "parameter 'value' is a Struct, but nothing here has a body", "Annotated[Item, Query()]"),
        (Item | Other, "parameter 'value' has a type that msgspec refuses", "must be tagged"),
        (Annotated[Nested, Query()], "parameter 'inner' of type Filters cannot be made from a query", "or a list"),
        (Annotated[Mapped, Query()], "parameter 'table' of type dict cannot be made from text", "or a list of these"),
        (Annotated[Item, Header()], "parameter 'value' of type Item cannot be made from a header", "Query()"),
        (Annotated[Item, Cookie()], "parameter 'value' of type Item cannot be made from a cookie", "Query()"),
    ],
)
def test_a_type_that_no_text_makes_is_refused_at_registration(annotation: Any, start: str, hint: str) -> None:
    text = refused(annotation)
    assert text.startswith(f"{start} (test_values.handler_of.handler, ")
    assert "test_values.py:" in text
    assert hint in text


@pytest.mark.parametrize(
    ("converter", "annotation", "gives"),
    [
        ("int", str, "int"),
        ("int", bool, "int"),
        ("int", dt.datetime, "int"),
        ("int", uuid.UUID, "int"),
        ("float", int, "float"),
        ("float", str, "float"),
        ("uuid", str, "UUID"),
        ("uuid", int, "UUID"),
        ("int", Annotated[str, Meta(min_length=1)], "int"),
        ("int", Annotated[str, Path()], "int"),
    ],
)
def test_an_annotation_that_the_converter_never_gives_is_refused(converter: str, annotation: Any, gives: str) -> None:
    text = refused(annotation, template=f"/<value:{converter}>")
    assert text.startswith("parameter 'value' is annotated ")
    assert f"but its converter in the path gives {gives} (test_values.handler_of.handler, " in text
    assert text.endswith(f"Annotate it with {gives}, or use another converter.")


@pytest.mark.parametrize("converter", ["str", "int", "uuid", "path"])
@pytest.mark.parametrize(
    "annotation", [list[int], Item, Unknown, Item | Other], ids=["list", "Struct", "class", "union"]
)
def test_no_path_value_becomes_a_collection_or_an_object(converter: str, annotation: Any) -> None:
    assert "parameter 'value'" in refused(annotation, template=f"/<value:{converter}>")


@pytest.mark.parametrize("default", [3, None, Path(3), Path(None)])
def test_a_path_value_has_no_default(default: Any) -> None:
    text = refused(int, default, template="/<value:int>")
    assert text.startswith("parameter 'value' comes from the path and cannot have a default (")


# The same over HTTP


async def test_over_http_the_same_values_come_and_the_same_problems_are_listed() -> None:
    app = App()

    @app.get("/<kind>")
    async def handler(
        asked: Request, kind: Colour, page: Annotated[int, Query(ge=1)] = 1, x_id: int = Header(0)
    ) -> dict[str, Any]:
        return {"kind": kind, "page": page, "id": x_id}

    answer = await request(app, "GET", "/red", query="page=2", headers={"x-id": "7"})
    assert (answer.status, json.loads(answer.body)) == (200, {"kind": "red", "page": 2, "id": 7})
    answer = await request(app, "GET", "/green", query="page=0", headers={"x-id": "x"})
    assert answer.status == 422
    assert json.loads(answer.body) == {
        "detail": [
            {"loc": ["path", "kind"], "msg": "expected one of 'red', 'blue'"},
            {"loc": ["query", "page"], "msg": "expected `int` >= 1"},
            {"loc": ["header", "x-id"], "msg": "expected `int`"},
        ]
    }


# What a stranger may send

SCALARS: list[Any] = [
    str, int, float, bool, Colour, Level, Picky, Literal["a", 1], uuid.UUID, dt.datetime, dt.date, dt.time,
    dt.timedelta, decimal.Decimal, int | None, str | None, Annotated[int, Meta(ge=1)],
    Annotated[str, Meta(pattern="^(a|b)+$")],
]  # fmt: skip
COLLECTIONS: list[Any] = [list[int], set[decimal.Decimal], tuple[dt.datetime, ...], list[Colour] | None]


def _app_with_everything() -> App:
    """An app with a handler at `/place/number` for each place and each type."""
    app = App()
    for number, annotation in enumerate([*SCALARS, *COLLECTIONS]):
        for marker in (Query(), Header(), Cookie()):
            app.websocket(f"/{marker.place}/{number}")(handler_of(Annotated[annotation, marker])[0])
    for number, annotation in enumerate(SCALARS):
        app.websocket(f"/path/{number}/<value:path>")(handler_of(annotation)[0])
    return app


APP_WITH_EVERYTHING = _app_with_everything()

_texts = st.one_of(
    st.text(),
    st.integers().map(str),
    st.floats().map(repr),
    st.decimals().map(str),
    st.datetimes().map(dt.datetime.isoformat),
    st.timedeltas().map(str),
    st.from_regex(r"[+-]?[0-9]{1,30}([.][0-9]*)?([eE][+-]?[0-9]{1,25})?", fullmatch=True),
    st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,12})?)?Z?", fullmatch=True),
    st.from_regex(r"-?P[0-9]{1,20}[DWMY]?(T[0-9]{1,20}[HMS])?", fullmatch=True),
)


@settings(max_examples=80)
@given(
    text=_texts,
    place=st.sampled_from(["query", "header", "cookie", "path"]),
    number=st.integers(0, len(SCALARS) - 1) | st.integers(0, len(SCALARS + COLLECTIONS) - 1),
)
async def test_no_text_is_more_than_refused_whatever_it_must_become(text: str, place: str, number: int) -> None:
    assume(place != "path" or number < len(SCALARS))
    raw = text.encode("utf-8", "surrogatepass")
    query = f"value={urllib.parse.quote(raw)}" if place == "query" else ""
    headers = [(b"value", raw)] if place == "header" else [(b"cookie", b"value=" + raw)] if place == "cookie" else []
    path = f"/{place}/{number}" + (f"/{text}" if place == "path" else "")
    server = FakeServer(query=query, headers=headers)
    server.scope["path"] = path
    await converse(APP_WITH_EVERYTHING, server, leave=-1)
    assert server.status == 101 or (server.closed is not None and server.closed[0] == 1008)
