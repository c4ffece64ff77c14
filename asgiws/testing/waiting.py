"""Where an application stands: the line at which its coroutine waits.

A suspended coroutine knows what it awaits, and that what it awaits, down to the event loop. Of the frames on that way
the innermost that is the user's own tells most: not one of asgiws, of the event loop or of an installed package.
"""

import linecache
import os
import sys
import types
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..background import frames

_OWN = __name__.partition(".")[0]
_INSTALLED = ("site-packages", "dist-packages")


class Place(NamedTuple):
    """A line of a program.

    Attributes:
        file: As it is seen from the working directory.
        line: Its number.
        function: In which it stands.
        source: Its text, or "".
    """

    file: str
    line: int
    function: str
    source: str

    def __str__(self) -> str:
        told = f": `{self.source}`" if self.source else ""
        return f"{self.file}:{self.line} in {self.function}{told}"


def waits_at(awaitable: Any) -> Place | None:
    """The line at which a coroutine waits; None if it does not, or no line is known."""
    return _innermost(frames(awaitable))


def runs_at(thread: int | None) -> Place | None:
    """The line at which a thread is; None if it has ended."""
    frame = sys._current_frames().get(thread or 0)  # noqa: SLF001 - documented, for debuggers
    stack = []
    while frame is not None:
        stack.append(frame)
        frame = frame.f_back
    return _innermost(reversed(stack))


def raised_at(error: BaseException) -> Place | None:
    """The line that raised an exception."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    own = [pair for pair in frames if _is_users(pair[0])] or frames
    return _place(*own[-1]) if own else None


def _innermost(frames: Iterable[types.FrameType]) -> Place | None:
    way = list(frames)
    own = [frame for frame in way if _is_users(frame)] or [frame for frame in way if not _is_plumbing(frame)] or way
    return _place(own[-1], own[-1].f_lineno) if own else None


def _place(frame: types.FrameType, line: int) -> Place:
    code = frame.f_code
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118 - as in `errors.whereabouts`
    source = linecache.getline(code.co_filename, line, frame.f_globals).strip()
    return Place(code.co_filename.removeprefix(here), line, code.co_qualname.replace(".<locals>", ""), source)


def _is_users(frame: types.FrameType) -> bool:
    return not _is_plumbing(frame) and not any(part in frame.f_code.co_filename for part in _INSTALLED)


def _is_plumbing(frame: types.FrameType) -> bool:
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package in (_OWN, "anyio", "trio", "outcome", "uvloop") or package in sys.stdlib_module_names
