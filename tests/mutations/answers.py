"""Mutations: reports, exports and what is received."""

from __future__ import annotations

from .mutation import Mutation, at

MUTATIONS: list[Mutation] = [
    *at(
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
    *at(
        "reports/margin.py",
        (
            "the margin of a customer without a price is their whole revenue",
            "        return None if self.cost_femto is None else (self.revenue_femto or 0) - self.cost_femto",
            "        return (self.revenue_femto or 0) - (self.cost_femto or 0)",
        ),
        tests="tests/reports tests/cli",
    ),
    *at(
        "reports/plans.py",
        (
            "who pays as much as they cost is at a loss",
            "sum(cost > self.price_femto for cost in self.costs)",
            "sum(cost >= self.price_femto for cost in self.costs)",
        ),
        tests="tests/reports tests/cli",
    ),
    *at(
        "cli/render.py",
        (
            "an escape sequence reaches the terminal",
            '    return "".join(\n        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text\n    )\n\n\ndef for_terminal',
            "    return text\n\n\ndef for_terminal",
        ),
        tests="tests/cli",
    ),
    *at(
        "exporters/files/csv_file.py",
        (
            "a user id is a formula in a spreadsheet",
            """    return f"'{shown}" if text[:1] in _FORMULA else shown""",
            "    return shown",
        ),
        tests="tests/exporters",
    ),
    *at(
        "otlp/receiver.py",
        (
            "the receiver takes any token",
            'if scheme.lower() != "bearer" or not hmac.compare_digest(\n            given.strip().encode(), self._token\n        ):',
            'if scheme.lower() != "bearer":',
        ),
        (
            "a page in a browser can write calls by DNS rebinding",
            'if not is_loopback(host_name(host) or "") or (\n        origin',
            "if (origin",
        ),
        tests="tests/otlp",
    ),
    *at(
        "otlp/deduplicator.py",
        (
            "two users' calls that look alike are one",
            "    return call.user is not None and other.user is not None and call.user != other.user",
            "    return False",
        ),
        tests="tests/otlp",
    ),
    *at(
        "events/outbox.py",
        (
            "a call that is read again is sent again",
            "entry.position >= queued.get(segment, 0)",
            "entry.position >= 0",
        ),
        tests="tests/exporters",
    ),
    *at(
        "config/settings.py",
        (
            "a password is shown",
            '| {\n            "ledger": shown_url(self.ledger)\n        }',
            '| {"ledger": self.ledger}',
        ),
        tests="tests/config/test_settings.py tests/config",
    ),
]
