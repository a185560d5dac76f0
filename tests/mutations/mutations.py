"""
Small wrong changes of the library, each of which a test of the default run must notice.

Each is a piece of a file's text and what stands in its place. The tests are those that should notice it first.
"""

from __future__ import annotations

from dataclasses import dataclass

CORE = "voight_middleware"


@dataclass(frozen=True)
class Mutation:
    """One wrong change."""

    name: str
    """What is wrong, in words of the one it hurts."""
    file: str
    old: str
    """Occurs once in the file."""
    new: str
    tests: tuple[str, ...]
    """Folders and files of the tests that must notice it."""


def _at(file: str, *changes: tuple[str, str, str], tests: str) -> list[Mutation]:
    path = file if file.startswith("voight_") and "/" in file and not file.startswith("voight_middleware") else f"{CORE}/{file}"
    path = path if path.startswith(CORE) else f"integrations/{path}"
    return [Mutation(name, path, old, new, tuple(tests.split())) for name, old, new in changes]


MUTATIONS: list[Mutation] = [
    # -- who a call is for
    *_at(
        "tags.py",
        (
            "an inner tag does not win over the outer one",
            "user_id=self.user_id if inner.user_id is None else inner.user_id",
            "user_id=inner.user_id if self.user_id is None else self.user_id",
        ),
        (
            "the signed-in user's plan goes with another user's call",
            "    if tags.user_id is not None and tags.user_id != user_id:\n        tags = Tags(route=tags.route, release=tags.release)\n",
            "",
        ),
        (
            "a tag stays in force after its block",
            "        if frame.by is self and frame.outer is not None:\n            _frame.set(frame.outer)",
            "        if frame.by is self and frame.outer is None:\n            _frame.set(frame.outer)",
        ),
        (
            "a request's scope stays bound after the request",
            "        if self._outer is not None:\n            _frame.set(self._outer)",
            "        if self._outer is None:\n            _frame.set(self._frame)",
        ),
        (
            "extra keys of the inner tags replace all outer ones",
            "extra=first_extra({**inner.extra, **self.extra, **inner.extra}) if inner.extra else self.extra",
            "extra=inner.extra or self.extra",
        ),
        tests="tests/test_tags.py tests/boundary tests/context",
    ),
    *_at(
        "boundary/scope.py",
        (
            "calls made before anybody is known stay nobody's",
            "        if pending and owner.tags.user_id is not None:\n            self._how",
            "        if pending and owner.tags.user_id is None:\n            self._how",
        ),
        (
            "a failing getter is not counted",
            '        current_meter().counters["getter_errors"] += 1\n',
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
        tests="tests/boundary",
    ),
    *_at(
        "boundary/asgi.py",
        (
            "a request goes on in the context of the one before it",
            "        set_frame(Frame(cost_scope, NO_TAGS))",
            "        set_frame(Frame(outer.scope or cost_scope, NO_TAGS))",
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
        tests="tests/boundary tests/integrations/test_fastapi.py tests/providers",
    ),
    *_at(
        "boundary/wsgi.py",
        (
            "an answer that is streamed loses its user",
            "            self._now = current_frame()  # a `with tag()` of the application's may stay open over a yield\n            set_frame(outer)",
            "            self._now = outer\n            set_frame(outer)",
        ),
        (
            "the thread of a request keeps its user",
            "    except BaseException:\n        frame.end()\n        raise\n    finally:\n        set_frame(outer)",
            "    except BaseException:\n        frame.end()\n        raise\n    finally:\n        set_frame(frame)",
        ),
        tests="tests/boundary tests/integrations",
    ),
    *_at(
        "boundary/headers.py",
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
        tests="tests/boundary",
    ),
    *_at(
        "boundary/jobs.py",
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
        tests="tests/boundary tests/propagation",
    ),
    *_at(
        "voight_celery/__init__.py",
        (
            "an eager task ends its caller's scope",
            "    if request.is_eager:\n        return\n",
            "",
        ),
        tests="tests/integrations/test_celery.py tests/integrations tests/propagation",
    ),
    # -- what is called
    *_at(
        "providers/entry.py",
        (
            "an attempt that got no answer is not flagged",
            "            self.possibly_billed += 1",
            "            self.possibly_billed += 0",
        ),
        (
            "an anonymous client charges whom its body names",
            "        return self.frame.scope is None if wanted is None else wanted",
            "        return True",
        ),
        (
            "the user that a request names wins over the one who is signed in",
            "named = _named_user(body) if self.owner.tags.user_id is None and self._may_name_its_user() else None",
            "named = _named_user(body)",
        ),
        (
            "an aborted stream counts no output",
            '            output = reader.estimated_output() if outcome != "ok" or unreported else None',
            "            output = reader.estimated_output() if False else None",
        ),
        (
            "the answers of a batch are billed at the full rate",
            "                    batch=True,\n",
            "                    batch=False,\n",
        ),
        (
            "durations are a thousand times too long",
            "                duration=(time.perf_counter_ns() - self.started) // 1000,",
            "                duration=(time.perf_counter_ns() - self.started),",
        ),
        tests="tests/providers",
    ),
    *_at(
        "providers/sdk.py",
        (
            "usage is asked for though the caller decided himself",
            ' or (wish and "include_usage" in wish):',
            " or (wish and False):",
        ),
        (
            "a refused stream is not sent again as the caller wrote it",
            "        self.asked_for_usage = False\n        return True\n",
            "        self.asked_for_usage = False\n        return False\n",
        ),
        (
            "a host that has refused once is never asked again",
            "    if time.monotonic() < until:",
            "    if until:",
        ),
        (
            "a refused answer is a call of its own",
            "        if response.status_code >= 400:",
            "        if response.status_code >= 1000:",
        ),
        tests="tests/providers",
    ),
    *_at(
        "providers/streams.py",
        (
            "a stream that breaks off is whole",
            '        self.end(self._said() or "truncated")',
            '        self.end(self._said() or "ok")',
        ),
        (
            "a stream's end is reported twice",
            "            report = self._report.pop()",
            "            report = self._report[-1]",
        ),
        (
            "a stream that nobody reads on is never a call",
            '        self.end(self._said() or "aborted")',
            "        self._said()",
        ),
        tests="tests/providers",
    ),
    *_at(
        "providers/gate.py",
        (
            "a request through two layers of an SDK is two calls",
            "(isinstance(outer, SdkEntry) and outer.trying is options):\n            return original(",
            "(isinstance(outer, SdkEntry) and outer is options):\n            return original(",
        ),
        (
            "an error of ours reaches the caller",
            "    try:\n        endpoint = routes.find(options.method, options.url)",
            "    endpoint = routes.find(options.method, options.url)\n    try:",
        ),
        tests="tests/providers",
    ),
    *_at(
        "usage.py",
        (
            "cached tokens are billed twice",
            "    parts_in = cache_read, cache_write, audio_in, cached_audio, image_in, cached_image",
            "    parts_in = None, cache_write, audio_in, cached_audio, image_in, cached_image",
        ),
        (
            "a missing count is 0",
            "    return sum(known) if known else None",
            "    return sum(known)",
        ),
        (
            "a negative count is taken",
            "(type(value) is int and 0 <= value < _MOST)",
            "(type(value) is int and value < _MOST)",
        ),
        (
            "usage that nobody knows goes unnoticed",
            "        elif value and (kind is int or kind is Decimal):",
            "        elif value and kind is Decimal:",
        ),
        tests="tests/test_usage.py tests/providers",
    ),
    # -- on the way
    *_at(
        "journal.py",
        (
            "a short write loses the record",
            '                if (count := os.write(self._fd, line)) != len(line):\n                    self._torn += count\n                    raise OSError("short write")',
            "                os.write(self._fd, line)",
        ),
        (
            "what waits in memory at the end is not counted as lost",
            "            self.dropped += len(self._backlog)\n            self._backlog.clear()",
            "            self._backlog.clear()",
        ),
        (
            "a forked child writes into the parent's segment",
            "        self._fd, self._name, self._size, self._catching_up, self._failing = None, None, 0, False, False",
            "        self._size, self._catching_up, self._failing = 0, False, False",
        ),
        tests="tests/test_journal.py tests/test_fork.py tests/pipeline",
    ),
    *_at(
        "ingest.py",
        (
            "a segment is deleted before its calls are in the ledger",
            "                    self._insert(lines, Progress(segment.name, offset))\n                    self._offsets[segment.name] = offset",
            "                    self._offsets[segment.name] = offset\n                    segment.path.unlink(missing_ok=True)\n"
            "                    self._insert(lines, Progress(segment.name, offset))",
        ),
        (
            "a torn line vanishes",
            "                if torn := segment.tail(offset):",
            "                if False and (torn := segment.tail(offset)):",
        ),
        (
            "one bad record takes its batch along",
            "            self._insert_halves([records[index] for index in order], [sources[index] for index in order], error)\n",
            "",
        ),
        tests="tests/test_ingest.py tests/pipeline tests/pricing tests/delivery",
    ),
    *_at(
        "meter.py",
        (
            "listeners hear a call twice",
            "            if self._held.pop(call.call_id, None) is not None:",
            "            if self._held.get(call.call_id) is not None:",
        ),
        (
            "a child of a fork tells the listeners of its parent's calls",
            "        self._held = {}\n        self._audience.renew()",
            "        self._audience.renew()",
        ),
        tests="tests/test_listeners.py tests/test_meter.py tests/test_fork.py tests/pipeline",
    ),
    *_at(
        "audience.py",
        (
            "a listener that raises silences those behind it",
            "            except BaseException as error:  # a CancelledError or SystemExit, too, would end the thread\n"
            '                self._count("listener_errors")',
            '            except BaseException as error:\n                self._count("listener_errors")\n                return',
        ),
        tests="tests/test_listeners.py tests/pipeline",
    ),
    *_at(
        "pseudonyms.py",
        (
            "personal data in extra keys is kept as it is",
            "            extra=self._extra(extra) if extra else extra,",
            "            extra=extra,",
        ),
        (
            "a policy for one key holds for all",
            '    return policies.get(key) or policies.get("*", "pseudonym")',
            '    return next(iter(policies.values()), "pseudonym")',
        ),
        tests="tests/test_pseudonyms.py tests/pipeline",
    ),
    *_at(
        "pii.py",
        (
            "an address behind %40 is not seen",
            'if ("@" in text or "%40" in text or',
            'if ("@" in text or',
        ),
        tests="tests/test_pii.py tests/test_pseudonyms.py tests/records",
    ),
    # -- money
    *_at(
        "pricing/cost.py",
        (
            "an unknown model costs 0",
            '    call.cost_femto, call.cost_status, call.price = None, "unpriced", None\n    call.cost_reasons',
            '    call.cost_femto, call.cost_status, call.price = 0, "priced", None\n    call.cost_reasons',
        ),
        (
            "a count without a price is priced all the same",
            '    call.cost_status = "partial" if reasons else "priced"',
            '    call.cost_status = "priced"',
        ),
        (
            "only the first component of a call is billed",
            "        total += whole\n        if rest:",
            "        total = whole\n        if rest:",
        ),
        (
            "a refused request costs its tokens",
            '        if call.outcome == "error" and call.http_status is not None and call.http_status >= 400:',
            '        if call.outcome == "error" and call.http_status is not None and call.http_status >= 600:',
        ),
        (
            "reasoning is billed twice",
            "                yield name, count if beside else count - apart",
            "                yield name, count",
        ),
        (
            "long contexts are billed at the price of short ones",
            "rates = table.rows[0][1] if len(table.rows) == 1 else table.for_input(usage.input_tokens or 0)",
            "rates = table.rows[0][1]",
        ),
        tests="tests/pricing",
    ),
    *_at(
        "pricing/bills.py",
        (
            "the provider's own bill is not taken",
            "return None if bill is None else bill(raw)",
            "return None",
        ),
        (
            "a tick of xAI is worth ten times as much",
            "CONTEXT.scaleb(ticks, -10)",
            "CONTEXT.scaleb(ticks, -9)",
        ),
        tests="tests/pricing tests/test_ingest.py",
    ),
    *_at(
        "pricing/rules.py",
        (
            "a price holds an hour longer than it does",
            "(self.until is not None and at >= self.until)",
            "(self.until is not None and at > self.until + HOUR)",
        ),
        (
            "a rule for one host holds for all",
            '        if self.host != "*" and not _matches(self.host, host or ""):\n            return False\n',
            "",
        ),
        tests="tests/pricing",
    ),
    *_at(
        "money.py",
        (
            "a femto-dollar is lost by the caller's own decimal context",
            "    return plain(CONTEXT.scaleb(Decimal(femto), -15))",
            "    return plain(Decimal(femto).scaleb(-15))",
        ),
        tests="tests/test_money.py tests/records",
    ),
    *_at(
        "repricing.py",
        (
            "a dry run writes",
            "        if not dry_run:\n            report.written",
            "        if True:\n            report.written",
        ),
        tests="tests/test_repricing.py tests/maintenance",
    ),
    # -- the ledger
    *_at(
        "ledger/sqlite/intake.py",
        (
            "a settlement replaces an owner",
            "WHERE call_id = ? AND attribution IN ('none', 'error', 'request')\"\"\"",
            'WHERE call_id = ?"""',
        ),
        (
            "a settlement without a user takes the plan away",
            "        if settlement.tags.user_id is None:\n            return\n",
            "",
        ),
        (
            "a second submission takes a job over",
            "        if not submissions(self._db, [submission.job]):\n            self._keep(submission)",
            "        self._keep(submission)",
        ),
        (
            "progress is not kept with the calls",
            "        if progress is not None:\n            self._db.execute(",
            "        if progress is not None and not calls:\n            self._db.execute(",
        ),
        tests="tests/ledger tests/test_ingest.py",
    ),
    *_at(
        "ledger/question.py",
        (
            "a window's end is part of it",
            '        for sql, bound in (("occurred_at >= ?", window.since), ("occurred_at < ?", window.until)):',
            '        for sql, bound in (("occurred_at >= ?", window.since), ("occurred_at <= ?", window.until)):',
        ),
        (
            "a filter for no value is ignored",
            '                either.append(f"{sql} IS NULL")',
            '                either.append("1 = 1")',
        ),
        (
            "a second value of a filter is ignored",
            "        for value in wanted if isinstance(wanted, tuple) else (wanted,):",
            "        for value in wanted[:1] if isinstance(wanted, tuple) else (wanted,):",
        ),
        (
            "an unpriced group costs 0",
            "cost_femto=None if calls == (unpriced or 0) else",
            "cost_femto=0 if calls == (unpriced or 0) else",
        ),
        (
            "a zone of half an hour reads rollups of whole ones",
            "return [rollup for rollup in rollups if rollup is PLANS] if whole_hours else ()",
            "return [rollup for rollup in rollups if rollup is PLANS]",
        ),
        tests="tests/ledger tests/reports",
    ),
    *_at(
        "ledger/rollups.py",
        (
            "the edges of a window are left out",
            "                    left += whole[2]",
            "                    left += []",
        ),
        (
            "December has no next month",
            "        year, month = divmod(begin.year * 12 + begin.month, 12)",
            "        year, month = begin.year, begin.month % 12",
        ),
        tests="tests/ledger tests/reports",
    ),
    *_at(
        "ledger/postgres/dialect.py",
        (
            "an underscore in a filter is any character",
            '        for special in "\\\\%_":',
            '        for special in "\\\\%":',
        ),
        tests="tests/ledger",
    ),
    *_at(
        "ledger/clickhouse/dialect.py",
        (
            "a quote in a value ends it",
            """.replace("'", "\\\\'")""",
            "",
        ),
        tests="tests/ledger",
    ),
    *_at(
        "ledger/erasure.py",
        (
            "the session of an erased person stays",
            "        session_id=None if own or tags.session_id in names else tags.session_id,",
            "        session_id=tags.session_id,",
        ),
        tests="tests/ledger tests/test_rights.py tests/maintenance",
    ),
    *_at(
        "moving.py",
        (
            "a ledger is moved onto itself",
            "        same = source.progress(mark) == 1",
            "        same = False",
        ),
        tests="tests/test_moving.py tests/maintenance tests/cli",
    ),
    *_at(
        "rights.py",
        (
            "an erasure leaves the journals as they are",
            "    _scrub(ledger, settings.journal, names)\n",
            "",
        ),
        tests="tests/test_rights.py tests/maintenance",
    ),
    # -- the answers
    *_at(
        "reports/timespan.py",
        (
            "a month begins in UTC, whatever the zone",
            "    return datetime.combine(day, time(), zone).astimezone(UTC)",
            "    return datetime.combine(day, time(), UTC)",
        ),
        (
            "a week begins on Sunday",
            "        monday = today - timedelta(days=today.weekday())",
            "        monday = today - timedelta(days=today.isoweekday())",
        ),
        (
            "the last day of a window is left out",
            "        return day, day + _ONE_DAY",
            "        return day, day",
        ),
        tests="tests/reports",
    ),
    *_at(
        "reports/margin.py",
        (
            "the margin of a customer without a price is their whole revenue",
            "        return None if self.cost_femto is None else (self.revenue_femto or 0) - self.cost_femto",
            "        return (self.revenue_femto or 0) - (self.cost_femto or 0)",
        ),
        tests="tests/reports tests/cli",
    ),
    *_at(
        "reports/plans.py",
        (
            "who pays as much as they cost is at a loss",
            "sum(cost > self.price_femto for cost in self.costs)",
            "sum(cost >= self.price_femto for cost in self.costs)",
        ),
        tests="tests/reports tests/cli",
    ),
    *_at(
        "cli/render.py",
        (
            "an escape sequence reaches the terminal",
            '    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)\n\n\ndef as_json',
            "    return text\n\n\ndef as_json",
        ),
        tests="tests/cli",
    ),
    # -- out and in
    *_at(
        "export/csvfile.py",
        (
            "a user id is a formula in a spreadsheet",
            """        return f"'{text}" if text[:1] in _FORMULA else text""",
            "        return text",
        ),
        tests="tests/export",
    ),
    *_at(
        "otlp/receiver.py",
        (
            "the receiver takes any token",
            'if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token):',
            'if scheme.lower() != "bearer":',
        ),
        tests="tests/otlp",
    ),
    *_at(
        "otlp/recent.py",
        (
            "two users' calls that look alike are one",
            "    return one.user is not None and other.user is not None and one.user != other.user",
            "    return False",
        ),
        tests="tests/otlp",
    ),
    *_at(
        "outbox.py",
        (
            "a call that is read again is sent again",
            "entry.position >= queued.get(segment, 0)",
            "entry.position >= 0",
        ),
        tests="tests/export",
    ),
    *_at(
        "settings.py",
        (
            "a password is shown",
            '| {"ledger": shown_url(self.ledger)}',
            '| {"ledger": self.ledger}',
        ),
        tests="tests/test_settings.py tests/config",
    ),
]
