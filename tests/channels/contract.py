"""What the tests of channels share: backends to run on, backends that fail as told, and who takes what comes."""

import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Self, TypeAlias

import anyio
import anyio.lowlevel
import pytest

from asgiws import Limits, WebSocket
from asgiws.channels import (
    Backend,
    BrokerError,
    Channels,
    Joined,
    Keep,
    Lost,
    MemoryBackend,
    Page,
    Position,
    Present,
    Publication,
    Receiver,
    Subscription,
)
from tests.fakes import DEADLINE, FakeServer
from tests.valkey import Valkey

Socket: TypeAlias = WebSocket[Any, Any]
END = ["the end"]
"""What is published last: what comes before it has come then."""


# Backends to run on


class Clock:
    """The clock of a module, which can be put forward."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead


class World:
    """Topics on one kind of backend, empty at first.

    Attributes:
        shared: Whether every new backend sees the same topics.
    """

    shared = False

    def backend(self) -> Backend:
        """A new backend, as another process would have it."""
        raise NotImplementedError

    def forget(self, backend: Any) -> None:
        """Lose all that is kept, counters too."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """Let time pass, where that can be done."""


class MemoryWorld(World):
    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock = Clock()
        patch.setattr("asgiws.channels.memory.time", self.clock)

    def backend(self) -> Backend:
        return MemoryBackend()

    def forget(self, backend: Any) -> None:
        for topic in list(backend._logs):
            backend._forget(topic)

    def pass_time(self, seconds: float) -> None:
        self.clock.ahead += seconds


class RedisWorld(World):
    shared = True

    def __init__(self, server: Valkey) -> None:
        self.server = server
        self.prefix = f"test{secrets.token_hex(4)}"

    def backend(self) -> Backend:
        return Channels(self.server.url, prefix=self.prefix)._backend

    def forget(self, backend: Any) -> None:
        self.server.command("FLUSHALL")


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of backend. To add one: add it to `KINDS`.

    Attributes:
        name: Its name.
        loops: The event loops it runs on.
        world: Makes an empty world of a function that gives what lasts as long as the tests, by name.
    """

    name: str
    loops: tuple[str, ...]
    world: Callable[[Callable[[str], Any]], World]


KINDS = [
    Kind("memory", ("asyncio", "trio"), lambda have: MemoryWorld(have("monkeypatch"))),
    Kind("redis", ("asyncio",), lambda have: RedisWorld(have("valkey"))),
]
RUNS = [pytest.param((kind, loop), id=f"{kind.name}-{loop}") for kind in KINDS for loop in kind.loops]


@contextlib.asynccontextmanager
async def opened(backend: Any, **options: Any) -> AsyncIterator[Channels]:
    """Channels that have forgotten everybody when they are closed (R13)."""
    channels = Channels(backend, **options)
    async with channels:
        yield channels
        assert (channels._topics, channels._ready, channels._presence.here) == ({}, {}, {})
        memory = innermost(backend)
        if isinstance(memory, MemoryBackend):
            assert (memory._watched, memory._present) == (set(), {})


def innermost(backend: Any) -> Any:
    while isinstance(backend, Through):
        backend = backend.inner
    return backend


# Backends that fail as they are told


class Through:
    """A backend in front of another one, and the receiver of that one."""

    def __init__(self, inner: Backend) -> None:
        self.inner = inner
        self.shared = inner.shared
        self.receiver: Receiver | None = None

    async def open(self, receiver: Receiver) -> None:
        self.receiver = receiver
        await self.inner.open(self)

    async def close(self) -> None:
        self.receiver = None
        await self.inner.close()

    async def publish(self, publication: Publication, keep: Keep) -> Position:
        return await self.inner.publish(publication, keep)

    async def watch(self, topic: str) -> None:
        await self.inner.watch(topic)

    def unwatch(self, topic: str) -> None:
        self.inner.unwatch(topic)

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        return await self.inner.read(topic, since, limit)

    async def enter(self, present: Present, lease: float) -> None:
        await self.inner.enter(present, lease)

    async def leave(self, present: Present) -> None:
        await self.inner.leave(present)

    async def renew(self, present: Collection[Present], lease: float) -> None:
        await self.inner.renew(present, lease)

    async def present(self, topic: str) -> Mapping[str, bytes]:
        return await self.inner.present(topic)

    def deliver(self, publication: Publication) -> None:
        if self.receiver is not None:
            self.receiver.deliver(publication)

    def broken(self) -> None:
        if self.receiver is not None:
            self.receiver.broken()

    def spoilt(self) -> None:
        if self.receiver is not None:
            self.receiver.spoilt()

    def moved(self, topic: str) -> None:
        if self.receiver is not None:
            self.receiver.moved(topic)

    def mended(self) -> None:
        if self.receiver is not None:
            self.receiver.mended()


class Interleaved(Through):
    """Does something at one of the moments at which whoever watches or reads a topic waits for the backend.

    Attributes:
        do: What it does; it may raise.
        at: At which of the moments, counted from 1; 0 for none.
        moments: How many there have been.
        late: Keep what is delivered back, until `release` is called.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.do: Any = None
        self.at = 0
        self.moments = 0
        self.late = False
        self._kept_back: list[Publication] = []

    async def _moment(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.do is not None:
            self.moments += 1
            if self.moments == self.at:
                await self.do()

    async def watch(self, topic: str) -> None:
        await self._moment()
        await super().watch(topic)
        await self._moment()

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        await self._moment()
        page = await super().read(topic, since, limit)
        await self._moment()
        return page

    async def enter(self, present: Present, lease: float) -> None:
        await self._moment()
        await super().enter(present, lease)
        await self._moment()

    def deliver(self, publication: Publication) -> None:
        if self.late:
            self._kept_back.append(publication)
        else:
            super().deliver(publication)

    def release(self) -> None:
        self.late = False
        kept_back, self._kept_back = self._kept_back, []
        for publication in kept_back:
            super().deliver(publication)


class Lossy(Through):
    """A broker whose link fails.

    Attributes:
        fate: What is delivered in place of a publication with a position.
        gone: The broker cannot be reached; other processes still can.
        seen: The positions of what came from the broker, whatever its fate.
    """

    def __init__(self, inner: Backend) -> None:
        super().__init__(inner)
        self.fate: Callable[[Publication], Iterable[Publication]] = lambda publication: [publication]
        self.gone = False
        self.seen: list[Position] = []

    def _reach(self) -> None:
        if self.gone:
            raise BrokerError("the broker is gone")

    async def publish(self, publication: Publication, keep: Keep) -> Position:
        self._reach()
        return await super().publish(publication, keep)

    async def watch(self, topic: str) -> None:
        self._reach()
        await super().watch(topic)

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        self._reach()
        return await super().read(topic, since, limit)

    def deliver(self, publication: Publication) -> None:
        if publication.position is None:
            super().deliver(publication)
            return
        self.seen.append(publication.position)
        if not self.gone:
            for one in self.fate(publication):
                super().deliver(one)

    def snap(self) -> None:
        """The link breaks."""
        self.gone = True
        self.broken()

    def mend(self) -> None:
        """The link is back."""
        self.gone = False
        self.mended()

    async def elsewhere(self, topic: str, message: Any, keep: Keep) -> Position:
        """What another process publishes."""
        data = json.dumps(message)
        return await self.inner.publish(Publication(topic, None, "json", data), keep)


class Doubling:
    """A fate: everything twice."""

    def __call__(self, publication: Publication) -> Iterable[Publication]:
        return [publication, publication]


class Swapping:
    """A fate: each two in the wrong order."""

    def __init__(self) -> None:
        self._kept: Publication | None = None

    def __call__(self, publication: Publication) -> Iterable[Publication]:
        kept, self._kept = self._kept, None
        if kept is not None:
            return [publication, kept]
        self._kept = publication
        return []


class Dropping:
    """A fate: everything is lost but each so many-th."""

    def __init__(self, every: int) -> None:
        self._every = every
        self._count = 0

    def __call__(self, publication: Publication) -> Iterable[Publication]:
        self._count += 1
        return [] if self._count % self._every else [publication]


# Who takes what comes


class Client:
    """A socket and what was sent to it.

    Attributes:
        server: The fake server.
        ws: The socket.
    """

    def __init__(self, **limits: Any) -> None:
        self.server = FakeServer()
        self.ws: Socket = WebSocket(self.server.scope, self.server.receive, self.server.send, limits=Limits(**limits))

    @classmethod
    async def connected(cls, **limits: Any) -> Self:
        client = cls(**limits)
        await client.ws.accept()
        return client

    @property
    def frames(self) -> list[Any]:
        """The text messages, as JSON."""
        return [json.loads(text) for text in self.server.texts]

    async def until(self, condition: Callable[[list[Any]], object]) -> list[Any]:
        """Wait until a condition of the frames holds; give them."""
        await self.server.until(lambda _: condition(self.frames))
        return self.frames

    async def closed(self) -> tuple[int, str]:
        """Wait until the application has closed."""
        await self.server.until(lambda server: server.closed)
        assert self.server.closed is not None
        return self.server.closed

    def check(self) -> None:
        """Nothing was sent that the server could not take, and never two things at once."""
        assert not self.server.choked
        assert self.server.most_sending <= 1


WAYS = ("plain", "envelope", "transform", "subscription")
"""How what is published may be taken."""


class Taker:
    """What one member of a topic got: numbers, positions and notices of loss.

    Args:
        channels: What it is a member in.
        topic: Of what.
        way: How it takes.
        joined: What it began with.
        source: Its client or subscription.
    """

    def __init__(self, channels: Channels, topic: str, way: str, joined: Joined, source: Any) -> None:
        self.joined = joined
        self.source = source
        self._channels = channels
        self._topic = topic
        self._way = way
        self._read: list[Publication | Lost] = []

    @property
    def items(self) -> list[Any]:
        """All that came: what was published, or `Lost`."""
        if self._way == "subscription":
            subscription: Subscription = self.source
            waiting = [*self._read, *subscription._queue]
            return [one if isinstance(one, Lost) else one.message for one in waiting]
        found: list[Any] = []
        for frame in self.source.frames:
            if isinstance(frame, dict) and frame["type"] == "lost":
                found.append(Lost(frame["topic"], frame["count"], frame["reason"]))
            elif self._way == "plain":
                found.append(frame)
            elif frame["type"] == "message":
                found.append(frame["data"])
        return found

    async def has(self, condition: Callable[[list[Any]], object]) -> list[Any]:
        """Wait until a condition of all that came holds."""
        if self._way == "subscription":
            subscription: Subscription = self.source
            with anyio.fail_after(DEADLINE):
                while not condition(self.items):
                    self._read.append(await anext(subscription))
        else:
            await self.source.until(lambda _: condition(self.items))
        return self.items

    async def finish(self) -> list[Any]:
        """Publish an end, and give what came before it."""
        await self._channels.publish(self._topic, END)
        items = await self.has(lambda items: END in items)
        assert items[-1] == END
        if isinstance(self.source, Client):
            self.source.check()
        return items[:-1]


def with_position(publication: Publication) -> Any:
    """A transform that gives what an envelope has."""
    return {"type": "message", "position": str(publication.position), "data": publication.message}


@contextlib.asynccontextmanager
async def taking(channels: Channels, way: str, topic: str, **options: Any) -> AsyncIterator[Taker]:
    """A member of a topic."""
    if way == "subscription":
        async with channels.subscribe(topic, **options) as subscription:
            yield Taker(channels, topic, way, subscription.joined, subscription)
        return
    client = await Client.connected()
    extra: dict[str, Any] = {}
    if way == "envelope":
        extra["envelope"] = True
    elif way == "transform":
        extra["transform"] = with_position
    async with channels.join(client.ws, topic, **extra, **options) as joined:
        yield Taker(channels, topic, way, joined, client)


@contextlib.contextmanager
def wall_clock_jumps(patch: pytest.MonkeyPatch, seconds: float) -> Iterator[None]:
    """The wall clock is put forward or back, as by NTP."""
    now = time.time
    with patch.context() as inner:
        inner.setattr(time, "time", lambda: now() + seconds)
        yield
