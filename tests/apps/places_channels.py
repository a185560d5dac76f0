"""Channels, with a consumer for every place in which code can run that a connection has caused."""

import json
from typing import Any

import django
from asgi_places import EVERYWHERE, acall, call, called, user_of
from asgiref.sync import async_to_sync, sync_to_async
from django.conf import settings

settings.configure(
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["channels"],
    SECRET_KEY="k",
)
django.setup()

from channels.db import database_sync_to_async  # noqa: E402
from channels.generic.http import AsyncHttpConsumer  # noqa: E402
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer  # noqa: E402
from channels.layers import get_channel_layer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402

from voight_middleware import CostTagMiddleware  # noqa: E402


class Http(AsyncHttpConsumer):  # type: ignore[misc]
    """What the test asks, and the places that a request over HTTP has too."""

    async def handle(self, body: bytes) -> None:
        path, answer = self.scope["path"], "made"
        if path == "/places":
            answer = json.dumps(PLACES)
        elif path == "/called":
            answer = json.dumps(called)
        elif path == "/any":
            await acall(dict(self.scope["headers"])[b"x-place"].decode())
        elif path == "/http":
            await acall("HTTP consumer")
        else:
            place = list(ANYWHERE)[int(path.split("/")[-1])]
            await ANYWHERE[place](place)
        await self.send_response(200, answer.encode())


class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    """Calls in each of its methods."""

    async def connect(self) -> None:
        await acall("connect() of a consumer")
        await self.accept()
        await get_channel_layer().send(self.channel_name, {"type": "layer"})

    async def layer(self, event: Any) -> None:
        await acall("handler of a channel layer's message")
        await self.send("made")

    async def disconnect(self, code: int) -> None:
        await acall("disconnect() of a consumer")


class AsyncConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]
    async def connect(self) -> None:
        await self.accept()
        await acall("WebSocket handler")
        await self.send("made")


class SyncConsumer(WebsocketConsumer):  # type: ignore[misc]
    def connect(self) -> None:
        self.accept()
        call("WebSocket handler, sync")
        self.send("made")


ANYWHERE = {
    **{place: make for place, make in EVERYWHERE.items() if "lifespan" not in place},
    "sync_to_async": sync_to_async(call),
    "database_sync_to_async": database_sync_to_async(call),
    "async_to_sync": sync_to_async(async_to_sync(acall)),
}
PLACES = {
    "HTTP consumer": "/http",
    "WebSocket handler": "ws:/socket",
    "WebSocket handler, sync": "ws:/sync-socket",
    "connect() of a consumer": "ws:/methods",
    "handler of a channel layer's message": "",
    "disconnect() of a consumer": "",
    **{place: f"/anywhere/{index}" for index, place in enumerate(ANYWHERE)},
}
sockets = URLRouter(
    [path("socket", AsyncConsumer.as_asgi()), path("sync-socket", SyncConsumer.as_asgi()), path("methods", Consumer.as_asgi())]
)
app = CostTagMiddleware(ProtocolTypeRouter({"http": URLRouter([path("<path:any>", Http.as_asgi())]), "websocket": sockets}), user_of)
