"""The topics of a process: watched while they have members, and kept without a hole."""

import collections
import contextlib
import fnmatch
import functools
import random
from _thread import get_ident
from collections.abc import Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import anyio

from ..background import loop_token, spawn
from ..errors import BrokerError, ChannelsError
from ..log import logger
from ..registry import checked_hook
from .backend import Backend, Keep, Page
from .options import ChannelsStatistics, TopicOptions
from .presence import Presence
from .publication import USER, Publication
from .topics import Topic

RETRY_LEAST, RETRY_MOST = 0.05, 5.0
"""Seconds to wait before a history is read again that could not be read."""


COUNTERS_EVERY = 900.0
"""Seconds after which also topics without a history are read: who asks for the counter of a topic keeps it alive."""


class Hub:
    """What channels stand on: the receiver of a backend.

    Args:
        backend: What keeps the topics.
        options: Options by pattern; the last one fits all.
        lease: For how many seconds somebody is present whose process has died.
    """

    def __init__(self, backend: Backend, options: Iterable[tuple[str, TopicOptions]], lease: float) -> None:
        self._backend = backend
        self._options = list(options)
        self._options_of = functools.lru_cache(4096)(self._find_options)
        self._lease = lease
        self._presence = Presence(backend, lease, self._beside)
        self._topics: dict[str, Topic] = {}
        self._ready: dict[str, anyio.Event] = {}
        self._hooks: list[Callable[[bool], Any]] = []
        self._opened = 0
        self._changing: anyio.Event | None = None
        self._scopes: set[anyio.CancelScope] = set()  # of the tasks that end when they are closed
        self._token: Any = None
        self._thread: int | None = None
        self._dropped: collections.Counter[str] = collections.Counter()
        self._published = self._delivered = self._breaks = 0
        self._healthy = False
        self._crowded = False
        self._next_for_all = 0.0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} with {len(self._topics)} topics, {'open' if self._opened else 'closed'}>"

    def _find_options(self, topic: str) -> TopicOptions:
        return next(options for pattern, options in self._options if fnmatch.fnmatchcase(topic, pattern))

    def _keep(self, topic: str) -> Keep:
        if topic.startswith(USER):
            return Keep(0, 1)
        options = self._options_of(topic)
        return Keep(options.history, options.ttl)

    # Life

    async def __aenter__(self) -> Self:
        """Open them.

        Raises:
            BrokerError: The broker cannot be reached, or refuses.
        """
        if self._opened and self._thread != get_ident():
            raise ChannelsError("these channels are open in another thread: each event loop needs its own")
        while self._changing is not None:
            await self._changing.wait()
        if not self._opened:
            with self._change():
                await self._backend.open(self)
                self._token, self._thread = loop_token(), get_ident()
                self._healthy = True
                self._opened = 1
                self._beside(self._renew)
        else:
            self._opened += 1
        return self

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Have those wait who want to open them, until they are opened or closed."""
        changing = self._changing = anyio.Event()
        try:
            yield
        finally:
            self._changing = None
            changing.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close them."""
        self._opened -= 1
        if not self._opened:
            for scope in self._scopes:
                scope.cancel()
            self._presence.closed()
            self._token = self._thread = None
            self._healthy = False
            topics, self._topics = self._topics, {}
            for topic in topics.values():
                for other in topic.others:
                    other.closed()
            with self._change(), anyio.CancelScope(shield=True):
                await self._backend.close()

    def _check_open(self) -> None:
        if not self._opened:
            raise ChannelsError(
                "these channels are not open: pass them to App(channels=...), or `async with channels:`"
            )

    def _beside(self, job: Callable[[], Awaitable[None]]) -> bool:
        """Run a job beside, at the latest until they are closed; False if they are."""
        if not self._opened:
            return False
        scope = anyio.CancelScope()
        self._scopes.add(scope)

        async def run() -> None:
            try:
                with scope:
                    await job()
            finally:
                self._scopes.discard(scope)

        spawn(run)
        return True

    async def _renew(self) -> None:
        """Renew the leases of who is present, and look whether a last publication was missed."""
        while True:
            await anyio.sleep(self._lease / 3 * random.uniform(0.8, 1.0))  # noqa: S311 - so that not all do it at once
            try:
                await self._presence.renew()
                if self._backend.shared:
                    await self._look_over()
            except BrokerError as error:
                logger().debug("leases could not be renewed: %s", error)
            except Exception:  # noqa: BLE001 - nobody waits for this task
                logger().exception("leases could not be renewed")

    async def _look_over(self) -> None:
        """Look for what nobody tells: the last publication that was lost, and who has died with a process."""
        entered = {one.topic for one in self._presence.here}
        for topic in list(self._topics.values()):
            if topic.tells_presence and topic.name not in entered:
                await self._backend.present(topic.name)
        now = anyio.current_time()
        is_time_for_all = now >= self._next_for_all
        if is_time_for_all:
            self._next_for_all = now + COUNTERS_EVERY
        self._look_after([one for one in self._topics.values() if one.keep.history or is_time_for_all])

    # Topics

    async def _use(self, name: str) -> Topic:
        """A topic that is watched until it is released."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._new_topic(name)
        topic.users += 1
        try:
            await self._until_ready(topic)
        except BaseException:
            self._release(topic)
            raise
        return topic

    def _release(self, topic: Topic) -> None:
        topic.users -= 1
        if not topic.users and self._topics.get(topic.name) is topic:
            del self._topics[topic.name]
            self._backend.unwatch(topic.name)

    def _new_topic(self, name: str) -> Topic:
        topic = Topic(name, self._keep(name), tells_presence=self._options_of(name).presence)
        self._topics[name] = topic
        return topic

    async def _until_ready(self, topic: Topic) -> None:
        """Wait until a topic is watched and its position is known."""
        while not topic.ready:
            event = self._ready.get(topic.name)
            if event is not None:  # somebody else sees to it
                await event.wait()
                continue
            event = self._ready[topic.name] = anyio.Event()
            try:
                await self._backend.watch(topic.name)
                while topic.catch_up(await self._backend.read(topic.name, topic.position, 0)):
                    """What has come meanwhile does not fit to what was read."""
                topic.ready = True
            except BaseException:
                topic.begin_anew()
                raise
            finally:
                if self._ready.get(topic.name) is event:
                    del self._ready[topic.name]
                event.set()

    # Called by the backend

    def deliver(self, publication: Publication) -> None:
        """See `Receiver.deliver`."""
        topic = self._topics.get(publication.topic)
        if topic is None:
            return
        if topic.deliver(publication):
            self._read_on([topic])
        elif topic.held is None:
            self._delivered += len(topic.sockets) + len(topic.others)
            self._crowded |= topic.crowded

    def broken(self) -> None:
        """See `Receiver.broken`."""
        self._breaks += 1
        self._set_healthy(healthy=False)

    def spoilt(self) -> None:
        """See `Receiver.spoilt`."""
        self._dropped["spoilt"] += 1

    def moved(self, topic: str) -> None:
        """See `Receiver.moved`."""
        found = self._topics.get(topic)
        if found is not None:
            self._look_after([found])

    def mended(self) -> None:
        """See `Receiver.mended`."""
        self._set_healthy(healthy=True)
        self._look_after(self._topics.values())

    def _set_healthy(self, *, healthy: bool) -> None:
        if healthy is not self._healthy:
            self._healthy = healthy
            for hook in self._hooks:
                try:
                    hook(healthy)
                except Exception:  # noqa: BLE001 - it must not touch the reader
                    logger().exception("the hook %r failed", hook)

    def _look_after(self, topics: Iterable[Topic]) -> None:
        """Read on in topics of which something may be missing."""
        self._read_on([topic for topic in topics if topic.hold() and topic.ready])

    def _read_on(self, topics: Iterable[Topic]) -> None:
        topics = list(topics)
        if topics:
            spawn(functools.partial(self._catch_up, topics))

    async def _catch_up(self, topics: Iterable[Topic]) -> None:
        """Read the history of topics, and again where it has to be, until all of them go on."""
        waiting = list(topics)
        pause = RETRY_LEAST
        while waiting:
            waiting = [topic for topic in waiting if not await self._has_caught_up(topic)]
            if waiting:
                await anyio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, RETRY_MOST)

    async def _has_caught_up(self, topic: Topic) -> bool:
        if self._topics.get(topic.name) is not topic:
            return True
        try:
            page = await self._backend.read(topic.name, topic.position, max(topic.keep.history, 1))
            if page.reason is not None and topic.keep.history:  # there is a hole, and then what is still kept
                rest = await self._backend.read(topic.name, None, topic.keep.history)
                page = Page(rest.position, rest.entries, page.reason)
            return not topic.catch_up(page)
        except ChannelsError as error:
            logger().debug("the history of %r could not be read: %s", topic.name, error)
        except Exception:  # noqa: BLE001 - nobody waits for this task
            logger().exception("the history of %r could not be read", topic.name)
        return False

    # Seen from outside

    @property
    def healthy(self) -> bool:
        """Whether they are open, and the broker is there."""
        return self._healthy

    def on_health(self, function: Callable[[bool], Any]) -> Callable[[bool], Any]:
        """Have a plain function called with False when the broker has gone, and with True when it is back."""
        self._hooks.append(checked_hook(function, "on_health"))
        return function

    def statistics(self) -> ChannelsStatistics:
        """What they have come to until now."""
        return ChannelsStatistics(
            len(self._topics),
            sum(len(topic.sockets) + len(topic.others) for topic in self._topics.values()),
            self._published, self._delivered, dict(self._dropped), self._breaks, self._healthy,
        )  # fmt: skip
