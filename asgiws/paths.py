"""Path templates, converters, and the tree that matches a path against all of them in one walk.

A template is `/rooms/<room>/messages/<number:int>`; braces mean the same. Each parameter fills one whole segment;
`path` takes the rest of the path, slashes included, and so stands last.

At every level of the tree a static segment beats a typed one (`int`, `float`, `uuid`, your own), which beats `str`,
which beats `path`, which beats a mount. Typed converters at one place are tried in the order of their registration,
`float` last. A converter that declines, or a branch that ends nowhere, means "try the next".
"""

import keyword
import re
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from .converters import CONVERTERS, FLOAT, PATH, STR, Converter, guarded
from .errors import RouteError, did_you_mean, shown

T = TypeVar("T")


WEBSOCKET = "websocket:"
"""The kind of WebSockets in a tree. It is no HTTP method, whatever a client sends: those have no colon."""

Segment = str | Converter[Any]


class Template:
    """A parsed path template.

    Attributes:
        text: As it was written.
        segments: A str for a static segment, a converter for a parameter.
        names: The names of the parameters, in order.
    """

    __slots__ = ("names", "segments", "text")

    def __init__(self, text: str, segments: tuple[Segment, ...], names: tuple[str, ...]) -> None:
        self.text = text
        self.segments = segments
        self.names = names

    def __repr__(self) -> str:
        return f"Template({self.text!r})"

    def under(self, prefix: "Template") -> "Template":
        """The template below a prefix.

        Raises:
            RouteError: Both have a parameter of one name, or the prefix takes the rest of the path.
        """
        if PATH in prefix.segments:
            raise _not_last(prefix.names[-1], prefix.text)
        for name in self.names:
            if name in prefix.names:
                raise RouteError(
                    f"the parameter {name!r} stands twice in {prefix.text + self.text!r}",
                    "Give each its own name.",
                )
        return Template(prefix.text + self.text, prefix.segments + self.segments, prefix.names + self.names)

    def match(self, path: str) -> dict[str, Any] | None:
        """The parameters if this template, asked alone, matches a whole path; else None."""
        first, *parts = path.split("/")
        if first:
            return None
        takes_rest = bool(self.segments) and self.segments[-1] is PATH
        if takes_rest and len(parts) >= len(self.segments):
            last = len(self.segments) - 1
            parts[last:] = ["/".join(parts[last:])]
        if len(parts) != len(self.segments):
            return None
        values = []
        for segment, part in zip(self.segments, parts, strict=True):
            if isinstance(segment, str):
                if segment != part:
                    return None
                continue
            try:
                values.append(guarded(segment)(part))
            except ValueError:
                return None
        return dict(zip(self.names, values, strict=True))

    def converters(self) -> dict[str, Converter[Any]]:
        """Each parameter's converter."""
        found = (segment for segment in self.segments if not isinstance(segment, str))
        return dict(zip(self.names, found, strict=True))

    def build(self, params: Mapping[str, Any]) -> str:
        """The path of these values, percent-encoded.

        Raises:
            RouteError: A parameter is missing, unknown or not of its converter.
        """
        if set(params) != set(self.names):
            wanted = ", ".join(self.names) or "none"
            raise RouteError(f"the parameters of {self.text!r} are {wanted}; got {', '.join(params) or 'none'}")
        from urllib.parse import quote  # noqa: PLC0415 - slow to import

        names = iter(self.names)
        parts = []
        for segment in self.segments:
            if isinstance(segment, str):
                parts.append(quote(segment, safe=""))
                continue
            name = next(names)
            try:
                text = segment.to_string(params[name])
                parts.append(quote(text, safe="/" if segment is PATH else ""))
            except (ValueError, TypeError) as error:
                raise RouteError(f"{name}={shown(params[name])} does not fit into {self.text!r}: {error}") from None
        return "/" + "/".join(parts)


_PARAMETER = r"<([^<>{}/]*)>|\{([^<>{}/]*)\}"


def parse_template(text: str, converters: Mapping[str, Converter[Any]] = CONVERTERS) -> Template:
    """Parse a template.

    Raises:
        RouteError: The template cannot work; the text says what would.
    """
    if not text.startswith("/"):
        raise RouteError(f"a path starts with '/', got {text!r}", f"Write {'/' + text!r}.")
    segments: list[Segment] = []
    names: list[str] = []
    parts = text[1:].split("/")
    for position, part in enumerate(parts):
        if not re.search(r"[<>{}]", part):
            segments.append(part)
            continue
        whole = re.fullmatch(_PARAMETER, part)
        if whole is None:
            raise _odd_segment(part, text)
        name, converter = _parameter(whole[1] if whole[1] is not None else whole[2], text, converters)
        if name in names:
            raise RouteError(f"the parameter {name!r} stands twice in {text!r}", "Give each its own name.")
        if converter is PATH and position != len(parts) - 1:
            raise _not_last(name, text)
        names.append(name)
        segments.append(converter)
    return Template(text, tuple(segments), tuple(names))


def _not_last(name: str, text: str) -> RouteError:
    return RouteError(
        f"the parameter {name!r} in {text!r} takes the rest of the path and so must be the last",
        "Use 'str' for one segment.",
    )


def _odd_segment(part: str, text: str) -> RouteError:
    found = re.search(_PARAMETER, part)
    if found is None:
        return RouteError(f"the brackets of {part!r} in {text!r} do not pair", "Write '<name>' or '<name:converter>'.")
    return RouteError(
        f"the parameter {found[0]!r} in {text!r} must fill its whole segment, got {part!r}",
        f"Write '/{found[0]}/' and take the text apart in the handler, or register a converter for the whole of it.",
    )


def _parameter(inside: str, text: str, converters: Mapping[str, Converter[Any]]) -> tuple[str, Converter[Any]]:
    """The name and converter of `name:converter`."""
    name, colon, kind = inside.partition(":")
    kind = kind if colon else "str"
    if kind not in converters:
        known = ", ".join(sorted(converters))
        swapped = name in converters and kind.isidentifier()
        guess = f" Did you mean '<{kind}:{name}>'?" if swapped else did_you_mean(kind, converters)
        raise RouteError(f"unknown converter {kind!r} in {text!r}", f"Known: {known}.{guess}")
    if not name.isidentifier() or keyword.iskeyword(name):
        raise RouteError(
            f"{name!r} in {text!r} is no name for a parameter",
            "It must be a Python identifier, as it is passed to the handler by name.",
        )
    return name, converters[kind]


Leaf = tuple[T, tuple[str, ...]]
"""A value of the tree and the names of the parameters on the way to it."""


class Node(Generic[T]):
    """One level of the tree: where the next segment may lead.

    What a node lacks is None, not empty: among thousands of routes a look-up waits for memory, not for the processor.

    Attributes:
        here: What ends here, by kind.
        mount: What takes all that lies below.
        rest: What takes the rest of the path as one parameter, by kind.
        static: The nodes behind a segment that stands in a template.
        text: The node behind any segment.
        typed: The nodes behind a segment that a converter takes.
        ways: How many of `static`, each of `typed`, `text`, `rest` and `mount` there are.
    """

    __slots__ = ("here", "mount", "rest", "static", "text", "typed", "ways")

    def __init__(self) -> None:
        self.here: dict[str, Leaf[T]] | None = None
        self.mount: Leaf[T] | None = None
        self.rest: dict[str, Leaf[T]] | None = None
        self.static: dict[str, Node[T]] | None = None
        self.text: Node[T] | None = None
        self.typed: tuple[tuple[Callable[[str], Any], Converter[Any], Node[T]], ...] = ()
        self.ways = 0

    def next(self, segment: Segment) -> "Node[T]":
        """The node behind a segment of a template, made where it is missing."""
        if isinstance(segment, str):
            if self.static is None:
                self.static = {}
                self.ways += 1
            return self.static.setdefault(segment, Node())
        if segment is STR:
            if self.text is None:
                self.text = Node()
                self.ways += 1
            return self.text
        for _, known, child in self.typed:
            if known is segment:
                return child
        child = Node()
        typed = (*self.typed, (guarded(segment), segment, child))
        self.typed = tuple(sorted(typed, key=lambda entry: entry[1] is FLOAT))
        self.ways += 1
        return child


class PathTree(Generic[T]):
    """All templates of a router. A match is one walk down the segments of the path.

    Each value stands under a template and a kind: `WEBSOCKET` or an HTTP method. A template that has no value of the
    kind that is asked for is passed over like one that does not match.
    """

    __slots__ = ("_kinds", "_root")

    def __init__(self) -> None:
        self._root: Node[T] = Node()
        self._kinds: set[str] = set()

    def add(self, kind: str, template: Template, value: T) -> T | None:
        """Put a value under a template, unless one that could never be told apart is there: that is returned."""
        slot = self._slot(template)
        self._kinds.add(kind)
        found = slot.setdefault(kind, (value, template.names))
        return None if found[0] is value else found[0]

    def standing(self, kind: str, template: Template) -> T | None:
        """The value that could never be told apart from one under this template; None if there is none."""
        found = self._slot(template).get(kind)
        return None if found is None else found[0]

    def _slot(self, template: Template) -> dict[str, Leaf[T]]:
        if template.segments and template.segments[-1] is PATH:
            node = self._descend(template.segments[:-1])
            if node.rest is None:
                node.rest = {}
                node.ways += 1
            return node.rest
        node = self._descend(template.segments)
        if node.here is None:
            node.here = {}
        return node.here

    def add_mount(self, template: Template, value: T) -> T | None:
        """Put a value under a template and all that lies below it, for every kind; else as `add`."""
        segments = template.segments[:-1] if template.segments[-1:] == ("",) else template.segments
        node = self._descend(segments)
        if node.mount is not None:
            return node.mount[0]
        node.mount = (value, template.names)
        node.ways += 1
        return None

    def _descend(self, segments: tuple[Segment, ...]) -> Node[T]:
        """The node of these segments, made where it is missing."""
        node = self._root
        for segment in segments:
            node = node.next(segment)
        return node

    def match(self, kind: str, path: str) -> tuple[T, dict[str, Any]] | None:
        """The value for a path, and its parameters; None if there is none. A path starts with "/"."""
        if path[:1] != "/":
            return None
        values: list[Any] = []
        found = _walk(self._root, path.split("/"), 1, kind, values)
        if found is None:
            return None
        value, names = found
        return value, dict(zip(names, values, strict=True)) if names else {}

    def kinds(self, path: str) -> set[str]:
        """All kinds that were added and under which the path would match."""
        return {kind for kind in self._kinds if self.match(kind, path) is not None}


def _walk(node: Node[T], segments: list[str], at: int, kind: str, values: list[Any]) -> Leaf[T] | None:
    """The leaf for the segments from `at` on, the best first; the values on the way there are put into a list.

    A node with one way on is left for good: only where there is a choice somebody comes back.
    """
    while at < len(segments):
        if node.ways > 1:
            return _choose(node, segments, at, kind, values)
        segment = segments[at]
        following: Node[T] | None = None
        if node.static is not None:
            following = node.static.get(segment)
        elif node.text is not None:
            if segment:
                values.append(segment)
                following = node.text
        elif node.typed:
            convert, _, following = node.typed[0]
            try:
                values.append(convert(segment))
            except ValueError:
                return None
        else:
            return _rest(node, segments, at, kind, values)
        if following is None:
            return None
        node = following
        at += 1
    return (None if node.here is None else node.here.get(kind)) or node.mount


def _choose(node: Node[T], segments: list[str], at: int, kind: str, values: list[Any]) -> Leaf[T] | None:
    """As `_walk`, from a node with several ways on: one is tried after the other."""
    segment = segments[at]
    depth = len(values)
    child = None if node.static is None else node.static.get(segment)
    if child is not None:
        found = _walk(child, segments, at + 1, kind, values)
        if found is not None:
            return found
        del values[depth:]
    for convert, _, typed in node.typed:
        try:
            values.append(convert(segment))
        except ValueError:
            continue
        found = _walk(typed, segments, at + 1, kind, values)
        if found is not None:
            return found
        del values[depth:]
    if node.text is not None and segment:
        values.append(segment)
        found = _walk(node.text, segments, at + 1, kind, values)
        if found is not None:
            return found
        del values[depth:]
    return _rest(node, segments, at, kind, values)


def _rest(node: Node[T], segments: list[str], at: int, kind: str, values: list[Any]) -> Leaf[T] | None:
    """The leaf that takes all segments from `at` on."""
    rest = None if node.rest is None else node.rest.get(kind)
    if rest is None:
        return node.mount
    values.append("/".join(segments[at:]))
    return rest
