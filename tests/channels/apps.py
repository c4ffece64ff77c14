"""What the worker processes of the tests run: topics on a broker, whose URL is in the environment."""

import os

from asgiws import App, Limits, WebSocket
from asgiws.channels import BrokerError, Channels, Member, TopicOptions

URL, PREFIX, LEASE = "CHANNELS_URL", "CHANNELS_PREFIX", "CHANNELS_LEASE"
"""The environment variables that say where the topics are, what their keys begin with, and how long a lease lasts."""

app = App(
    channels=Channels(
        os.environ.get(URL),
        prefix=os.environ.get(PREFIX, "test"),
        lease=float(os.environ.get(LEASE, "30")),
        topics={"room:*": TopicOptions(history=1000, presence=True)},
    ),
    limits=Limits(outbox_messages=2000, outbox_bytes=8_388_608),
)


@app.websocket("/join/<topic>")
async def join(ws: WebSocket, topic: str, channels: Channels, since: str | None = None, who: str | None = None) -> None:
    """Be a member of a topic."""
    await ws.accept()
    async with channels.join(ws, topic, since=since, envelope=True, presence=None if who is None else Member(who)):
        async for _ in ws:
            """Until the client leaves."""


@app.websocket("/publish/<topic>")
async def publish(ws: WebSocket, topic: str, channels: Channels) -> None:
    """Publish each text that comes, and answer with its position, or with why it has none."""
    await ws.accept()
    async for text in ws:
        try:
            await ws.send_json({"position": str(await channels.publish(topic, str(text)))})
        except BrokerError as error:
            await ws.send_json({"error": str(error)})
