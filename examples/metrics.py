"""What the connections of a service have come to, in the text that Prometheus reads.

    pip install prometheus-client
    python -m examples.metrics

Then open http://127.0.0.1:8000/metrics, and in a second terminal, with the client that comes with the server:

    python -m websockets ws://127.0.0.1:8000/echo/lobby

What to look at: nothing is counted here. `app.connections` knows the numbers, and `Connected` reads them when it is
asked. Only the durations are kept, of each connection when it ends. The label `route` is the template of the path, so
there are never more series than routes; of codes, a client may choose one from 3000 to 4999.

Your own service should not show this page to strangers. Each process has its own numbers: let Prometheus read all.
"""

from collections.abc import Iterator

from asgiws import App, Limits, Response, WebSocket
from asgiws.registry import Connections, Summary

from ._serve import serve

try:
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Histogram, generate_latest
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ModuleNotFoundError as error:
    raise SystemExit(f"{error.name} is missing, install it with: pip install prometheus-client") from None

SECONDS = (0.5, 1, 5, 15, 60, 300, 900, 3_600, 4 * 3_600, 24 * 3_600)
"""The borders of the durations: a WebSocket lasts from a moment to a day."""


class Connected(Collector):
    """The numbers of an app's connections, as they are when they are asked for.

    Args:
        connections: The `connections` of the app.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._routes: set[str] = set()  # that had a connection once: they go back to 0 and do not vanish

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        by_route = self._connections.by_route()
        self._routes.update(by_route)
        opened = GaugeMetricFamily("websockets_open", "WebSockets that are open, by route.", labels=["route"])
        for route in sorted(self._routes):
            opened.add_metric([route], by_route.get(route, 0))
        yield opened

        numbers = self._connections.statistics()
        yield CounterMetricFamily("websockets_opened", "WebSockets that have come.", numbers.opened)
        closed = CounterMetricFamily("websockets_closed", "WebSockets that have ended, by close code.", labels=["code"])
        for code, count in sorted(numbers.closed.items()):
            closed.add_metric([str(code)], count)
        yield closed
        refused = CounterMetricFamily("websockets_refused", "Handshakes refused by a limit.", labels=["cause"])
        for cause, count in sorted(numbers.refused.items()):
            refused.add_metric([cause], count)
        yield refused
        yield CounterMetricFamily("websockets_taken_over", "Times that a handler did not read.", numbers.taken_over)
        yield CounterMetricFamily("websockets_cancelled", "Handlers that were cancelled.", numbers.cancelled)
        yield CounterMetricFamily("websockets_dropped", "Clients that read too slowly.", numbers.dropped)
        if numbers.traffic is not None:
            messages = CounterMetricFamily("websockets_messages", "Messages, by direction.", labels=["direction"])
            messages.add_metric(["in"], numbers.traffic.messages_in)
            messages.add_metric(["out"], numbers.traffic.messages_out)
            yield messages
            sizes = CounterMetricFamily("websockets_bytes", "Bytes of messages, by direction.", labels=["direction"])
            sizes.add_metric(["in"], numbers.traffic.bytes_in)
            sizes.add_metric(["out"], numbers.traffic.bytes_out)
            yield sizes


def metrics_of(connections: Connections) -> CollectorRegistry:
    """A registry with all that is known of an app's connections."""
    registry = CollectorRegistry()
    registry.register(Connected(connections))
    seconds = Histogram(
        "websockets_seconds", "How long WebSockets lasted.", ["route"], registry=registry, buckets=SECONDS
    )

    @connections.on_close
    def measure(summary: Summary) -> None:
        if summary.accepted:
            seconds.labels(summary.route).observe(summary.seconds)

    return registry


app = App(limits=Limits(connections=10_000))
app.connections.count_traffic()
registry = metrics_of(app.connections)


@app.websocket("/echo/<room>")
async def echo(ws: WebSocket, room: str) -> None:
    await ws.accept()
    async for text in ws.iter_text():
        await ws.send_text(f"{room}: {text}")


@app.get("/metrics")
async def metrics() -> Response:
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


if __name__ == "__main__":
    serve(app, "http://{}/metrics")
