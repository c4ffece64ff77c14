"""The markers Path, Query, Header, Cookie, Body and Depends: what each of them notes down."""

import typing
from collections.abc import Callable
from typing import Annotated, Any

import pytest

from asgiws import Body, Cookie, Depends, Header, Path, Query
from asgiws.params import CONNECTION, HANDSHAKE, MESSAGE, REQUIRED, SCOPES, SINGLETON, Marker

MARKERS: tuple[tuple[Callable[..., Any], str], ...] = (
    (Path, "path"),
    (Query, "query"),
    (Header, "header"),
    (Cookie, "cookie"),
    (Body, "body"),
)
CONSTRAINTS = {
    "gt": 1, "ge": 2, "lt": 9, "le": 8, "multiple_of": 2, "min_length": 3, "max_length": 7, "pattern": "^x",
}  # fmt: skip

each_marker = pytest.mark.parametrize(("make", "place"), MARKERS, ids=[place for _, place in MARKERS])


@each_marker
def test_a_marker_notes_its_place_and_nothing_else_by_default(make: Callable[..., Any], place: str) -> None:
    marker = make()
    assert isinstance(marker, Marker)
    assert (marker.place, marker.default, marker.default_factory, marker.alias) == (place, REQUIRED, None, None)
    assert (marker.constraints, marker.title, marker.description, marker.convert_underscores) == ({}, None, None, True)


@each_marker
def test_an_ellipsis_is_the_same_as_no_default(make: Callable[..., Any], place: str) -> None:
    assert make(...).default is make().default is REQUIRED


@each_marker
@pytest.mark.parametrize("default", [None, 0, "", False, [], 1.5], ids=repr)
def test_any_other_value_is_a_default(make: Callable[..., Any], place: str, default: Any) -> None:
    assert make(default).default is default
    assert make(default=default).default is default


@each_marker
def test_every_option_is_noted(make: Callable[..., Any], place: str) -> None:
    marker = make(
        alias="x-y", default_factory=list, title="T", description="what it is", convert_underscores=False, **CONSTRAINTS
    )
    assert marker.alias == "x-y"
    assert marker.default_factory is list
    assert (marker.title, marker.description, marker.convert_underscores) == ("T", "what it is", False)
    assert marker.constraints == CONSTRAINTS


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_constraint_of_none_is_none_at_all_but_one_of_zero_is(name: str) -> None:
    assert Query(**{name: None}).constraints == {}
    assert Query(**{name: 0}).constraints == {name: 0}


@each_marker
def test_an_unknown_option_is_refused_with_the_known_ones(make: Callable[..., Any], place: str) -> None:
    with pytest.raises(TypeError) as caught:
        make(minlength=3)
    assert str(caught.value) == (
        f"{place.capitalize()}() has no option 'minlength'. Known: alias, convert_underscores, default_factory, "
        "description, ge, gt, le, lt, max_length, min_length, multiple_of, pattern, title"
    )


def test_an_unknown_option_is_refused_even_if_it_is_none() -> None:
    with pytest.raises(TypeError, match="has no option 'regex'"):
        Query(regex=None)


def test_markers_share_nothing() -> None:
    one, two = Query(), Query()
    one.constraints["ge"] = 1
    assert two.constraints == Query().constraints == {}


def test_a_marker_never_changes() -> None:
    marker = Query()
    with pytest.raises(AttributeError):
        marker.alias = "other"
    assert marker.alias is None


def current_user() -> str:
    return "ann"


def test_depends_notes_its_function_and_whether_it_is_asked_once() -> None:
    assert (Depends().dependency, Depends().use_cache) == (None, True)
    assert Depends(current_user).dependency is current_user
    assert Depends(dependency=current_user, use_cache=False).use_cache is False


def test_depends_says_nothing_of_scope_or_thread_by_default() -> None:
    assert (Depends(current_user).scope, Depends(current_user).thread) == (None, False)
    assert Depends(current_user, scope=None).scope is None


@pytest.mark.parametrize(
    ("scope", "lifetime"),
    [("connection", CONNECTION), ("handshake", HANDSHAKE), ("function", CONNECTION), ("request", CONNECTION)],
)
def test_depends_notes_its_scope_also_by_fastapis_names(scope: str, lifetime: int) -> None:
    assert Depends(current_user, scope=scope).scope == lifetime


def test_there_are_no_other_scopes() -> None:
    assert dict(SCOPES) == {
        "connection": CONNECTION, "handshake": HANDSHAKE, "function": CONNECTION, "request": CONNECTION,
    }  # fmt: skip


def test_lifetimes_are_ordered_from_the_shortest_to_the_longest() -> None:
    assert MESSAGE < HANDSHAKE < CONNECTION < SINGLETON


@pytest.mark.parametrize("scope", ["websocket", "singleton", "message", "Connection", "connection ", "", "handshakes"])
def test_an_unknown_scope_is_refused_with_the_known_ones(scope: str) -> None:
    with pytest.raises(ValueError) as caught:
        Depends(current_user, scope=scope)
    assert str(caught.value) == (
        f"Depends() has no scope {scope!r}. Known: 'connection', 'handshake', 'function', 'request'"
    )


@pytest.mark.parametrize("scope", [0, 1, True, b"connection", ("connection",), CONNECTION])
def test_a_scope_that_is_no_name_is_refused_too(scope: Any) -> None:
    with pytest.raises(ValueError, match="has no scope"):
        Depends(current_user, scope=scope)


def test_depends_notes_that_it_runs_in_a_thread() -> None:
    assert Depends(current_user, thread=True).thread is True
    assert Depends(current_user, thread=False).thread is False


def test_all_but_the_function_is_given_by_name() -> None:
    positional: Any = Depends
    for option in (True, "handshake"):
        with pytest.raises(TypeError):
            positional(current_user, option)


def test_depends_never_changes() -> None:
    depends = Depends(current_user)
    for name in ("dependency", "use_cache", "scope", "thread"):
        before = getattr(depends, name)
        with pytest.raises(AttributeError):
            setattr(depends, name, HANDSHAKE)
        assert getattr(depends, name) is before


def test_a_marker_stands_in_an_annotation_or_as_a_default() -> None:
    def handler(page: Annotated[int, Query(ge=1)], size: int = Query(10, le=100)) -> None: ...

    hints = typing.get_type_hints(handler, include_extras=True)
    (found,) = typing.get_args(hints["page"])[1:]
    assert isinstance(found, Marker)
    assert found.constraints == {"ge": 1}
    assert handler.__defaults__ is not None
    assert handler.__defaults__[0].default == 10
