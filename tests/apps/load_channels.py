"""Channels under load."""

import django
from django.conf import settings

settings.configure(INSTALLED_APPS=["channels"], SECRET_KEY="k")
django.setup()

from channels.generic.http import AsyncHttpConsumer  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.urls import path  # noqa: E402
from load_calls import chat, chat_stream, message, message_stream, plan_of, user_of  # noqa: E402

from voight_middleware import CostTagMiddleware  # noqa: E402


class Consumer(AsyncHttpConsumer):  # type: ignore[misc]
    async def handle(self, body: bytes) -> None:
        headers = {name.decode(): value.decode() for name, value in self.scope["headers"]}
        kind = self.scope["url_route"]["kwargs"].get("kind")
        if kind in (0, 2):
            return await self.send_response(200, (await (message if kind else chat)(headers)).encode())
        if kind not in (1, 3):
            return await self.send_response(404, b"")
        await self.send_headers(headers=[])
        async for part in (chat_stream if kind == 1 else message_stream)(headers):
            await self.send_body(part.encode(), more_body=True)
        return await self.send_body(b"")


routes = URLRouter([path("<int:kind>", Consumer.as_asgi()), path("none", Consumer.as_asgi())])
app = CostTagMiddleware(ProtocolTypeRouter({"http": routes}), user_of, plan_getter=plan_of)
