"""From a handler to an ASGI endpoint: what happens at each end of a connection.

| what happened | before accept | after accept |
|---|---|---|
| the handler returned | 403 denial | close 1000 |
| `HTTPException` | denial with its status | close 4000 + status |
| `WebSocketException` | close with its code | close with its code |
| `ParameterError` | close 1008 | close 1008 |
| `MessageError` | - | close 1003 or 1007 |
| `WebSocketDisconnect` | a normal end | a normal end |
| `BrokerError` | 503 denial, logged | close 1013, logged |
| cancelled (the server stops) | close 1012 | close 1012 |
| cancelled by the watchdog | as the exception says that it is cancelled with | same |
| any other exception | 500 denial, logged, raised again | close 1011, logged, raised again |

An exception handler of the app takes the place of any line. Every end is sent by asgiws, once: no two servers agree on
what happens otherwise.
"""

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from sys import modules
from typing import Any, Protocol

import anyio

from .background import ScopedSend, on_trio, uncancel
from .dependencies import AnsweredError, Owner, Solved, solved
from .errors import (
    BrokerError,
    HTTPException,
    MessageError,
    ParameterError,
    SignatureError,
    WebSocketDisconnect,
    WebSocketException,
)
from .http import ClientDisconnectError, JSONResponse, Request, error_response, to_response
from .limits import Limits
from .log import logger
from .messages import MessageDecoder, encode
from .plans import Plan
from .registry import Connections
from .session import Verdict
from .signature import function_of
from .states import ASKED, CONNECTING, DISCONNECTED, OPEN
from .streams import stream_items
from .types import ASGIApp, ExceptionHandler, Handler, Receive, Scope, Send
from .websocket import WebSocket

GOODBYE = 2.0
"""Seconds that the last words to a client may take when the server stops."""


class Host(Owner, Protocol):
    """What an endpoint needs of the app that serves it."""

    limits: Limits
    connections: Connections

    def handler_for(self, error: Exception) -> ExceptionHandler | None:
        """The app's own handler for this exception."""


ENDED = "asgiws.ended"
"""In a scope: the exceptions that ended the connection and were logged, though they are raised again."""

_TABLE = (HTTPException, WebSocketException, ParameterError, MessageError)
"""What has a line of its own in the table, and so is nobody's bug."""

Endpoint = Callable[[Scope, Receive, Send, dict[str, Any], Any], Awaitable[None]]
"""Serves one connection: scope, receive, send, path parameters, Host."""


Conversation = Callable[[WebSocket[Any, Any], dict[str, Any], Solved | None], Awaitable[None]]
"""Holds the conversation of one connection: the WebSocket, the arguments, and what was solved for it, if anything."""


def endpoint_for(handler: Handler, plan: Plan, kind: str, where: str, limits: Limits | None = None) -> Endpoint:
    """The endpoint of a handler.

    Args:
        handler: What `check_handler` let through.
        plan: Its plan.
        kind: "websocket" or "http".
        where: The route, the handler and its place, for logs.
        limits: What a connection may cost; None for the app's limits.
    """
    if kind == "http":
        return _http_endpoint(handler, plan, where)
    if _is_generator(handler):

        def stream(ws: WebSocket[Any, Any], arguments: dict[str, Any], _: Solved | None) -> Awaitable[None]:
            return stream_items(ws, handler(**arguments), reads=plan.takes_websocket)

        return websocket_endpoint(stream, plan, where, limits=limits)

    def call(_: WebSocket[Any, Any], arguments: dict[str, Any], __: Solved | None) -> Awaitable[None]:
        running: Awaitable[None] = handler(**arguments)
        return running

    return websocket_endpoint(call, plan, where, plain=None if plan.dependencies else handler, limits=limits)


def check_handler(handler: Any, kind: str) -> None:
    """Refuse what can be no handler.

    Raises:
        SignatureError: It is not async, or a generator on HTTP.
    """
    if not callable(handler):
        raise SignatureError(f"a handler is an async function, got {handler!r}")
    if inspect.isclass(handler):
        raise SignatureError(f"a handler is an async function, got the class {handler.__name__}")
    if _is_generator(handler):
        if kind == "http":
            raise SignatureError("a handler of HTTP cannot be a generator", "Return the whole result.")
        return
    if not inspect.iscoroutinefunction(function_of(handler)):
        raise SignatureError(
            "a handler must be async, got a plain function",
            "Write `async def`; run blocking code with `await anyio.to_thread.run_sync(...)`.",
        )


def refusal(kind: str, error: HTTPException) -> Endpoint:
    """An endpoint that answers with an error."""

    async def refuse() -> None:
        raise error

    return endpoint_for(refuse, Plan(), kind, "no route")


async def fail(
    scope: Scope,
    receive: Receive,
    send: Send,
    error: Exception,
    host: Host,
    last: str | None = None,
) -> None:
    """End a connection that failed outside of its endpoint, as its endpoint would.

    Args:
        scope: The ASGI scope.
        receive: The server's.
        send: The server's.
        error: What was raised; it is raised again unless it has a meaning of its own.
        host: The app.
        last: The type of the last event that was sent; None if none was.
    """
    if last not in (None, "websocket.accept", "websocket.send") or any(error is one for one in scope.get(ENDED, ())):
        raise error
    if scope["type"] == "http":
        request = Request(scope, receive, app=host, limits=host.limits)
        response, again = await _answer_to(request, error, host, "outside of the routes")
        await response(scope, receive, send)
    else:
        phase = ASKED if last is None else OPEN
        ws: WebSocket[Any, Any] = WebSocket(scope, receive, send, app=host, limits=host.limits, phase=phase)
        again = await _failed(ws, error, host, "outside of the routes")
    if again:
        raise error


def _is_generator(handler: Any) -> bool:
    return inspect.isasyncgenfunction(function_of(handler))


# WebSocket


def websocket_endpoint(
    converse: Conversation,
    plan: Plan,
    where: str,
    *,
    plain: Handler | None = None,
    decoder: MessageDecoder | None = None,
    limits: Limits | None = None,
) -> Endpoint:
    """The endpoint of a conversation.

    Args:
        converse: What happens between the handshake and the end.
        plan: For its arguments.
        where: The route, the handler and its place, for logs.
        plain: The handler, if there is nothing to do but to call it.
        decoder: For the incoming messages; left out, the plan's.
        limits: What a connection may cost; left out, the app's limits.
    """
    decoder = decoder or plan.decoder

    async def serve(  # noqa: PLR0912 - the way of one connection, in one place
        scope: Scope, receive: Receive, send: Send, params: dict[str, Any], host: Host, canceller: Any = None
    ) -> None:
        if canceller is None and "trio" in modules and on_trio():
            with anyio.CancelScope() as around:
                await serve(scope, receive, ScopedSend(send), params, host, around)
            return
        ws: WebSocket[Any, Any] = WebSocket(
            scope, receive, send, app=host, path_params=params, limits=limits or host.limits, decoder=decoder,
        )  # fmt: skip
        connections = host.connections
        refused = _admitted(connections, ws, where, canceller)
        if refused is not None:
            await _refuse(ws, refused, host, where)
            return
        try:
            try:
                if plain is not None:
                    await plain(**plan(ws))
                elif plan.dependencies:
                    async with solved(plan, ws, host) as found:
                        await converse(ws, found.arguments, found)
                else:
                    await converse(ws, plan(ws), None)
                if ws.application_state is not DISCONNECTED:
                    await _finish(ws, host, where)
            except Exception as error:
                if await _failed(ws, error, host, where):
                    raise
        except BaseException as error:
            if isinstance(error, Exception) or not await _interrupted(ws, error, host, where):
                raise
        finally:
            try:
                if ws.is_sending:
                    await ws.until_closed()
            finally:
                connections.leave(ws)

    return serve


async def _refuse(ws: WebSocket[Any, Any], refused: Exception, host: Host, where: str) -> None:
    if await _failed(ws, refused, host, where):
        raise refused


def _admitted(connections: Connections, ws: WebSocket[Any, Any], where: str, canceller: Any) -> Exception | None:
    """Take a connection in, or tell why not."""
    try:
        return connections.enter(ws, where, canceller)
    except Exception as error:  # noqa: BLE001 - whatever a function of the user's raises
        return error


async def conclude(ws: WebSocket[Any, Any], host: Host, where: str, error: BaseException | None) -> None:
    """End a connection before its dependencies are cleaned up, for who wants to see how it ended.

    Args:
        ws: The WebSocket.
        host: The app.
        where: The route, the handler and its place, for logs.
        error: What the handler raised, if it did. It is not raised here: it goes its way through the clean-up.
    """
    if error is None:
        if ws.application_state is not DISCONNECTED:
            await _finish(ws, host, where)
    elif isinstance(error, Exception):
        ws.concluded = error, await _failed(ws, error, host, where)
    else:
        await _say_goodbye(ws, error, host, where)


async def _finish(ws: WebSocket[Any, Any], host: Host, where: str) -> None:
    """End a connection whose handler is done."""
    if ws.application_state is CONNECTING:
        await _failed(ws, HTTPException(403), host, where)
    else:
        await ws.close(1000)


async def _interrupted(ws: WebSocket[Any, Any], error: BaseException, host: Host, where: str) -> bool:
    """End a connection whose handler was cancelled; whether it was the watchdog, so that nobody else need know."""
    await _say_goodbye(ws, error, host, where)
    verdict = ws.canceller
    if not isinstance(verdict, Verdict) or isinstance(verdict.canceller, anyio.CancelScope):
        return False  # a scope takes its own cancellation back
    return uncancel(verdict.canceller)


async def _say_goodbye(ws: WebSocket[Any, Any], error: BaseException, host: Host, where: str) -> None:
    cancelled = anyio.get_cancelled_exc_class()
    found = error.subgroup(cancelled) is not None if isinstance(error, BaseExceptionGroup) else None
    if not found and not isinstance(error, cancelled):
        return
    verdict = getattr(ws, "canceller", None)
    with anyio.move_on_after(GOODBYE, shield=True), contextlib.suppress(Exception):
        if isinstance(verdict, Verdict):
            await _failed(ws, verdict.error, host, where)
        else:
            await ws.close(1012, "the server stops")


async def _failed(ws: WebSocket[Any, Any], error: Exception, host: Host, where: str) -> bool:
    """End a connection whose handler raised; True if the exception must be raised again."""
    if hasattr(ws, "concluded") and ws.concluded[0] is error:
        _, again = ws.concluded
        del ws.concluded  # the exception knows the WebSocket: none of the two would be freed
        return again
    cause = _cause(error)
    if isinstance(cause, AnsweredError):
        return False
    own = host.handler_for(cause)
    again = False
    if own is not None:
        cause, again = await _ask(own, ws, cause, where)
    elif isinstance(cause, (WebSocketDisconnect, *_TABLE)):
        logger().debug("%s: connection %s ended: %s: %s", where, ws.id, type(cause).__name__, cause)
    elif isinstance(cause, BrokerError):
        logger().warning("%s: connection %s ended: %s", where, ws.id, cause)
    else:
        _log(where, ws.id, error)
        again = True
    try:
        # A cancellation that was held back until now comes here, not into the close.
        await anyio.sleep(0)  # noqa: ASYNC115 - anyio.lowlevel is slow to import
        await _end_by_table(ws, cause)
    except WebSocketDisconnect:
        pass
    except Exception as second:
        if again:
            raise
        # A detail that JSON does not know, a header that no server can send.
        _log(where, ws.id, second)
        await _end_by_table(ws, second)
    if again and ENDED in ws.scope:
        ws.scope[ENDED].append(error)
    return again


async def _ask(own: ExceptionHandler, ws: WebSocket[Any, Any], error: Exception, where: str) -> tuple[Exception, bool]:
    """Let the app's own handler end the connection; what is left to be ended by, and whether to raise again."""
    try:
        response = await own(ws, error)
        if callable(response) and ws.application_state is CONNECTING:
            await ws.send_denial_response(response)
    except WebSocketDisconnect:
        return error, False
    except _TABLE as meaning:
        return meaning, False
    except Exception as second:  # noqa: BLE001 - whatever the app's own handler raises
        _log(where, ws.id, second)
        return second, True
    return error, False


async def _end_by_table(ws: WebSocket[Any, Any], error: Exception) -> None:
    unanswered = ws.application_state is CONNECTING
    match error:
        case WebSocketException():
            await ws.close(error.code, error.reason)
        case ParameterError():
            await ws.close(1008, str(error))
        case MessageError():
            await ws.close(error.code, str(error))
        case BrokerError() if unanswered:
            await ws.send_denial_response(error_response(_unavailable()))
        case BrokerError():
            await ws.close(1013, "try again later")
        case HTTPException() if unanswered:
            await ws.send_denial_response(error_response(error))
        case HTTPException():
            detail = error.detail if isinstance(error.detail, str) else encode(error.detail).decode()
            await ws.close(4000 + error.status_code, detail)
        case WebSocketDisconnect() if unanswered and ws.client_state is not DISCONNECTED:
            await ws.send_denial_response(error_response(HTTPException(403)))
        case WebSocketDisconnect():
            await ws.close(1000)
        case _ if unanswered:
            await ws.send_denial_response(_internal_error(ws.id))
        case _:
            await ws.close(1011, "internal error")


def _cause(error: Exception) -> Exception:
    """What an exception group from the handler's own task group comes down to: the one thing that is no disconnect."""
    if not isinstance(error, ExceptionGroup):
        return error
    leaves = _leaves(error)
    others = [leaf for leaf in leaves if not isinstance(leaf, WebSocketDisconnect)]
    if not others:
        return leaves[0]
    return others[0] if len(others) == 1 else error


def _leaves(group: ExceptionGroup[Exception]) -> list[Exception]:
    leaves: list[Exception] = []
    for error in group.exceptions:
        leaves += _leaves(error) if isinstance(error, ExceptionGroup) else [error]
    return leaves


def _log(where: str, connection: str, error: Exception) -> None:
    logger().error("%s: connection %s failed", where, connection, exc_info=error)


def _unavailable() -> HTTPException:
    return HTTPException(503, headers={"retry-after": "5"})


def _internal_error(connection: str) -> JSONResponse:
    """What a client is told of an exception: its connection's name in the log, and nothing else."""
    return JSONResponse({"detail": "Internal Server Error", "id": connection}, 500)


# HTTP


def _http_endpoint(handler: Handler, plan: Plan, where: str) -> Endpoint:
    async def serve(scope: Scope, receive: Receive, send: Send, params: dict[str, Any], host: Host) -> None:
        request = Request(scope, receive, app=host, path_params=params, limits=host.limits)
        response: ASGIApp | None = None
        try:
            if plan.needs_body:
                await request.body()
            if plan.dependencies:
                async with solved(plan, request, host) as found:
                    response = to_response(await handler(**found.arguments))
            else:
                response = to_response(await handler(**plan(request)))
            _check_answered(response)
        except ClientDisconnectError:
            return
        except Exception as error:
            response, again = await _answer_to(request, error, host, where)
            await response(scope, receive, send)
            if again:
                raise
        else:
            await response(scope, receive, send)

    return serve


def _check_answered(response: ASGIApp | None) -> None:
    if response is None:
        raise RuntimeError("a dependency swallowed the exception of the handler: there is nothing to answer with")


async def _answer_to(request: Request, error: Exception, host: Host, where: str) -> tuple[ASGIApp, bool]:
    """The response to a request whose handler raised, and whether the exception must be raised again."""
    cause = _cause(error)
    own = host.handler_for(cause)
    if own is not None:
        try:
            return to_response(await own(request, cause)), False
        except HTTPException as meaning:
            cause = meaning
        except Exception as second:  # noqa: BLE001 - whatever the app's own handler raises
            _log(where, request.id, second)
            return _internal_error(request.id), True
    if isinstance(cause, ParameterError):
        return JSONResponse({"detail": [problem.as_dict() for problem in cause.errors]}, 422), False
    if isinstance(cause, BrokerError):
        logger().warning("%s: request %s failed: %s", where, request.id, cause)
        cause = _unavailable()
    if isinstance(cause, HTTPException):
        try:
            return error_response(cause), False
        except Exception as second:  # noqa: BLE001 - a detail that JSON does not know, a header that cannot be sent
            error = second
    _log(where, request.id, error)
    return _internal_error(request.id), True
