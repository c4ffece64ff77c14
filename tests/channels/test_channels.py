"""`Channels`: its arguments and errors, publishing from anywhere, sockets by key, who is present, life with an app."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from asgiws import (
    App,
    ConfigurationError,
    ProtocolError,
    SignatureError,
    WebSocket,
    WebSocketDisconnect,
    WebSocketStateError,
)
from asgiws.background import on_trio
from asgiws.channels import Channels, ChannelsError, Joined, Member, MemoryBackend, Position, Publication, TopicOptions
from asgiws.testing import AsyncTestClient
from tests.channels.sockets import WAYS, Socket, accepted, carriers, line_of, quiet, running, stall
from tests.fakes import DAPHNE, DEADLINE, UVICORN, FakeServer, soon

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(30)]

each_way = pytest.mark.parametrize("way", WAYS)


@pytest.fixture
async def channels() -> AsyncIterator[Channels]:
    async with Channels(history=10, message_bytes=100) as opened:
        yield opened
    assert opened._topics == {}
    assert opened._ready == {}
    assert opened._presence.here == {}


async def told(ws: Socket, server: FakeServer) -> list[Any]:
    """What a client has got until now."""
    await quiet(ws)
    return server.texts


# Arguments


@pytest.mark.parametrize("backend", [1, object(), "", "memory", "http://host", "redis", "amqp://user:secret@host/"])
def test_backends_that_there_are_not(backend: Any) -> None:
    with pytest.raises(ChannelsError) as caught:
        Channels(backend)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("options", [{"history": -1}, {"history": "1"}, {"ttl": 0}, {"ttl": None}])
def test_options_that_cannot_be(options: dict[str, Any]) -> None:
    with pytest.raises(ChannelsError):
        Channels(**options)


async def test_nothing_can_be_done_with_what_is_not_open() -> None:
    channels = Channels()
    ws, _ = await accepted()
    for call in (
        lambda: channels.publish("t", 1), lambda: channels.publish(["t"], 1), lambda: channels.send_to("anna", 1),
        lambda: channels.disconnect("anna"), lambda: channels.presence("t"), lambda: channels.history("t"),
        lambda: channels.tag(ws, "anna"), lambda: channels.join(ws, "t").__aenter__(),
        lambda: channels.subscribe("t").__aenter__(),
    ):  # fmt: skip
        with pytest.raises(ChannelsError, match="not open"):
            await call()
    with pytest.raises(ChannelsError, match="not open"):
        channels.publish_from_thread("t", 1)
    assert channels.statistics().published == 0
    assert channels.members("t") == ()


@pytest.mark.parametrize("topic", ["", "x" * 256, "\0anna", 7, None, "\ud800"])
async def test_names_that_cannot_be_a_topics(channels: Channels, topic: Any) -> None:
    ws, _ = await accepted()
    for call in (
        lambda: channels.publish([topic], 1), lambda: channels.presence(topic), lambda: channels.history(topic),
        lambda: channels.join(ws, topic).__aenter__(), lambda: channels.subscribe(topic).__aenter__(),
    ):  # fmt: skip
        with pytest.raises(ChannelsError):
            await call()
    with pytest.raises(ChannelsError):
        channels.members(topic)


@pytest.mark.parametrize("overflow", ["", "drop", None])
async def test_policies_that_there_are_not(channels: Channels, overflow: Any) -> None:
    ws, _ = await accepted()
    with pytest.raises(ChannelsError, match="overflow"):
        await channels.join(ws, "t", overflow=overflow).__aenter__()
    with pytest.raises(ChannelsError, match="overflow"):
        await channels.subscribe("t", overflow=overflow).__aenter__()


async def test_publications_have_a_limit(channels: Channels) -> None:
    await channels.publish("t", "x" * 100)
    await channels.publish("t", "é" * 50)
    await channels.publish("t", b"x" * 100)
    await channels.send_to("anna", "x" * 100)
    for message in ("x" * 101, "é" * 51, b"x" * 101, ["x" * 97]):
        with pytest.raises(ChannelsError, match="at most 100 bytes, this one has 10"):
            await channels.publish("t", message)
    with pytest.raises(ChannelsError, match="at most 100 bytes"):
        await channels.send_to("anna", "x" * 101)
    assert len(await channels.history("t")) == 3


async def test_messages_that_cannot_be_sent(channels: Channels) -> None:
    with pytest.raises(TypeError):
        await channels.publish("t", object())
    with pytest.raises(ProtocolError):
        await channels.publish("t", "\ud800")
    assert channels.statistics().published == 0


# Publishing


async def test_positions_grow_by_one(channels: Channels) -> None:
    first = await channels.publish("t", "a")
    second, other = await channels.publish(["t", "u"], "b")
    assert (first.offset, second, other.offset) == (1, Position(first.epoch, 2), 1)
    assert [one.message for one in await channels.history("t")] == ["a", "b"]
    assert [one.message for one in await channels.history("t", 1)] == ["b"]
    assert await channels.publish([], "c") == []


@each_way
async def test_a_message_goes_to_all_but_who_is_excluded(channels: Channels, way: str) -> None:
    rooms = [await accepted(way) for _ in range(3)]
    async with (
        channels.join(rooms[0][0], "t"),
        channels.join(rooms[1][0], "t", envelope=True),
        channels.join(rooms[2][0], "t", transform=lambda one: one.message),
    ):
        assert channels.members("t") == tuple(ws for ws, _ in rooms)
        await channels.publish("t", "0")
        for number, (ws, _) in enumerate(rooms):
            await channels.publish("t", str(number + 1), exclude=ws if number else ws.id)
        found = [await told(ws, server) for ws, server in rooms]
        assert found[0] == ["0", "2", "3"]
        assert [json.loads(text)["data"] for text in found[1][1:]] == ["0", "1", "3"]
        assert found[2] == ["0", "1", "2"]


@each_way
async def test_1000_publications_do_not_wait_for_a_client_that_never_reads(way: str) -> None:
    ws, server = await accepted(way, outbox_messages=10)
    other, reading = await accepted(way, outbox_messages=10)
    resume = stall(server)
    async with Channels() as channels:  # noqa: SIM117 - the line is too long
        async with channels.join(ws, "t", overflow="drop_oldest", lost=True), channels.join(other, "t"):
            with anyio.fail_after(DEADLINE):
                for number in range(1000):
                    await channels.publish("t", f"{number}")
                    await quiet(other)
            assert reading.texts == [str(number) for number in range(1000)]
            assert server.texts == []
            assert channels.statistics().dropped == {"overflow": 990}
            resume()
            sent = await told(ws, server)
            assert sent[0] == "0"
            assert json.loads(sent[1]) == {"type": "lost", "topic": "t", "count": 990, "reason": "overflow"}
            assert sent[2:] == [str(number) for number in range(991, 1000)]
    assert not carriers()


@each_way
async def test_publishers_that_are_fast_do_not_overrun_a_client_that_reads(way: str) -> None:
    ws, server = await accepted(way, outbox_messages=10)
    async with Channels() as channels, channels.join(ws, "t"):
        for number in range(200):
            await channels.publish("t", str(number))
        assert await told(ws, server) == [str(number) for number in range(200)]


async def test_publishing_from_a_thread(channels: Channels) -> None:
    found: list[Any] = []

    def thread() -> None:
        found.append(channels.publish_from_thread("t", {"a": 1}, key="k"))
        try:
            channels.publish_from_thread("", 1)
        except ChannelsError as error:
            found.append(error)

    async with channels.subscribe("t") as subscription:
        await anyio.to_thread.run_sync(thread)
        one = await anext(subscription)
    assert isinstance(one, Publication)
    assert (one.message, one.key, one.position) == ({"a": 1}, "k", found[0])
    assert isinstance(found[1], ChannelsError)
    with pytest.raises(ChannelsError, match="own thread"):
        channels.publish_from_thread("t", 1)


async def test_publishing_from_a_thread_that_is_no_workers(channels: Channels) -> None:
    found: list[Position] = []
    thread = threading.Thread(target=lambda: found.append(channels.publish_from_thread("t", "a")))
    thread.start()
    await soon(lambda: found)
    await anyio.to_thread.run_sync(thread.join)
    assert found[0].offset == 1


# Joining


async def test_a_socket_has_to_be_open(channels: Channels) -> None:
    server = FakeServer()
    ws: Socket = WebSocket(server.scope, server.receive, server.send)
    with pytest.raises(WebSocketStateError, match=r"cannot join a topic: .* not accepted"):
        await channels.join(ws, "t").__aenter__()
    await ws.accept()
    server.leave()
    with pytest.raises(WebSocketDisconnect):
        await ws.receive_text()
    with pytest.raises(WebSocketDisconnect):
        await channels.join(ws, "t").__aenter__()
    closed, _ = await accepted()
    await closed.close()
    with pytest.raises(WebSocketStateError, match="cannot join a topic"):
        await channels.join(closed, "t").__aenter__()


async def test_who_comes_back_gets_what_was_missed_or_is_told_why_not(channels: Channels) -> None:
    first = await channels.publish("t", "1")
    for message in ("2", "3"):
        await channels.publish("t", message)
    for since in (first, str(first)):
        ws, server = await accepted()
        async with channels.join(ws, "t", since=since) as joined:
            assert joined == Joined(first, recovered=True)
            await channels.publish("u", "elsewhere")
            assert await told(ws, server) == ["2", "3"]
    for since, reason, limit in (("x-1", "epoch", None), (f"{first.epoch}-9", "ahead", None), (first, "limit", 1)):
        ws, server = await accepted()
        async with channels.join(ws, "t", since=since, limit=limit) as joined:
            assert (joined.recovered, joined.reason, joined.position.offset) == (False, reason, 3)
            assert await told(ws, server) == []


async def test_who_is_new_gets_some_history(channels: Channels) -> None:
    for message in "abc":
        await channels.publish("t", message)
    ws, server = await accepted()
    async with channels.join(ws, "t", history=2) as joined:
        assert (joined.position.offset, joined.recovered) == (1, None)
        assert await told(ws, server) == ["b", "c"]
    async with channels.subscribe("t", history=9) as subscription:
        assert [(await anext(subscription)).message for _ in "abc"] == ["a", "b", "c"]  # type: ignore[union-attr]
        assert subscription.joined.position == Position(joined.position.epoch, 0)


async def test_what_is_raised_in_the_block_leaves_nothing(channels: Channels) -> None:
    ws, server = await accepted()
    with pytest.raises(ZeroDivisionError):
        async with channels.join(ws, "t", presence=Member("anna")):
            raise ZeroDivisionError
    with anyio.CancelScope() as scope:
        async with channels.join(ws, "t", presence=Member("anna")), channels.subscribe("t"):
            scope.cancel()
            await anyio.sleep_forever()
    assert channels.statistics().members == 0
    assert await channels.presence("t") == []
    await channels.publish("t", "a")
    assert await told(ws, server) == []


async def test_a_socket_can_be_in_many_topics_and_leave_one(channels: Channels) -> None:
    ws, server = await accepted()
    async with channels.join(ws, "a"):
        async with channels.join(ws, "b"):
            await channels.publish(["a", "b", "c"], "1")
        await channels.publish(["a", "b"], "2")
    await channels.publish("a", "3")
    assert await told(ws, server) == ["1", "1", "2"]


# Presence


async def test_who_is_present_is_told(channels: Channels) -> None:
    ws, _ = await accepted()
    other, _ = await accepted()
    async with channels.join(ws, "t", presence=Member("berta", {"n": 1})):
        async with channels.join(other, "t", presence=Member("anna")), channels.join(other, "t"):
            assert await channels.presence("t") == [Member("anna", None), Member("berta", {"n": 1})]
            assert await channels.presence("u") == []
        assert await channels.presence("t") == [Member("berta", {"n": 1})]
    assert await channels.presence("t") == []


async def test_members_are_told_who_comes_and_goes() -> None:
    ws, server = await accepted()
    tabs = [await accepted() for _ in range(2)]
    async with Channels(topics={"t": TopicOptions(presence=True)}) as channels, channels.join(ws, "t"):
        async with channels.join(tabs[0][0], "t", presence=Member("anna", 1)):
            async with channels.join(tabs[1][0], "t", presence=Member("anna", 2)):
                assert await channels.presence("t") == [Member("anna", 2)]
            assert await channels.presence("t") == [Member("anna", 1)]
        frames = [json.loads(text) for text in await told(ws, server)]
        frame = {"type": "presence", "topic": "t"}
        assert frames == [
            {**frame, "joined": [{"key": "anna", "meta": 1}], "left": []}, {**frame, "joined": [], "left": ["anna"]}
        ]  # fmt: skip


@pytest.mark.parametrize(
    "member", [Member(""), Member("x" * 256), Member(7), Member("anna", "x" * 99), Member("anna", object())]  # type: ignore[arg-type]
)  # fmt: skip
async def test_members_that_cannot_be_present(channels: Channels, member: Member) -> None:
    ws, _ = await accepted()
    with pytest.raises((ChannelsError, TypeError)):
        async with channels.join(ws, "t", presence=member):
            """Not reached."""
    assert channels.statistics().members == 0
    assert await channels.presence("t") == []


# By key


class Served:
    """An app whose sockets are tagged with what they say."""

    def __init__(self, **options: Any) -> None:
        self.channels = Channels(**options)
        self.app = App(channels=self.channels)
        self.open: list[Socket] = []
        self.ended: list[WebSocketDisconnect] = []

        @self.app.websocket("/")
        async def serve(ws: Socket) -> None:
            await ws.accept()
            self.open.append(ws)
            try:
                while True:
                    await ws.tag(await ws.receive_text())
                    await ws.send_text("tagged")
            except WebSocketDisconnect as error:
                self.ended.append(error)

    async def connect(self, group: Any, *keys: str, shape: Any = UVICORN) -> FakeServer:
        server = FakeServer(shape)
        for key in keys:
            server.say(key)
        group.start_soon(self.app, server.scope, server.receive, server.send)
        await soon(lambda: len(server.texts) == len(keys) and "websocket.accept" in server.types)
        server.sent.clear()
        return server


async def test_sockets_are_reached_by_key() -> None:
    served = Served()
    channels = served.channels
    async with served.app.lifespan_context(), anyio.create_task_group() as group:
        anna = await served.connect(group, "anna", "admin")
        tab = await served.connect(group, "anna")
        berta = await served.connect(group, "berta")
        await channels.send_to("anna", "to anna")
        await channels.send_to("admin", {"to": "admin"})
        await channels.send_to("nobody", "x")
        await soon(lambda: len(anna.texts) == 2 and len(tab.texts) == 1)
        await channels.disconnect("anna", 4001, "out")
        await soon(lambda: anna.closed and tab.closed)
        anna.leave(4001)
        tab.leave(4001)
        await soon(lambda: len(served.app.connections) == 1)
        assert channels.statistics().members == 1
        await channels.send_to("anna", "nobody there")
        berta.leave()
    assert anna.texts == ["to anna", '{"to":"admin"}']
    assert (anna.closed, tab.closed, berta.closed) == ((4001, "out"), (4001, "out"), None)
    assert berta.texts == []
    assert sorted(error.code for error in served.ended) == [1000, 4001, 4001]
    assert channels._topics == {}
    assert not carriers()


async def test_a_disconnect_reaches_a_client_that_does_not_read() -> None:
    served = Served()
    async with served.app.lifespan_context(), anyio.create_task_group() as group:
        server = await served.connect(group, "anna")
        resume = stall(server)
        for number in range(5):
            await served.channels.send_to("anna", str(number))
        await soon(lambda: server.sending)
        await served.channels.disconnect("anna", 1008)
        resume()
        await soon(lambda: server.closed)
        server.leave(1008)
    assert server.texts == ["0"]
    assert server.closed == (1008, "")
    assert served.channels._topics == {}


async def test_a_tag_can_be_taken_back() -> None:
    served = Served()
    async with served.app.lifespan_context(), anyio.create_task_group() as group:
        server = await served.connect(group)
        untag = await served.channels.tag(served.open[0], "anna")
        await served.channels.send_to("anna", "1")
        untag()
        untag()
        await served.channels.send_to("anna", "2")
        assert served.channels._topics == {}
        await soon(lambda: server.texts)
        server.leave()
    assert server.texts == ["1"]


@pytest.mark.parametrize("code", [0, 999, 1005, 1006, 1010, 2999, 5000, "1000"])
async def test_close_codes_that_cannot_be_sent(channels: Channels, code: Any) -> None:
    with pytest.raises(ProtocolError):
        await channels.disconnect("anna", code)


@pytest.mark.parametrize("key", ["", "x" * 256, 7, None])
async def test_keys_that_cannot_be(channels: Channels, key: Any) -> None:
    with pytest.raises(ChannelsError, match="the key of a user"):
        await channels.send_to(key, 1)
    with pytest.raises(ChannelsError, match="the key of a user"):
        await channels.disconnect(key)


async def test_a_close_by_key_has_a_code_that_the_server_can_send() -> None:
    served = Served()
    async with anyio.create_task_group() as group:
        server = await served.connect(group, "anna", shape=DAPHNE)
        await served.channels.disconnect("anna", 1008, "é" * 100)
        await soon(lambda: server.closed)
        server.leave(4008)
    assert server.closed == (4008, "é" * 61)
    assert not server.choked


async def test_only_a_socket_of_an_app_can_be_tagged(channels: Channels) -> None:
    ws, _ = await accepted()
    with pytest.raises(ChannelsError, match="that an App serves"):
        await channels.tag(ws, "anna")


async def test_a_socket_that_is_not_open_cannot_be_tagged() -> None:
    channels = Channels()
    app = App(channels=channels)
    errors: list[str] = []

    @app.websocket("/")
    async def serve(ws: Socket) -> None:
        with pytest.raises(WebSocketStateError) as caught:
            await ws.tag("anna")
        errors.append(str(caught.value))
        await ws.accept()
        await ws.close()
        with pytest.raises(WebSocketStateError) as caught:
            await ws.tag("anna")
        errors.append(str(caught.value))

    server = FakeServer()
    async with app.lifespan_context():
        with anyio.fail_after(DEADLINE):
            await app(server.scope, server.receive, server.send)
        assert channels._topics == {}
    assert "not accepted" in errors[0]
    assert "closed" in errors[1]


async def test_a_tag_needs_channels() -> None:
    app = App()
    errors: list[Exception] = []

    @app.websocket("/")
    async def serve(ws: Socket) -> None:
        await ws.accept()
        with pytest.raises(ConfigurationError, match="App\\(channels=Channels\\(\\)\\)") as caught:
            await ws.tag("anna")
        errors.append(caught.value)

    server = FakeServer()
    await app(server.scope, server.receive, server.send)
    assert errors


# With an app


def asking(app: App, seen: list[Any]) -> None:
    @app.websocket("/")
    async def serve(ws: Socket, channels: Channels) -> None:
        await ws.accept()
        seen.append(channels)
        async with channels.join(ws, "t"):
            await channels.publish("t", "hello")
            async for _ in ws:
                """Until the client leaves."""


async def greeted(app: App, path: str = "/", shape: Any = UVICORN) -> None:
    server = FakeServer(shape, path)
    async with anyio.create_task_group() as group:
        group.start_soon(app, server.scope, server.receive, server.send)
        await soon(lambda: server.texts)
        server.leave()
    assert server.texts == ["hello"]


async def test_an_app_opens_them_and_gives_them_to_who_asks() -> None:
    seen: list[Any] = []
    app = App(channels=(channels := Channels()))
    asking(app, seen)
    assert app.channels is channels
    async with app.lifespan_context():
        assert channels.healthy
        await greeted(app)
    assert not channels.healthy
    assert seen == [channels]
    assert channels._topics == {}
    await soon(lambda: not running("Hub._renew"))


async def test_without_a_lifespan_the_first_connection_opens_them() -> None:
    seen: list[Any] = []
    app = App(channels=(channels := Channels()))
    asking(app, seen)
    for _ in range(2):
        await greeted(app, shape=DAPHNE)
        assert channels.healthy
    assert len(running("Hub._renew")) == 1
    assert seen == [channels] * 2


async def test_a_mounted_app_has_those_of_the_outer_one() -> None:
    seen: list[Any] = []
    inner, middle = App(), App()
    asking(inner, seen)
    middle.mount("/inner", inner)
    app = App(channels=(channels := Channels()))
    app.mount("/middle", middle)
    async with app.lifespan_context():
        await greeted(app, "/middle/inner/")
    assert seen == [channels]


async def test_a_mounted_app_can_have_its_own_or_the_same() -> None:
    for own in (Channels(), shared := Channels()):
        seen: list[Any] = []
        inner = App(channels=own)
        asking(inner, seen)
        app = App(channels=shared)
        app.mount("/inner", inner)
        async with app.lifespan_context():
            assert own.healthy
            assert shared.healthy
            await greeted(app, "/inner/")
            assert own.healthy
        assert seen == [own]
        assert not own.healthy
        assert not shared.healthy


async def test_an_app_without_them_is_told_at_the_start() -> None:
    app = App()
    asking(app, [])
    with pytest.raises(SignatureError, match="asks for Channels, and this app has none"):
        async with app.lifespan_context():
            """Not reached."""


async def test_a_plain_asgi_application_can_use_them() -> None:
    channels = Channels(MemoryBackend())

    async def application(scope: Any, receive: Any, send: Any) -> None:
        ws: Socket = WebSocket(scope, receive, send)
        await ws.accept()
        async with channels.join(ws, "t"):
            async for message in ws:
                await channels.publish("t", message)

    servers = [FakeServer(), FakeServer()]
    async with channels:
        async with anyio.create_task_group() as group:
            for server in servers:
                group.start_soon(application, server.scope, server.receive, server.send)
            await soon(lambda: len(channels.members("t")) == 2)
            servers[0].say("hello")
            await soon(lambda: all(server.texts for server in servers))
            for server in servers:
                server.leave()
        assert channels._topics == {}
    assert [server.texts for server in servers] == [["hello"]] * 2
    assert not carriers()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_loop_that_ends_while_a_send_hangs_ends() -> None:
    """In a loop of its own, in which nothing ends the send."""

    async def hang() -> None:
        ws, server = await accepted()
        stall(server)
        channels = Channels()
        await channels.__aenter__()
        joined = channels.join(ws, "t")
        await joined.__aenter__()
        for number in range(5):
            await channels.publish("t", str(number))
        assert server.sending == 1
        assert line_of(ws).frames == 4

    def run() -> None:
        asyncio.run(hang())

    assert not on_trio()
    with anyio.fail_after(DEADLINE):
        await anyio.to_thread.run_sync(run)


async def test_two_tasks_that_tag_a_socket_at_once_tag_it_once_and_its_end_frees_it() -> None:
    class Slow(MemoryBackend):
        async def watch(self, topic: str) -> None:
            await anyio.lowlevel.checkpoint()
            await super().watch(topic)

    app = App(channels=Channels(Slow()))
    assert app.channels is not None
    channels = app.channels

    @app.websocket("/")
    async def tagged(ws: WebSocket) -> None:
        await ws.accept()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ws.tag, "anna")
        await ws.send_text("tagged")
        async for _ in ws.iter_text():
            """Nothing."""

    async with AsyncTestClient(app) as client:
        async with client.websocket_connect("/") as ws:
            assert await ws.receive_text() == "tagged"
            await channels.send_to("anna", "once")
            await channels.send_to("anna", "the end")
            assert [await ws.receive_text() for _ in range(2)] == ["once", "the end"]
        await soon(lambda: channels.statistics().topics == 0)
