"""
Pseudonyms: the stored form of a tag value with personal data.

All spellings of an address have the same pseudonym. It cannot be reversed without the secret. It
names the kind of data and the version of the key: ``email:v1:`` and 26 letters and digits. A value
with more than the address (``auth0|alice@…``) has a second part after a point, for the whole value.
So two such values stay different, and both are found by the address.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import time
from base64 import b32encode
from collections.abc import Mapping
from pathlib import Path

from voight_middleware.config.keys import PseudonymKey, read_keys
from voight_middleware.config.paths import pseudonym_key_file
from voight_middleware.config.private_files import make_folder, open_private
from voight_middleware.config.settings import Settings
from voight_middleware.config.values import SettingsError
from voight_middleware.diagnostics import warn_once
from voight_middleware.records.call import job_call_id
from voight_middleware.records.pii import Found, find
from voight_middleware.records.tag_values import MAX_LENGTH, clean_value
from voight_middleware.records.tags import Tags

MAX_KNOWN = 20_000
"""
The size of each cache, of values with and of values without personal data. A full cache is
cleared.
"""
RETRY_SECONDS = 60.0
"""Seconds before another attempt to read or make a key."""


class Pseudonymizer:
    """
    Removes personal data from tags before they leave the process. It takes no lock, and reads or
    makes a key file only for the first value with personal data.
    """

    def __init__(self, settings: Settings) -> None:
        self._policies = settings.pii
        self._settings = settings
        self._keys = settings.pseudonym_keys
        self._retry_at = 0.0
        self._clean: set[str | None] = {None}
        self._known: dict[tuple[str, str], str] = {}

    def __call__(self, tags: Tags) -> Tags:
        """Return *tags* with personal data replaced by the policy of each key."""
        clean, extra = self._clean, tags.extra
        if (
            tags.user_id in clean
            and tags.plan in clean
            and tags.tenant_id in clean
            and tags.route in clean
            and tags.release in clean
            and tags.session_id in clean
            and (not extra or clean.issuperset(extra.values()))
        ):
            return tags
        return Tags(
            user_id=value if (value := tags.user_id) in clean else self._value("user_id", value),
            plan=value if (value := tags.plan) in clean else self._value("plan", value),
            tenant_id=value
            if (value := tags.tenant_id) in clean
            else self._value("tenant_id", value),
            route=value if (value := tags.route) in clean else self._value("route", value),
            release=value if (value := tags.release) in clean else self._value("release", value),
            session_id=value
            if (value := tags.session_id) in clean
            else self._value("session_id", value),
            extra=self._extra(extra) if extra else extra,
        )

    def knows(self, *values: str | None) -> bool:
        """Return whether all *values* were checked before and have no personal data."""
        return self._clean.issuperset(values)

    def text(self, key: str, value: str | None) -> str | None:
        """Return a text that is not a tag, such as a model name, by the policy of *key*."""
        if value in self._clean:
            return value
        if value is None or ((key, value) not in self._known and find(value) is None):
            self._remember(value)
            return value
        return self._value(key, value)

    def _extra(self, extra: Mapping[str, str]) -> dict[str, str]:
        clean = self._clean
        pseudonymized = {
            key: value if value in clean else self._value(key, value)
            for key, value in extra.items()
        }
        return {key: value for key, value in pseudonymized.items() if value is not None}

    def _value(self, key: str, value: str | None) -> str | None:
        if value is None:
            return None
        known = self._known.get((key, value))
        return known if known is not None else self._check(key, value)

    def _check(self, key: str, value: str) -> str | None:
        text = value if type(value) is str and len(value) <= MAX_LENGTH else clean_value(value)
        if text is None:
            return None
        policy = policy_for(key, self._policies)
        if policy == "allow":
            stored = text
        elif (match := find(text)) is None:
            if text is value:
                self._remember(text)
            return text
        elif policy == "redact":
            stored = redacted(match)
        elif keys := self._writing_keys():
            stored = pseudonym(match, text, keys[0])
        else:
            return redacted(match)  # not cached: there may be a key later
        if len(self._known) > MAX_KNOWN:
            self._known = {}
        self._known[key, value] = stored
        return stored

    def _remember(self, clean: str | None) -> None:
        if len(self._clean) > MAX_KNOWN:
            self._clean = {None}
        self._clean.add(clean)

    def _writing_keys(self) -> tuple[PseudonymKey, ...]:
        if not self._keys and time.monotonic() >= self._retry_at:
            file = pseudonym_key_file(self._settings.ledger)
            try:
                if file is not None:
                    self._keys = _keys_in(file) or _make_key(file)
                    return self._keys
                problem = "several hosts may share this ledger, and no key is set"
            except (OSError, SettingsError) as error:
                problem = (
                    "the key cannot be read or made: "
                    f"{error.strerror if isinstance(error, OSError) else error} ({file})"
                )
            self._retry_at = time.monotonic() + RETRY_SECONDS
            advice = (
                "set VOIGHT_PSEUDONYM_KEY to the same secret on every host (openssl rand -hex 32)"
            )
            warn_once(
                "tags with personal data are stored as redacted:<kind>, which mixes users: "
                f"{problem}; {advice}"
            )
        return self._keys


def kept_call_id(call_id: str, policies: Mapping[str, str]) -> str:
    """
    Return the stored form of an application's own call id. One with personal data becomes a digest.

    The digest has no key: a new key would give the same call another id, and count it twice.
    """
    if policy_for("call_id", policies) == "allow" or find(call_id) is None:
        return call_id
    return job_call_id(f"own/{call_id}")


def policy_for(key: str, policies: Mapping[str, str]) -> str:
    """Return the policy for personal data in tags of this key."""
    return policies.get(key) or policies.get("*", "pseudonym")


def pseudonym(found: Found, text: str, key: PseudonymKey) -> str:
    """Return the pseudonym of *text*, which contains the personal data *found*."""
    name = f"{found.kind}:{key.version}:{_digest(key, found.kind, found.normal, 26)}"
    if found.alone:
        return name
    whole = text.casefold() if found.kind == "email" else text
    return f"{name}.{_digest(key, f'{found.kind} in', whole, 8)}"


def redacted(found: Found) -> str:
    """Return the stored form of a value without a key, or under the policy ``redact``."""
    return f"redacted:{found.kind}"


def _digest(key: PseudonymKey, purpose: str, text: str, length: int) -> str:
    # rare enough to wait for their first use
    message = f"voight {purpose}\0{text}".encode(errors="surrogatepass")
    digest = hmac.digest(key.secret.encode(errors="surrogatepass"), message, "sha256")
    return b32encode(digest[:20]).decode().lower()[:length]


def finding_keys(settings: Settings) -> tuple[PseudonymKey, ...]:
    """
    Return every key that may have made pseudonyms in this ledger: those of the settings, and the
    one beside the ledger. Never make a key.

    Raises:
        SettingsError: The key beside the ledger cannot be read.
    """
    file = pseudonym_key_file(settings.ledger)
    if file is None:
        return settings.pseudonym_keys
    try:
        beside = _keys_in(file)
    except OSError as error:
        raise SettingsError(f"the pseudonym key {file} cannot be read: {error.strerror}") from error
    return tuple(dict.fromkeys((*settings.pseudonym_keys, *beside)))


def known_as(value: str, settings: Settings) -> list[str]:
    """
    Return the texts under which a report finds *value*: itself, and its pseudonyms by every key.

    ``*`` stands for any text, as in a filter.

    Raises:
        SettingsError: The key beside the ledger cannot be read.
    """
    text = None if "*" in value else clean_value(value)
    if text is None or (match := find(text)) is None:
        return [value]
    names = [text]
    for key in finding_keys(settings):
        name = pseudonym(match, text, key)
        names += [name, f"{name}.*"] if match.alone else [name]
    return names


def _keys_in(file: Path) -> tuple[PseudonymKey, ...]:
    """Return the keys in *file*, or an empty tuple if it does not exist."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return ()
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} does not contain a pseudonym key") from error
    return read_keys(text.strip(), str(file))


def _make_key(file: Path) -> tuple[PseudonymKey, ...]:
    """
    Make the key file of a local ledger. It appears complete, and one of several processes wins.
    """
    make_folder(file.parent)
    unnamed = file.with_name(f"{file.name}.{os.getpid()}-{os.urandom(4).hex()}")
    fd = open_private(unnamed, os.O_WRONLY | os.O_EXCL)
    try:
        try:
            # v0: a configured secret starts at v1, so pseudonyms of this key are still found later.
            os.write(fd, f"v0:{os.urandom(32).hex()}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        with contextlib.suppress(FileExistsError):
            os.link(unnamed, file)
    finally:
        unnamed.unlink(missing_ok=True)
    return _keys_in(file)
