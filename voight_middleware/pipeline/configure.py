"""Configure this process, and flush what it has written."""

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
    Configure this process's meter. Arguments win over environment variables, which win over the settings file (``voight.toml``), which
    wins over the defaults. Each call replaces the previous configuration.

    Args:
        ledger: URL of the ledger (``sqlite:////var/lib/app/ledger.db``) or the path of an SQLite file. ``VOIGHT_LEDGER``.
        journal: Folder of this host's journals; by default beside an SQLite ledger. ``VOIGHT_JOURNAL``.
        release: Stamped on every call that has no release of its own. ``VOIGHT_RELEASE``.
        listeners: Called with each finished, priced call of this process (``Call``), about a second after its end, once it is in the
            ledger. They run one after the other on a thread of their own: no request, no flush beyond its time and no ledger waits for
            them. What they raise is counted (``listener_errors``), never passed on; where one blocks, those behind it wait, and beyond
            100,000 calls the newest go unheard (``unheard_calls``). What must not be lost is read from the ledger. A call that a
            listener makes itself is a call as any other, and heard too. A listener that is a ``Watcher`` sees calls begin and end.
        enabled: False meters nothing. ``VOIGHT_ENABLED``.
        request_identity: Whether a call without any other owner belongs to the user that its request names to the provider
            (``safety_identifier``, ``user``, ``user_profile_id``, ``metadata.user_id``). By default it does outside of web requests and
            jobs. Inside, the body may be what an anonymous client has sent: True trusts it. ``VOIGHT_REQUEST_IDENTITY``.
        prices: A TOML file of your own prices: negotiated rates, models of your own. It is read with the first call, and kept beside the
            journal: whoever brings the calls into the ledger prices them so. ``voight prices check`` reads it now. ``VOIGHT_PRICES``.
        tags: Tags of every call of this process, such as ``{"app": "shop"}``; all other tags win over them. ``VOIGHT_TAGS=app=shop``.
        batch_owner: Called with the ``custom_id`` of each request of a batch when its result is read. It returns the user's id, or a
            mapping such as ``{"user_id": "u_7", "plan": "pro"}``; None leaves the request to who submitted the batch.
        pii: What becomes of a tag that holds an e-mail address, a phone or card number, a wallet, a token or a key: ``pseudonym`` (by
            default), ``redact`` or ``allow``; for all tags, or by key: ``{"user_id": "allow", "*": "redact"}``. ``VOIGHT_PII``.
        pseudonym_key: The secret that pseudonyms are made with, 32 characters or more; after a rotation ``v2:<secret>,v1:<the one
            before>``. Without one, a local ledger gets a file with one beside it. ``VOIGHT_PSEUDONYM_KEY``.
        header_key: The secret that tags are signed with on their way to another service of yours, of the same form; in all services
            the same, and another than the one for pseudonyms. ``VOIGHT_HEADER_KEY``.
        voight_api_key: Your key of Voight's (``vk_…``): every call is sent there as an event, by the process that ingests. ``VOIGHT_KEY``.
        voight_agent: The name of this application there; by default the host's. ``VOIGHT_AGENT``.
        events_url: Another server than Voight's own. ``VOIGHT_EVENTS_URL``.
        events_per_minute: How many events are sent in a minute at most: 60, as the free plan allows; Pro allows 600.
            ``VOIGHT_EVENTS_PER_MINUTE``.
        ingest: False leaves the journal to a ``voight ingest`` beside this process, which then needs no driver of the ledger.
            ``VOIGHT_INGEST``.
        journal_limit: How many bytes all journals of the folder may have together while the ledger is down, as a number or as ``"512MB"``;
            by default 1 GB. Each process may write one more segment of 8 MB; then calls wait in memory, and the oldest are lost and
            counted. ``VOIGHT_JOURNAL_LIMIT``.
        exit_timeout: How many seconds the end of the process may wait for the ledger; by default 5. ``VOIGHT_EXIT_TIMEOUT``.
        delivery: ``synchronous`` for a platform that freezes the process between requests: a synchronous LLM call returns when it is in
            the ledger, or when that cannot be used. On an event loop nothing waits: there, end the request with
            ``await asyncio.to_thread(voight.flush)``. By default ``background``. ``VOIGHT_DELIVERY``.

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
        raise SettingsError("listeners: write a list, [listener], though there is one only")
    listeners = tuple(given)
    for one in listeners:
        if isinstance(one, type) or not callable(one):
            raise SettingsError(f"listeners: {one!r} cannot be called with a call; write an object, such as OTelSpans(), or a function")
    if batch_owner is not None and not callable(batch_owner):
        raise SettingsError(f"batch_owner: {batch_owner!r} cannot be called with a custom_id")
    old = swap_meter(Meter(settings, listeners, batch_owner))
    if old is not None:
        old.close()


def flush(timeout: float = 10.0) -> bool:
    """
    Wait until what this process has written is in the ledger; whether that happened within *timeout* seconds. Where another process is
    to bring it there (``ingest=False``), until it is on disk.

    Never needed for safety: a finished call is on disk already. It blocks, so call it from a thread in asynchronous code.
    """
    return current_meter().flush(timeout)
