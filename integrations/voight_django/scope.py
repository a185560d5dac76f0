"""The tag context and the request scope of a Django request."""

from __future__ import annotations

import os
import threading

from django.http import HttpRequest

from voight_django import conf
from voight_django.route import route_of
from voight_middleware.context.context import TagContext
from voight_middleware.middleware.request_scope import RequestScope
from voight_middleware.records.tags import NO_TAGS

_making = threading.Lock()


def _after_fork() -> None:
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class RequestContext(TagContext):
    """
    The tag context of a request. It makes its scope at first use, as most requests make no LLM
    call.

    If the first call comes after the request, from a thread or task that it started, the user is
    read then.
    """

    __slots__ = ("_request", "made")

    def __init__(self, request: HttpRequest) -> None:  # pyright: ignore[reportMissingSuperCall]  # it would set the scope
        self.tags = NO_TAGS
        self.outer = self.by = None
        self.made: RequestScope | None = None
        self._request: HttpRequest | None = request

    @property
    def scope(self) -> RequestScope:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
        """The scope of the request."""
        request = self._request
        if request is not None:
            made = RequestScope(
                lambda: request, conf.getters or conf.read_getters(), lambda: route_of(request)
            )
            with _making:
                if self.made is None:  # else another thread was faster
                    self.made = made
                    self._request = None
        assert self.made is not None
        return self.made
