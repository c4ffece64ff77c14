"""picows, a WebSocket library with a server of its own: what an echo costs with no ASGI at all.

`python -m benchmarks.peers.picows PORT` serves the echo; only the job over real sockets can hold it beside the others.
"""

import sys

import picows
import uvloop

TITLE = "picows (no ASGI)"
DISTRIBUTION = "picows"
IMPORTS = "from picows import ws_create_server, WSListener"
TYPED: dict[str, str] = {}
NO_ASGI = "it speaks no ASGI"
LACKS = dict.fromkeys(("echo", "json", "typed", "connect", "depends", "match", "memory", "instructions"), NO_ASGI)


class Echo(picows.WSListener):
    """Echo text."""

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """One frame."""
        if frame.msg_type == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif frame.msg_type == picows.WSMsgType.TEXT:
            transport.send(picows.WSMsgType.TEXT, frame.get_payload_as_bytes())


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = await picows.ws_create_server(lambda _: Echo(), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
