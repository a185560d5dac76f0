"""Configure this process, and flush its calls to the ledger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from voight_middleware.config.settings import Settings
from voight_middleware.config.values import SettingsError
from voight_middleware.pipeline.listeners import Listener
from voight_middleware.pipeline.meter import BatchOwner, Meter, current_meter, swap_meter


def configure(
    *,
    ledger: str | Path | None = None,
    journal: str | Path | None = None,
    release: str | None = None,
    listeners: Sequence[Listener] = (),
    enabled: bool | None = None,
    request_identity: bool | None = None,
    prices: str | Path | None = None,
    tags: Mapping[str, str] | None = None,
    batch_owner: BatchOwner | None = None,
    pii: str | Mapping[str, str] | None = None,
    pseudonym_key: str | None = None,
    header_key: str | None = None,
    voight_api_key: str | None = None,
    voight_agent: str | None = None,
    events_url: str | None = None,
    events_per_minute: int | None = None,
    ingest: bool | None = None,
    journal_limit: int | str | None = None,
    exit_timeout: float | None = None,
    delivery: str | None = None,
) -> None:
    """
    Configure the metering of this process.

    Arguments win over environment variables. These win over the settings file (``voight.toml``),
    which wins over the defaults. Each call replaces the previous configuration. Each description
    below ends with the environment variable of the setting, if it has one.

    Args:
        ledger: The URL of the ledger (``sqlite:////var/lib/app/ledger.db``), or the path of an
            SQLite file. ``VOIGHT_LEDGER``.
        journal: The folder of this host's journals. The default is beside an SQLite ledger.
            ``VOIGHT_JOURNAL``.
        release: The release of every call that has none of its own. ``VOIGHT_RELEASE``.
        listeners: Callables that get each finished and priced ``Call`` of this process, once it is
            in the ledger. This is about a second after the call ends. They run one after the
            other on their own thread, so they never delay a request or the ledger. They delay
            ``flush()`` only up to its timeout. Their exceptions are counted
            (``listener_errors``) and never passed on. A listener that blocks delays the listeners
            after it. If 100,000 calls wait, the newest calls are dropped for listeners only, and
            counted (``unheard_calls``). Read the ledger if you need every call. Calls that a
            listener makes itself are metered and reach the listeners too. A listener that is also
            a ``CallObserver`` sees calls start and end.
        enabled: Whether to meter calls. The default is True. ``VOIGHT_ENABLED``.
        request_identity: Whether a call without any other owner belongs to the user that its
            request names to the provider (``safety_identifier``, ``user``, ``user_profile_id``,
            ``metadata.user_id``). The default is to trust the name outside web requests and jobs
            only. Inside them, an anonymous client may have sent the body. True trusts the name
            everywhere. ``VOIGHT_REQUEST_IDENTITY``.
        prices: A TOML file with your own prices, such as negotiated rates and your own models. The
            first call reads it and keeps a copy beside the journal. Every process that ingests
            these calls uses that copy. Run ``voight prices check`` to validate the file.
            ``VOIGHT_PRICES``.
        tags: Tags of every call of this process, such as ``{"app": "shop"}``. All other tags win
            over them. ``VOIGHT_TAGS=app=shop``.
        batch_owner: Called with the ``custom_id`` of each request of a batch when its result is
            read. It returns the user's id, or a mapping such as
            ``{"user_id": "u_7", "plan": "pro"}``. If it returns None, the request belongs to the
            user who submitted the batch.
        pii: How to store a tag that contains an e-mail address, a phone or card number, a wallet,
            a token or a key: ``pseudonym`` (the default), ``redact`` or ``allow``. Set it for all
            tags, or by key: ``{"user_id": "allow", "*": "redact"}``. ``VOIGHT_PII``.
        pseudonym_key: The secret for pseudonyms, at least 32 characters. After a rotation, write
            ``v2:<new secret>,v1:<old secret>``. Without this setting, a local ledger gets a key
            file beside it. ``VOIGHT_PSEUDONYM_KEY``.
        header_key: The secret that signs tags in requests to your other services, in the same
            format. Use the same secret in all services, and not the one for pseudonyms.
            ``VOIGHT_HEADER_KEY``.
        voight_api_key: Your Voight API key (``vk_…``). The process that ingests then sends every
            call to Voight as an event. ``VOIGHT_KEY``.
        voight_agent: The name of this application at Voight. The default is the host name.
            ``VOIGHT_AGENT``.
        events_url: A server other than Voight's own. ``VOIGHT_EVENTS_URL``.
        events_per_minute: The maximum number of events per minute. The default is 60, the limit of
            the free plan. Pro allows 600. ``VOIGHT_EVENTS_PER_MINUTE``.
        ingest: Whether this process may ingest its host's journals. The default is True. False
            leaves them to a ``voight ingest`` process on this host, and this process needs no
            database driver. ``VOIGHT_INGEST``.
        journal_limit: The maximum size of all journals in the folder while the ledger is down: a
            number of bytes, or a text such as ``"512MB"``. The default is 1 GB. Each process may
            write one more segment of 8 MB. After that, calls wait in memory, and the oldest are
            dropped and counted. ``VOIGHT_JOURNAL_LIMIT``.
        exit_timeout: How long the process may wait for the ledger when it exits, in seconds. The
            default is 5. ``VOIGHT_EXIT_TIMEOUT``.
        delivery: ``background`` (the default) or ``synchronous``. Use ``synchronous`` on a
            platform that freezes the process between requests. A synchronous LLM call then
            returns once it is in the ledger, or once the ledger cannot be used. On an event loop,
            calls do not wait: end the request with ``await asyncio.to_thread(voight.flush)``.
            ``VOIGHT_DELIVERY``.

    Raises:
        SettingsError: A value cannot be used.
    """
    settings = Settings.from_environment(
        ledger=ledger,
        journal=journal,
        release=release,
        enabled=enabled,
        request_identity=request_identity,
        prices=prices,
        tags=tags,
        pii=pii,
        pseudonym_key=pseudonym_key,
        header_key=header_key,
        voight_api_key=voight_api_key,
        voight_agent=voight_agent,
        events_url=events_url,
        events_per_minute=events_per_minute,
        ingest=ingest,
        journal_limit=journal_limit,
        exit_timeout=exit_timeout,
        delivery=delivery,
    )
    given: Any = listeners
    if callable(given) or isinstance(given, str):
        raise SettingsError("listeners: write a list, even for one listener: [listener]")
    listeners = tuple(given)
    for listener in listeners:
        if isinstance(listener, type) or not callable(listener):
            raise SettingsError(
                f"listeners: {listener!r} cannot be called with a call; write an object, such as "
                "OTelSpans(), or a function"
            )
    if batch_owner is not None and not callable(batch_owner):
        raise SettingsError(f"batch_owner: {batch_owner!r} cannot be called with a custom_id")
    old = swap_meter(Meter(settings, listeners, batch_owner))
    if old is not None:
        old.close()


def flush(timeout: float = 10.0) -> bool:
    """
    Wait until the calls of this process are in the ledger and have reached its listeners.

    Return whether they did within *timeout* seconds. If another process ingests
    (``ingest=False``), wait until the calls are on disk. You never need it for safety: a finished
    call is on disk already. It blocks, so call it from a thread in asynchronous code.
    """
    return current_meter().flush(timeout)
