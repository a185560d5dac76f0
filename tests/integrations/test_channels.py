"""CostTagMiddleware in Channels: the user of AuthMiddlewareStack, and the patterns of URLRouter."""

from typing import Any

import pytest

CONSUMER = """
import asyncio, os, sys, threading, time
import django
from django.conf import settings
settings.configure(INSTALLED_APPS=["channels", "django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"],
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2] + "/db.sqlite3"}}, SECRET_KEY="k")
django.setup()
from django.core.management import call_command
call_command("migrate", verbosity=0)
from channels.auth import AuthMiddlewareStack
from channels.generic.websocket import AsyncWebsocketConsumer, WebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.auth.models import User
from django.test import Client
from django.urls import path, re_path
import openai, uvicorn, websockets.sync.client
import voight_middleware as voight

options = {"api_key": "k", "base_url": sys.argv[1]}
question = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Where?"}]}
aclient, client = voight.wrap(openai.AsyncOpenAI(**options)), voight.wrap(openai.OpenAI(**options))

class Room(AsyncWebsocketConsumer):
    async def connect(self):
        await self.accept()
        await aclient.chat.completions.create(**question)
        await self.send("made")

class SyncRoom(WebsocketConsumer):
    def connect(self):
        self.accept()
        client.chat.completions.create(**question)
        self.send("made")

inner = URLRouter([path("rooms/<int:room>/", Room.as_asgi())])
routes = URLRouter([path("ws/", inner), re_path(r"^sync/(?P<room>\\w+)/$", SyncRoom.as_asgi())])
app = ProtocolTypeRouter({"websocket": AuthMiddlewareStack(voight.CostTagMiddleware(routes))})
server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", lifespan="off", ws="websockets-sansio"))
threading.Thread(target=server.run, daemon=True).start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]
browser = Client()
browser.force_login(User.objects.create_user("alice"))
cookie = "sessionid=" + browser.cookies["sessionid"].value
for place, headers in (("ws/rooms/7/", {"cookie": cookie}), ("sync/blue/", {"cookie": cookie}), ("ws/rooms/7/", {})):
    with websockets.sync.client.connect(f"ws://127.0.0.1:{port}/{place}", additional_headers=headers) as connection:
        assert connection.recv() == "made"
server.should_exit = True
assert voight.flush(30)
"""


@pytest.mark.slow
def test_user_and_route(scripts: Any, voight_provider: Any) -> None:
    """Inside AuthMiddlewareStack the owner is Django's user, without a query on the event loop; the route is the routers' patterns."""
    pytest.importorskip("channels")
    from voight_middleware.ledger import open_ledger

    scripts.run(CONSUMER, voight_provider.openai_base_url, str(scripts.folder))
    ledger = open_ledger(f"sqlite:///{scripts.ledger}")
    found = [(call.tags.user_id, call.tags.route, call.attribution) for call in ledger.calls()]
    ledger.close()
    assert found == [
        ("1", "WEBSOCKET /ws/rooms/<int:room>/", "getter"),
        ("1", "WEBSOCKET /sync/<room>/", "getter"),
        (None, "WEBSOCKET /ws/rooms/<int:room>/", "none"),
    ]
