"""The shapes of ASGI 3, as the specification names them (asgiref, spec version 2.5)."""

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]
Handler: TypeAlias = Callable[..., Any]
ExceptionHandler: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
Lifespan: TypeAlias = Callable[[Any], AbstractAsyncContextManager[Any]]
