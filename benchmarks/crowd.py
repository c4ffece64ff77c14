"""A process with many WebSocket clients of one app, all in-process, and what it costs to tell them all something.

A delivery is one call of a client's `send` with the message that was published. Each one is checked: a peer of which
somebody lost one, or got one twice, is not measured.
"""

import asyncio
import collections
import contextlib
import gc
import logging
import multiprocessing
import multiprocessing.connection
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from benchmarks import drivers, peers
from benchmarks.drivers import ASGI, Event
from benchmarks.peers import Publish

READY = 60.0
"""Seconds in which everybody must have joined."""
PATIENCE = 20.0
"""Seconds in which a publication must have reached everybody."""
SILENCE = 3.0
"""Seconds without a delivery after which what is missing is lost."""
CALLERS = 16
"""How many publish at once through a broker."""

Send = Callable[[Event], Awaitable[None]]


def message(number: int, padding: str = "") -> dict[str, Any]:
    """What is published."""
    return {"type": "say", "room": "general", "text": f"hello, everybody{padding}", "id": number, "tags": ["a", "b"]}


def text_of(number: int, padding: str = "") -> str:
    """What each client gets of it."""
    return msgspec.json.encode(message(number, padding)).decode()


class Crowd:
    """So many clients of an app, who say nothing; the first `stalled` ones do not read what they are sent.

    Attributes:
        log: Who got what: the number of a client and a text in turn, so that nothing is made which the garbage
            collector would have to look through.
        sends: What the server side calls, for each client.
    """

    def __init__(self, app: ASGI, publish: Publish, count: int, stalled: int = 0) -> None:
        self.log: list[Any] = []
        self.sends: list[Send] = []
        self._app, self._publish = app, publish
        self._count, self._stalled = count, stalled
        self._readers = set(range(stalled, count))
        self._end = asyncio.Event()
        self._joined = False
        self._tasks: list[asyncio.Task[None]] = []
        self._life = contextlib.AsyncExitStack()
        self._number = 0

    async def open(self) -> None:
        """Connect all, and wait until each one is told what is published.

        Raises:
            RuntimeError: They are not.
        """
        await self._life.enter_async_context(drivers.lifespan(self._app))
        await self._connect(1)  # alone: some lose a member whose subscription is under way when the next one comes
        await self._connect(self._count)
        self._joined = True

    async def _connect(self, count: int) -> None:
        """Go on until there are so many."""
        for number in range(len(self.sends), count):
            self.sends.append(self._stuck(number) if number < self._stalled else self._reading(number))
            self._tasks.append(asyncio.create_task(self._connection(self.sends[-1])))
        pause = 0.1
        try:
            async with asyncio.timeout(READY):
                while len(set(self.log[::2])) < count:
                    await self._publish(message(0))
                    await asyncio.sleep(pause)
                    pause *= 1.5
        except TimeoutError:
            raise RuntimeError(f"{len(set(self.log[::2]))} of {count} are told what is published") from None
        while self.log:  # what is still under way of that
            self.log.clear()
            await asyncio.sleep(0.3)

    async def close(self) -> None:
        """Disconnect all."""
        self._end.set()
        await asyncio.wait(self._tasks, timeout=PATIENCE)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._life.aclose()

    def _reading(self, number: int) -> Send:
        got = self.log.append

        async def send(event: Event) -> None:
            try:
                text = event["text"]
            except KeyError:  # it accepts or closes
                return
            got(number)
            got(text)

        return send

    def _stuck(self, number: int) -> Send:
        read = self._reading(number)

        async def send(event: Event) -> None:
            if self._joined:
                await self._end.wait()
            else:
                await read(event)

        return send

    async def _connection(self, send: Send) -> None:
        fresh = True

        async def receive() -> Event:
            nonlocal fresh
            if fresh:
                fresh = False
                return {"type": "websocket.connect"}
            await self._end.wait()
            return {"type": "websocket.disconnect", "code": 1000, "reason": ""}

        await self._app(drivers.scope_of("/general"), receive, send)

    async def publish(self, count: int, padding: str = "") -> float:
        """Seconds of processor time a delivery of so many publications, each one published when the last has come.

        Raises:
            RuntimeError: Somebody did not get exactly what was published.
        """
        taken = 0.0
        readers = len(self._readers)
        for _ in range(count):
            self._number += 1
            end = time.monotonic() + PATIENCE
            start = time.process_time()
            await self._publish(message(self._number, padding))
            while len(self.log) < 2 * readers and time.monotonic() < end:  # noqa: ASYNC110 - a delivery costs a line in a log
                await asyncio.sleep(0)
            taken += time.process_time() - start
            self._check(text_of(self._number, padding))
        return taken / (count * readers)

    async def loop(self, count: int) -> float:
        """The same with nothing in between: a loop over what the server has given."""
        taken = 0.0
        sends = self.sends[self._stalled :]
        for _ in range(count):
            self._number += 1
            start = time.process_time()
            text = text_of(self._number)
            for send in sends:
                await send({"type": "websocket.send", "text": text})
            taken += time.process_time() - start
            self._check(text)
        return taken / (count * len(sends))

    def _check(self, text: str) -> None:
        got, times = set(self.log[::2]), len(self.log) // 2
        if times != len(self._readers) or got != self._readers:
            raise RuntimeError(f"{len(got & self._readers)} of {len(self._readers)} were told, {times} times")
        if set(self.log[1::2]) != {text}:
            raise RuntimeError(f"something else than {text} was sent")
        self.log.clear()

    async def collect(self, first: int, count: int) -> tuple[float, int, float]:
        """So many publications that come from outside.

        Returns:
            The seconds from the first to the last delivery, how many reached everybody, and the seconds of processor
            time that this process has worked meanwhile.

        Raises:
            RuntimeError: Nothing came, or somebody was told twice, or something else.
        """
        end = time.monotonic() + PATIENCE
        while not self.log:
            await asyncio.sleep(0.001)
            if time.monotonic() > end:
                raise RuntimeError("nothing came")
        began, busy = time.perf_counter(), time.process_time()
        before, changed, worked = 0, began, busy
        while len(self.log) < 2 * count * self._count and time.perf_counter() - changed < SILENCE:
            await asyncio.sleep(0.002)
            if len(self.log) != before:
                before, changed, worked = len(self.log), time.perf_counter(), time.process_time()
        seconds = changed - began
        reached = collections.Counter(self.log[1::2])
        wanted = {text_of(number) for number in range(first, first + count)}
        deliveries = set(zip(self.log[::2], self.log[1::2], strict=True))
        if not wanted.issuperset(reached) or 2 * len(deliveries) != len(self.log):
            raise RuntimeError("something was sent that was not published, or twice")
        self.log.clear()
        return seconds, sum(number == self._count for number in reached.values()), worked - busy


class Bench:
    """What the parent process asks of this one.

    Args:
        name: The peer.
        kind: Which of its kinds.
        url: Of a broker.
    """

    def __init__(self, name: str, kind: str, url: str) -> None:
        self._peer, self._kind, self._url = peers.load(name), kind, url
        self._crowds: list[Crowd] = []
        self._counts: dict[str, int] = {}
        self._publisher: Publish | None = None
        self._life = contextlib.AsyncExitStack()

    async def open(self, count: int, stalled: int = 0) -> None:
        """Connect one more crowd, to an app of its own."""
        crowd = Crowd(*self._peer.fan(self._kind, self._url), count, stalled)
        self._crowds.append(crowd)
        await crowd.open()

    async def beside_loop(self, seconds: float) -> tuple[float, float]:
        """A delivery of a bare loop, and one of the peer."""
        crowd = self._crowds[0]
        return await self._timed("loop", crowd.loop, seconds), await self._timed("own", crowd.publish, seconds)

    async def beside_other(self, seconds: float) -> tuple[float, float]:
        """A delivery in the first crowd, and one in the second."""
        one, other = self._crowds
        return await self._timed("one", one.publish, seconds), await self._timed("other", other.publish, seconds)

    async def _timed(self, name: str, measure: Callable[[int], Awaitable[float]], seconds: float) -> float:
        if name not in self._counts:
            await measure(1)
            start = time.process_time()
            await measure(1)
            self._counts[name] = max(1, int(seconds / max(time.process_time() - start, 1e-6)))
        gc.collect()
        return await measure(self._counts[name])

    async def fill(self, count: int, seconds: float) -> int:
        """Publish to the last crowd, so often or for so long; how often it was."""
        end = time.process_time() + seconds
        for number in range(count):
            await self._crowds[-1].publish(1)
            if time.process_time() > end:
                return number + 1
        return count

    async def memory(self, first: int, then: int) -> tuple[int, int]:
        """Bytes that are held more after so many publications of a KiB, and after so many."""
        crowd = self._crowds[0]
        gc.collect()
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            held = []
            for count in (first, then - first):
                await crowd.publish(count, padding="." * 924)
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0] - before)
        finally:
            tracemalloc.stop()
        return held[0], held[1]

    async def collect(self, first: int, count: int) -> tuple[float, int, float]:
        """See `Crowd.collect`."""
        return await self._crowds[0].collect(first, count)

    async def publish(self, first: int, count: int) -> float:
        """Publish so many as fast as it goes, for the clients of another process; the seconds that took."""
        if self._publisher is None:
            app, self._publisher = self._peer.fan(self._kind, self._url)
            await self._life.enter_async_context(drivers.lifespan(app))
        publish, numbers = self._publisher, iter(range(first, first + count))

        async def call() -> None:
            for number in numbers:
                await publish(message(number))

        start = time.perf_counter()
        await asyncio.gather(*[call() for _ in range(CALLERS)])
        return time.perf_counter() - start

    async def close(self) -> None:
        """Disconnect all."""
        for crowd in self._crowds:
            await crowd.close()
        await self._life.aclose()


async def serve(pipe: multiprocessing.connection.Connection, bench: Bench) -> None:
    """Do what comes through the pipe until it says None; what is connected goes on meanwhile."""
    while (asked := await asyncio.to_thread(pipe.recv)) is not None:
        name, given = asked
        try:
            pipe.send(await getattr(bench, name)(*given))
        except Exception as error:  # noqa: BLE001 - the table says it
            pipe.send(f"{type(error).__name__}: {error}"[:200])
    await bench.close()


def work(pipe: multiprocessing.connection.Connection, name: str, kind: str, url: str) -> None:
    """The process."""
    logging.disable(logging.ERROR)
    asyncio.run(serve(pipe, Bench(name, kind, url)))


class Process:
    """The other end of such a process."""

    def __init__(self, name: str, kind: str, url: str = "") -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, name, kind, url), daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, what: str, *given: Any) -> None:
        """Ask for a method of `Bench`."""
        self._pipe.send((what, given))

    def answer(self, patience: float = 180.0) -> Any:
        """What it says.

        Raises:
            RuntimeError: It failed, or takes longer than so many seconds; the text says which.
        """
        if not self._pipe.poll(patience):
            raise RuntimeError(f"took over {patience:.0f} s")
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError("its process died") from None
        if isinstance(answer, str):
            raise RuntimeError(answer)  # noqa: TRY004 - the text is the error of the other process
        return answer

    def of(self, what: str, *given: Any) -> Any:
        """Ask and wait for the answer; raises as `answer`."""
        self.ask(what, *given)
        return self.answer()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
