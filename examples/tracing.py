"""A span of OpenTelemetry for each connection, from its accept to its close.

    pip install opentelemetry-sdk
    python -m examples.tracing

Then, in a second terminal, with the client that comes with the server:

    python -m websockets ws://127.0.0.1:8000/echo/lobby

What to look at: when the client leaves, the first terminal shows the span, with the route, the path and the close code.
The hooks `on_open` and `on_close` are all it takes; the handler knows nothing of them. The query string is left out,
since it may hold a token. To send the spans elsewhere, give the provider the exporter of your choice.
"""

import time

from asgiws import App, WebSocket
from asgiws.registry import Connections, Summary

from ._serve import serve

try:
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing, install it with: pip install opentelemetry-sdk") from None

FAULTS = (1011, 4500)
"""The codes of a handler that raised, after accept and before it."""


def trace(connections: Connections, tracer: Tracer) -> None:
    """Have a span for each connection that reaches a route.

    Args:
        connections: The `connections` of an app.
        tracer: Makes the spans.
    """
    opened: dict[str, Span] = {}

    @connections.on_open
    def begin(ws: WebSocket) -> None:
        opened[ws.id] = tracer.start_span("websocket", kind=SpanKind.SERVER)

    @connections.on_close
    def end(summary: Summary) -> None:
        span = opened.pop(summary.id, None)
        if span is None:  # a handshake that was refused has not been opened
            start = time.time_ns() - int(summary.seconds * 1e9)
            span = tracer.start_span("websocket", kind=SpanKind.SERVER, start_time=start)
        span.update_name(f"websocket {summary.route}")
        span.set_attributes(
            {
                "http.route": summary.route,
                "url.path": summary.path,
                "websocket.id": summary.id,  # as in the log
                "websocket.accepted": summary.accepted,
                "websocket.close_code": summary.code,
                "websocket.close_reason": summary.reason,
            }
        )
        if summary.code in FAULTS:
            span.set_status(Status(StatusCode.ERROR))
        span.end()


app = App()
provider = TracerProvider(resource=Resource({SERVICE_NAME: "echo"}))
trace(app.connections, provider.get_tracer("asgiws"))


@app.websocket("/echo/<room>")
async def echo(ws: WebSocket, room: str) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(f"{room}: {text}")


if __name__ == "__main__":
    exporter = ConsoleSpanExporter(formatter=lambda span: span.to_json(indent=None) + "\n")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    serve(app, "ws://{}/echo/lobby")
