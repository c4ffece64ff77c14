"""Channels: topics to publish in, to join with a socket, and to subscribe to."""

# ruff: noqa: SLF001 - a membership is a part of the session
import contextlib
import functools
from _thread import get_ident
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, overload

import anyio
import msgspec

from ..background import call_in_loop
from ..codes import check_code, cut_reason
from ..connection import Connection
from ..errors import ChannelsError, ProtocolError
from ..messages import encode
from ..session import Session
from ..states import OPEN
from .backend import Backend, Page
from .hub import Hub
from .members import Membership
from .memory import MemoryBackend
from .options import Member, TopicOptions, checked_number, checked_options
from .outbox import Outbox
from .policies import Joined, Notice, Overflow, Policy, latest, same
from .publication import Order, Position, Publication, checked_topic, payload_of, user_topic
from .subscriptions import Subscription
from .topics import Topic

_NOWHERE = Position("", 0)

TAKEN_OVER = 4009
"""The code of a connection in whose place a newer one of the same user has come."""

NEWEST = 5.0
"""Seconds at most until a socket that takes the place of others has seen its own order to them."""


class Channels(Hub):
    """Topics in the memory of this process, or on a broker that many processes share.

    `App(channels=...)` opens and closes it with the app. Elsewhere: `async with Channels() as channels`.

    Args:
        backend: Left out, memory. A URL such as "redis://localhost:6379/0" for Redis or Valkey, which needs
            `pip install asgiws[redis]`, or a client of `redis.asyncio`. Or any `asgiws.channels.Backend`.
        history: How many publications of a topic are kept for those who come back.
        ttl: For how many seconds after the last one.
        topics: Options by pattern (`fnmatch`: "room:*"), for the topics that are to be kept in another way; the first
            that fits counts.
        message_bytes: The largest payload that may be published.
        lease: For how many seconds somebody is present whose process has died.
        prefix: What all keys on the broker begin with.

    Raises:
        ChannelsError: An argument cannot work.
    """

    def __init__(
        self,
        backend: "str | Backend | Any" = None,
        *,
        history: int = 0,
        ttl: float = 300.0,
        topics: Mapping[str, TopicOptions] | None = None,
        message_bytes: int = 1_048_576,
        lease: float = 30.0,
        prefix: str = "asgiws",
    ) -> None:
        options = [*checked_options(topics or {}), ("*", TopicOptions(history=history, ttl=ttl))]
        checked_number("message_bytes", message_bytes, 1, whole=True)
        checked_number("lease", lease, 0.001)
        super().__init__(_backend_of(backend, prefix), options, lease)
        self._message_bytes = message_bytes

    are_of_app = True  # a parameter that asks for them is refused where the app has none

    @classmethod
    def __from_connection__(cls, connection: Connection) -> Any:
        """The app's, for a parameter annotated with `Channels`."""
        return connection.app.channels

    # Publishing

    @overload
    async def publish(self, topic: str, message: Any, *, key: str | None = None, exclude: Any = None) -> Position: ...

    @overload
    async def publish(
        self, topic: Sequence[str], message: Any, *, key: str | None = None, exclude: Any = None
    ) -> list[Position]: ...

    async def publish(
        self, topic: "str | Sequence[str]", message: Any, *, key: str | None = None, exclude: Any = None
    ) -> "Position | list[Position]":
        """Publish a message; nobody waits for a subscriber.

        Args:
            topic: Where: any text of up to 255 bytes, or several.
            message: A str, bytes, or anything that msgspec encodes, which goes out as JSON. It is encoded once.
            key: What it is the latest of, for members with `overflow="latest"`.
            exclude: A WebSocket that does not get it, or its `id`.

        Returns:
            Its position, or those in several topics: it is in the history then, if there is one. That says nothing of
            its arrival anywhere.

        Raises:
            BrokerError: The broker could not be reached or refused; whether it was published is not known.
            ChannelsError: The name cannot be a topic's, the message is too large, or the channels are not open.
            TypeError: The message cannot be encoded.
        """
        self._check_open()
        if get_ident() != self._thread:
            raise ChannelsError("these channels belong to another thread: use publish_from_thread()")
        kind, data = payload_of(message)
        excluded = exclude.id if isinstance(exclude, Connection) else exclude
        if key is not None or excluded is not None:
            _check("key", key, isinstance(key, str | None), "a str, or None")
            _check("exclude", exclude, isinstance(excluded, str | None), "a WebSocket or its id")
        if isinstance(topic, str):
            return await self._publish(Publication(checked_topic(topic), None, kind, data, key, excluded))
        topics = [checked_topic(one) for one in topic]
        return [await self._publish(Publication(one, None, kind, data, key, excluded)) for one in topics]

    async def _publish(self, publication: Publication) -> Position:
        if publication.size > self._message_bytes:
            raise ChannelsError(
                f"a publication has at most {self._message_bytes} bytes, this one has {publication.size}: "
                "publish less, or raise Channels(message_bytes=...)"
            )
        topic = self._topics.get(publication.topic)
        keep = topic.keep if topic is not None else self._keep(publication.topic)
        position = await self._backend.publish(publication, keep)
        self._published += 1
        if self._crowded:  # those who are to be sent something have a chance to take it before the next one
            self._crowded = False
            await anyio.sleep(0)  # noqa: ASYNC115 - anyio.lowlevel is slow to import
        return position

    def publish_from_thread(self, topic: str, message: Any, *, key: str | None = None, exclude: Any = None) -> Position:
        """Publish from another thread than that of the event loop, and wait for it; see `publish`.

        Raises:
            ChannelsError: This is the thread of the event loop.
        """
        self._check_open()
        if get_ident() == self._thread:
            raise ChannelsError("this is the event loop's own thread: `await channels.publish(...)`")
        publish = functools.partial(self.publish, topic, message, key=key, exclude=exclude)
        position: Position = call_in_loop(self._token, publish)
        return position

    async def send_to(self, key: str, message: Any) -> None:
        """Send a message to all sockets that were tagged with a key, in any process; raises as `publish`."""
        self._check_open()
        await self._publish(Publication(user_topic(key), None, *payload_of(message)))

    async def disconnect(self, key: str, code: int = 1008, reason: str = "") -> None:
        """Close all sockets that were tagged with a key, in any process; raises as `publish`.

        Raises:
            ProtocolError: The code is none that an application may send.
        """
        self._check_open()
        problem = check_code(code)
        if problem:
            raise ProtocolError(problem)
        order = encode(Order(int(code), cut_reason(reason))).decode()
        await self._publish(Publication(user_topic(key), None, "close", order))

    # Being told

    @contextlib.asynccontextmanager
    async def join(
        self,
        ws: Session,
        topic: str,
        *,
        since: "Position | str | None" = None,
        history: int = 0,
        limit: int | None = None,
        overflow: "Overflow | latest" = "close",
        envelope: bool = False,
        transform: Callable[[Publication], Any] | None = None,
        lost: "bool | Notice" = False,
        presence: Member | None = None,
    ) -> AsyncIterator[Joined]:
        """Make a socket a member of a topic: it gets what is published there, until the block is left.

        Args:
            ws: The socket, accepted.
            topic: The topic.
            since: The last position that the client has seen: it gets everything after that first, or is told why not.
            history: Of a client that has seen nothing: how many of the last publications it gets first.
            limit: How many publications it gets first at most; left out, as many as fit into its line.
            overflow: What becomes of publications when `Limits.outbox_messages` or `outbox_bytes` wait to be sent:
                "close" closes the connection with 1013, "drop_oldest" and "drop_newest" drop some, "latest" keeps the
                last one of each key, `latest(key)` too, with a function that gives the key of a message.
            envelope: Send each payload as `{"type": "message", "topic", "position", "data"}`, and first
                `{"type": "joined", "topic", "position", "recovered", "reason", "present"}`.
            transform: Makes what this socket gets of a `Publication`; None keeps it back.
            lost: Tell the client where publications are missing, in their place: True sends
                `{"type": "lost", "topic", "count", "reason"}`, a function of a `Lost` gives what is sent. With
                `envelope` the client is always told. Where it is not told, and the topic has a history, the connection
                is closed with 1013 if publications are missing for another reason than `overflow`.
            presence: Who is present in the topic by this socket.

        Returns:
            For `async with`: a `Joined`.

        Raises:
            BrokerError: The broker cannot be reached.
            ChannelsError: An argument cannot work, or the channels are not open.
            WebSocketStateError: The socket is not accepted, or was closed by you.
            WebSocketDisconnect: The client has gone.
        """
        self._check_open()
        _check_beginning(since, history, limit)
        _check("transform", transform, callable(transform) or transform is None, "a function of a Publication, or None")
        _check("lost", lost, callable(lost) or isinstance(lost, bool), "True, False or a function of a Lost")
        _check("presence", presence, isinstance(presence, Member | None), "a Member, or None")
        if ws._phase is not OPEN:
            ws._refuse("join a topic")
        policy = Policy(overflow)
        notice = same if lost is True or (envelope and not lost) else lost or None
        used = await self._use(checked_topic(topic))
        member = Membership(
            ws, topic, self._dropped, policy=policy, transform=transform, envelope=envelope, notice=notice,
            strict=used.keep.history > 0,
        )  # fmt: skip
        used.sockets[member] = None
        try:
            most = ws._limits.outbox_messages // 2 if limit is None else min(limit, ws._limits.outbox_messages)
            page, joined = await self._beginning(used, since, history, most, ws._limits.outbox_bytes // 2)
            if used.tells_presence:
                joined = msgspec.structs.replace(joined, present=await self.presence(topic))
            await member.outbox.room_for(sum(entry.size for entry in page.entries), len(page.entries) + 1)
            member.begin(page, joined, ahead=page.position != used.position)
            async with self._present(ws, topic, presence):
                try:
                    yield joined
                finally:  # before it is told that it has left
                    del used.sockets[member]
        finally:
            used.sockets.pop(member, None)
            self._release(used)

    @contextlib.asynccontextmanager
    async def subscribe(
        self,
        topic: str,
        *,
        since: "Position | str | None" = None,
        history: int = 0,
        limit: int | None = None,
        overflow: "Overflow | latest" = "close",
        lost: bool = False,
        messages: int = 256,
        size: int = 16_777_216,
    ) -> AsyncIterator[Subscription]:
        """Be told what is published in a topic, without a socket: a `Subscription` to loop over.

        Args:
            topic: The topic.
            since: As for `join`.
            history: As for `join`.
            limit: As for `join`; left out, `messages`.
            overflow: As for `join`; "close" ends the loop with SlowSubscriberError.
            lost: Give a `Lost` where publications are missing.
            messages: How many publications may wait.
            size: How many bytes of them.

        Raises:
            BrokerError: The broker cannot be reached.
            ChannelsError: An argument cannot work, or the channels are not open.
            SlowSubscriberError: In the loop; see `overflow`.
            GapError: In the loop: the topic has a history, publications are missing all the same, and `lost` is off.
        """
        self._check_open()
        _check_beginning(since, history, limit)
        checked_number("messages", messages, 1, whole=True)
        checked_number("size", size, 1, whole=True)
        policy = Policy(overflow)
        used = await self._use(checked_topic(topic))
        other = Subscription(
            topic, self._dropped, policy=policy, tells=lost, strict=used.keep.history > 0, messages=messages, size=size
        )
        used.others[other] = None
        try:
            most = messages if limit is None else limit
            other.begin(*await self._beginning(used, since, history, most, size))
            yield other
        finally:
            del used.others[other]
            self._release(used)

    async def _beginning(
        self, topic: Topic, since: "Position | str | None", history: int, limit: int, size: int
    ) -> tuple[Page, Joined]:
        """What a member gets first."""
        if isinstance(since, str):
            since = Position.parse(since)
        reason = None
        if since is not None:
            page = await self._backend.read(topic.name, since, limit)
            if page.reason is None and sum(entry.size for entry in page.entries) > size:
                page = Page(page.position, [], "limit")
            if page.reason is None:
                return page, Joined(since, recovered=True)
            reason = page.reason
        else:
            page = Page(topic.position or _NOWHERE, [])
        if history:
            page = await self._backend.read(topic.name, None, min(history, limit))
            page.entries = _last_of(page.entries, size)
        return page, Joined(_before(page), None if since is None else False, reason)

    # Who is there

    def _present(self, ws: Session, topic: str, member: Member | None) -> contextlib.AbstractAsyncContextManager[None]:
        if member is None:
            return contextlib.nullcontext()
        return self._presence.of(ws, topic, member, self._options_of(topic), self._message_bytes)

    async def presence(self, topic: str) -> list[Member]:
        """Who is present in a topic, in all processes.

        Raises:
            BrokerError: The broker cannot be reached.
            ChannelsError: The name cannot be a topic's, or the channels are not open.
        """
        self._check_open()
        return await self._presence.everywhere(checked_topic(topic), self.spoilt)

    async def tag(self, ws: Session, key: str, *, exclusive: bool = False) -> Callable[[], None]:
        """Have a socket reached by a key, until it ends or the function is called that this gives.

        Args:
            ws: The socket, accepted.
            key: The key.
            exclusive: Close all others that have it, in any process, with 4009. Of several that come at once the last
                one stays.

        Raises:
            BrokerError: The broker cannot be reached; the socket is not tagged then.
            ChannelsError: The key cannot be one, the socket is not one of an `App`, or the channels are not open.
            WebSocketStateError: The socket is not accepted, or was closed by you.
            WebSocketDisconnect: The client has gone.
        """
        self._check_open()
        if not hasattr(ws, "watch"):
            raise ChannelsError("only a WebSocket that an App serves can be tagged: nobody would tell of its end")
        if ws._phase is not OPEN:
            ws._refuse("tag it")
        name = user_topic(key)
        untag = await self._tagged(ws, name, exclusive=exclusive)
        if exclusive:
            order = encode(Order(TAKEN_OVER, "connected elsewhere")).decode()
            try:
                await self._publish(Publication(name, None, "close", order, exclude=ws.id))
            except BaseException:
                untag()
                raise
        return untag

    async def _tagged(self, ws: Session, name: str, *, exclusive: bool) -> Callable[[], None]:
        at_end = Outbox.of(ws).at_end
        if name in at_end:
            return at_end[name]
        topic = await self._use(name)
        member = Membership(
            ws, name, self._dropped, policy=Policy("close"), transform=None, envelope=False, notice=None, strict=False
        )
        topic.sockets[member] = None
        if exclusive:
            member.newest_until = anyio.current_time() + NEWEST
        member.begin(Page(topic.position or _NOWHERE, []), Joined(topic.position or _NOWHERE))

        def untag() -> None:
            if topic.sockets.pop(member, self) is None:
                if at_end.get(name) is untag:
                    del at_end[name]
                self._release(topic)

        if name not in at_end and ws in ws.watch.open:
            at_end[name] = untag
        else:  # it has ended meanwhile, or another task was quicker
            untag()
        return at_end.get(name, untag)

    # Seen from outside

    async def history(self, topic: str, limit: int = 100) -> list[Publication]:
        """The last publications of a topic, as far as they are kept, the oldest first.

        Raises:
            BrokerError: The broker cannot be reached.
            ChannelsError: The name cannot be a topic's, or the channels are not open.
        """
        self._check_open()
        checked_number("limit", limit, 0, whole=True)
        return list((await self._backend.read(checked_topic(topic), None, limit)).entries)

    def members(self, topic: str) -> tuple[Any, ...]:
        """The sockets of this process that are members of a topic."""
        found = self._topics.get(checked_topic(topic))
        return () if found is None else tuple(member.ws for member in found.sockets)


def _check_beginning(since: Any, history: Any, limit: Any) -> None:
    _check("since", since, isinstance(since, Position | str | None), "a Position, its text, or None")
    checked_number("history", history, 0, whole=True)
    if limit is not None:
        checked_number("limit", limit, 0, whole=True)


def _check(name: str, value: Any, is_right: bool, allowed: str) -> None:
    if not is_right:
        raise ChannelsError(f"{name} is {allowed}, got {value!r}")


def _before(page: Page) -> Position:
    """The position before what a page has."""
    first = page.entries[0].position if page.entries else None
    return page.position if first is None else Position(first.epoch, first.offset - 1)


def _last_of(entries: Sequence[Publication], size: int) -> Sequence[Publication]:
    """The last ones that have no more than so many bytes."""
    for at in range(len(entries), 0, -1):
        size -= entries[at - 1].size
        if size < 0:
            return entries[at:]
    return entries


def _backend_of(backend: Any, prefix: str) -> Backend:
    if backend is None:
        return MemoryBackend()
    if isinstance(backend, str):
        scheme, _, kind = backend.partition(":")[0].partition("+")
        is_redis = scheme in ("redis", "rediss", "unix", "valkey", "valkeys") and kind in ("", "sentinel", "cluster")
    else:
        if all(hasattr(backend, name) for name in ("open", "publish", "watch", "read")):
            found: Backend = backend
            return found
        is_redis = any(one.__module__.startswith("redis.") for one in type(backend).__mro__)
        if not is_redis:
            raise ChannelsError(f"Channels takes a URL, a client of redis.asyncio or a backend, got {backend!r}")
    if is_redis:
        from .redis import RedisBackend  # noqa: PLC0415 - an extra

        return RedisBackend(backend, prefix=prefix)
    raise ChannelsError(
        f"Channels knows the URLs redis://, rediss://, unix://, redis+cluster:// and redis+sentinel://, got "
        f"{backend.partition('@')[2] or backend!r}"
    )
