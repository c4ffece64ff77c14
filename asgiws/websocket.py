"""The WebSocket: messages in and out, on top of the session's raw events."""
# ruff: noqa: SLF001 - the iterator below is a part of the WebSocket, and on its hot path

import contextlib
import functools
import types
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, overload

import anyio

from .errors import ConfigurationError, MessageError, ProtocolError, WebSocketDisconnect, WebSocketStateError
from .http import collect_response
from .log import logger
from .messages import MessageDecoder, bytes_of, decoder_for, either_of, encode, encode_message, text_of
from .session import Session, busy_receive
from .states import ASKED, LEFT_EARLY, OPENING
from .types import ASGIApp, Message
from .wire import header_pairs, is_token, sendable_bytes, sendable_text

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    In = TypeVar("In", default=Any)
    Out = TypeVar("Out", default=Any)
    T = TypeVar("T")
else:
    from typing import TypeVar

    In = TypeVar("In")
    Out = TypeVar("Out")
    T = TypeVar("T")


_is_ascii = str.isascii


class WebSocket(Session, Generic[In, Out]):
    """One WebSocket connection, from the handshake to its end.

    `WebSocket[In, Out]` declares the messages: `async for` gives `In`, `send_json` takes `Out`. It works alone, inside
    any ASGI framework: `WebSocket(scope, receive, send)`.

    Args:
        scope: The ASGI scope.
        receive: The server's.
        send: The server's.
        app: What serves it.
        path_params: The values from the path; left out, those in the scope.
        limits: What it may cost.
        decoder: For `In`; left out, `async for` gives str and bytes as they come.
        phase: How far it is already.

    Raises:
        ProtocolError: The scope is none of a WebSocket.
    """

    __slots__ = ("concluded",)

    concluded: tuple[Exception, bool]
    """The exception by which it was ended already, and whether that is raised again; not set if there is none."""

    if not TYPE_CHECKING:

        def __class_getitem__(cls, item: Any) -> types.GenericAlias:
            declared = item if isinstance(item, tuple) else (item,)
            if len(declared) > 2:  # noqa: PLR2004
                raise TypeError(f"WebSocket[In, Out] takes two types, got {len(declared)}")
            return types.GenericAlias(cls, (*declared, Any)[:2])

        def _declare(self, alias: types.GenericAlias) -> None:
            """Take `In` from `WebSocket[In, Out](scope, receive, send)`: calling an alias sets this attribute."""
            declared = alias.__args__[0]
            if self._decoder is None and declared is not Any:
                self._decoder = decoder_for(declared)

        __orig_class__ = property(None, _declare)

    # What is known of it

    @property
    def subprotocols(self) -> list[str]:
        """The subprotocols that the client offers, without those that are no tokens (RFC 6455, 4.1)."""
        return [name for name in self.scope.get("subprotocols") or () if is_token(name)]

    # The handshake

    async def accept(
        self,
        subprotocol: str | None = None,
        headers: Mapping[str, str] | Iterable[tuple[Any, Any]] | None = None,
    ) -> None:
        """Accept the handshake.

        Args:
            subprotocol: One of `subprotocols`.
            headers: Sent with the answer where the server can (daphne and granian drop them).

        Raises:
            WebSocketDisconnect: The client left before.
            WebSocketStateError: The handshake was answered before.
            ProtocolError: The subprotocol was not offered, or a header cannot be sent.
        """
        event: dict[str, Any] = {"type": "websocket.accept"}
        if subprotocol is not None:
            event["subprotocol"] = self._offered(subprotocol)
        if headers is not None:
            event["headers"] = _accept_headers(headers)
        await self._answer("websocket.accept", "accept", event)
        # Written out: on this path a call costs as much as the rest.
        client = self.scope.get("client")
        if (client and client[1].__class__ is str) or self._limits.reader == "always":
            self.have_reader()

    async def send_denial_response(self, response: ASGIApp) -> None:
        """Refuse the handshake with an HTTP response (the ASGI extension `websocket.http.response`).

        Where the server lacks the extension, the handshake is closed: the client sees a plain 403.

        Args:
            response: A `Response` of asgiws, Starlette or any other ASGI application that answers.

        Raises:
            WebSocketDisconnect: The client left before.
            WebSocketStateError: The handshake was answered before.
            ProtocolError: The response did not send a status.
        """
        status, headers, body = await collect_response(response, self.scope)
        if "websocket.http.response" not in (self.scope.get("extensions") or ()):
            if self._phase is OPENING:
                await self._read_connect()
            self._check("websocket.http.response", "refuse")
            logger().info(
                "%s %r is refused with %d, but the server cannot send it: the client sees a plain 403",
                self.id, self.scope.get("path"), status,
            )  # fmt: skip
            await self.close(4000 + status, f"HTTP {status}")
            return
        # One body with its length: what every server takes (granian fails on more).
        headers = [pair for pair in headers if pair[0] not in (b"content-length", b"transfer-encoding")]
        headers.append((b"content-length", b"%d" % len(body)))
        start = {"type": "websocket.http.response.start", "status": status, "headers": headers}
        end = {"type": "websocket.http.response.body", "body": body}
        await self._answer("websocket.http.response", "refuse", start, end, closing=("you", status, ""))
        # uvicorn takes the handshake as answered when its transport has gone, one turn of the event loop later, and
        # complains in the log of an application that returns before.
        await anyio.sleep(0)  # noqa: ASYNC115 - anyio.lowlevel is slow to import

    def _offered(self, subprotocol: Any) -> str:
        if is_token(subprotocol) and subprotocol in self.subprotocols:
            return str(subprotocol)
        offered = ", ".join(map(repr, self.subprotocols)) or "none"
        raise ProtocolError(f"accept a subprotocol that the client offered ({offered}) or None, got {subprotocol!r}")

    # Receiving

    async def receive(self, timeout: float | None = None) -> Message:  # noqa: ASYNC109 - see `receive_text`
        """The next raw ASGI event; after the end the `websocket.disconnect` again, with its code as an int.

        Raises:
            TimeoutError: None came within so many seconds.
            WebSocketStateError: Not accepted yet, closed by you, or another task is receiving.
        """
        try:
            if self._phase is OPENING:
                await self._read_connect()
                return {"type": "websocket.connect"}
            if self._inbox is not None and self._inbox.connect:
                self._inbox.connect = False
                if self._phase is ASKED or self._phase is LEFT_EARLY:
                    return {"type": "websocket.connect"}
            event: Message = await (self._next() if timeout is None else self._next_within(timeout))
        except WebSocketDisconnect as gone:
            return {"type": "websocket.disconnect", "code": gone.code, "reason": gone.reason}
        return event

    async def receive_text(self, timeout: float | None = None) -> str:  # noqa: ASYNC109 - as the text says
        """The next message, which must be text.

        Args:
            timeout: Seconds to wait for it. Unlike a scope around this call it never cancels the server's `receive()`,
                with which some servers lose a message.

        Raises:
            TimeoutError: None came in time.
            WebSocketDisconnect: The peer has gone.
            MessageError: The message is binary.
            WebSocketStateError: Not accepted yet, closed by you, or another task is receiving.
        """
        if timeout is not None:
            text: str = await self._next_within(timeout, text_of)
            return text
        # `Session._next`, written out: this is one of the three hottest paths, and a call costs a tenth of it.
        receive = self._receive
        self._receive = busy_receive
        try:
            event = await receive()
        except BaseException as error:
            self._receive_failed(error)
            raise
        self._receive = self._idle_receive
        if event["type"] != "websocket.receive":
            self._arrived(event)
        text = text_of(event)
        if len(text) > self._limits.message_bytes // 4 and self._is_too_big(event):
            await self._end_too_big()
        return text

    def receive_bytes(self, timeout: float | None = None) -> Coroutine[Any, Any, bytes]:
        """The next message, which must be binary; arguments and errors are those of `receive_text`."""
        return self._next(bytes_of) if timeout is None else self._next_within(timeout, bytes_of)

    @overload
    def receive_json(
        self, type: type[T], mode: Literal["text", "binary"] | None = None, timeout: float | None = None
    ) -> Coroutine[Any, Any, T]: ...

    @overload
    def receive_json(
        self,
        type: Any = None,
        mode: Literal["text", "binary"] | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Any]: ...

    def receive_json(
        self,
        type: Any = None,
        mode: Literal["text", "binary"] | None = None,
        timeout: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """The next message, decoded from JSON.

        Args:
            type: Any type that msgspec takes; left out, the `In` of `WebSocket[In, Out]`, or anything.
            mode: "text" or "binary" to take only that; left out, both are taken.
            timeout: As `receive_text` has it.

        Raises:
            TimeoutError: None came in time.
            MessageError: It is no JSON, not of the type, or of the other mode.
            WebSocketDisconnect: The peer has gone.
            WebSocketStateError: Not accepted yet, closed by you, or another task is receiving.
        """
        decoder: Any = self._decoder_of(type)
        if mode is not None:
            decoder = functools.partial(decoder, mode=_checked(mode))
        return self._next(decoder) if timeout is None else self._next_within(timeout, decoder)

    def iter_text(self) -> AsyncIterator[str]:
        """The messages as text until the connection ends; raises as `receive_text` but for the end."""
        return _TextIterator(self, text_of)

    def iter_bytes(self) -> AsyncIterator[bytes]:
        """The messages as bytes until the connection ends; raises as `receive_bytes` but for the end."""
        return _Iterator(self, bytes_of)

    @overload
    def iter_json(self, type: type[T], mode: Literal["text", "binary"] | None = None) -> AsyncIterator[T]: ...

    @overload
    def iter_json(self, type: Any = None, mode: Literal["text", "binary"] | None = None) -> AsyncIterator[Any]: ...

    def iter_json(self, type: Any = None, mode: Literal["text", "binary"] | None = None) -> AsyncIterator[Any]:
        """The messages, decoded from JSON, until the connection ends; raises as `receive_json` but for the end."""
        decoder = self._decoder_of(type)
        if mode is not None:
            return _Iterator(self, functools.partial(decoder, mode=_checked(mode)))
        return _Iterator(self, decoder, decoder.decode)

    def __aiter__(self) -> AsyncIterator[In]:
        """The messages until the connection ends: `In` of `WebSocket[In, Out]`, else str and bytes as they come.

        A message that is not of type `In` is answered with an error frame, and skipped.

        Raises:
            MessageError: `Limits.bad_messages` in a row did not decode; the WebSocket is closed with 1007.
            WebSocketStateError: Not accepted yet, or another task is receiving.
        """
        if self._decoder is None:
            return _Iterator(self, either_of)
        return _Iterator(self, self._decoder, self._decoder.decode, forgiving=True)

    def _decoder_of(self, declared: Any) -> MessageDecoder:
        if declared is not None:
            return decoder_for(declared)
        return self._decoder or decoder_for(Any)

    async def _bad_message(self, error: MessageError) -> None:
        """Tell the client what was wrong with its message; after too many in a row, close and raise."""
        self._bad_messages += 1
        frame = {"type": "error", "detail": error.detail if error.tag is None else f"{error.detail} in {error.tag!r}"}
        if error.path is not None:
            frame["path"] = error.path
        with contextlib.suppress(WebSocketDisconnect, WebSocketStateError):  # the next receive tells
            await self._deliver({"type": "websocket.send", "text": encode(frame).decode()})
        if self._bad_messages >= self._limits.bad_messages:
            await self.close(error.code, str(error))
            raise error

    async def tag(self, key: str, *, exclusive: bool = False) -> None:
        """Be reached by a key, in any process: by `channels.send_to(key, ...)` and `channels.disconnect(key)`.

        Several sockets may have one key, and one socket several keys. The end of the connection ends it.

        Args:
            key: The key, such as a user's id.
            exclusive: Take over from all others that have it: they are closed with 4009.

        Raises:
            ConfigurationError: The app has no channels.
            ChannelsError: The key cannot be one, or the broker cannot be reached.
            WebSocketStateError: Not accepted yet, or closed by you.
            WebSocketDisconnect: The peer has gone.
        """
        channels = getattr(self.app, "channels", None)
        if channels is None:
            raise ConfigurationError("ws.tag() needs channels: App(channels=Channels())")
        await channels.tag(self, key, exclusive=exclusive)

    # Sending

    async def send(self, message: Message) -> None:
        """Send a raw ASGI event: `websocket.accept`, `websocket.send` or `websocket.close`.

        Raises:
            ProtocolError: The event is none of these, or has not just one of `text` and `bytes`.
        """
        kind = message.get("type")
        if kind == "websocket.send":
            text = message.get("text")
            if (text is None) is (message.get("bytes") is None):
                raise ProtocolError("websocket.send carries either 'text' or 'bytes'")
            await (self.send_bytes(message["bytes"]) if text is None else self.send_text(text))
        elif kind == "websocket.accept":
            await self.accept(message.get("subprotocol"), message.get("headers"))
        elif kind == "websocket.close":
            await self.close(message.get("code", 1000), message.get("reason"))
        else:
            raise ProtocolError(
                f"an application sends websocket.accept, websocket.send or websocket.close, got {kind!r}; "
                "to refuse a handshake with an HTTP status use send_denial_response()",
            )

    async def send_text(self, data: str) -> None:
        """Send a text message.

        It returns when the server has taken the message, which says nothing of its arrival.

        Raises:
            WebSocketDisconnect: The peer has gone.
            WebSocketStateError: Not accepted yet, or closed by you.
            ProtocolError: The text holds half a surrogate pair.
        """
        # `Session._deliver`, written out, for the reason given at `receive_text`.
        try:
            if not _is_ascii(data):
                sendable_text(data)
        except TypeError:
            sendable_text(data)  # raises it in better words
        if self._sending:
            await self._turn()
        self._sending = True
        send = self._send  # CPython 3.11 is slow to call what stands in a slot
        try:
            await send({"type": "websocket.send", "text": data})
        except BaseException as error:
            self._send_failed(error)
            raise
        finally:
            if self._queue is None:
                self._sending = False
            else:
                self._pass_turn()

    def send_bytes(self, data: bytes | bytearray | memoryview) -> Coroutine[Any, Any, None]:
        """Send a binary message; raises as `send_text`."""
        return self._deliver({"type": "websocket.send", "bytes": sendable_bytes(data)})

    def send_json(self, data: Out, mode: Literal["text", "binary"] = "text") -> Coroutine[Any, Any, None]:
        """Send anything that msgspec encodes, as JSON; raises as `send_text`.

        Args:
            data: The message.
            mode: Whether it goes as a text or a binary message.

        Raises:
            TypeError: msgspec cannot encode it.
        """
        if mode == "text":
            return self.send_text(encode_message(data).decode())
        _checked(mode)
        return self._deliver({"type": "websocket.send", "bytes": encode_message(data)})


class _Iterator(AsyncIterator[Any]):
    """The messages of a WebSocket until its end. No generator: one that is left by `break` would need to be closed.

    Args:
        ws: The WebSocket.
        pick: Makes the message of an event.
        decode: A short cut for an event that is just a text: makes the message of the text.
        forgiving: Answer what does not decode with an error frame, and go on.
    """

    __slots__ = ("_decode", "_forgiving", "_most", "_pick", "_ws")

    def __init__(self, ws: WebSocket[Any, Any], pick: Any, decode: Any = None, *, forgiving: bool = False) -> None:
        self._ws = ws
        self._pick = pick
        self._decode = decode
        self._forgiving = forgiving
        self._most = ws._limits.message_bytes // 4  # characters, which cannot be more bytes than the limit

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        # `Session._next`, written out, for the reason given at `receive_text`.
        ws = self._ws
        receive = ws._receive
        ws._receive = busy_receive
        try:
            event = await receive()
        except BaseException as error:
            self._receive_failed(error)
            raise
        ws._receive = ws._idle_receive
        try:
            decode = self._decode
            if decode is not None and ("bytes" not in event or event["bytes"] is None):
                text = event["text"]
                if len(text) <= self._most:
                    message = decode(text)
                    ws._bad_messages = 0
                    return message
        except Exception:  # noqa: BLE001, S110 - told apart where there is time for it
            pass
        return await self._other(event)

    async def _other(self, event: Message) -> Any:
        """The message of an event that is no plain text, or whose text did not decode; the next one if that is none."""
        ws = self._ws
        while True:
            if event["type"] != "websocket.receive":
                try:
                    ws._arrived(event)
                except WebSocketDisconnect:
                    raise StopAsyncIteration from None
            try:
                if ws._is_too_big(event):
                    await ws._end_too_big()
                message = self._pick(event)
            except WebSocketDisconnect:
                raise StopAsyncIteration from None
            except MessageError as error:
                if not self._forgiving:
                    raise
                await ws._bad_message(error)
            else:
                ws._bad_messages = 0
                return message
            try:
                event = await ws._next()
            except (WebSocketDisconnect, WebSocketStateError):
                if ws._closing is None:
                    raise
                raise StopAsyncIteration from None

    def _receive_failed(self, error: BaseException) -> None:
        """Raise what the exception means: an end of the connection, by either side, is the end of the iteration."""
        try:
            self._ws._receive_failed(error)
        except (WebSocketDisconnect, WebSocketStateError):
            if self._ws._closing is None:
                raise
            raise StopAsyncIteration from None


class _TextIterator(_Iterator):
    """The messages as text: an iterator with nothing but what the hottest path needs."""

    __slots__ = ()

    async def __anext__(self) -> str:
        ws = self._ws
        receive = ws._receive
        ws._receive = busy_receive
        try:
            event = await receive()
        except BaseException as error:
            self._receive_failed(error)
            raise
        ws._receive = ws._idle_receive
        # Text beside bytes is a fault of the server. The other ways to receive tell; here a look costs too much.
        try:
            text: str = event["text"]
            if len(text) <= self._most:
                return text
        except (KeyError, TypeError):
            pass
        message: str = await self._other(event)
        return message


def _checked(mode: str) -> str:
    if mode not in ("text", "binary"):
        raise ValueError(f"mode is 'text' or 'binary', got {mode!r}")
    return mode


def _accept_headers(headers: Any) -> list[tuple[bytes, bytes]]:
    pairs = header_pairs(headers)
    for name, _ in pairs:
        if name == b"sec-websocket-protocol":
            raise ProtocolError("the header 'sec-websocket-protocol' is the server's: pass accept(subprotocol=...)")
    return pairs
