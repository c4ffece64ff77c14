"""Django Channels, as its documentation writes it: asynchronous consumers behind `URLRouter`, no channel layer."""

from urllib.parse import parse_qs

import msgspec
from django.conf import settings as django_settings

if not django_settings.configured:  # Django's own modules ask for them when they are imported
    django_settings.configure(ALLOWED_HOSTS=["*"])

from channels.generic.websocket import AsyncJsonWebsocketConsumer, AsyncWebsocketConsumer
from channels.layers import channel_layers
from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import path

from benchmarks.peers import ASGI, Publish, templates

TITLE = "Django Channels"
DISTRIBUTION = "channels"
IMPORTS = (
    "from django.conf import settings; settings.configure(); "
    "from channels.generic.websocket import AsyncWebsocketConsumer; from channels.routing import URLRouter; "
    "from django.urls import path"
)
TYPED: dict[str, str] = {}
LACKS = {"typed": "it has no typed messages", "depends": "it has no dependencies"}
FAN = FAN_STALLED = ("",)
FAN_REDIS = ("Pub/Sub", "core")
LAYERS = {
    "": {"BACKEND": "channels.layers.InMemoryChannelLayer"},
    "Pub/Sub": {"BACKEND": "channels_redis.pubsub.RedisPubSubChannelLayer"},
    "core": {"BACKEND": "channels_redis.core.RedisChannelLayer"},
}


class Echo(AsyncWebsocketConsumer):
    """Echo text."""

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        """One message."""
        await self.send(text_data=text_data, bytes_data=bytes_data)


class Json(AsyncJsonWebsocketConsumer):
    """Echo JSON, with the library that one chooses."""

    async def receive_json(self, content: object, **_: object) -> None:
        """One message."""
        await self.send_json(content)

    @classmethod
    async def decode_json(cls, text_data: str) -> object:
        """From text."""
        return msgspec.json.decode(text_data)

    @classmethod
    async def encode_json(cls, content: object) -> str:
        """To text."""
        return msgspec.json.encode(content).decode()


class Connect(AsyncWebsocketConsumer):
    """Two path and two query parameters."""

    async def connect(self) -> None:
        """Accept, send, close."""
        parameters = self.scope["url_route"]["kwargs"]
        query = parse_qs(self.scope["query_string"].decode())
        lang, page = query["lang"][0], int(query.get("page", ["1"])[0])
        await self.accept()
        await self.send(text_data=f"{parameters['room']} {parameters['number']} {lang} {page}")
        await self.close()


class Nothing(AsyncWebsocketConsumer):
    """Accept and close."""

    async def connect(self) -> None:
        """Both at once."""
        await self.accept()
        await self.close()


app = ProtocolTypeRouter(
    {
        "websocket": URLRouter(
            [
                path("echo", Echo.as_asgi()),
                path("json", Json.as_asgi()),
                path("connect/<str:room>/<int:number>", Connect.as_asgi()),
            ],
        ),
    },
)


def routes(kind: str, count: int) -> ASGI:
    """An application with so many routes."""
    every = templates(kind, count, "<str:room>", "<int:number>")
    return URLRouter([path(template[1:], Nothing.as_asgi()) for template in every])


class General(AsyncWebsocketConsumer):
    """Somebody who is told what is published."""

    groups = ("general",)

    async def say(self, event: dict[str, str]) -> None:
        """One message of the group."""
        await self.send(text_data=event["text"])


def fan(kind: str, url: str) -> tuple[ASGI, Publish]:
    """Everybody at `/general` is told what is published, through a layer."""
    # Each consumer of the core layer has a connection, and redis-py 8 allows no more than 100 if it is not asked.
    config: dict[str, object] = {"hosts": [{"address": url, "max_connections": 1000}]} if url else {}
    if kind == "core":
        config["capacity"] = 100_000  # of 100, the default, it would drop most
    django_settings.CHANNEL_LAYERS = {"default": {**LAYERS[kind], "CONFIG": config}}
    layer = channel_layers.make_backend("default")
    channel_layers.set("default", layer)  # for those who connect from now on

    async def publish(message: object) -> None:
        await layer.group_send("general", {"type": "say", "text": msgspec.json.encode(message).decode()})

    return URLRouter([path("general", General.as_asgi())]), publish
