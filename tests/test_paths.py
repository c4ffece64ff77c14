"""Path templates, converters, and the tree: against its contract by example, and against a naive matcher at random."""

import enum
import math
import sys
import types
import urllib.parse
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from asgiws import RouteError
from asgiws.converters import CONVERTERS, FLOAT, PATH, STR, Converter
from asgiws.paths import PathTree, Template, parse_template

UUID = uuid.UUID("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0")

KNOWN = "Known: float, int, path, str, uuid."
IDENTIFIER = "It must be a Python identifier, as it is passed to the handler by name."
PAIRS = "Write '<name>' or '<name:converter>'."
WHOLE = "Write '/{}/' and take the text apart in the handler, or register a converter for the whole of it.".format
LAST = "takes the rest of the path and so must be the last. Use 'str' for one segment."
NO_SLASH = "expected text that is not empty and has no slash (use the converter 'path' for slashes)"

unicode_texts = st.text(min_size=1, max_size=20)
"""All that UTF-8 can express."""


def short(value: Any) -> str:
    """A test's id: some values are too long for one."""
    return f"{type(value).__name__} of {value.bit_length()} bits" if isinstance(value, int) else ascii(value)[:40]


def convert(name: str, text: str) -> Any:
    return CONVERTERS[name].convert(text)


# Converters


def test_every_router_knows_five_converters() -> None:
    assert sorted(CONVERTERS) == ["float", "int", "path", "str", "uuid"]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("str", "x", "x"),
        ("str", " ", " "),
        ("str", "..", ".."),
        ("str", "caf\u00e9 \U0001f600", "caf\u00e9 \U0001f600"),
        ("path", "", ""),
        ("path", "a", "a"),
        ("path", "a//b/", "a//b/"),
        ("int", "0", 0),
        ("int", "-0", 0),
        ("int", "007", 7),
        ("int", "-42", -42),
        ("int", "9" * 4300, 10**4300 - 1),
        ("int", "-" + "9" * 4300, 1 - 10**4300),
        ("float", "3", 3.0),
        ("float", "-0.25", -0.25),
        ("float", "00.50", 0.5),
        ("float", "-0", -0.0),
        ("float", "1" + "0" * 308, 1e308),
        ("float", "0." + "0" * 400 + "1", 0.0),
        ("uuid", str(UUID), UUID),
        ("uuid", str(UUID).upper(), UUID),
        ("uuid", UUID.hex, UUID),
        ("uuid", "0F1e2D3c-4B5a-6978-8796-A5b4C3d2E1f0", UUID),
    ],
    ids=short,
)
def test_a_converter_takes_what_is_its_own(name: str, text: str, value: Any) -> None:
    found = convert(name, text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("str", ""),
        *(
            ("int", text)
            for text in (
                "", "-", "--1", "+1", " 1", "1 ", "1\n", "1_000", "1.0", "1e3", "0x10", "x",
                "\u0661", "\uff11", "\u00b2", "\u2212\u0031",  # digits and a minus of other scripts
                "9" * 4301, "9" * 5000, "-" + "9" * 5000,
            )
        ),
        *(
            ("float", text)
            for text in (
                "", "-", ".", "1.", ".5", "+1", "1e3", "1E3", "1e-3", "nan", "NaN", "inf", "-inf", "infinity",
                " 1", "1\n", "1_0", "1,5", "0x1p3", "\u0661", "1.\u0661", "1.2.3", "9" * 309, "9" * 5000,
            )
        ),
        *(
            ("uuid", text)
            for text in (
                "", "x", str(UUID)[:-1], str(UUID) + "0", f"{{{UUID}}}", f"urn:uuid:{UUID}", f" {UUID}", f"{UUID}\n",
                str(UUID).replace("-", "_"), str(UUID)[:8] + str(UUID)[9:], "0f1e-2d3c4b5a69788796a5b4c3d2e1f0",
                "g" * 32, "\uff10" * 32,
            )
        ),
    ],
    ids=short,
)  # fmt: skip
def test_a_converter_declines_what_is_not(name: str, text: str) -> None:
    with pytest.raises(ValueError):
        convert(name, text)


@given(st.text(st.characters(), max_size=40) | st.text("-+.0123456789abcdefx_ \n\u0661\uff11{}", max_size=40))
def test_a_converter_gives_a_value_or_declines_and_nothing_else(text: str) -> None:
    for converter in CONVERTERS.values():
        try:
            value = converter.convert(text)
        except ValueError:
            continue
        assert isinstance(value, converter.produces)
        assert not (isinstance(value, float) and math.isnan(value))


VALUES = {
    "str": st.text(st.characters(exclude_characters="/"), min_size=1),
    "path": st.text(st.characters()),
    "int": st.integers() | st.integers(0, 4299).map(lambda n: 10**n),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "uuid": st.uuids(),
}


@pytest.mark.parametrize("name", VALUES)
@given(data=st.data())
def test_a_value_written_and_read_is_the_same(name: str, data: st.DataObject) -> None:
    value = data.draw(VALUES[name])
    converter = CONVERTERS[name]
    found = converter.convert(converter.to_string(value))
    assert found == value
    assert type(found) is type(value)
    assert repr(found) == repr(value) or isinstance(value, int), "-0.0 is not 0.0"


@pytest.mark.parametrize("value", [5e-324, 1.7976931348623157e308, 1e22, 1e-7, -0.0, 0.1 + 0.2, 3], ids=repr)
def test_a_float_is_written_without_an_exponent(value: float) -> None:
    text = FLOAT.to_string(value)
    assert set(text) <= set("-.0123456789")
    assert FLOAT.convert(text) == value


class Whole(enum.IntEnum):
    TWO = 2


class Celsius(float):
    def __repr__(self) -> str:
        return f"{float(self)} C"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [("int", Whole.TWO, "2"), ("float", Whole.TWO, "2"), ("float", Celsius(21.5), "21.5")],
    ids=short,
)
def test_a_number_of_a_subclass_is_written_as_the_number(name: str, value: Any, text: str) -> None:
    assert CONVERTERS[name].to_string(value) == text


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        *(("str", value, NO_SLASH) for value in ("", "a/b", "/", 5, None, b"x")),
        *(("path", value, "expected text") for value in (5, None, b"x")),
        *(("int", value, "expected an int") for value in ("5", 5.0, True, None)),
        *(
            ("float", value, "expected a finite float")
            for value in ("5", True, None, math.nan, math.inf, -math.inf, 1j, 10**400)
        ),
        *(("uuid", value, "expected a UUID") for value in (str(UUID), UUID.bytes, None)),
    ],
    ids=short,
)
def test_a_value_that_is_not_of_the_converter_has_no_text(name: str, value: Any, problem: str) -> None:
    with pytest.raises(ValueError) as caught:
        CONVERTERS[name].to_string(value)
    assert str(caught.value) == problem


def test_a_number_too_long_to_be_read_has_no_text() -> None:
    with pytest.raises(ValueError):
        CONVERTERS["int"].to_string(10**5000)


def test_a_converter_of_ones_own_must_convert() -> None:
    with pytest.raises(NotImplementedError):
        Converter[Any]().convert("x")
    assert Converter[Any]().to_string(5) == "5"


class Slug(Converter[str]):
    regex = "[a-z]+(-[a-z]+)*"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def convert(self, value: str) -> str:
        self.asked.append(value)
        return value


def test_a_regex_must_match_the_whole_segment_before_convert_is_asked() -> None:
    slug = Slug()
    template = parse_template("/<x:slug>", {**CONVERTERS, "slug": slug})
    tree = PathTree[int]()
    tree.add("websocket", template, 1)
    for path in ("/", "/A", "/a-", "/a b", "/a\n", "/ab1", "/5"):
        assert template.match(path) is None
        assert tree.match("websocket", path) is None
    assert slug.asked == []
    assert template.match("/a-b") == {"x": "a-b"}
    assert tree.match("websocket", "/a-b") == (1, {"x": "a-b"})
    assert slug.asked == ["a-b"] * 2


# Templates


@pytest.mark.parametrize(
    ("angle", "segments", "names"),
    [
        ("/", ("",), ()),
        ("/rooms", ("rooms",), ()),
        ("/rooms/", ("rooms", ""), ()),
        ("//", ("", ""), ()),
        ("/<room>", (STR,), ("room",)),
        ("/<room:str>", (STR,), ("room",)),
        ("/rooms/<room>/<count:int>", ("rooms", STR, CONVERTERS["int"]), ("room", "count")),
        ("/<a:float>/x/<b:uuid>/", (FLOAT, "x", CONVERTERS["uuid"], ""), ("a", "b")),
        ("/files/<rest:path>", ("files", PATH), ("rest",)),
        ("/<caf\u00e9>", (STR,), ("caf\u00e9",)),
        ("/<int>/<_>/<match>", (STR, STR, STR), ("int", "_", "match")),
    ],
)
def test_braces_are_equal_to_angle_brackets(angle: str, segments: tuple[Any, ...], names: tuple[str, ...]) -> None:
    for text in (angle, angle.replace("<", "{").replace(">", "}")):
        template = parse_template(text)
        assert template.text == text
        assert template.segments == segments
        assert template.names == names
        assert template.converters() == dict(
            zip(names, [one for one in segments if not isinstance(one, str)], strict=True)
        )


@pytest.mark.parametrize(
    ("text", "error"),
    [
        # an unknown converter
        ("/rooms/<id:itn>", f"unknown converter 'itn' in '/rooms/<id:itn>'. {KNOWN} Did you mean 'int'?"),
        ("/{id:UUID}", f"unknown converter 'UUID' in '/{{id:UUID}}'. {KNOWN}"),
        ("/<id:floot>", f"unknown converter 'floot' in '/<id:floot>'. {KNOWN} Did you mean 'float'?"),
        ("/<id:zzz>", f"unknown converter 'zzz' in '/<id:zzz>'. {KNOWN}"),
        ("/<id:>", f"unknown converter '' in '/<id:>'. {KNOWN}"),
        ("/<id: int>", f"unknown converter ' int' in '/<id: int>'. {KNOWN} Did you mean 'int'?"),
        ("/<id:int:x>", f"unknown converter 'int:x' in '/<id:int:x>'. {KNOWN} Did you mean 'int'?"),
        # name and converter the other way round
        ("/<int:id>", f"unknown converter 'id' in '/<int:id>'. {KNOWN} Did you mean '<id:int>'?"),
        ("/a/<path:rest>", f"unknown converter 'rest' in '/a/<path:rest>'. {KNOWN} Did you mean '<rest:path>'?"),
        ("/<int:i d>", f"unknown converter 'i d' in '/<int:i d>'. {KNOWN}"),
        # names
        ("/<>", f"'' in '/<>' is no name for a parameter. {IDENTIFIER}"),
        ("/<:int>", f"'' in '/<:int>' is no name for a parameter. {IDENTIFIER}"),
        ("/<a-b>", f"'a-b' in '/<a-b>' is no name for a parameter. {IDENTIFIER}"),
        ("/< a>", f"' a' in '/< a>' is no name for a parameter. {IDENTIFIER}"),
        ("/<1a:int>", f"'1a' in '/<1a:int>' is no name for a parameter. {IDENTIFIER}"),
        ("/<class>", f"'class' in '/<class>' is no name for a parameter. {IDENTIFIER}"),
        ("/<None>", f"'None' in '/<None>' is no name for a parameter. {IDENTIFIER}"),
        ("/<a>/x/<a:int>", "the parameter 'a' stands twice in '/<a>/x/<a:int>'. Give each its own name."),
        ("/<a>/{a}", "the parameter 'a' stands twice in '/<a>/{a}'. Give each its own name."),
        # brackets
        ("/<a", f"the brackets of '<a' in '/<a' do not pair. {PAIRS}"),
        ("/a>", f"the brackets of 'a>' in '/a>' do not pair. {PAIRS}"),
        ("/<a}", f"the brackets of '<a}}' in '/<a}}' do not pair. {PAIRS}"),
        ("/x/{a>/y", f"the brackets of '{{a>' in '/x/{{a>/y' do not pair. {PAIRS}"),
        ("/><", f"the brackets of '><' in '/><' do not pair. {PAIRS}"),
        ("/<a/b>", f"the brackets of '<a' in '/<a/b>' do not pair. {PAIRS}"),
        *(
            (
                f"/{part}",
                f"the parameter {found!r} in {'/' + part!r} must fill its whole segment, got {part!r}. {WHOLE(found)}",
            )
            for part, found in [
                ("a<b>", "<b>"), ("<b>a", "<b>"), ("<a>-<b>", "<a>"), ("<b:int>.json", "<b:int>"), ("<<b>>", "<b>"),
                ("{b}<", "{b}"), ("<{b}>", "{b}"),
            ]
        ),
        # the rest of the path
        *(
            (text, f"the parameter 'rest' in {text!r} {LAST}")
            for text in ("/<rest:path>/x", "/<rest:path>/", "/{rest:path}/<id>")
        ),
        # the first character
        ("", "a path starts with '/', got ''. Write '/'."),
        ("rooms", "a path starts with '/', got 'rooms'. Write '/rooms'."),
        ("<room>", "a path starts with '/', got '<room>'. Write '/<room>'."),
        ("http://x/y", "a path starts with '/', got 'http://x/y'. Write '/http://x/y'."),
    ],
)  # fmt: skip
def test_a_template_that_cannot_work_is_refused_with_what_would(text: str, error: str) -> None:
    with pytest.raises(RouteError) as caught:
        parse_template(text)
    assert str(caught.value) == error


def test_an_unknown_converter_is_told_the_routers_own_too() -> None:
    with pytest.raises(RouteError) as caught:
        parse_template("/<x:slag>", {"slug": Slug(), "str": STR})
    assert str(caught.value) == "unknown converter 'slag' in '/<x:slag>'. Known: slug, str. Did you mean 'slug'?"


@given(st.text("/<>{}:aint 1\u00e9", max_size=12) | st.text(st.characters(), max_size=20))
def test_any_text_is_a_template_or_a_route_error(text: str) -> None:
    for candidate in (text, "/" + text):
        try:
            template = parse_template(candidate)
        except RouteError:
            continue
        assert len(template.names) == len(set(template.names))
        assert len(template.segments) == candidate.count("/")


def test_a_template_below_a_prefix_has_the_parameters_of_both() -> None:
    template = parse_template("/x/<b:int>").under(parse_template("/<a>"))
    assert (template.text, template.names) == ("/<a>/x/<b:int>", ("a", "b"))
    assert template.match("/r/x/5") == {"a": "r", "b": 5}


def test_a_template_below_a_prefix_with_the_same_parameter_is_refused() -> None:
    with pytest.raises(RouteError) as caught:
        parse_template("/x/<a:int>").under(parse_template("/{a}"))
    assert str(caught.value) == "the parameter 'a' stands twice in '/{a}/x/<a:int>'. Give each its own name."


@pytest.mark.parametrize(("prefix", "text"), [("/<rest:path>", "/x"), ("/a/{rest:path}", "/<b>")])
def test_nothing_comes_below_the_rest_of_the_path(prefix: str, text: str) -> None:
    with pytest.raises(RouteError) as caught:
        parse_template(text).under(parse_template(prefix))
    assert str(caught.value) == f"the parameter 'rest' in {prefix!r} {LAST}"


def test_a_template_shows_its_text() -> None:
    assert repr(parse_template("/<a>/b")) == "Template('/<a>/b')"


@pytest.mark.parametrize(
    ("text", "path", "params"),
    [
        ("/", "/", {}),
        ("/", "//", None),
        ("/", "", None),
        ("/a", "/a", {}),
        ("/a", "/a/", None),
        ("/a", "/A", None),
        ("/a/", "/a/", {}),
        ("/a/", "/a", None),
        ("/<x>", "/a", {"x": "a"}),
        ("/<x>", "/", None),
        ("/<x>", "/a/b", None),
        ("/<x>/b", "//b", None),
        ("/<x:int>", "/5", {"x": 5}),
        ("/<x:int>", "/a", None),
        ("/<x:path>", "/", {"x": ""}),
        ("/<x:path>", "/a/b/", {"x": "a/b/"}),
        ("/a/<x:path>", "/a/", {"x": ""}),
        ("/a/<x:path>", "/a", None),
        ("/a/<x:path>", "/a//", {"x": "/"}),
        ("/<a:int>/<x:path>", "/1/b/c", {"a": 1, "x": "b/c"}),
    ],
)
def test_a_template_matches_alone_as_in_the_tree(text: str, path: str, params: dict[str, Any] | None) -> None:
    template = parse_template(text)
    tree = PathTree[str]()
    tree.add("websocket", template, "it")
    assert template.match(path) == params
    assert tree.match("websocket", path) == (None if params is None else ("it", params))


# Building a path


def decoded(url: str) -> str:
    """The path of a URL as a server gives it to an application."""
    return urllib.parse.unquote(url, errors="strict")


@pytest.mark.parametrize(
    ("text", "params", "path"),
    [
        ("/", {}, "/"),
        ("/rooms/", {}, "/rooms/"),
        ("/rooms/<room>", {"room": "42"}, "/rooms/42"),
        ("/{a:int}/{b:float}", {"b": 0.5, "a": -1}, "/-1/0.5"),
        ("/<u:uuid>", {"u": UUID}, f"/{UUID}"),
        ("/<x>", {"x": "a b?c#d%e&f=g+h:i@j;k"}, "/a%20b%3Fc%23d%25e%26f%3Dg%2Bh%3Ai%40j%3Bk"),
        ("/<x>", {"x": "caf\u00e9"}, "/caf%C3%A9"),
        ("/<x>", {"x": "\U0001f600"}, "/%F0%9F%98%80"),
        ("/caf\u00e9 x/<y>", {"y": "z"}, "/caf%C3%A9%20x/z"),
        ("/f/<x:path>", {"x": "a/b c/?"}, "/f/a/b%20c/%3F"),
        ("/f/<x:path>", {"x": ""}, "/f/"),
    ],
)
def test_a_path_is_built_percent_encoded(text: str, params: dict[str, Any], path: str) -> None:
    assert parse_template(text).build(params) == path


@pytest.mark.parametrize(
    ("params", "error"),
    [
        ({}, "the parameters of '/<a>/<n:int>' are a, n; got none"),
        ({"a": "x"}, "the parameters of '/<a>/<n:int>' are a, n; got a"),
        ({"a": "x", "n": 1, "b": 2}, "the parameters of '/<a>/<n:int>' are a, n; got a, n, b"),
        ({"a": "x", "n": "1"}, "n='1' does not fit into '/<a>/<n:int>': expected an int"),
        (
            {"a": "x/y", "n": 1},
            f"a='x/y' does not fit into '/<a>/<n:int>': {NO_SLASH}",
        ),
    ],
)
def test_parameters_that_do_not_fit_are_refused_by_name(params: dict[str, Any], error: str) -> None:
    with pytest.raises(RouteError) as caught:
        parse_template("/<a>/<n:int>").build(params)
    assert str(caught.value) == error


def test_a_template_without_parameters_takes_none() -> None:
    with pytest.raises(RouteError) as caught:
        parse_template("/a").build({"x": 1})
    assert str(caught.value) == "the parameters of '/a' are none; got x"


@pytest.mark.parametrize(
    ("kind", "value"), [("str", "\ud800"), ("path", "a/\udfff"), ("float", 10**400), ("int", 10**5000)], ids=short
)
def test_a_value_without_a_text_is_always_a_route_error(kind: str, value: Any) -> None:
    with pytest.raises(RouteError, match="does not fit into"):
        parse_template(f"/<x:{kind}>").build({"x": value})


PARTS: dict[str, st.SearchStrategy[Any]] = {
    "str": st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=8),
    "int": st.integers(),
    "float": st.floats(allow_nan=False, allow_infinity=False),
    "uuid": st.uuids(),
}


@given(
    static=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/<>{}"), max_size=8)),
    kinds=st.lists(st.sampled_from(list(PARTS)), max_size=3),
    rest=st.none() | st.text(max_size=12),
    data=st.data(),
)
def test_building_and_matching_are_inverse(static: list[str], kinds: list[str], rest: str | None, data: Any) -> None:
    segments = [*static, *(f"<p{at}:{kind}>" for at, kind in enumerate(kinds))]
    values = {f"p{at}": data.draw(PARTS[kind]) for at, kind in enumerate(kinds)}
    if rest is not None:
        segments.append("<rest:path>")
        values["rest"] = rest
    template = parse_template("/" + "/".join(segments))
    url = template.build(values)
    assert url.isascii()
    assert not set(url) & set("?# ")
    assert template.match(decoded(url)) == values
    tree = PathTree[int]()
    tree.add("GET", template, 1)
    assert tree.match("GET", decoded(url)) == (1, values)


# The tree


def tree_of(*texts: str, mounts: tuple[str, ...] = (), kind: str = "websocket") -> PathTree[str]:
    tree = PathTree[str]()
    for text in texts:
        assert tree.add(kind, parse_template(text), text) is None
    for text in mounts:
        assert tree.add_mount(parse_template(text), f"mount {text}") is None
    return tree


def match(tree: PathTree[str], path: str, kind: str = "websocket") -> tuple[str, Any]:
    return tree.match(kind, path) or ("nothing", {})


LEVEL = ("/x/<rest:path>", "/x/<name>", "/x/<f:float>", "/x/<n:int>", "/x/<u:uuid>", "/x/7")
"""One template for every rank, the last rank first."""


@pytest.mark.parametrize(
    ("path", "found", "params"),
    [
        ("/x/7", "/x/7", {}),
        ("/x/8", "/x/<n:int>", {"n": 8}),
        ("/x/8.5", "/x/<f:float>", {"f": 8.5}),
        (f"/x/{UUID}", "/x/<u:uuid>", {"u": UUID}),
        ("/x/8a", "/x/<name>", {"name": "8a"}),
        ("/x/8/", "/x/<rest:path>", {"rest": "8/"}),
        ("/x/", "/x/<rest:path>", {"rest": ""}),
        ("/x", "mount /x", {}),
        ("/y", "nothing", {}),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_static_beats_typed_beats_str_beats_path_beats_mount(path: str, found: str, params: Any, order: int) -> None:
    assert match(tree_of(*LEVEL[::order], mounts=("/x",)), path) == (found, params)


class Small(Converter[int]):
    """Takes less than `int` does, of the same segments."""

    def convert(self, value: str) -> int:
        if len(value) > 1:
            raise ValueError("too long")
        return int(value)


@pytest.mark.parametrize(("first", "second"), [("int", "small"), ("small", "int")])
def test_typed_converters_are_tried_in_the_order_of_their_registration(first: str, second: str) -> None:
    converters = {**CONVERTERS, "small": Small()}
    tree = PathTree[str]()
    for name in ("float", first, second):
        tree.add("websocket", parse_template(f"/<x:{name}>", converters), name)
    assert match(tree, "/5") == (first, {"x": 5})
    assert match(tree, "/55") == ("int", {"x": 55})


@pytest.mark.parametrize(
    ("texts", "path", "found", "params"),
    [
        # a static branch that ends nowhere
        (("/a/b", "/<x>/c"), "/a/c", "/<x>/c", {"x": "a"}),
        # a typed branch that ends nowhere, at two levels; its values are forgotten
        (("/<n:int>/<m:int>/x", "/<n:int>/<s>/y", "/<s>/<t>/z"), "/1/2/y", "/<n:int>/<s>/y", {"n": 1, "s": "2"}),
        (("/<n:int>/<m:int>/x", "/<n:int>/<s>/y", "/<s>/<t>/z"), "/1/2/z", "/<s>/<t>/z", {"s": "1", "t": "2"}),
        (("/<n:int>/<m:int>/x", "/<n:int>/<s>/y", "/<s>/<t>/z"), "/1/2/w", "nothing", {}),
        # a branch of str, then the rest
        (("/<s>/x", "/<rest:path>"), "/a/y", "/<rest:path>", {"rest": "a/y"}),
        (("/a/<s>/x", "/a/<rest:path>", "/<rest:path>"), "/a/b/y", "/a/<rest:path>", {"rest": "b/y"}),
        (("/a/<n:int>", "/<rest:path>"), "/a/b", "/<rest:path>", {"rest": "a/b"}),
        # the earlier level decides
        (("/<s>/b", "/a/<s>"), "/a/b", "/a/<s>", {"s": "b"}),
        (("/<n:int>/<rest:path>", "/<s>/b"), "/1/b", "/<n:int>/<rest:path>", {"n": 1, "rest": "b"}),
        # trailing slashes and empty segments
        (("/a/", "/<s>"), "/a", "/<s>", {"s": "a"}),
        (("/a", "/<s>/"), "/a/", "/<s>/", {"s": "a"}),
        (("/a//b", "/a/<s>/b"), "/a//b", "/a//b", {}),
        (("/a/<s>/b",), "/a//b", "nothing", {}),
    ],
)
def test_a_branch_that_ends_nowhere_means_try_the_next(
    texts: tuple[str, ...], path: str, found: str, params: dict[str, Any]
) -> None:
    assert match(tree_of(*texts), path) == (found, params)
    assert match(tree_of(*reversed(texts)), path) == (found, params)


@pytest.mark.parametrize(
    ("mounts", "path", "found", "params"),
    [
        (("/",), "/", "mount /", {}),
        (("/",), "/a/b", "mount /", {}),
        (("/a",), "/a", "mount /a", {}),
        (("/a",), "/a/", "mount /a", {}),
        (("/a",), "/a/b/c", "mount /a", {}),
        (("/a",), "/ab", "nothing", {}),
        (("/a/",), "/a/b", "mount /a/", {}),
        (("/", "/a", "/a/b"), "/a/b/c", "mount /a/b", {}),
        (("/", "/a", "/a/b"), "/a/c", "mount /a", {}),
        (("/", "/a", "/a/b"), "/c", "mount /", {}),
        (("/<n:int>/x", "/<s>"), "/1/x/y", "mount /<n:int>/x", {"n": 1}),
        (("/<n:int>/x", "/<s>"), "/1/y", "mount /<s>", {"s": "1"}),
        (("/<s>",), "/", "nothing", {}),
    ],
)
def test_a_mount_takes_its_path_and_all_below(mounts: tuple[str, ...], path: str, found: str, params: Any) -> None:
    assert match(tree_of(mounts=mounts), path) == (found, params)
    assert match(tree_of(mounts=mounts), path, "GET") == (found, params)


@pytest.mark.parametrize(
    ("path", "found"),
    [("/a", "/a"), ("/a/b", "/a/<s>"), ("/a/b/c", "/a/<s>/<rest:path>"), ("/a/", "mount /a"), ("/b/c", "mount /")],
)
def test_routes_at_and_below_a_mount_come_first(path: str, found: str) -> None:
    tree = tree_of("/a", "/a/<s>", "/a/<s>/<rest:path>", mounts=("/", "/a"))
    assert match(tree, path)[0] == found


def test_a_kind_without_a_value_is_passed_over_like_one_that_does_not_match() -> None:
    tree = PathTree[str]()
    tree.add("websocket", parse_template("/a/b"), "ws")
    tree.add("GET", parse_template("/a/<s>"), "get")
    tree.add("websocket", parse_template("/<rest:path>"), "ws rest")
    tree.add("POST", parse_template("/a/b"), "post")
    assert match(tree, "/a/b") == ("ws", {})
    assert match(tree, "/a/b", "GET") == ("get", {"s": "b"})
    assert match(tree, "/a/b", "POST") == ("post", {})
    assert match(tree, "/a/c") == ("ws rest", {"rest": "a/c"})
    assert match(tree, "/a/c", "POST") == ("nothing", {})
    assert match(tree, "/a/b", "PUT") == ("nothing", {})
    assert tree.kinds("/a/b") == {"websocket", "GET", "POST"}
    assert tree.kinds("/a/c") == {"websocket", "GET"}
    assert tree.kinds("/") == {"websocket"}
    assert PathTree[str]().kinds("/") == set()


@pytest.mark.parametrize(
    ("one", "other", "path"),
    [
        ("/", "/", "/"),
        ("/a", "/a", "/a"),
        ("/<x>", "/{y}", "/v"),
        ("/<x>", "/<y:str>", "/v"),
        ("/a/<x:int>/b", "/a/<y:int>/b", "/a/5/b"),
        ("/<x:path>", "/<y:path>", "/v/w"),
        ("/a/<x:path>", "/a/{y:path}", "/a/"),
    ],
)
def test_two_templates_that_can_never_be_told_apart_are_reported(one: str, other: str, path: str) -> None:
    tree = tree_of(one)
    assert tree.add("websocket", parse_template(other), "second") == one
    assert match(tree, path)[0] == one
    assert tree.add("GET", parse_template(other), "of another kind") is None


@pytest.mark.parametrize("text", ["/", "/a", "/<x:int>/<y>", "/a/<rest:path>"])
def test_the_tree_tells_what_stands_under_a_template(text: str) -> None:
    tree = PathTree[str]()
    template = parse_template(text)
    assert tree.standing("GET", template) is None
    tree.add("GET", template, "first")
    tree.add("POST", template, "second")
    assert [tree.standing(kind, template) for kind in ("GET", "POST", "PUT")] == ["first", "second", None]
    assert tree.kinds(template.build({name: 5 if name == "x" else "v" for name in template.names})) == {"GET", "POST"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("/a", "/a/"),
        ("/<x>", "/<x:path>"),
        ("/<x>", "/<x:int>"),
        ("/<x:int>", "/<x:float>"),
        ("/a/<x:path>", "/a"),
        ("/<x:path>", "/"),
        ("/a", "/A"),
    ],
)
def test_templates_that_some_path_tells_apart_live_together(one: str, other: str) -> None:
    assert tree_of(one).add("websocket", parse_template(other), "second") is None


@pytest.mark.parametrize("path", ["a", "x/a", "*", "http://host/a"])
def test_a_path_that_does_not_start_with_a_slash_matches_nothing(path: str) -> None:
    texts = ("/", "/a", "/<x>", "/<x:path>")
    assert match(tree_of(*texts, mounts=("/",)), path) == ("nothing", {})
    assert [parse_template(text).match(path) for text in texts] == [None] * 4


def test_one_value_under_one_template_twice_is_no_conflict() -> None:
    tree = tree_of("/a")
    assert tree.add("websocket", parse_template("/a"), "/a") is None


@pytest.mark.parametrize(("one", "other"), [("/", "/"), ("/a", "/a/"), ("/a/", "/a"), ("/<x>", "/{y}")])
def test_two_mounts_at_one_path_are_reported(one: str, other: str) -> None:
    tree = tree_of(mounts=(one,))
    assert tree.add_mount(parse_template(other), "second") == f"mount {one}"


def test_a_converter_that_fails_otherwise_is_not_taken_for_one_that_declines() -> None:
    class Broken(Converter[Any]):
        def convert(self, value: str) -> Any:
            raise KeyError(value)

    template = parse_template("/<x:broken>", {"broken": Broken()})
    tree = PathTree[int]()
    tree.add("websocket", template, 1)
    with pytest.raises(KeyError):
        tree.match("websocket", "/a")
    with pytest.raises(KeyError):
        template.match("/a")


# The tree against a matcher that tries every route


class Letter(Converter[str]):
    def __init__(self, regex: str) -> None:
        self.regex = regex

    def convert(self, value: str) -> str:
        return value.upper()


OWN = {**CONVERTERS, "ab": Letter("[ab]"), "bc": Letter("[bc]"), "small": Small()}
STATIC = ("a", "1", "")
SEGMENTS = (*STATIC, "<:str>", "<:int>", "<:float>", "<:float>", "<:uuid>", "<:ab>", "<:bc>", "<:small>")
KINDS = ("websocket", "GET", "mount")


@st.composite
def templates(draw: st.DrawFn) -> tuple[str, Template]:
    """A kind and a template over few segments, so that templates often meet at a node."""
    kind = draw(st.sampled_from(KINDS))
    segments = draw(st.lists(st.sampled_from(SEGMENTS), min_size=1, max_size=3))
    if kind != "mount" and draw(st.booleans()) and draw(st.booleans()):
        segments[-1] = "<:path>"
    while kind == "mount" and segments and segments[-1] == "":  # belongs to what lies below
        segments.pop()
    named = "".join("/" + segment.replace("<", f"<p{at}") for at, segment in enumerate(segments))
    return kind, parse_template(named, OWN) if named else Template("", (), ())


paths = st.lists(st.sampled_from((*STATIC, "b", "c", "12", "1.5", UUID.hex)), min_size=1, max_size=4).map(
    lambda segments: "/" + "/".join(segments)
)


def naive_match(routes: list[tuple[str, Template]], kind: str, path: str) -> tuple[int, dict[str, Any]] | None:
    """Ask every route alone, and choose the best of those that match by the stated precedence, level by level."""
    found = []
    for at, (own, template) in enumerate(routes):
        if own == kind:
            params = template.match(path)
        elif own == "mount":
            params = _mount_params(template, path)
        else:
            continue
        if params is not None:
            found.append((_rank(routes, template, mount=own == "mount"), at, params))
    if not found:
        return None
    _, at, params = min(found, key=lambda one: one[:2])
    return at, params


def _mount_params(template: Template, path: str) -> dict[str, Any] | None:
    """The parameters of the mount's part of the path."""
    return template.match("/".join(path.split("/")[: len(template.segments) + 1]))


def _rank(routes: list[tuple[str, Template]], template: Template, *, mount: bool) -> list[tuple[int, ...]]:
    """Static, typed (in the order of registration at this place, float last), str, path, mount: one rank a level."""
    ranks: list[tuple[int, ...]] = []
    for level, segment in enumerate(template.segments):
        if isinstance(segment, str):
            ranks.append((0,))
        elif segment is STR:
            ranks.append((2,))
        elif segment is PATH:
            ranks.append((3,))
        else:
            here = template.segments[: level + 1]
            first = next(at for at, (_, other) in enumerate(routes) if other.segments[: level + 1] == here)
            ranks.append((1, segment is FLOAT, first))
    return [*ranks, (4,)] if mount else [*ranks, (-1,)]


@settings(max_examples=250)
@given(st.lists(templates(), max_size=15), st.lists(paths, min_size=1, max_size=8))
@example([("mount", Template("", (), ())), ("GET", parse_template("/<a>"))], ["/", "/a", "//"])
def test_the_tree_finds_what_asking_every_route_finds(routes: list[tuple[str, Template]], asked: list[str]) -> None:
    tree = PathTree[int]()
    for at, (kind, template) in enumerate(routes):
        taken = tree.add_mount(template, at) if kind == "mount" else tree.add(kind, template, at)
        same = [
            other
            for other, (other_kind, other_template) in enumerate(routes[:at])
            if other_kind == kind and other_template.segments == template.segments
        ]
        assert taken == (same[0] if same else None)
    for path in asked:
        matching = set()
        for kind in ("websocket", "GET"):
            wanted = naive_match(routes, kind, path)
            assert tree.match(kind, path) == wanted
            if wanted is not None:
                matching.add(kind)
        assert tree.kinds(path) == matching & {kind for kind, _ in routes}


@given(st.lists(templates(), max_size=12), st.text(st.characters(), max_size=20) | st.text("/ab1", max_size=200))
def test_no_path_is_too_odd_for_the_tree(routes: list[tuple[str, Template]], rest: str) -> None:
    tree = PathTree[int]()
    for at, (kind, template) in enumerate(routes):
        if kind == "mount":
            tree.add_mount(template, at)
        else:
            tree.add(kind, template, at)
    assert tree.match("GET", "/" + rest) == naive_match(routes, "GET", "/" + rest)


# The cost of a match


def calls(function: Callable[[], Any]) -> int:
    """How many calls of Python and C functions one call of a function makes."""
    counted = 0

    def count(_frame: types.FrameType, event: str, _arg: Any) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(before)
    return counted


def test_the_cost_of_a_match_does_not_grow_with_the_number_of_routes() -> None:
    def tree(size: int) -> PathTree[str]:
        own = [
            text
            for number in range(size)
            for text in (
                f"/r{number}/<room>/<count:int>",
                f"/v1/r{number}",
                f"/v1/<n:int>/r{number}",
                f"/<s>/<t>/r{number}",
            )
        ]
        return tree_of(*own, mounts=tuple(f"/m{number}" for number in range(size)))

    few, many = tree(3), tree(1000)
    for path in ("/r2/lobby/5", "/v1/r2", "/v1/7/r2", "/x/y/r2", "/m2/a/b", "/r2/lobby/x", "/none", "/v1/7/none", "/"):
        assert match(few, path) == match(many, path)
        costs = [calls(lambda tree=one, path=path: tree.match("websocket", path)) for one in (few, many)]  # type: ignore[misc]
        assert 0 < costs[0] == costs[1], path


def test_a_converter_is_asked_once_for_one_segment_however_many_routes_use_it() -> None:
    slug = Slug()
    tree = PathTree[int]()
    for number in range(1000):
        tree.add("websocket", parse_template(f"/<x:slug>/r{number}", {"slug": slug}), number)
    assert tree.match("websocket", "/abc/r999") == (999, {"x": "abc"})
    assert slug.asked == ["abc"]


def test_a_very_long_path_costs_no_recursion() -> None:
    tree = tree_of("/a", "/<s>/<t>", "/b/<rest:path>")
    assert match(tree, "/" * 100_000) == ("nothing", {})
    rest = "/".join("x" * 100_000)
    assert match(tree, "/b/" + rest) == ("/b/<rest:path>", {"rest": rest})


# What values come out of a tree are the callers' own


def test_each_match_gives_parameters_of_its_own() -> None:
    tree = tree_of("/<x>")
    first = match(tree, "/a")[1]
    first["x"] = "changed"
    assert match(tree, "/a") == ("/<x>", {"x": "a"})


@given(unicode_texts, unicode_texts)
def test_static_segments_are_compared_as_they_are(one: str, other: str) -> None:
    assume(not set(one + other) & set("/<>{}"))
    tree = tree_of(f"/{one}")
    assert (match(tree, f"/{other}")[0] == f"/{one}") is (one == other)
