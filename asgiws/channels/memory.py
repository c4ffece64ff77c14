"""Topics in the memory of one process."""

import collections
import itertools
import secrets
import time
from collections.abc import Collection, Mapping

from ..errors import ChannelsError
from .backend import Keep, Page, Present, Receiver, presence_change, reason_against
from .publication import Position, Publication

_EPOCH_KEPT = 10
"""For how many times its history's life the counter of a topic is kept."""


class _Log:
    """What is kept of one topic.

    Attributes:
        position: Of the last publication.
        entries: The last publications.
        until: When they are dropped.
        forgotten: When the counter is.
    """

    __slots__ = ("entries", "forgotten", "position", "until")

    def __init__(self, epoch: str) -> None:
        self.position = Position(epoch, 0)
        self.entries: collections.deque[Publication] = collections.deque()
        self.until = 0.0
        self.forgotten = 0.0


class MemoryBackend:
    """Topics that only this process sees. A topic that nobody watches and that has no history takes no memory."""

    shared = False

    def __init__(self) -> None:
        self._instance, self._unkept = secrets.token_hex(8), secrets.token_hex(8)
        self._generation = 0  # moves on whenever a counter is forgotten: what none has given may be given again
        self._short_lived = itertools.count(1)
        self._logs: collections.OrderedDict[str, _Log] = (
            collections.OrderedDict()
        )  # the first was not looked at for the longest time
        self._watched: set[str] = set()
        self._present: dict[str, dict[str, dict[str, bytes]]] = {}
        self._leaving: dict[str, dict[Present, float]] = {}  # until when they count
        self._receiver: Receiver | None = None

    async def open(self, receiver: Receiver) -> None:
        """Begin."""
        self._receiver = receiver

    async def close(self) -> None:
        """Forget everything."""
        self._receiver = None
        self._logs.clear()
        self._generation += 1
        self._watched.clear()
        self._present.clear()
        self._leaving.clear()

    async def publish(self, publication: Publication, keep: Keep) -> Position:
        """See `Backend.publish`."""
        if self._receiver is None:
            raise ChannelsError("these channels are closed")
        topic = publication.topic
        log = self._logs.get(topic)
        if publication.kind in ("presence", "close"):
            position = log.position if log is not None else Position("", 0)
        else:
            if log is None:
                is_kept = keep.history or topic in self._watched
                log = self._new(topic) if is_kept else _Log(f"{self._unkept}{next(self._short_lived):x}")
            position = log.position = Position(log.position.epoch, log.position.offset + 1)
            publication.position = position
            if keep.history:
                self._keep(log, publication, keep)
        self._tell(publication)
        return position

    def _tell(self, publication: Publication) -> None:
        if self._receiver is not None and publication.topic in self._watched:
            self._receiver.deliver(publication)

    def _epoch(self) -> str:
        return f"{self._instance}{self._generation:x}"

    def _forget(self, topic: str) -> None:
        if self._logs.pop(topic).position.offset:
            self._generation += 1

    def _new(self, topic: str) -> _Log:
        log = self._logs[topic] = _Log(self._epoch())
        return log

    def _keep(self, log: _Log, publication: Publication, keep: Keep) -> None:
        now = time.monotonic()
        if log.until <= now:
            log.entries.clear()
        log.until = now + keep.ttl
        log.forgotten = now + keep.ttl * _EPOCH_KEPT
        log.entries.append(publication)
        while len(log.entries) > keep.history:
            log.entries.popleft()
        self._sweep(now)

    def _sweep(self, now: float) -> None:
        """Drop what is too old, a few topics at a time: more than come."""
        for topic in list(itertools.islice(self._logs, 2)):
            log = self._logs[topic]
            if log.until <= now:
                log.entries.clear()
            if log.forgotten <= now and topic not in self._watched:
                self._forget(topic)
            else:
                self._logs.move_to_end(topic)

    async def watch(self, topic: str) -> None:
        """See `Backend.watch`."""
        self._watched.add(topic)

    def unwatch(self, topic: str) -> None:
        """See `Backend.unwatch`."""
        self._watched.discard(topic)
        log = self._logs.get(topic)
        if log is not None and log.forgotten <= time.monotonic():
            self._forget(topic)

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        """See `Backend.read`."""
        log = self._logs.get(topic)
        if log is None:
            if topic not in self._watched:
                return Page(Position(self._epoch(), 0), [], None if since is None else "epoch")
            log = self._new(topic)
        if log.until <= time.monotonic():
            log.entries.clear()
        if since is None:
            return Page(log.position, list(log.entries)[-limit:] if limit > 0 else [])
        reason = reason_against(since, log.position, len(log.entries), limit)
        missed = log.position.offset - since.offset
        return Page(log.position, list(log.entries)[-missed:] if not reason and missed else [], reason)

    async def enter(self, present: Present, lease: float) -> None:  # noqa: ARG002 - who is here dies with the process
        """See `Backend.enter`."""
        connections = self._present.setdefault(present.topic, {}).setdefault(present.key, {})
        is_new = not connections
        connections[present.connection] = present.meta
        if is_new and present.tells:
            self._tell(presence_change(present.topic, {present.key: present.meta}, ()))

    async def leave(self, present: Present) -> None:
        """See `Backend.leave`."""
        if present.grace and present.connection in self._present.get(present.topic, {}).get(present.key, {}):
            self._leaving.setdefault(present.topic, {})[present] = time.monotonic() + present.grace
        else:
            self._forget_present(present)

    def _forget_present(self, present: Present) -> None:
        members = self._present.get(present.topic, {})
        connections = members.get(present.key, {})
        was_there = connections.pop(present.connection, None) is not None
        if connections or not was_there:
            return
        del members[present.key]
        if not members:
            del self._present[present.topic]
        if present.tells:
            self._tell(presence_change(present.topic, {}, [present.key]))

    async def renew(self, present: Collection[Present], lease: float) -> None:
        """See `Backend.renew`: there is no lease to renew."""

    async def present(self, topic: str) -> Mapping[str, bytes]:
        """See `Backend.present`."""
        leaving, now = self._leaving.get(topic, {}), time.monotonic()
        for one in [one for one, until in leaving.items() if until <= now]:
            del leaving[one]
            self._forget_present(one)
        if not leaving:
            self._leaving.pop(topic, None)
        return {key: next(reversed(metas.values())) for key, metas in self._present.get(topic, {}).items()}
