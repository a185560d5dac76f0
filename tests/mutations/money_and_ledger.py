"""Mutations: what a call costs, and where it is kept."""

from __future__ import annotations

from .mutation import Mutation, at

MUTATIONS: list[Mutation] = [
    *at(
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
            "table.rows[0][1] if len(table.rows) == 1 else table.for_input(usage.input_tokens or 0)",
            "table.rows[0][1]",
        ),
        tests="tests/pricing",
    ),
    *at(
        "pricing/plain_calls.py",
        (
            "a usage that contradicts itself is priced as a plain one",
            "        if total is not None and numbers[total] != sent + answered:",
            "        if total is None:",
        ),
        (
            "a long input is priced as a short one",
            "            if tokens > above:",
            "            if tokens < 0:",
        ),
        (
            "a call that may have been billed twice is priced as a plain one",
            "        or call.possibly_billed\n",
            "",
        ),
        tests="tests/pricing/test_plain_calls.py",
    ),
    *at(
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
        tests="tests/pricing tests/pipeline/test_ingest.py",
    ),
    *at(
        "pricing/rules.py",
        (
            "a price holds an hour longer than it does",
            "(\n            self.until is not None and at >= self.until\n        )",
            "(self.until is not None and at > self.until + HOUR)",
        ),
        (
            "a rule for one host holds for all",
            '        if self.host != "*" and not _matches(self.host, host or ""):\n            return False\n',
            "",
        ),
        tests="tests/pricing",
    ),
    *at(
        "records/money.py",
        (
            "a femto-dollar is lost by the caller's own decimal context",
            "    return plain(CONTEXT.scaleb(Decimal(femto), -15))",
            "    return plain(Decimal(femto).scaleb(-15))",
        ),
        tests="tests/records/test_money.py tests/records",
    ),
    *at(
        "maintenance/repricing.py",
        (
            "a dry run writes",
            "        if not dry_run:\n            report.written",
            "        if True:\n            report.written",
        ),
        tests="tests/maintenance/test_repricing.py tests/maintenance",
    ),
    *at(
        "ledger/sqlite/writer.py",
        (
            "a late attribution replaces an owner",
            'WHERE call_key = ? AND attribution IN {REATTRIBUTABLE_SQL}"""',
            'WHERE call_key = ?"""',
        ),
        (
            "a late attribution without a user takes the plan away",
            "        if late.tags.user_id is None:\n            return\n",
            "",
        ),
        (
            "a second submission takes a job over",
            "        if not submissions(self._db, [submission.job]):\n            self._store(submission)",
            "        self._store(submission)",
        ),
        (
            "progress is not kept with the calls",
            "        if progress is not None:\n            self._db.execute(",
            "        if progress is not None and not calls:\n            self._db.execute(",
        ),
        tests="tests/ledger tests/pipeline/test_ingest.py",
    ),
    *at(
        "ledger/sqlite/intake.py",
        (
            "a call that is known is added to the sums again",
            "WHERE changes() <> (SELECT COUNT(*) FROM new_calls)",
            "WHERE changes() > (SELECT COUNT(*) FROM new_calls)",
        ),
        (
            "a process does not see that another one has erased a text",
            "        if version != self._version:",
            "        if self._version is None:",
        ),
        (
            "of a call that comes twice the last one counts",
            "            first = {call.call_id: call for call in reversed(calls)}",
            "            first = {call.call_id: call for call in calls}",
        ),
        tests="tests/ledger/test_packed.py tests/ledger",
    ),
    *at(
        "ledger/sqlite/packed.py",
        (
            "an id in capitals comes out in small letters",
            "        if key.hex() == call_id:",
            "        if True:",
        ),
        (
            "a changed usage keeps its old text",
            "shape_id = IIF(NEW.raw_usage IS OLD.raw_usage, shape_id, NULL),",
            "shape_id = shape_id,",
        ),
        tests="tests/ledger/test_packed.py tests/ledger",
    ),
    *at(
        "ledger/sqlite/upgrades.py",
        (
            "an upgrade repeats the last call of a slice",
            "WHERE (occurred_at, call_id) > (?, ?)",
            "WHERE (occurred_at, call_id) >= (?, ?)",
        ),
        tests="tests/ledger/test_upgrades.py",
    ),
    *at(
        "ledger/query.py",
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
    *at(
        "ledger/rollups.py",
        (
            "the edges of a window are left out",
            "                    left += [(edge, sign * side) for edge, side in whole[2]]",
            "                    left += []",
        ),
        (
            "an edge outside of a window is added",
            "                    left += [(edge, sign * side) for edge, side in whole[2]]",
            "                    left += [(edge, sign) for edge, side in whole[2]]",
        ),
        (
            "December has no next month",
            "        year, month = divmod(begin.year * 12 + begin.month, 12)",
            "        year, month = begin.year, begin.month % 12",
        ),
        tests="tests/ledger tests/reports",
    ),
    *at(
        "ledger/groups.py",
        (
            "the first users of a month are those of its days",
            "                and (bound is None or last.cost_femto > bound)",
            "                and True",
        ),
        (
            "a user whose calls are in two rows counts as two",
            "            if self._costs is None or _has_repeated(self._costs):",
            "            if self._costs is None:",
        ),
        tests="tests/ledger/test_contract_groups.py tests/reports",
    ),
    *at(
        "ledger/postgres/dialect.py",
        (
            "an underscore in a filter is any character",
            '_SPECIAL = re.compile(r"[\\\\%_]")',
            '_SPECIAL = re.compile(r"[\\\\%]")',
        ),
        tests="tests/ledger",
    ),
    *at(
        "ledger/clickhouse/dialect.py",
        (
            "a quote in a value ends it",
            """.replace("'", "\\\\'")""",
            "",
        ),
        tests="tests/ledger",
    ),
    *at(
        "ledger/clickhouse/dialect.py",
        (
            "groups without a price come in the order of closed days and open ones",
            'f"ifNull({sums[0]}, 0) DESC"',
            'f"{sums[0]} DESC"',
        ),
        tests="tests/ledger/test_closed_days.py",
    ),
    *at(
        "ledger/clickhouse/query.py",
        (
            "a call that came late is not subtracted from its day",
            "return parts, [*edges, *self._among_known(parts, gaps)]",
            "return parts, self._among_known(parts, [*edges, *gaps])",
        ),
        tests="tests/ledger/test_closed_days.py",
    ),
    *at(
        "ledger/clickhouse/store.py",
        (
            "a report does not look whether its days are closed after it has read their sums",
            "if not closed or closed.items() <= self._closed().items():",
            "if True:",
        ),
        tests="tests/ledger/test_closed_days.py",
    ),
    *at(
        "ledger/clickhouse/closed_days.py",
        (
            "a day whose calls change stays closed",
            "HAVING closing > maxIf(version, NOT closed)",
            "HAVING closing > 0",
        ),
        (
            "sums that were inserted twice count twice",
            ")[0]}) == 1:",
            ")[0]}) > 0:",
        ),
        tests="tests/ledger/test_closed_days.py",
    ),
    *at(
        "ledger/clickhouse/writer.py",
        (
            "a late owner comes to a day that is closed",
            "        self._db.days.changing(times.values())\n",
            "",
        ),
        tests="tests/ledger/test_closed_days.py",
    ),
    *at(
        "ledger/erasure.py",
        (
            "the session of an erased person stays",
            "        session_id=None if is_user or tags.session_id in names else tags.session_id,",
            "        session_id=tags.session_id,",
        ),
        tests="tests/ledger/test_erased_tags.py tests/ledger tests/maintenance/test_erasure.py tests/maintenance",
    ),
    *at(
        "maintenance/transfer.py",
        (
            "a ledger is moved onto itself",
            "        same = source.progress(mark) == 1",
            "        same = False",
        ),
        tests="tests/maintenance/test_transfer.py tests/maintenance tests/cli",
    ),
    *at(
        "maintenance/erasure.py",
        (
            "an erasure leaves the journals as they are",
            "    _scrub(ledger, settings.journal, names)\n",
            "",
        ),
        tests="tests/maintenance/test_erasure.py tests/maintenance",
    ),
]
