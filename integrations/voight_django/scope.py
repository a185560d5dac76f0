"""The scope of a Django request, which is made when somebody asks for it."""

from __future__ import annotations

from django.http import HttpRequest

from voight_django import conf
from voight_django.route import route_of
from voight_middleware.boundary.scope import Scope
from voight_middleware.tags import Owner, Tags


class RequestScope:
    """
    The identity of one request, as ``tags.OwnerSource``: a ``Scope`` from the first question on.

    Most requests of a web application make no LLM call, and this is all that is made for them. Where the first call comes after the
    request's end, from a thread or task that it has left behind, its user is asked then.
    """

    __slots__ = ("_request", "_scope")

    def __init__(self, request: HttpRequest) -> None:
        self._request: HttpRequest | None = request
        self._scope: Scope | None = None

    def known(self) -> Owner:
        return self._asked().known()

    def resolve(self) -> Owner:
        return self._asked().resolve()

    async def aresolve(self) -> Owner:
        return await self._asked().aresolve()

    def identify(self, tags: Tags, attribution: str) -> None:
        self._asked().identify(tags, attribution)

    def set_tags(self, tags: Tags) -> None:
        self._asked().set_tags(tags)

    def await_settlement(self, call_id: str) -> None:
        self._asked().await_settlement(call_id)

    def settle_now(self) -> None:
        """At the end of the request."""
        if self._scope is not None:
            self._scope.settle_now()

    async def settle(self) -> None:
        """As ``settle_now``, awaiting asynchronous getters."""
        if self._scope is not None:
            await self._scope.settle()

    def _asked(self) -> Scope:
        request = self._request
        if request is not None:
            made = Scope(lambda: request, conf.getters or conf.read_getters(), lambda: route_of(request))
            self._scope = request.__dict__.setdefault("_voight_scope", made)  # two threads may ask at once, and get the same one
            self._request = None
        assert self._scope is not None
        return self._scope
