"""Mutations: what is called, and on its way to the ledger."""

from __future__ import annotations

from .mutation import Mutation, at

MUTATIONS: list[Mutation] = [
    *at(
        "instrumentation/request.py",
        (
            "an attempt that got no answer is not flagged",
            "            self.possibly_billed += 1",
            "            self.possibly_billed += 0",
        ),
        (
            "an anonymous client charges whom its body names",
            "        return self.context.scope is None if allowed is None else allowed",
            "        return True",
        ),
        (
            "the user that a request names wins over the one who is signed in",
            "if self.owner.tags.user_id is None and self._may_name_its_user()",
            "if True",
        ),
        (
            "an aborted stream counts no output",
            '            output = parser.estimated_output() if outcome != "ok" or unreported else None',
            "            output = parser.estimated_output() if False else None",
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
    *at(
        "instrumentation/sdk.py",
        (
            "usage is asked for though the caller decided himself",
            'or (given and "include_usage" in given)',
            "or (given and False)",
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
    *at(
        "instrumentation/streams.py",
        (
            "a stream that breaks off is whole",
            '        self.end(self._reported_outcome() or "truncated")',
            '        self.end(self._reported_outcome() or "ok")',
        ),
        (
            "a stream's end is reported twice",
            "            report = self._report.pop()",
            "            report = self._report[-1]",
        ),
        (
            "a stream that nobody reads on is never a call",
            '        self.end(self._reported_outcome() or "aborted")',
            "        self._reported_outcome()",
        ),
        tests="tests/providers",
    ),
    *at(
        "instrumentation/wrap.py",
        (
            "a request through two layers of an SDK is two calls",
            "    metered.body = options.json_data  # the body that is sent\n    return True",
            "    metered.body = options.json_data\n    return False",
        ),
        (
            "an error of ours reaches the caller",
            "    try:\n        endpoint = routes.find(options.method, options.url)",
            "    endpoint = routes.find(options.method, options.url)\n    try:",
        ),
        tests="tests/providers",
    ),
    *at(
        "instrumentation/usage_chunks.py",
        (
            "usage that we asked for shows as null",
            '                    sent.discard("usage")\n                    self._sends_null = True\n                if extra',
            "                    self._sends_null = True\n                if extra",
        ),
        (
            "what a server says beside its usage is hidden",
            "            if (value is not None or not self._sends_null) and (\n                key",
            "            if self._sends_null and value is not None and (key",
        ),
        tests="tests/providers",
    ),
    *at(
        "instrumentation/request.py",
        (
            "a pooled connection keeps the prompt",
            "        self.metered = self.client = None",
            "        self.client = None",
        ),
        (
            "a call of nobody is written as somebody's",
            "                self.owner.tags.user_id is None\n                or",
            "                False\n                or",
        ),
        (
            "an attempt that may be billed is forgotten",
            "                or self.possibly_billed\n                or self.observed",
            "                or self.observed",
        ),
        tests="tests/providers tests/pipeline/test_answers.py",
    ),
    *at(
        "records/answer.py",
        (
            "every answer of a segment has the same id",
            "hashlib.blake2b(source.encode()",
            'hashlib.blake2b(source.partition(":")[0].encode()',
        ),
        (
            "an answer is longer than it was",
            "            ttft=self.ttft,",
            "            ttft=self.duration,",
        ),
        tests="tests/pipeline/test_answers.py",
    ),
    *at(
        "pipeline/meter.py",
        (
            "the owner of an answer is not pseudonymized",
            "answer.tags = self._pseudonymizer(self._below.merge(owner.tags))",
            "answer.tags = self._below.merge(owner.tags)",
        ),
        tests="tests/pipeline/test_pseudonyms.py",
    ),
    *at(
        "instrumentation/manual.py",
        (
            "a forked child reports its parent's block",
            "        if self._process != os.getpid():",
            "        if self._process == 0:",
        ),
        tests="tests/providers",
    ),
    *at(
        "providers/usage_formats/openai.py",
        (
            "cached tokens are billed twice",
            "    parts = (\n        cache_read,\n",
            "    parts = (\n        None,\n",
        ),
        tests="tests/providers/test_usage.py tests/providers",
    ),
    *at(
        "providers/usage_formats/counts.py",
        (
            "a negative count is taken",
            "(type(value) is int and 0 <= value < MAX_COUNT)",
            "(type(value) is int and value < MAX_COUNT)",
        ),
        tests="tests/providers/test_usage.py tests/providers",
    ),
    *at(
        "providers/usage_formats/reading.py",
        (
            "usage that nobody knows goes unnoticed",
            "        elif value and (kind is int or kind is Decimal):",
            "        elif value and kind is Decimal:",
        ),
        tests="tests/providers/test_usage.py tests/providers",
    ),
    *at(
        "records/usage.py",
        (
            "a missing count is 0",
            "    return sum(known) if known else None",
            "    return sum(known)",
        ),
        tests="tests/providers/test_usage.py tests/providers",
    ),
    *at(
        "pipeline/journal.py",
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
            "        self._fd = None\n        self._name = None\n        self._size = 0\n",
            "        self._size = 0\n",
        ),
        tests="tests/pipeline/test_journal.py tests/pipeline/test_fork.py tests/pipeline",
    ),
    *at(
        "pipeline/ingest.py",
        (
            "a segment is deleted before its calls are in the ledger",
            "                    self._insert(lines, Progress(segment.name, offset), book)\n"
            "                    self._offsets[segment.name] = offset",
            "                    self._offsets[segment.name] = offset\n                    segment.path.unlink(missing_ok=True)\n"
            "                    self._insert(lines, Progress(segment.name, offset), book)",
        ),
        (
            "whoever ingests uses prices of its own",
            "        return self._price_books.book(stamp_of(segment.name))",
            '        return self._price_books.book("")',
        ),
        (
            "a torn line vanishes",
            "                if torn := segment.tail(offset):",
            "                if False and (torn := segment.tail(offset)):",
        ),
        (
            "one bad record takes its batch along",
            "            self._insert_halves(\n                [records[index] for index in order], [sources[index] for index in order], error\n            )\n",
            "",
        ),
        tests="tests/pipeline/test_ingest.py tests/config/test_kept_prices.py tests/pipeline tests/pricing tests/pipeline",
    ),
    *at(
        "pipeline/listeners.py",
        (
            "listeners hear a call twice",
            "            if self._held.pop(call.call_id, None) is not None:",
            "            if self._held.get(call.call_id) is not None:",
        ),
        (
            "a child of a fork tells the listeners of its parent's calls",
            "        self._start_anew()\n\n    def hold(",
            "        self._thread = None\n\n    def hold(",
        ),
        tests="tests/pipeline/test_listeners.py tests/pipeline/test_meter.py tests/pipeline/test_fork.py tests/pipeline",
    ),
    *at(
        "pipeline/listeners.py",
        (
            "a listener that raises silences those behind it",
            "            except BaseException as error:  # CancelledError or SystemExit would end the thread\n"
            '                counters["listener_errors"] += 1',
            '            except BaseException as error:\n                counters["listener_errors"] += 1\n                return',
        ),
        tests="tests/pipeline/test_listeners.py tests/pipeline",
    ),
    *at(
        "pipeline/pseudonyms.py",
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
        tests="tests/pipeline/test_pseudonyms.py tests/pipeline",
    ),
    *at(
        "records/pii.py",
        (
            "an address behind %40 is not seen",
            'if ("@" in text or "%40" in text or',
            'if ("@" in text or',
        ),
        tests="tests/records/test_pii.py tests/pipeline/test_pseudonyms.py tests/records",
    ),
]
