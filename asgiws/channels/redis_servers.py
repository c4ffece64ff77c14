"""The servers that have the topics: one, or those of a cluster."""

import asyncio
import collections
import contextlib
import functools
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol

from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError, MovedError, NoScriptError, ResponseError

from ..errors import BrokerError
from ..log import logger
from .redis_link import ANSWER_WITHIN, Connect, Link, Make, ignored
from .redis_scripts import PRESENCE, PUBLISH

BACK_WITHIN = 2.0
"""Seconds that a call waits for a broker that has gone."""

RETRY_LEAST, RETRY_MOST = 0.05, 5.0
"""Seconds between two attempts to reach the broker again."""

EACH_WITHIN = 0.01
"""Seconds more for each topic that is watched again."""

RUN = object()
"""Stands for the server's run among the arguments of a script."""


class Owner(Protocol):
    """Who has servers."""

    def broken(self) -> None:
        """One of them has gone."""

    def mended(self) -> None:
        """One of them is back."""

    def came(self, topic: str, envelope: bytes) -> None:
        """A message has come for a topic."""

    def moved(self, topic: str) -> None:
        """A topic is on another server now."""

    async def look_around(self) -> None:
        """A server could not be reached: another one may have taken its place."""


class Server:
    """One server, reached by two connections that are made again whenever they break.

    Args:
        connect: Gives connections to it.
        owner: Whose it is.
        sharded: Use sharded Pub/Sub.

    Attributes:
        run: What the server calls this run of its own; a restart makes it another one.
    """

    def __init__(self, connect: Connect, owner: Owner, *, sharded: bool) -> None:
        self._connect = connect
        self._owner = owner
        self._sharded = sharded
        self._commands: Link | None = None
        self._messages: Link | None = None
        self._up = asyncio.Event()
        self._failure: BrokerError | None = None
        self._task: asyncio.Task[None] | None = None
        self._channels: dict[bytes, str] = {}  # watched topics
        self._leaving: collections.Counter[bytes] = collections.Counter()  # that are to be left, and are not yet
        self._scripts: dict[str, str] = {}
        self.run = b""

    @property
    def publish_by(self) -> str:
        """The command that publishes."""
        return "SPUBLISH" if self._sharded else "PUBLISH"

    async def open(self) -> None:
        """Reach it; raises BrokerError."""
        await self._link()
        self._task = asyncio.create_task(self._keep_linked())

    async def close(self) -> None:
        """Let it go."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._unlink()

    async def _link(self) -> None:
        self._commands = Link(await self._connect())
        self._messages = Link(await self._connect(), self._pushed)
        try:
            await self._commands.open()
            await self._messages.open()
            async with asyncio.timeout(ANSWER_WITHIN):
                info = await self._commands.start("INFO", "server")
                self.run = next((line[7:] for line in info.split() if line.startswith(b"run_id:")), b"?")
                for script in (PUBLISH, PRESENCE):
                    self._scripts[script] = await self._commands.start("SCRIPT", "LOAD", script)
            await self._subscribe_again()
        except (ResponseError, TimeoutError) as error:
            await self._unlink()
            raise BrokerError(f"the broker refused: {error}") from error
        except BaseException:
            await self._unlink()
            raise
        self._up.set()

    async def _unlink(self) -> None:
        self._up.clear()
        self._leaving.clear()
        for link in (self._commands, self._messages):
            if link is not None:
                await link.close()

    async def _keep_linked(self) -> None:
        pause = RETRY_LEAST
        while True:
            since = time.monotonic()
            await self._broken()
            if time.monotonic() - since > RETRY_MOST:
                pause = RETRY_LEAST
            self._up.clear()
            logger().warning("channels: %s; it is tried again", self._failure or "the link to the broker broke")
            self._owner.broken()
            await self._unlink()
            while True:
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
                pause = min(pause * 2, RETRY_MOST)
                try:
                    await self._link()
                    break
                except BrokerError as error:
                    self._failure = error
                except Exception:  # noqa: BLE001 - nobody waits for this task
                    logger().exception("channels: the broker could not be reached")
                await self._owner.look_around()
            logger().info("channels: the broker is back")
            self._failure = None
            self._owner.mended()

    async def _broken(self) -> None:
        """Wait until one of the connections does not work any more."""
        links = [link for link in (self._commands, self._messages) if link is not None]
        waits = [asyncio.ensure_future(link.ended.wait()) for link in links]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def until_up(self) -> Link:
        """The connection for commands; waits a moment for a server that has gone, and raises BrokerError."""
        if not self.is_up:
            try:
                async with asyncio.timeout(BACK_WITHIN):
                    while not self.is_up:
                        await (asyncio.sleep(RETRY_LEAST) if self._up.is_set() else self._up.wait())
            except TimeoutError:
                raise BrokerError(str(self._failure or "the broker cannot be reached")) from None
        if self._commands is None:
            raise BrokerError("these channels were closed")
        return self._commands

    @property
    def is_up(self) -> bool:
        """Whether it can be reached."""
        links = (self._commands, self._messages)
        return self._up.is_set() and not any(link is None or link.ended.is_set() for link in links)

    async def call(self, *command: Any) -> Any:
        """The answer to a command; raises BrokerError."""
        link = await self.until_up()
        return await answered(link.start(*command))

    async def script(self, script: str, keys: Sequence[Any], *arguments: Any) -> Any:
        """What a script returns; raises BrokerError."""
        link = await self.until_up()
        run = (len(keys), *keys, *(self.run if one is RUN else one for one in arguments))
        try:
            return await answered(link.start("EVALSHA", self._scripts[script], *run))
        except BrokerError as error:
            if not isinstance(error.__cause__, NoScriptError):
                raise
        return await answered(link.start("EVAL", script, *run))  # the server has forgotten it, and done nothing

    async def together(self, *commands: Sequence[Any]) -> list[Any]:
        """What several commands answer that are executed in one step; raises BrokerError."""
        link = await self.until_up()
        asked = [link.start(*command) for command in (("MULTI",), *commands, ("EXEC",))]
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                answers = await asyncio.gather(*asked, return_exceptions=True)
        except TimeoutError:
            raise BrokerError("the broker did not answer in time") from None
        found = answers[-1] if isinstance(answers[-1], list) else []
        for one in (*answers, *found):
            if isinstance(one, BrokerError):
                raise one
            if isinstance(one, Exception):
                raise BrokerError(f"the broker refused: {one}") from one
        return list(found)

    # Being told

    async def watch(self, channel: bytes, topic: str) -> None:
        """Have what comes on a channel delivered; raises BrokerError."""
        await self.until_up()
        self._channels[channel] = topic
        await answered(self._asking().start(self._verb("SUBSCRIBE"), channel))

    def _asking(self) -> Link:
        if self._messages is None:
            raise BrokerError("these channels were closed")
        return self._messages

    def _verb(self, verb: str) -> str:
        return f"S{verb}" if self._sharded else verb

    async def _subscribe_again(self) -> None:
        """Have everything delivered that is watched, on a new connection."""
        link = self._asking()
        watched = dict(self._channels)
        asked = [link.start(self._verb("SUBSCRIBE"), channel) for channel in watched]
        async with asyncio.timeout(ANSWER_WITHIN + len(asked) * EACH_WITHIN):
            answers = await asyncio.gather(*asked, return_exceptions=True)
        for (channel, topic), answer in zip(watched.items(), answers, strict=True):
            if isinstance(answer, MovedError | AskError) and self._channels.pop(channel, None) is not None:
                self._owner.moved(topic)
            elif isinstance(answer, ResponseError):
                logger().error("channels: %r can be watched no more: %s", topic, answer)
            elif isinstance(answer, BaseException):
                raise answer

    def unwatch(self, channel: bytes) -> None:
        """Have it delivered no more."""
        if self._channels.pop(channel, None) is not None and self._messages is not None:
            with contextlib.suppress(BrokerError):
                self._messages.start(self._verb("UNSUBSCRIBE"), channel).add_done_callback(ignored)
                self._leaving[channel] += 1

    def _pushed(self, answer: Any) -> bool:
        """Take a message; whether it is one, and not the answer to a command."""
        kind = answer[0] if isinstance(answer, list) else None
        if kind in (b"message", b"smessage"):
            topic = self._channels.get(answer[1])
            if topic is not None:
                self._owner.came(topic, answer[2])
            return True
        if kind in (b"unsubscribe", b"sunsubscribe"):
            if not self._leaving[answer[1]]:  # nobody has asked for that
                topic = self._channels.pop(answer[1], None)
                if topic is not None:
                    self._owner.moved(topic)
                return True
            self._leaving[answer[1]] -= 1
            self._leaving += collections.Counter()  # without those at 0
        return False

    def take_channels(self, are_gone: Callable[[bytes], bool]) -> list[str]:
        """Forget those watched topics whose channels are gone, and tell which they were."""
        gone = [channel for channel in self._channels if are_gone(channel)]
        return [self._channels.pop(channel) for channel in gone]


async def answered(answer: "asyncio.Future[Any]") -> Any:
    """The answer to a command; raises BrokerError."""
    try:
        async with asyncio.timeout(ANSWER_WITHIN):
            return await answer
    except TimeoutError:
        raise BrokerError("the broker did not answer in time: whether it did what it was told is not known") from None
    except ResponseError as error:
        raise BrokerError(f"the broker refused: {error}") from error


def parts(many: Sequence[Any], most: int) -> Iterable[Sequence[Any]]:
    """A sequence in parts of at most so many."""
    return (many[at : at + most] for at in range(0, len(many), most))


class Servers:
    """One server for all topics.

    Args:
        connect: Gives connections to it.
        owner: Whose it is.
    """

    def __init__(self, connect: Connect, owner: Owner) -> None:
        self._one = Server(connect, owner, sharded=False)

    async def open(self) -> None:
        """Reach it; raises BrokerError."""
        await self._one.open()

    async def close(self) -> None:
        """Let it go."""
        await self._one.close()

    def of(self, _: bytes) -> Server:
        """The server of a key."""
        return self._one

    async def ask(self, _: bytes, question: Callable[[Server], Awaitable[Any]]) -> Any:
        """What the server of a key answers."""
        return await question(self._one)

    async def look_around(self) -> None:
        """There is nothing else to find."""


class Cluster:
    """The masters of a cluster, each with a part of the topics.

    Args:
        connect: Gives connections to any node.
        make: Makes connections to its nodes.
        owner: Whose they are.
    """

    def __init__(self, connect: Connect, make: Make, owner: Owner) -> None:
        self._connect = connect
        self._make = make
        self._owner = owner
        self._by_address: dict[tuple[str, int], Server] = {}
        self._slots: list[tuple[int, int, Server]] = []
        self._looking = asyncio.Lock()
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Find and reach the masters; raises BrokerError."""
        try:
            await self._look([self._connect])
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let them go."""
        self._closed = True
        servers, self._by_address, self._slots = list(self._by_address.values()), {}, []
        for server in servers:
            await server.close()

    def of(self, key: bytes) -> Server:
        """The server of a key."""
        slot = key_slot(key)
        for first, last, server in self._slots:
            if first <= slot <= last:
                return server
        raise BrokerError("no node of the cluster has the topic's slot")

    async def ask(self, key: bytes, question: Callable[[Server], Awaitable[Any]]) -> Any:
        """What the server of a key answers; if the key has moved, what the one answers that has it now."""
        for _ in range(3):
            try:
                return await question(self.of(key))
            except BrokerError as error:
                if not isinstance(error.__cause__, MovedError | AskError | ClusterDownError):
                    raise
                problem = error
            await self.look_around()
            await asyncio.sleep(RETRY_LEAST)
        raise problem

    async def look_around(self) -> None:
        """Find out again which node has what."""
        known = [self._connect_to(address) for address in self._by_address]
        with contextlib.suppress(BrokerError):
            await self._look([*known, self._connect])

    def _connect_to(self, address: tuple[str, int]) -> Connect:
        async def connect() -> Any:
            return self._make(host=address[0], port=address[1])

        return connect

    async def _look(self, places: Iterable[Connect]) -> None:
        async with self._looking:
            found = await self._shown(places)
            moved: list[str] = []
            for address in {one[2] for one in found} - self._by_address.keys():
                server = Server(self._connect_to(address), self._owner, sharded=True)
                await server.open()
                if self._closed:
                    await server.close()
                    raise BrokerError("these channels were closed")
                self._by_address[address] = server
            self._slots = [(first, last, self._by_address[address]) for first, last, address in found]
            for address in self._by_address.keys() - {one[2] for one in found}:
                server = self._by_address.pop(address)
                moved += server.take_channels(lambda _: True)
                if not server.is_up:
                    self._owner.mended()  # nobody waits for it any more
                background = asyncio.create_task(server.close())
                self._closing.add(background)
                background.add_done_callback(self._closing.discard)
            for server in self._by_address.values():
                moved += server.take_channels(functools.partial(self._is_elsewhere, server))
        for topic in moved:
            self._owner.moved(topic)

    def _is_elsewhere(self, server: Server, channel: bytes) -> bool:
        return self.of(channel) is not server

    async def _shown(self, places: Iterable[Connect]) -> list[tuple[int, int, tuple[str, int]]]:
        problem: Exception = BrokerError("no node of the cluster can be reached")
        for connect in places:
            link = Link(await connect())
            try:
                await link.open()
                slots = await answered(link.start("CLUSTER", "SLOTS"))
            except BrokerError as error:
                problem = error
                continue
            finally:
                host = link.host
                await link.close()
            return [(one[0], one[1], ((one[2][0] or b"").decode() or host, int(one[2][1]))) for one in slots]
        raise problem
