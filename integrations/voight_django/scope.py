"""The tag context of a Django request."""

from __future__ import annotations

from django.http import HttpRequest

from voight_django import conf
from voight_django.route import route_of
from voight_middleware.middleware.request_scope import RequestContext, RequestScope


class DjangoContext(RequestContext):
    """The tag context of one Django request."""

    __slots__ = ("_request",)

    def __init__(self, request: HttpRequest) -> None:  # pyright: ignore[reportMissingSuperCall]  # see RequestContext
        self.made = None
        self.ended = False
        self._request: HttpRequest | None = request

    def make_scope(self) -> RequestScope:
        """Return a new scope for this request. From then on, only the scope has the request."""
        request, self._request = self._request, None
        assert request is not None
        return RequestScope(
            lambda: request, conf.getters or conf.read_getters(), lambda: route_of(request)
        )
