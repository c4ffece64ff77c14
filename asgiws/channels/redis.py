"""Topics on a Redis or Valkey server that many processes share.

Of a topic stand there its counter (epoch, offset), a stream with the history, and a channel of Pub/Sub that wakes
whoever watches it. One script numbers, keeps and tells in one step. A process subscribes only to what it watches.
"""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import msgspec

from ..background import on_trio
from ..errors import BrokerError, ChannelsError
from ..log import logger
from .backend import Keep, Page, Present, Receiver, presence_change, reason_against
from .publication import USER, Kind, Order, Position, Publication
from .redis_link import place_of
from .redis_scripts import PRESENCE, PUBLISH
from .redis_servers import RETRY_LEAST, RUN, Cluster, Servers, parts

COUNTER_KEPT = 10
"""For how many times the life of its history the counter of a topic is kept."""

COUNTER_LEAST = 3_600_000
"""Milliseconds for which it is kept at least."""

_VERSION = 1


class _Body(msgspec.Struct, array_like=True):
    """A publication as it stands on the server."""

    version: int
    kind: Kind
    data: Any
    key: str | None = None
    exclude: str | None = None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Body).decode


class RedisBackend:
    """Topics on a Redis or Valkey server, or on several.

    Args:
        source: redis://, rediss:// or unix://, with user, password, database and redis-py's options for a connection.
            redis+sentinel://host:port,host:port/name for a master that Sentinels know, redis+cluster://host:port for
            a cluster. "valkey" may stand for "redis". Or an asyncio client of redis-py's, after whose settings
            connections are made; its own are not used.
        prefix: What all keys begin with.

    Raises:
        ChannelsError: The source cannot work.
    """

    shared = True

    def __init__(self, source: Any, *, prefix: str) -> None:
        self._place = place_of(source)
        self._prefix = prefix
        self._instance = secrets.token_hex(8)
        self._epochs = itertools.count(1)
        self._receiver: Receiver | None = None
        self._servers: Servers | Cluster | None = None
        self._down = 0
        self._moved: set[str] = set()
        self._moving: asyncio.Task[None] | None = None

    async def open(self, receiver: Receiver) -> None:
        """See `Backend.open`."""
        if on_trio():
            raise ChannelsError("channels on Redis need asyncio, since redis-py does: this program runs on trio")
        self._receiver = receiver
        self._down = 0
        connect, make = self._place
        servers = Servers(connect, self) if make is None else Cluster(connect, make, self)
        await servers.open()
        self._servers = servers

    async def close(self) -> None:
        """See `Backend.close`."""
        servers, self._servers = self._servers, None
        if self._moving is not None:
            self._moving.cancel()
        if servers is not None:
            await servers.close()
        self._receiver = None

    @property
    def _all(self) -> Servers | Cluster:
        if self._servers is None:
            raise ChannelsError("these channels are closed")
        return self._servers

    def _keys(self, topic: str, *parts: str) -> list[bytes]:
        # One hash tag for all keys of a topic: a cluster keeps them on one server. "}" would end the tag early.
        tag = topic.replace("%", "%25").replace("}", "%7D")
        return [f"{self._prefix}:{{{tag}}}{part}".encode() for part in parts]

    # Told by a server

    def broken(self) -> None:
        """A server has gone."""
        self._down += 1
        if self._down == 1 and self._receiver is not None:
            self._receiver.broken()

    def mended(self) -> None:
        """A server is back."""
        self._down -= 1
        if not self._down and self._receiver is not None:
            self._receiver.mended()

    async def look_around(self) -> None:
        """A server could not be reached: another one may have taken its place."""
        if self._servers is not None:
            await self._servers.look_around()

    def moved(self, topic: str) -> None:
        """A topic is on another server now: it is watched there, and what came meanwhile is read."""
        self._moved.add(topic)
        if self._moving is None or self._moving.done():
            self._moving = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while self._moved:
            topic = self._moved.pop()
            try:
                await self.look_around()
                await self.watch(topic)
                if self._receiver is not None:
                    self._receiver.moved(topic)
            except BrokerError as error:
                logger().debug("channels: %r has moved, and could not be watched: %s", topic, error)
                self._moved.add(topic)
                await asyncio.sleep(RETRY_LEAST)

    def came(self, topic: str, envelope: bytes) -> None:
        """A message has come for a topic."""
        if self._receiver is None:
            return
        try:
            epoch, offset, body = envelope.split(b":", 2)
            if epoch:
                publication = _read_body(topic, Position(epoch.decode(), int(offset)), body)
            elif body.startswith(b"P"):
                joined, left = msgspec.msgpack.decode(body[1:])
                flat = list(joined)
                metas = {key: meta.encode() for key, meta in zip(flat[::2], flat[1::2], strict=True)}
                publication = presence_change(topic, metas, list(left))
            else:
                publication = _read_body(topic, None, body)
        except Exception as error:  # noqa: BLE001 - anybody may write there
            logger().warning("channels: a message for %r could not be read, and is left out: %s", topic, error)
            self._receiver.spoilt()
            return
        try:
            self._receiver.deliver(publication)
        except Exception:  # noqa: BLE001 - it must not end the link for all others
            logger().exception("channels: %r could not be delivered", publication)

    # What a Backend does

    async def publish(self, publication: Publication, keep: Keep) -> Position:
        """See `Backend.publish`."""
        body = _encode(_Body(_VERSION, publication.kind, publication.data, publication.key, publication.exclude))
        topic = publication.topic
        counter, history, channel = self._keys(topic, ":counter", ":history", "")
        if publication.kind == "close":
            await self._all.ask(channel, lambda server: server.call(server.publish_by, channel, b"::" + body))
            return Position("", 0)
        epoch, offset = await self._all.ask(
            channel,
            lambda server: server.script(
                PUBLISH, (counter, history, channel), RUN, self._epoch(), body, keep.history, _ms(keep.ttl),
                _counter_ms(keep), server.publish_by,
            ),
        )  # fmt: skip
        return Position(epoch.decode(), offset)

    def _epoch(self) -> str:
        return f"{self._instance}{next(self._epochs):x}"

    async def watch(self, topic: str) -> None:
        """See `Backend.watch`."""
        (channel,) = self._keys(topic, "")
        await self._all.ask(channel, lambda server: server.watch(channel, topic))

    def unwatch(self, topic: str) -> None:
        """See `Backend.unwatch`."""
        (channel,) = self._keys(topic, "")
        self._moved.discard(topic)
        with contextlib.suppress(ChannelsError):
            self._all.of(channel).unwatch(channel)

    async def read(self, topic: str, since: Position | None, limit: int) -> Page:
        """See `Backend.read`."""
        if since is None:
            top, _, kept, rows = await self._rows(topic, ("XREVRANGE", "+", "-"), limit)
            return Page(top, self._publications(topic, top, reversed(rows)) if kept else [])
        top, before, kept, rows = await self._rows(topic, ("XRANGE", f"{since.offset + 1}-0", "+"), limit)
        if since.epoch != top.epoch and str(since) == before:
            since = Position(top.epoch, 0)
            top, _, kept, rows = await self._rows(topic, ("XRANGE", "-", "+"), limit)
        reason = reason_against(since, top, kept, limit)
        if reason is not None:
            return Page(top, [], reason)
        entries = self._publications(topic, top, rows)
        if len(entries) != top.offset - since.offset:  # one that could not be read
            return Page(top, [], "trimmed")
        return Page(top, entries)

    async def _rows(
        self, topic: str, command: tuple[str, str, str], limit: int
    ) -> tuple[Position, str, int, list[Any]]:
        """The last position, the one before the epoch, how many publications are kept, and some of them."""
        counter, history = self._keys(topic, ":counter", ":history")
        verb, first, last = command
        _, _, _, found, oldest, rows = await self._all.ask(
            counter,
            lambda server: server.together(
                ("HSETNX", counter, "epoch", self._epoch()),
                ("HSETNX", counter, "run", server.run),
                ("PEXPIRE", counter, COUNTER_LEAST, "GT"),
                ("HMGET", counter, "epoch", "offset", "before"),
                ("XRANGE", history, "-", "+", "COUNT", 1),
                (verb, history, first, last, "COUNT", max(limit, 1)),
            ),
        )
        if found[1] is None:  # nobody has published yet
            await self._all.ask(counter, lambda server: server.call("PEXPIRE", counter, COUNTER_LEAST))
        top = Position(found[0].decode(), int(found[1] or 0))
        kept = top.offset - _offset(oldest[0][0]) + 1 if oldest else 0
        # Rows above the top are of a counter that was lost.
        rows = [row for row in rows if _offset(row[0]) <= top.offset][:limit] if kept > 0 else []
        return top, (found[2] or b"").decode(), max(kept, 0), rows

    def _publications(self, topic: str, top: Position, rows: Iterable[Any]) -> list[Publication]:
        found = []
        for number, fields in rows:
            try:
                found.append(_read_body(topic, Position(top.epoch, _offset(number)), fields[1]))
            except (msgspec.MsgspecError, UnicodeError, ValueError, IndexError) as error:
                logger().warning("channels: a publication in %r could not be read: %s", topic, error)
                if self._receiver is not None:
                    self._receiver.spoilt()
        return found

    # Who is there

    def _presence_keys(self, topic: str) -> list[bytes]:
        return self._keys(topic, ":leases", ":connections", ":metas", "")

    async def _presence(self, what: str, present: Present, lease: float, *arguments: Any) -> Any:
        keys = self._presence_keys(present.topic)
        return await self._all.ask(
            keys[0],
            lambda server: server.script(PRESENCE, keys, what, _ms(lease), server.publish_by, *arguments),
        )

    async def enter(self, present: Present, lease: float) -> None:
        """See `Backend.enter`."""
        await self._presence("enter", present, lease, _lease(present), present.meta)

    async def leave(self, present: Present) -> None:
        """See `Backend.leave`."""
        if present.grace:
            await self._presence("renew", present, present.grace, _lease(present))
        else:
            await self._presence("leave", present, 0, _lease(present))

    async def renew(self, present: Collection[Present], lease: float) -> None:
        """See `Backend.renew`."""
        by_topic: dict[str, dict[bytes, Present]] = {}
        for one in present:
            by_topic.setdefault(one.topic, {})[_lease(one)] = one
        for leases in by_topic.values():
            for some in parts(list(leases), 100):
                for unknown in await self._presence("renew", leases[some[0]], lease, *some):
                    if leases[unknown] in present:  # it may have left meanwhile
                        await self.enter(leases[unknown], lease)

    async def present(self, topic: str) -> Mapping[str, bytes]:
        """See `Backend.present`."""
        nobody = Present(topic, "", "", b"", tells=False)
        await self._presence("leave", nobody, 0)
        key = self._presence_keys(topic)[2]
        metas = await self._all.ask(key, lambda server: server.call("HGETALL", key))
        pairs = metas.items() if isinstance(metas, dict) else zip(metas[::2], metas[1::2], strict=True)
        found: dict[str, tuple[int, bytes]] = {}
        for lease, value in pairs:
            key = lease.partition(b":")[2].decode(errors="replace")
            number, _, meta = value.partition(b":")
            found[key] = max(found.get(key, (0, b"")), (int(number) if number.isdigit() else 0, meta))
        return {key: meta for key, (_, meta) in found.items()}


def _read_body(topic: str, position: Position | None, data: bytes) -> Publication:
    body = _decode(data)
    if body.version != _VERSION:
        raise ValueError(f"version {body.version}")
    if not isinstance(body.data, bytes if body.kind == "bytes" else str):
        raise ValueError(f"{body.kind} of {type(body.data).__name__}")  # noqa: TRY004 - a payload of others
    publication = Publication(topic, position, body.kind, body.data, body.key, body.exclude)
    if body.kind == "presence" or (body.kind == "close" and not topic.startswith(USER)):
        raise ValueError(f"{body.kind} as a publication")
    if body.kind == "close":
        msgspec.convert(publication.message, Order)
    return publication


def _lease(present: Present) -> bytes:
    return f"{present.connection}:{present.key}".encode()


def _offset(number: bytes) -> int:
    return int(number.partition(b"-")[0])


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))


def _counter_ms(keep: Keep) -> int:
    return max(_ms(keep.ttl) * COUNTER_KEPT, COUNTER_LEAST)
