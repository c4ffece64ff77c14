"""One connection to a Redis or Valkey server, and the servers behind a URL or a client of redis-py's.

redis-py's connections are used, but not its clients: those try a command again that may have been executed, and
subscribe again after a break without a word.
"""

import asyncio
import collections
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit, urlunsplit

from ..errors import BrokerError, ChannelsError
from ..log import logger

try:
    import redis.asyncio as aio
    from redis.asyncio.connection import parse_url
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import SentinelConnectionPool
    from redis.backoff import NoBackoff
    from redis.exceptions import ReadOnlyError, RedisError, ResponseError
except ModuleNotFoundError as error:
    raise ChannelsError(
        f"Channels with a Redis URL needs redis-py, and {error.name!r} is missing: pip install 'asgiws[redis]'"
    ) from None

ANSWER_WITHIN = 5.0
"""Seconds for one answer of a server, also for the answer to a connection."""

PING_EVERY = 10.0
"""Seconds of silence after which a server is asked whether it is there."""

# A URL's query or a client must not change these: a payload is bytes, and nothing is tried twice.
_FIXED: dict[str, Any] = {
    "protocol": 2,
    "decode_responses": False,
    "socket_timeout": None,
    "health_check_interval": 0,
    "retry": Retry(NoBackoff(), 0),
}


class Link:
    """A connection on which the commands of many callers go out together, and the answers come back in their order.

    Args:
        connection: redis-py's, not open yet.
        push: Takes what comes and is no answer: the messages of a subscription.

    Attributes:
        ended: Set when it does not work any more; then every call raises.
    """

    def __init__(self, connection: Any, push: Callable[[Any], bool] | None = None) -> None:
        self._connection = connection
        self._push = push
        self._waiting: collections.deque[asyncio.Future[Any]] = collections.deque()
        self._to_write: list[bytes] = []
        self._wake = asyncio.Event()
        self._heard = True
        self._failure: BrokerError | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.ended = asyncio.Event()

    @property
    def host(self) -> str:
        """The host that it is for."""
        return str(getattr(self._connection, "host", ""))

    async def open(self) -> None:
        """Connect; raises BrokerError."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
                await self._connection.connect()
        except (RedisError, OSError, TimeoutError) as error:
            await self._disconnect()
            raise BrokerError(f"the broker cannot be reached: {_told(error)}") from error
        except BaseException:
            await self._disconnect()
            raise
        self._tasks = [asyncio.create_task(part()) for part in (self._read, self._write, self._watch)]

    async def close(self) -> None:
        """Disconnect."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(BrokerError("these channels were closed"))
        await self._disconnect()

    async def _disconnect(self) -> None:
        with contextlib.suppress(Exception):
            await self._connection.disconnect(nowait=True)

    def start(self, *command: Any) -> "asyncio.Future[Any]":
        """Write a command: the future of its answer, a `ResponseError` of redis-py's or a BrokerError.

        A caller that is cancelled does no harm to the others.
        """
        if self._failure is not None:
            raise self._failure
        self._to_write.extend(self._connection.pack_command(*command))
        self._wake.set()
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(answer)
        return answer

    async def _write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._failure is not None:  # redis-py would connect again, and send what belongs to the old connection
                return
            chunks, self._to_write = self._to_write, []
            try:
                await self._connection.send_packed_command(chunks, check_health=False)
            except (RedisError, OSError) as error:
                self._fail(BrokerError(f"the link to the broker broke: {_told(error)}"))
                return

    async def _read(self) -> None:
        read, waiting, push = self._connection.read_response, self._waiting, self._push
        pace = 0
        while True:
            failure: Exception | None = None
            answer = None
            try:
                answer = await read()
            except ResponseError as error:
                failure = error
            except (RedisError, OSError) as error:
                self._fail(BrokerError(f"the link to the broker broke: {_told(error)}"))
                return
            self._heard = True
            pace += 1
            if pace % 64 == 0:  # what has arrived already is read without a pause
                await asyncio.sleep(0)
            try:
                if push is not None and failure is None and push(answer):
                    continue
            except Exception:  # noqa: BLE001 - a reader that ends without a word would leave everybody waiting
                logger().exception("channels: a message could not be taken")
                self._fail(BrokerError("a message of the broker could not be taken"))
                return
            if not waiting:
                self._fail(
                    BrokerError(f"the broker refused: {_told(failure)}" if failure else "the broker speaks unasked")
                )
                return
            future = waiting.popleft()
            if not future.done():
                if failure is None:
                    future.set_result(answer)
                else:
                    future.set_exception(failure)
            if isinstance(failure, ReadOnlyError):  # it is not the master any more
                self._fail(BrokerError("the broker has become a replica"))
                return

    async def _watch(self) -> None:
        """Ask a silent server whether it is there, and give it up if it does not answer."""
        while True:
            await asyncio.sleep(PING_EVERY)
            if not self._heard:
                with contextlib.suppress(BrokerError):
                    self.start("PING").add_done_callback(ignored)
                await asyncio.sleep(ANSWER_WITHIN)
                if not self._heard:
                    self._fail(BrokerError(f"the broker has not answered for {ANSWER_WITHIN:g} seconds"))
                    return
            self._heard = False

    def _fail(self, failure: BrokerError) -> None:
        if self._failure is None:
            self._failure = failure
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(BrokerError(*self._failure.args))
                future.exception()  # that nobody asks for it is no fault
        self._to_write.clear()
        self._wake.set()
        self.ended.set()


def ignored(answer: "asyncio.Future[Any]") -> None:
    """Take note of what nobody waits for."""
    if not answer.cancelled():
        answer.exception()


def _told(error: Exception | None) -> str:
    """What went wrong, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


Make = Callable[..., Any]
"""Makes a connection of redis-py's that is not open yet; it takes another host and port than its own."""

Connect = Callable[[], Awaitable[Any]]
"""Gives such a connection to the server that is in charge now."""


class Place(NamedTuple):
    """Where the servers are.

    Attributes:
        connect: Gives connections to the one server; of a cluster to any node.
        make: Makes connections to the nodes of a cluster; None if it is none.
    """

    connect: Connect
    make: Make | None = None


def place_of(source: Any) -> Place:
    """Where a URL or a client of redis-py's says that the servers are.

    Raises:
        ChannelsError: It cannot work.
    """
    if not isinstance(source, str):
        return _place_of_client(source)
    kind, url = plain_url(source)
    if kind == "cluster":
        make = made_by(url)
        return Place(single(make), make)
    return Place(_by_sentinel_url(url) if kind == "sentinel" else single(made_by(url)))


def plain_url(url: str) -> tuple[str, str]:
    """The kind of a URL ("", "sentinel" or "cluster") and the URL without it; "valkey" is another name for "redis"."""
    scheme, colon, rest = url.partition(":")
    base, _, kind = scheme.partition("+")
    return kind, base.replace("valkey", "redis") + colon + rest


def made_by(url: str) -> Make:
    """Makes connections as a URL says it, but for what must be as it is here; raises ChannelsError."""
    try:
        options = dict(parse_url(url))
    except (ValueError, TypeError) as error:
        raise ChannelsError(f"the URL of the broker cannot work: {error}") from None
    return _maker(options.pop("connection_class", aio.Connection), options)


def _maker(cls: Any, options: dict[str, Any]) -> Make:
    def make(**address: Any) -> Any:
        return cls(**{"socket_connect_timeout": ANSWER_WITHIN, **options, **_FIXED, **address})

    try:
        make()
    except (ValueError, TypeError) as error:
        raise ChannelsError(f"the URL of the broker cannot work: {error}") from None
    return make


def single(make: Make) -> Connect:
    """To the one server to which connections are made."""

    async def connect() -> Any:
        return make()

    return connect


def _by_sentinel_url(url: str) -> Connect:
    """As `_by_sentinels`, of a URL: redis+sentinel://host:port,host:port/name/db.

    User and password are the master's; the query is for the connections to it.
    """
    parts = urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    name, _, db = unquote(parts.path.strip("/")).partition("/")
    if not hosts or not name:
        raise ChannelsError("a Sentinel URL has hosts and the master's name: redis+sentinel://host:26379,host2/name")
    watchers = [
        made_by(urlunsplit(("redis", host if ":" in host.rpartition("]")[2] else f"{host}:26379", "", "", "")))
        for host in hosts.split(",")
    ]
    master = made_by(
        urlunsplit((parts.scheme, f"{credentials}@master" if credentials else "master", f"/{db}", parts.query, ""))
    )
    return _by_sentinels(watchers, name, master)


def _by_sentinels(watchers: Sequence[Make], name: str, master: Make) -> Connect:
    """To the master that Sentinels know by a name."""

    async def connect() -> Any:
        problem: Exception = BrokerError(f"no Sentinel knows a master by the name {name!r}")
        for watcher in watchers:
            link = Link(watcher())
            try:
                await link.open()
                async with asyncio.timeout(ANSWER_WITHIN):
                    found = await link.start("SENTINEL", "GET-MASTER-ADDR-BY-NAME", name)
            except (BrokerError, ResponseError, TimeoutError) as error:
                problem = error
                continue
            finally:
                await link.close()
            problem = BrokerError(f"no Sentinel knows a master by the name {name!r}")
            if found:
                return master(host=found[0].decode(), port=int(found[1]))
        raise BrokerError(f"no Sentinel tells where the master is: {_told(problem)}")

    return connect


# Of a client's settings those that say where and who. What else redis-py keeps there is for its own connections.
_WHERE_AND_WHO = {
    "host", "port", "path", "db", "username", "password", "credential_provider", "client_name",
    "socket_connect_timeout", "socket_keepalive",
}  # fmt: skip


def _place_of_client(client: Any) -> Place:
    if isinstance(client, aio.RedisCluster):
        node = client.startup_nodes[0]
        make = _made_like(node)
        return Place(single(make), make)
    if not isinstance(client, aio.Redis):
        raise ChannelsError(
            f"Channels takes an asyncio client of redis-py (redis.asyncio), got {type(client).__module__}."
            f"{type(client).__qualname__}"
        )
    pool: Any = client.connection_pool
    make = _made_like(pool)
    if not isinstance(pool, SentinelConnectionPool):
        return Place(single(make))
    watchers = [_made_like(one.connection_pool) for one in pool.sentinel_manager.sentinels]
    return Place(_by_sentinels(watchers, pool.service_name, make))


def _made_like(pool: Any) -> Make:
    """Makes connections like those of a pool, or of a node."""
    kind, settings = pool.connection_class, pool.connection_kwargs
    chosen = {key: value for key, value in settings.items() if key in _WHERE_AND_WHO or key.startswith("ssl_")}
    plain = next(one for one in (aio.SSLConnection, aio.UnixDomainSocketConnection, object) if issubclass(kind, one))
    return _maker(aio.Connection if plain is object else plain, chosen)
