"""Serve an example on uvicorn: what all of them have in common.

A program of your own needs none of this. It is started with `uvicorn mymodule:app`, in two processes with
`uvicorn --workers 2 mymodule:app`.
"""

import argparse
import contextlib
import errno
import importlib.util
import socket
import sys

import anyio

from asgiws.channels import Channels, ChannelsError
from asgiws.types import ASGIApp


def serve(
    app: ASGIApp | str, address: str = "http://{}/", *, options: argparse.Namespace | None = None, workers: int = 1
) -> None:
    """Serve the app until Ctrl-C, at the host and port of the command line.

    Args:
        app: The ASGI application; or where it is to be imported from, which each of several processes does.
        address: What the user is told to open; `{}` stands for host and port.
        options: The command line, where it has more than `arguments`.
        workers: How many processes serve it, on one port.
    """
    options = options or arguments().parse_args()
    need("uvicorn", "server")
    need("websockets", "server")
    import uvicorn  # noqa: PLC0415 - only now is it known to be there
    from uvicorn.supervisors import Multiprocess  # noqa: PLC0415

    config = uvicorn.Config(
        app,
        workers=workers,
        log_level="warning",
        ws_max_size=65_536,  # bytes; a larger message closes its connection with 1009
        timeout_graceful_shutdown=2,  # seconds that open connections get after Ctrl-C
    )
    with _listen(options.host, options.port) as listener, contextlib.suppress(KeyboardInterrupt):
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(address.format(f"{host}:{options.port}"), "(Ctrl-C stops it)", flush=True)
        if workers > 1:
            Multiprocess(config, sockets=[listener]).run()
        else:
            uvicorn.Server(config).run(sockets=[listener])


def arguments() -> argparse.ArgumentParser:
    """The command line that all of them understand."""
    parser = argparse.ArgumentParser(prog="python -m examples.NAME")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", default=8000, type=_port, help="the port to listen on (default: %(default)s)")
    return parser


def check_broker(url: str) -> None:
    """End the program with one line if there is no broker at a URL, before any process needs it."""
    need("redis", "redis")

    async def look() -> None:
        async with Channels(url):
            """It is there."""

    try:
        anyio.run(look)
    except ChannelsError as error:
        sys.exit(str(error))


def need(package: str, extra: str) -> None:
    """End the program with one line if a package is missing."""
    if importlib.util.find_spec(package) is None:
        sys.exit(f'{package} is missing, install it with: pip install -e ".[{extra}]"')


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65_535:  # noqa: PLR2004 - the ports of TCP
        raise argparse.ArgumentTypeError(f"a port is a number from 1 to 65535, got {text!r}")
    return int(text)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, opened here and not by uvicorn so that a port that is taken can be told in one line."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            sys.exit(f"port {port} on {host} is taken: stop what runs there or choose another with --port")
        sys.exit(f"cannot listen on port {port} of {host}: {error.strerror}")
