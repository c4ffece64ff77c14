"""One connection to a broker that many callers share: whose answer is whose, and how it ends."""

import asyncio
import contextlib
import datetime as dt
import gc
import ipaddress
import pathlib
import ssl
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
import redis.asyncio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from redis.exceptions import ResponseError

from asgiws.channels import BrokerError, Channels, ChannelsError, redis_link, redis_servers
from asgiws.channels.redis_link import Link, made_by, place_of, plain_url
from asgiws.channels.redis_servers import answered
from tests.channels.brokers import Relay, answering, nothing_left, stopped, until
from tests.fakes import DEADLINE
from tests.servers import free_port
from tests.valkey import Valkey

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def linked(url: str, **options: Any) -> AsyncIterator[Link]:
    """A link that leaves nothing behind."""
    async with nothing_left():
        link = Link(made_by(url)(), **options)
        await link.open()
        try:
            yield link
        finally:
            await link.close()


async def ended(link: Link) -> str:
    """Wait until a link does not work any more; why."""
    async with asyncio.timeout(DEADLINE):
        await link.ended.wait()
    with pytest.raises(BrokerError) as caught:
        link.start("PING")
    return str(caught.value)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server is asked soon whether it is there, and given up soon."""
    monkeypatch.setattr(redis_link, "PING_EVERY", 0.1)
    monkeypatch.setattr(redis_link, "ANSWER_WITHIN", 0.3)
    monkeypatch.setattr(redis_servers, "ANSWER_WITHIN", 0.3)


# Whose answer is whose


async def test_many_callers_share_one_connection_and_each_gets_its_own_answer(valkey: Valkey) -> None:
    async with linked(valkey.url) as link:
        mine = await link.start("CLIENT", "ID")

        async def ask(number: int) -> None:
            for turn in range(5):
                assert await link.start("ECHO", f"{number}/{turn}") == f"{number}/{turn}".encode()

        await asyncio.gather(*(ask(number) for number in range(200)))
        assert await link.start("CLIENT", "ID") == mine


async def test_callers_that_give_up_take_no_answer_from_the_others(valkey: Valkey) -> None:
    async with linked(valkey.url) as link:
        mine = await link.start("CLIENT", "ID")

        async def ask(number: int) -> bytes:
            answer: bytes = await answered(link.start("ECHO", number))
            return answer

        tasks = [asyncio.create_task(ask(number)) for number in range(300)]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                task.cancel()
            if number % 7 == 0:
                await asyncio.sleep(0)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        got = [one for one in found if isinstance(one, bytes)]
        assert len(got) >= 200
        assert all(one == str(number).encode() for number, one in enumerate(found) if isinstance(one, bytes))
        assert await link.start("CLIENT", "ID") == mine


async def test_a_refusal_is_for_its_caller_and_the_link_goes_on(valkey: Valkey) -> None:
    async with linked(valkey.url) as link:
        good, bad, after = link.start("ECHO", "1"), link.start("NOSUCH"), link.start("ECHO", "2")
        assert await good == b"1"
        with pytest.raises(ResponseError, match="unknown command"):
            await bad
        assert await after == b"2"
        with pytest.raises(BrokerError, match=r"refused: .*unknown command") as caught:
            await answered(link.start("NOSUCH"))
        assert isinstance(caught.value.__cause__, ResponseError)
        assert not link.ended.is_set()


async def test_a_late_answer_is_nobody_elses(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_servers, "ANSWER_WITHIN", 0.2)
    async with linked(valkey.url) as link:
        late = link.start("BLPOP", "nothing-is-there", 0.6)
        with pytest.raises(BrokerError, match="not known"):
            await answered(late)
        async with asyncio.timeout(DEADLINE):
            assert await link.start("ECHO", "mine") == b"mine"


async def test_all_bytes_and_large_ones_come_back_as_they_were(valkey: Valkey) -> None:
    async with linked(valkey.url) as link:
        for payload in (bytes(range(256)), b"", b"\r\n$1\r\n", b"x" * 3_000_000):
            assert await link.start("ECHO", payload) == payload


@pytest.mark.parametrize(
    "query", ["decode_responses=True&protocol=3", "socket_timeout=0.05", "health_check_interval=1"]
)
async def test_the_query_of_a_url_changes_nothing_that_must_be(valkey: Valkey, query: str) -> None:
    async with linked(f"{valkey.url}/0?{query}") as link:
        assert await link.start("BLPOP", "nothing-is-there", 0.1) is None
        assert await link.start("ECHO", b"\xff\x00") == b"\xff\x00"
        assert await link.start("HSET", "query-test", "a", "b") in (0, 1)
        assert await link.start("HGETALL", "query-test") == [b"a", b"b"]


# How it ends


async def test_a_server_that_is_killed_fails_who_waits_and_who_comes_after() -> None:
    with Valkey() as server:
        async with linked(server.url) as link:
            waiting = [link.start("BLPOP", "nothing", 0), link.start("ECHO", "behind it")]
            assert not link.ended.is_set()
            server.kill()
            for one in waiting:
                with pytest.raises(BrokerError, match="link to the broker broke"):
                    await answered(one)
            assert "broke" in await ended(link)
            # redis-py would connect again by itself
            server.start()
            with pytest.raises(BrokerError):
                link.start("PING")
            assert server.command("CLIENT", "LIST").count(b"\n") == 1


async def test_a_link_that_broke_does_not_send_what_was_waiting_over_a_new_connection(valkey: Valkey) -> None:
    async with Relay(valkey.port) as relay, linked(f"redis://127.0.0.1:{relay.port}") as link:
        assert await link.start("ECHO", "1") == b"1"
        relay.cut()
        await ended(link)
        link._to_write.append(b"PING\r\n")  # as one who is sending just as it breaks
        link._wake.set()
        for _ in range(20):
            await asyncio.sleep(0)
        with pytest.raises(BrokerError):
            link.start("PING")
        await asyncio.sleep(0.05)  # a connection would be here by now: there is nothing to wait for
        assert relay.accepted == 1


async def test_a_frozen_server_is_given_up(impatient: None) -> None:
    with Valkey() as server:
        async with (
            linked(server.url) as link,
            linked(server.url, push=lambda one: bool(one[0] == b"message")) as messages,
        ):
            await link.start("PING")
            messages.start("SUBSCRIBE", "x")
            with stopped(server):
                waiting = link.start("PING")
                assert "has not answered" in await ended(link)
                assert "has not answered" in await ended(messages)
                with pytest.raises(BrokerError, match="has not answered"):
                    await waiting


async def test_a_silent_server_that_is_there_is_not_given_up(valkey: Valkey, impatient: None) -> None:
    got: list[Any] = []

    def keep(answer: Any) -> bool:
        got.append(answer)
        return bool(answer[0] == b"message")

    async with linked(valkey.url) as link, linked(valkey.url, push=keep) as messages:
        messages.start("SUBSCRIBE", "x")
        # Two pings have been asked for and answered: [pong, ""] is what a subscribed connection gets.
        await until(lambda: sum(one[0] == b"pong" for one in got) >= 3)
        assert not link.ended.is_set()
        assert not messages.ended.is_set()
        assert await link.start("ECHO", "1") == b"1"


async def test_a_replica_that_refuses_to_write_ends_the_link() -> None:
    with Valkey("--replicaof", "127.0.0.1", str(free_port())) as server:
        async with linked(server.url) as link:
            with pytest.raises(ResponseError, match="read only replica"):
                await link.start("SET", "x", "1")
            assert "replica" in await ended(link)


@pytest.mark.parametrize(
    "garbage",
    [b"?!\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$abc\r\n", b":x\r\n", b"*z\r\n", b"$-7\r\n", b"\r\n", b"-\r\n"],
)
async def test_a_server_that_speaks_something_else_ends_the_link(garbage: bytes, impatient: None) -> None:
    async with answering(garbage) as port, linked(f"redis://127.0.0.1:{port}") as link:
        first = link.start("PING")
        with contextlib.suppress(ResponseError, BrokerError):  # an empty error is an answer
            async with asyncio.timeout(DEADLINE):
                await first
        if garbage != b"-\r\n":
            assert "broke" in await ended(link)


async def test_an_answer_that_nobody_asked_for_ends_the_link() -> None:
    async with answering(b"+OK\r\n+OK\r\n+OK\r\n") as port, linked(f"redis://127.0.0.1:{port}") as link:
        async with asyncio.timeout(DEADLINE):
            await link.start("PING")
        assert "unasked" in await ended(link)


async def test_who_takes_messages_and_fails_leaves_no_link_that_looks_well_and_is_deaf(valkey: Valkey) -> None:
    got: list[Any] = []

    def push(answer: Any) -> bool:
        got.append(answer)
        if len(got) == 2:
            raise KeyError("a defect")
        return bool(answer[0] == b"message")

    async with linked(valkey.url, push=push) as link:
        link.start("SUBSCRIBE", "deaf")
        await until(lambda: got)
        valkey.command("PUBLISH", "deaf", "1")
        await until(lambda: len(got) == 2)
        valkey.command("PUBLISH", "deaf", "2")
        await until(lambda: len(got) == 3 or link.ended.is_set())


@pytest.mark.parametrize("slow", [False, True])
async def test_a_link_that_is_closed_leaves_no_connection(valkey: Valkey, slow: bool) -> None:
    async with linked(valkey.url) as link:
        name = f"closing-{slow}"
        await link.start("CLIENT", "SETNAME", name)
        waiting = link.start("BLPOP", "nothing", 0) if slow else link.start("PING")
    with contextlib.suppress(BrokerError):
        await waiting
    await until(lambda: name.encode() not in valkey.command("CLIENT", "LIST"))
    gc.collect()


# How it does not begin


async def test_a_server_that_is_not_there_or_does_not_answer_is_told_of(impatient: None) -> None:
    async with nothing_left():
        with pytest.raises(BrokerError, match="cannot be reached"):
            await Link(made_by(f"redis://127.0.0.1:{free_port()}")()).open()
        async with answering(None) as port:
            with pytest.raises(BrokerError, match="cannot be reached"):
                await Link(made_by(f"redis://:secret@127.0.0.1:{port}")()).open()
    gc.collect()


async def test_who_gives_up_while_it_connects_leaves_nothing_open() -> None:
    async with nothing_left(), answering(None) as port:
        opening = asyncio.create_task(Link(made_by(f"redis://:secret@127.0.0.1:{port}")()).open())
        await asyncio.sleep(0.05)  # it waits for an answer that never comes, whenever it is cancelled
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert opening.cancelled()
    gc.collect()


async def test_a_password_is_given_and_a_wrong_one_is_told_of_without_being_told() -> None:
    with Valkey(password="right") as server:
        async with linked(server.url) as link:
            assert await link.start("PING") == b"PONG"
        for url in (f"redis://:wrong@127.0.0.1:{server.port}", f"redis://nobody:right@127.0.0.1:{server.port}"):
            with pytest.raises(BrokerError, match=r"cannot be reached: .*(WRONGPASS|invalid username)") as caught:
                await Link(made_by(url)()).open()
            assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
        server.command("ACL", "SETUSER", "ann", "on", ">päss wörd", "+@all", "~*", "&*")
        async with linked(f"redis://ann:p%C3%A4ss%20w%C3%B6rd@127.0.0.1:{server.port}") as link:
            assert await link.start("ACL", "WHOAMI") == b"ann"


async def like(client: Any) -> bytes:
    """What the server says of a connection that is made after a client's settings."""
    link = Link(await place_of(client).connect())
    await link.open()
    try:
        told: bytes = await link.start("CLIENT", "INFO")
        assert isinstance(await link.start("ECHO", "x"), bytes)
    finally:
        await link.close()
    return told


async def test_a_server_on_a_unix_socket(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "s"
    with Valkey("--unixsocket", str(path)):
        async with linked(f"unix://{path}?db=3") as link:
            assert b"db=3" in await link.start("CLIENT", "INFO")
        assert b"db=4" in await like(redis.asyncio.Redis(unix_socket_path=str(path), db=4))


async def test_a_client_of_redis_py_says_where_and_who_and_is_not_used() -> None:
    with Valkey(password="secret") as server:
        client = redis.asyncio.Redis(
            port=server.port, password="secret", db=2, client_name="mine", decode_responses=True, protocol=3,
            health_check_interval=1, max_connections=1, single_connection_client=False,
        )  # fmt: skip
        assert {b"db=2", b"name=mine", b"resp=2"} <= set((await like(client)).split())
        async with Channels(client) as channels:
            assert (await channels.publish("t", 1)).offset == 1
        await client.aclose()
        with pytest.raises(BrokerError, match=r"(?i)auth"):
            await like(redis.asyncio.Redis(port=server.port))


@pytest.mark.parametrize("client", [redis.Redis(), redis.asyncio.Connection(), redis.asyncio.ConnectionPool()])
def test_another_object_of_redis_py_is_refused(client: Any) -> None:
    with pytest.raises(ChannelsError, match=r"takes an asyncio client of redis-py \(redis.asyncio\), got redis\."):
        Channels(client)


def test_a_client_of_somebody_else_is_refused() -> None:
    with pytest.raises(ChannelsError, match=r"takes a URL, a client of redis\.asyncio or a backend, got <object"):
        Channels(object())


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A certificate of the loopback address, which nobody has signed, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(private + made.public_bytes(pem))
    return path


async def test_tls_by_url_and_only_with_a_certificate_that_can_be_checked(
    valkey: Valkey, certificate: pathlib.Path
) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    async with Relay(valkey.port, context) as relay:
        url = f"rediss://127.0.0.1:{relay.port}/3"
        for options in (f"ssl_ca_certs={certificate}", "ssl_cert_reqs=none"):
            async with linked(f"{url}?{options}") as link:
                assert b"db=3" in await link.start("CLIENT", "INFO")
        with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED"):
            await Link(made_by(url)()).open()
        settings: dict[str, Any] = {"port": relay.port, "db": 3, "ssl": True}
        assert b"db=3" in await like(redis.asyncio.Redis(**settings, ssl_ca_certs=str(certificate)))
        with pytest.raises(BrokerError, match="CERTIFICATE_VERIFY_FAILED"):
            await like(redis.asyncio.Redis(**settings))


# URLs


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("redis://h:1/2", ("", "redis://h:1/2")),
        ("valkey://u:p@h", ("", "redis://u:p@h")),
        ("valkeys://h", ("", "rediss://h")),
        ("unix:///a/valkey.sock", ("", "unix:///a/valkey.sock")),
        ("redis+sentinel://valkey:1/name", ("sentinel", "redis://valkey:1/name")),
        ("rediss+cluster://h:1", ("cluster", "rediss://h:1")),
        ("valkey+cluster://h:1", ("cluster", "redis://h:1")),
    ],
)
def test_the_kinds_of_urls(url: str, found: tuple[str, str]) -> None:
    assert plain_url(url) == found


@pytest.mark.parametrize(
    "url",
    [
        "redis://h", "rediss://h", "unix:///tmp/s", "valkey://h", "valkeys://h", "redis+sentinel://h/name",
        "rediss+sentinel://h/name", "valkey+sentinel://h/name", "valkeys+sentinel://h/name", "redis+cluster://h",
        "rediss+cluster://h", "valkey+cluster://h", "valkeys+cluster://h",
    ],
)  # fmt: skip
def test_every_url_that_is_promised_is_taken(url: str) -> None:
    Channels(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:port", "redis://h:99999", "redis://h?nosuch=1", "redis://h?socket_connect_timeout=soon",
        "redis+sentinel://h", "redis+sentinel:///name", "redis+sentinel://h/name?nosuch=1", "redis+cluster://h?nosuch=1",
        "redis+nosuch://h", "http://h", "redis",
    ],
)  # fmt: skip
def test_a_url_that_cannot_work_is_refused_at_once_and_without_its_password(url: str) -> None:
    with pytest.raises(ChannelsError) as caught:
        Channels(url.replace("://", "://user:secret@", 1))
    assert "secret" not in str(caught.value)


def test_a_sentinel_url_may_leave_out_the_port_and_have_an_address_of_ipv6() -> None:
    for url in (
        "redis+sentinel://a,b:1,[::1],[::1]:2/name",
        "rediss+sentinel://u:p@a/name/3?ssl_cert_reqs=none",
    ):
        assert callable(place_of(url).connect)
