"""Mutations: who a call is for."""

from __future__ import annotations

from .mutation import Mutation, at

MUTATIONS: list[Mutation] = [
    *at(
        "records/tags.py",
        (
            "an inner tag does not win over the outer one",
            "user_id=self.user_id if inner.user_id is None else inner.user_id",
            "user_id=inner.user_id if self.user_id is None else self.user_id",
        ),
        (
            "extra keys of the inner tags replace all outer ones",
            "extra=first_extra({**inner.extra, **self.extra, **inner.extra})\n            if inner.extra\n            else self.extra",
            "extra=inner.extra or self.extra",
        ),
        tests="tests/context/test_tags.py tests/middleware tests/context",
    ),
    *at(
        "context/context.py",
        (
            "the signed-in user's plan goes with another user's call",
            "    if tags.user_id is not None and tags.user_id != user_id:\n        tags = Tags(route=tags.route, release=tags.release)\n",
            "",
        ),
        (
            "a request's scope stays bound after the request",
            "        if self._outer is not None:\n            set_context(self._outer)",
            "        if self._outer is None:\n            set_context(self._context)",
        ),
        tests="tests/context/test_tags.py tests/middleware tests/context",
    ),
    *at(
        "context/tag.py",
        (
            "a tag stays in force after its block",
            "        if context.by is self and context.outer is not None:\n            set_context(context.outer)",
            "        if context.by is self and context.outer is None:\n            set_context(context.outer)",
        ),
        tests="tests/context/test_tags.py tests/middleware tests/context",
    ),
    *at(
        "middleware/request_scope.py",
        (
            "calls made before anybody is known stay nobody's",
            "        if pending and owner.tags.user_id is not None:\n            self._attribution",
            "        if pending and owner.tags.user_id is None:\n            self._attribution",
        ),
        (
            "a failing getter is not counted",
            '        counters["getter_errors"] += 1\n',
            "",
        ),
        (
            "another user of the same request keeps the plan of the first",
            "            known = Tags(route=known.route)\n",
            "            pass\n",
        ),
        (
            "calls without an owner are forgotten before the request ends",
            "            self.pending.append(call_id)",
            "            self.pending[:] = [call_id]",
        ),
        (
            "threads of one request have scopes of their own",
            "                made = self.made\n                if made is None:\n",
            "                if True:\n",
        ),
        (
            "a scope that is made after its request gathers calls for nobody",
            "            if self.ended:\n                made.release()\n",
            "",
        ),
        tests="tests/middleware",
    ),
    *at(
        "middleware/asgi.py",
        (
            "a request goes on in the context of the one before it",
            "        token = set_context(context)\n",
            "        token = set_context(context)\n        context.made = getattr(token.old_value, 'scope', None)\n",
        ),
        (
            "a WebSocket has no owner",
            'if scope["type"] not in ("http", "websocket"):',
            'if scope["type"] not in ("http",):',
        ),
        (
            "a shutdown does not bring the calls into the ledger",
            'if scope["type"] == "lifespan" else send',
            'if scope["type"] == "life" else send',
        ),
        tests="tests/middleware tests/integrations/test_fastapi.py tests/providers",
    ),
    *at(
        "middleware/wsgi.py",
        (
            "an answer that is streamed loses its user",
            "            self._now = current_context()\n            set_context(outer)",
            "            self._now = outer\n            set_context(outer)",
        ),
        (
            "the thread of a request keeps its user",
            "            reset_context(token)\n",
            "            pass\n",
        ),
        tests="tests/middleware tests/integrations",
    ),
    *at(
        "propagation/headers.py",
        (
            "a forged header is believed",
            '    if not hmac.compare_digest(form["signature"], _signature(key, form["signed"])):',
            '    if not form["signature"]:',
        ),
        (
            "a header is good for ever",
            "        if now > expires + CLOCK_SKEW:",
            "        if now < expires - 9e9:",
        ),
        (
            "a header that was sent twice is believed",
            "    if len(values) > 1:",
            "    if len(values) > 9:",
        ),
        (
            "tags go to a host that only ends like ours",
            '    return host in names or any(name.startswith(".") and host.endswith(name) for name in names)',
            "    return any(host.endswith(name) for name in names)",
        ),
        tests="tests/propagation/test_headers.py",
    ),
    *at(
        "propagation/messages.py",
        (
            "a retried message gets the owner of whoever retries it",
            "    if KEY not in headers and (text := tags_for_message()) is not None:",
            "    if (text := tags_for_message()) is not None:",
        ),
        (
            "a job of many users is given to the last one",
            "        if pending and len(self._users) == 1 and",
            "        if pending and",
        ),
        tests="tests/propagation/test_messages.py",
    ),
    *at(
        "voight_celery/__init__.py",
        (
            "an eager task ends its caller's scope",
            "    if request.is_eager:\n        return\n",
            "",
        ),
        tests="tests/integrations/test_celery.py tests/integrations tests/propagation",
    ),
]
