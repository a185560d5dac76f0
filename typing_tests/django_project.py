"""Read by mypy and pyright, never run: what a Django project writes."""

from typing import assert_type

from django.http import HttpRequest, HttpResponse

from voight_django import CostTagMiddleware


def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.path)


class OwnMiddleware(CostTagMiddleware):
    """A project's own subclass."""


async def asynchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.path)


assert_type(CostTagMiddleware(view), CostTagMiddleware)
assert_type(CostTagMiddleware(asynchronous), CostTagMiddleware)
assert_type(CostTagMiddleware.sync_capable, bool)
OwnMiddleware(view)
CostTagMiddleware("view")  # type: ignore[arg-type]
