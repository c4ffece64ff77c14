"""Who is present in topics, by the sockets of this process and by those of all."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import msgspec

from ..errors import ChannelsError
from ..log import logger
from ..messages import encode_message
from ..session import Session
from .backend import Backend, Present
from .options import Member, TopicOptions
from .publication import checked_name, size_of

GOODBYE = 2.0
"""Seconds that it may take to tell the broker that a member has gone."""

LATE = 0.05
"""Seconds after which a time that is up on the broker is also up for certain."""


class Presence:
    """Who is present.

    Args:
        backend: Where that is noted.
        lease: For how many seconds somebody is present whose process has died.
        beside: Runs a job beside, at the latest until the channels are closed; False if they are closed already.

    Attributes:
        here: Who is by a socket of this process.
        leaving: Topics that somebody has left who has a grace, and whether since the last look somebody has.
    """

    def __init__(self, backend: Backend, lease: float, beside: Callable[[Callable[[], Awaitable[None]]], bool]) -> None:
        self._backend = backend
        self._lease = lease
        self._beside = beside
        self._connections = itertools.count(1)
        self.here: dict[Present, None] = {}
        self.leaving: dict[str, bool] = {}

    @contextlib.asynccontextmanager
    async def of(
        self, ws: Session, topic: str, member: Member, options: TopicOptions, most: int
    ) -> AsyncIterator[None]:
        """Have somebody be present as long as the block runs.

        Args:
            ws: By which socket.
            topic: Where.
            member: Who.
            options: Of the topic.
            most: How many bytes `member.meta` may have.

        Raises:
            BrokerError: The broker cannot be reached.
            ChannelsError: The key cannot be one, or the meta is too large.
        """
        present = Present(
            topic, checked_name(member.key, "the key of a member"), f"{ws.id}.{next(self._connections)}",
            encode_message(member.meta), options.presence, options.grace,
        )  # fmt: skip
        if size_of(present.meta) > most:
            raise ChannelsError(f"the meta of a member has at most {most} bytes")
        self.here[present] = None
        try:
            await self._backend.enter(present, self._lease)
            yield
        finally:
            self.here.pop(present, None)
            with anyio.move_on_after(GOODBYE, shield=True):
                try:
                    await self._backend.leave(present)
                    if present.grace:
                        self._see_off(topic, present.grace)
                except ChannelsError as error:  # its lease runs out
                    logger().debug("%s could not be told to have left %r: %s", member.key, topic, error)

    async def renew(self) -> None:
        """Renew the leases of who is here; raises BrokerError."""
        if self.here:
            await self._backend.renew(self.here, self._lease)

    def _see_off(self, topic: str, grace: float) -> None:
        """Have it told when somebody's grace is over."""

        async def look() -> None:
            while self.leaving.get(topic):
                self.leaving[topic] = False
                await anyio.sleep(grace + LATE)
                try:
                    await self._backend.present(topic)
                except ChannelsError as error:  # the next look at all topics does it
                    logger().debug("who has left %r could not be told: %s", topic, error)
            self.leaving.pop(topic, None)

        if topic in self.leaving or self._beside(look):
            self.leaving[topic] = True

    async def everywhere(self, topic: str, spoilt: Callable[[], Any]) -> list[Member]:
        """Who is present in a topic by any process.

        Args:
            topic: The topic.
            spoilt: Called for each whose meta cannot be read; who is left out then.

        Raises:
            BrokerError: The broker cannot be reached.
        """
        found = []
        for key, meta in sorted((await self._backend.present(topic)).items()):
            try:
                found.append(Member(key, msgspec.json.decode(meta)))
            except (msgspec.MsgspecError, UnicodeError) as error:  # anybody may write there
                logger().warning("channels: the meta of %r could not be read, and is left out: %s", key, error)
                spoilt()
        return found

    def closed(self) -> None:
        """Nobody is seen off any more."""
        self.leaving.clear()
