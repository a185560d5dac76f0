"""
PII: find personal data and credentials in a text: e-mail addresses, phone numbers, card numbers,
wallets, tokens and keys.

The result for a value is cached (``pseudonyms.Pseudonymizer``). Every pattern is bounded, so that
no text takes long.

Not detected, because they look like ids: names, national numbers without a distinct format, and
secrets without a prefix.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from voight_middleware.lazy import lazy_pattern

MAX_LOOK = 1024
"""How many characters of a text to search."""
_MIN_LENGTH = 6
_MAX_AT_SIGNS = 16


class Found(NamedTuple):
    """Personal data found in a text, in a form shared by all its spellings."""

    kind: str
    """``key``, ``email``, ``wallet``, ``card`` or ``phone``."""
    normal: str
    alone: bool
    """Whether the text contains nothing else, except a display name or a scheme."""
    end: int
    """The position after it in the text."""


def find(text: str) -> Found | None:
    """Return the first item in *text* that must not be stored unchanged. None if there is none."""
    if len(text) < _MIN_LENGTH:
        return None
    if len(text) > MAX_LOOK:
        text = text[:MAX_LOOK]
    if text.isascii() and "\\u" not in text:
        return _find(text)
    seen, at = _visible(text)
    result = _find(seen)
    if result is None or at is None:
        return result
    return result._replace(end=at[result.end - 1] + 1)


_INVISIBLE = lazy_pattern(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff\ufff9-\ufffb]"
    r"|\\u(?:061c|200[ef]|202[a-e]|206[6-9])"  # escaped, as by ``clean_value``
)
"""Invisible characters. They don't change an address for its reader."""
_DOTS = {0x3002: ".", 0xFF0E: ".", 0xFF61: "."}
"""Characters that count as a dot in a host name. Source: RFC 3490, 3.1."""


def _visible(text: str) -> tuple[str, list[int] | None]:
    """
    Return *text* without invisible characters, and the original position of each character. The
    positions are None if nothing was removed.
    """
    text = text.translate(_DOTS)
    gone = {at for match in _INVISIBLE.finditer(text) for at in range(*match.span())}
    if not gone:
        return text, None
    at = [place for place in range(len(text)) if place not in gone]
    return "".join([text[place] for place in at]), at


def _find(text: str) -> Found | None:
    if (result := _key(text)) is not None:
        return result
    if ("@" in text or "%40" in text or "\uff20" in text) and (result := _email(text)) is not None:
        return result
    if (result := _wallet(text)) is not None:
        return result
    if _DIGITS.search(text) is not None:
        return _card(text) or _phone(text)
    return None


# -- tokens and keys -------------------------------------------------------------------------------

_KEY = lazy_pattern(
    r"""(?<![A-Za-z0-9])(?:
      sk-(?=[\w-]{0,80}\d)[A-Za-z0-9-]{0,40}?[A-Za-z0-9_]{12}[\w-]{0,120}   # OpenAI, Anthropic, OpenRouter, DeepSeek, …
    | (?:[prs]k_(?:live|test)|whsec)_\w{10,120}                             # Stripe
    | gh[oprsu]_[A-Za-z0-9]{20,120} | github_pat_\w{20,120}                 # GitHub
    | glpat-[\w-]{16,60}                                                    # GitLab
    | A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])                                    # AWS access keys, temporary ones too
    | AIza[\w-]{30,60} | ya29\.[\w-]{20,150} | GOCSPX-[\w-]{20,60}          # Google
    | xox[abeoprs]-[A-Za-z0-9-]{10,150} | xapp-[A-Za-z0-9-]{20,150}         # Slack
    | hf_[A-Za-z0-9]{20,60} | gsk_[A-Za-z0-9]{20,80} | xai-[A-Za-z0-9]{20,120} | pplx-[A-Za-z0-9]{20,80} | r8_[A-Za-z0-9]{20,60}
    | npm_[A-Za-z0-9]{30,60} | pypi-[\w-]{30,180} | do[oprt]_v1_[a-f0-9]{32,80} | shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}
    | vk_(?=\w{0,80}\d)[\w-]{16,200}                                         # Voight
    | SK[0-9a-f]{32}(?![A-Za-z0-9])                                         # Twilio
    | hv[sbr]\.[\w-]{20,200} | s\.(?=[A-Za-z]{0,23}\d)[A-Za-z0-9]{24}(?![A-Za-z0-9])   # Vault
    | dapi[0-9a-f]{32}                                                      # Databricks
    | \d{8,10}:AA[\w-]{32,34}(?![\w-])                                     # Telegram's bots
    | [MNO][A-Za-z0-9_-]{22,27}\.[\w-]{6}\.[\w-]{27,45}                     # Discord's bots
    | hooks\.slack\.com/(?:services|workflows|triggers)/\w{6,20}/\w{6,20}/\w{16,60}
    | discord(?:app)?\.com/api/webhooks/\d{10,20}/[\w-]{20,100}
    | key-[0-9a-f]{32}(?![A-Za-z0-9]) | gl(?:sa|c)_[\w+/=]{20,150} | sntrys?u?_[\w+/=]{30,200}   # Mailgun, Grafana, Sentry
    | lin_api_[A-Za-z0-9]{20,60} | ntn_[A-Za-z0-9]{30,60} | ATATT3[\w=-]{40,200} | sbp_[0-9a-f]{40} | csk-[A-Za-z0-9]{20,60}
    | lsv2_[ps][tk]_[A-Za-z0-9_]{20,80} | pcsk_[A-Za-z0-9_]{20,100} | dp\.(?:pt|st|ct|sa)\.[\w.]{20,80}
    | SG\.[\w-]{16,40}\.[\w-]{16,80}                                        # SendGrid
    | eyJ[\w-]{8,150}\.[\w-]{8,60}                                          # JSON Web Tokens
    | (?i:bearer)[ \t]{1,8}(?=\S{0,60}\d)\S{8,150}
    | -----BEGIN[ ]
    | [a-z][a-z0-9+]{1,15}://[^\s/@:]{0,60}:[^\s/@]{1,100}@                 # a password in a URL
    )""",
    re.VERBOSE,
)
_KEY_HINT = lazy_pattern(
    r"[-_]live_|[-_]test_|sk-|k_live|k_test|whsec_|gh[oprsu]_|github_pat|glpat-|A[KS]IA|AIza|ya29|GOCSPX|xox|xapp-|hf_|gsk_|xai-|pplx-"
    r"|r8_|npm_|pypi-|do[oprt]_v1|shp|SG\.|eyJ|earer|EARER|-----B|://|vk_|SK[0-9a-f]{8}|hv[sbr]\.|s\.[A-Za-z0-9]{24}|dapi|:AA|[MNO][\w-]{22,27}\."
    r"|hooks\.slack|api/webhooks|key-|gl(?:sa|c)_|sntry|lin_api|ntn_|ATATT3|sbp_|lsv2_|pcsk_|dp\."
)
"""A quick test that most texts fail."""


def _key(text: str) -> Found | None:
    if _KEY_HINT.search(text) is None or (match := _KEY.search(text)) is None:
        return None
    return Found("key", text, True, match.end())


# -- e-mail addresses ------------------------------------------------------------------------------

_NOBODY = frozenset({"git", "hg", "svn"})
"""Users in the addresses of repositories, not people: ``git@github.com:org/repo``."""
_AT = lazy_pattern(r"@|%40|\uff20")
_LOCAL_BACKWARDS = lazy_pattern(r"[^\s@\uff20<>()\[\]{}:;,|/\\\"=&?*]{1,64}")
_DOMAIN = lazy_pattern(r"(?:[\w-]{1,63}\.){1,8}(?:xn--[A-Za-z0-9-]{2,59}|[^\W\d_]{2,63})")
_ALONE = lazy_pattern(r"(?:[^<>@]{0,128}<)?\s*(?:mailto:)?\s*\Z", re.IGNORECASE)
_NOTHING_MORE = lazy_pattern(r"\s*>?\s*\Z")


def _email(text: str) -> Found | None:
    for number, sign in enumerate(_AT.finditer(text)):
        if number == _MAX_AT_SIGNS:
            break
        before = text[max(0, sign.start() - 64) : sign.start()]
        domain = _DOMAIN.match(text, sign.end(), min(len(text), sign.end() + 190))
        if domain is None:
            continue
        if before.endswith('"'):
            local = before
        elif (match := _LOCAL_BACKWARDS.match(before[::-1])) is not None:
            local = match.group()[::-1].lstrip("'")
        else:
            continue
        if not local or local in _NOBODY:
            continue
        begin, end = sign.start() - len(local), domain.end()
        alone = (
            _ALONE.match(text[:begin]) is not None and _NOTHING_MORE.match(text, end) is not None
        )
        return Found("email", f"{_folded(local)}@{_folded(domain.group())}", alone, end)
    return None


def _folded(text: str) -> str:
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


# -- wallet addresses ------------------------------------------------------------------------------

_WALLET = lazy_pattern(
    r"""(?<![A-Za-z0-9])(?:
      0[xX](?P<hex>[0-9a-fA-F]{40})
    | (?P<bech32>(?:bc|BC|tb|TB|ltc|LTC)1[02-9ac-hj-np-zAC-HJ-NP-Z]{11,71})
    | (?P<base58>[123DLMT][1-9A-HJ-NP-Za-km-z]{25,34})
    )(?![A-Za-z0-9])""",
    re.VERBOSE,
)
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"


def _wallet(text: str) -> Found | None:
    for match in _WALLET.finditer(text):
        address = match.group()
        if match["hex"] is not None:
            address = address.lower()
        elif match["bech32"] is not None:
            address = address.lower()
            if not _is_bech32(address):
                continue
        elif not _is_base58check(address):
            continue
        return Found("wallet", address, len(address) == len(text), match.end())
    return None


def _is_base58check(address: str) -> bool:
    """
    Check Base58Check of Bitcoin and the chains that adopted it: 25 bytes, the last four a checksum
    of the rest.
    """
    import hashlib

    number = 0
    for character in address:
        number = number * 58 + _BASE58.index(character)
    if number >> 200:
        return False
    data = number.to_bytes(25)
    return hashlib.sha256(hashlib.sha256(data[:21]).digest()).digest()[:4] == data[21:]


def _is_bech32(address: str) -> bool:
    """Check Bech32 and Bech32m (BIP 173, BIP 350)."""
    prefix, _, data = address.rpartition("1")
    values = [
        *(ord(c) >> 5 for c in prefix),
        0,
        *(ord(c) & 31 for c in prefix),
        *(_BECH32.find(c) for c in data),
    ]
    checksum = 1
    for value in values:
        top, checksum = checksum >> 25, (checksum & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate(
            (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
        ):
            if top >> bit & 1:
                checksum ^= generator
    return -1 not in values and checksum in (1, 0x2BC830A3)


# -- card numbers ----------------------------------------------------------------------------------

_DIGITS = lazy_pattern(r"\d[^A-Za-z]{5,}\d|\d{7}")
"""Every phone and card number contains this."""
_CARD = lazy_pattern(
    r"""(?<![\w.+-])(?:
      (?P<plain>[2-6]\d{13,18})
    | [2-6]\d{3}(?P<by>[ -])(?:\d{4}(?P=by)\d{4}(?P=by)\d{4}(?:(?P=by)?\d{1,3})? | \d{6}(?P=by)\d{4,5})
    )(?![\w-])""",
    re.VERBOSE | re.ASCII,
)
_ISSUERS: tuple[tuple[Callable[[str], bool], frozenset[int]], ...] = (
    # Visa; numbers of 13 and 19 digits are nearly extinct
    (lambda number: number[0] == "4", frozenset({16})),
    # Mastercard
    (lambda number: "51" <= number[:2] <= "55" or "2221" <= number[:4] <= "2720", frozenset({16})),
    (lambda number: number[:2] in ("34", "37"), frozenset({15})),  # American Express
    # Discover
    (
        lambda number: number[:4] == "6011" or number[:2] == "65" or "644" <= number[:3] <= "649",
        frozenset({16}),
    ),
    # Diners Club
    (
        lambda number: "300" <= number[:3] <= "305" or number[:2] in ("36", "38", "39"),
        frozenset({14}),
    ),
    (lambda number: "3528" <= number[:4] <= "3589", frozenset({16})),  # JCB
    # UnionPay; 18 digits are an id of Discord or X
    (lambda number: number[:2] == "62", frozenset({16, 19})),
)
"""
Issuers' ranges and the lengths of their numbers, ISO/IEC 7812. With the check digit, 2 of 100
random 16-digit ids match.
"""


def _card(text: str) -> Found | None:
    for match in _CARD.finditer(text):
        number = re.sub(r"[ -]", "", match.group())
        if any(len(number) in lengths and issued(number) for issued, lengths in _ISSUERS) and _luhn(
            number
        ):
            return Found("card", number, match.group() == text, match.end())
    return None


def _luhn(number: str) -> bool:
    digits = [int(digit) for digit in reversed(number)]
    return (sum(digits[::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])) % 10 == 0


# -- phone numbers ---------------------------------------------------------------------------------

_GAP = "[ \u00a0.()/\u2010\u2011\u2013-]"
_AREA = r"[2-9](?!11)[0-8]\d"
"""
An area code of North America. Source: NANPA, "Numbering Plan Area codes": the second digit is not
9, and N11 are services.
"""
_PHONE = lazy_pattern(
    rf"""(?<![\w+.-])(?:
      (?P<plus>\+{_GAP}?[1-9](?:{_GAP}{{0,3}}\d){{7,14}})                                    # +49 30 1234567, +14155552671
    | 00(?P<zeros>[1-9]\d{{0,2}}{_GAP}{{1,2}}(?:{_GAP}{{0,3}}\d){{6,12}})                    # 0049 30 1234567
    | (?P<american>(?:1[ .-])?(?:\({_AREA}\)[ ]?|{_AREA}(?P<by>[ .-]))[2-9](?!11)\d\d[ .-]\d{{4}})   # (415) 555-2671, 415-555-2671
    )(?![\w-]|\.\d)""",
    re.VERBOSE | re.ASCII,
)
_SCHEME = lazy_pattern(r"(?:(?:tel|sms|whatsapp|phone):)?\s*\Z", re.IGNORECASE)


def _phone(text: str) -> Found | None:
    match = _PHONE.search(text)
    if match is None:
        return None
    american = match["american"]
    written = american or match["zeros"] or match["plus"]
    number = re.sub(r"\D", "", written.replace("(0)", ""))
    if american is not None and len(number) == 10:
        number = f"1{number}"
    alone = _SCHEME.match(text[: match.start()]) is not None and not text[match.end() :].strip()
    return Found("phone", number, alone, match.end())
