"""PII: what is taken for personal data, and what is an id."""

import random
import string
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from voight_middleware.records.pii import find
from voight_middleware.records.tag_values import MAX_LENGTH, clean_value

EMAILS = {
    "alice@example.com": "alice@example.com",
    "Alice@Example.COM": "alice@example.com",
    "Alice Liddell <alice@example.com>": "alice@example.com",
    "<alice@example.com>": "alice@example.com",
    "mailto:alice@example.com": "alice@example.com",
    "alice%40example.com": "alice@example.com",
    "alice\uff20example.com": "alice@example.com",
    "o'brien+news@mail.example.co.uk": "o'brien+news@mail.example.co.uk",
    "ålice@exämple.de": "ålice@exämple.de",
    "A\u030alice@example.de": "ålice@example.de",
    "user@xn--exmple-cua.xn--p1ai": "user@xn--exmple-cua.xn--p1ai",
    "a@b.co": "a@b.co",
    "ali\u200bce@exam\u200dple.com": "alice@example.com",
    "\ufeffalice@example\u00ad.com": "alice@example.com",
    "alice@exam\u202eple.com": "alice@example.com",
    "alice@exam\\u202eple.com": "alice@example.com",
    "alice@example\u3002com": "alice@example.com",
    "alice\uff20example\uff0ecom": "alice@example.com",
}
EMAILS_INSIDE = [
    "auth0|alice@example.com",
    "tenant/alice@example.com/prod",
    "GET /users/alice@example.com/chats",
    "email=alice@example.com&x=1",
    "(alice@example.com)",
    "alice@example.com, bob@example.com",
    "\\u0007alice@example.com",
    "x@y alice@example.com",
]
CARDS = {
    "4111 1111 1111 1111": "4111111111111111",
    "4111-1111-1111-1111": "4111111111111111",
    "4111111111111111": "4111111111111111",
    "5555555555554444": "5555555555554444",
    "2223003122003222": "2223003122003222",
    "3782 822463 10005": "378282246310005",
    "378282246310005": "378282246310005",
    "6011111111111117": "6011111111111117",
    "3056 930902 5904": "30569309025904",
    "3530111333300000": "3530111333300000",
    "6200000000000005": "6200000000000005",
}
PHONES = {
    "+14155552671": "14155552671",
    "+1 (415) 555-2671": "14155552671",
    "+1\u00a0415\u00a0555\u20112671": "14155552671",
    "tel:+1-415-555-2671": "14155552671",
    "(415) 555-2671": "14155552671",
    "415-555-2671": "14155552671",
    "1-415-555-2671": "14155552671",
    "+49 30 1234567": "49301234567",
    "+49 (0)30 1234567": "49301234567",
    "0049 30 1234567": "49301234567",
    "+33 6 12 34 56 78": "33612345678",
    "whatsapp:+14155552671": "14155552671",
}
WALLETS = {
    "0x52908400098527886E0F7030069857D2E4169EE7": "0x52908400098527886e0f7030069857d2e4169ee7",
    "1BoatSLRHtKNngkdXEeobR76b53LETtpyT": "1BoatSLRHtKNngkdXEeobR76b53LETtpyT",
    "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy": "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4": "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
    "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0": "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
}
BODY = "a1B2c3D4e5F6g7H8i9J0a1B2c3D4e5F6g7H8i9J0"
KEYS = [
    f"sk-{BODY}",
    f"sk-proj-{BODY}",
    f"sk-ant-api03-{BODY}-_{BODY}",
    f"sk-or-v1-{BODY}",
    "sk-0123456789abcdef0123456789abcdef",
    f"sk_live_{BODY}",
    f"whsec_{BODY}",
    f"ghp_{BODY}",
    f"github_pat_{BODY}",
    f"glpat-{BODY}",
    "AKIAIOSFODNN7EXAMPLE",
    "ASIAIOSFODNN7EXAMPLE",
    f"AIza{BODY[:35]}",
    f"ya29.{BODY}",
    "xoxb-123456789012-abcdefghijkl",
    f"hf_{BODY}",
    f"gsk_{BODY}",
    f"xai-{BODY}",
    f"npm_{BODY}",
    f"SG.{BODY[:22]}.{BODY}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    "Bearer 1234567890abcdef",
    "authorization: bearer 1234567890abcdef",
    "-----BEGIN RSA PRIVATE KEY-----",
    "postgresql://app:hunter2@db/app",
    f"user|sk-{BODY}",
    f"vk_{BODY}",
    f"vk_live_{BODY}",
    "SK0123456789abcdef0123456789abcdef",
    f"hvs.{BODY}",
    "s.a1B2c3D4e5F6g7H8i9J0a1B2",
    "dapi0123456789abcdef0123456789abcdef",
    f"123456789:AA{BODY[:33]}",
    f"MTE{BODY[:21]}.a1B2c3.{BODY[:27]}",
    "https://hooks.slack.com/services/T01234567/B01234567/a1B2c3D4e5F6g7H8i9J0a1B2",
    "hooks.slack.com/workflows/T01234567/A01234567/123456789012345678/a1B2c3D4e5F6g7H8",
    f"https://discord.com/api/webhooks/123456789012345678/{BODY}",
    "key-0123456789abcdef0123456789abcdef",
    f"glsa_{BODY}",
    f"sntrys_{BODY}",
    f"lin_api_{BODY}",
    f"lsv2_pt_{BODY}",
    f"pcsk_{BODY}",
    f"s\u200bk-{BODY}",
]
IDS = [
    "u_7",
    "12345678",
    "1234567890",
    "4155552671",
    "14155552671",
    "004930123456",
    "175928847299117063",
    "1759288472991170630",
    "1712345678901234",
    "20261103123456",
    "6812345678901234567",
    "4111111111111112",
    "9999999999999995",
    "4111 1111 1111 1112",
    "550e8400-e29b-41d4-a716-446655440000",
    "41111111-1111-1111-1111-111111111111",
    "507f1f77bcf86cd799439011",
    "01HXYZ8Q4N6C7R5T2V9W3B1K0M",
    "auth0|5f7c8ec7c33c6c004bbafe82",
    "google-oauth2|112233445566778899001",
    "urn:li:person:abc-123",
    "2026.11.3",
    "2026-11-03 12:30:45",
    "2026-11-03T12:00:00+01:00",
    "1.0.0-beta+exp.sha.5114f85",
    "1.0.0+20261103120000",
    "registry.fly.io/my-app:deployment-01GK8",
    "my-app@sha256:9f86d081884c7d65",
    "langchain@0.3.1",
    "@alice",
    "alice@corp",
    "git@github.com:org/repo.git",
    "ssh://git@gitlab.example.com/org/repo",
    "190-555-2671",
    "911-555-2671",
    "415-911-2671",
    "299-190-2671",
    "vk_1",
    "vk_widget_settings",
    "s.something.else.entirely",
    "SKU0123456789",
    "key-value",
    "dp.settings",
    "MONTHLY-REPORT-OF-SALES.v2.final",
    "a\u200bb",
    "\u200b\u200b\u200b\u200b\u200b\u200b\u200b",
    "\u0646\u0627\u0645\u200c\u06a9\u0627\u0631\u0628\u0631\u06cc",  # a word in Persian, which needs the character that nobody sees
    "user @ example.com",
    "POST /chats/{chat_id}",
    "GET /v1/orders/2026-11-03",
    "192.168.100.200",
    "2001:db8:85a3::8a2e:370:7334",
    "sk-learn-experiment-2026",
    "task-0123456789abcdef0123456789abcdef",
    "sk-SK",
    "Basic subscription",
    "bearer of good news",
    "https://api.example.com/v1",
    "0x1234",
    "1BoatSLRHtKNngkdXEeobR76b53LETtpyU",
    "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t5",
    "da39a3ee5e6b4b0d3255bfef95601890afd80709",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "email:v1:ydr7qh2xqp4ocv3u6nkn6llfad.jkdan2nw",
    "redacted:email",
    "",
    "-",
]


@pytest.mark.parametrize(("text", "normal"), EMAILS.items())
def test_an_email_address_in_all_its_spellings(text: str, normal: str) -> None:
    """Case, a display name, `mailto:` and an escaped sign make no other address."""
    found = find(text)
    assert found is not None
    assert (found.kind, found.normal, found.alone) == ("email", normal, True)


@pytest.mark.parametrize("text", EMAILS_INSIDE)
def test_an_email_address_inside_a_value(text: str) -> None:
    """It is found wherever it stands, and that the value says more than it."""
    found = find(text)
    assert found is not None
    assert (found.kind, found.alone) == ("email", False)
    assert found.normal.endswith("alice@example.com")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "text", "normal"),
    [(kind, *pair) for kind, pairs in (("card", CARDS), ("phone", PHONES), ("wallet", WALLETS)) for pair in pairs.items()],
)
def test_numbers_and_wallets_in_all_their_spellings(kind: str, text: str, normal: str) -> None:
    """Separators make no other card or phone number, and case no other wallet where it means nothing."""
    found = find(text)
    assert found is not None
    assert (found.kind, found.normal, found.alone) == (kind, normal, True)
    inside = find(f"of {text}, today")
    assert inside is not None
    assert (inside.kind, inside.normal, inside.alone) == (kind, normal, False)


@pytest.mark.slow
@pytest.mark.parametrize("text", KEYS)
def test_tokens_and_keys(text: str) -> None:
    """What opens a door is known by its prefix or form."""
    found = find(text)
    assert found is not None
    assert found.kind == "key"


@pytest.mark.slow
@pytest.mark.parametrize("text", IDS)
def test_an_id_is_none_of_it(text: str) -> None:
    """Numbers, UUIDs, snowflakes, versions, times, routes and hashes stay as they are."""
    assert find(text) is None


@pytest.mark.slow
def test_ids_of_any_kind_are_left_alone() -> None:
    """Of 20,000 random ids of the usual kinds, none is taken for anything."""
    chance = random.Random(5)
    for _ in range(4_000):
        for text in (
            str(uuid.UUID(int=chance.getrandbits(128))),
            uuid.UUID(int=chance.getrandbits(128)).hex,
            f"{chance.getrandbits(160):040x}",
            "".join(chance.choices(string.ascii_letters + string.digits, k=21)),
            str(chance.randrange(10**13)),
        ):
            assert find(text) is None, text


@pytest.mark.slow
def test_how_many_long_numbers_pass_for_a_card() -> None:
    """The documented price of finding bare card numbers: 2 of 100 random ids of 16 digits, and no snowflake."""
    chance = random.Random(5)
    hits = sum(find(str(chance.randrange(10**15, 10**16))) is not None for _ in range(10_000))
    assert 100 < hits < 300


@pytest.mark.slow
def test_no_snowflake_passes_for_a_card() -> None:
    """Ids of X and Discord, from their first years to 2035: they hold the milliseconds since an epoch of their own."""
    chance = random.Random(5)
    for epoch in (1_288_834_974_657, 1_420_070_400_000):
        for _ in range(10_000):
            moment = chance.randrange(1_451_606_400_000, 2_051_222_400_000)
            assert find(str((moment - epoch) << 22 | chance.getrandbits(22))) is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        *("@" * 10_000, "a@" * 5_000, "a@b." * 2_500, "a@" + "b." * 5_000, "a@" + "b" * 10_000, "<" * 10_000 + "@a.b"),
        *(
            "sk-" * 3_400,
            "sk-" + "a" * 10_000,
            "sk-" + "-" * 10_000,
            "eyJ" * 3_400,
            "Bearer " * 1_500,
            "Bearer" + " " * 10_000,
            "x://a:" * 1_700,
        ),
        *("+1" + " " * 10_000, "+1-1-1-" * 1_500, "1 " * 5_000, "(" * 10_000, "415-555-" * 1_250, "4111-" * 2_000, "1" * 10_000),
        *("bc1" + "q" * 10_000, ("2" + "z" * 33 + " ") * 300, "0x" * 5_000),
    ],
    ids=lambda text: text[:8],
)
def test_no_text_takes_long(text: str) -> None:
    """The work is bounded, whatever a client sends; a pattern that goes back and forth without end would run into the test's timeout."""
    for _ in range(20):
        find(text)


@pytest.mark.slow
@given(st.text(max_size=300))
@example("a@b.cd" * 50)
def test_nothing_raises(text: str) -> None:
    """Any text at all may be looked at."""
    find(text)


@given(
    st.integers(0, 700),
    st.integers(0, 700),
    st.sampled_from(["alice@example.com", "+14155552671", "4111 1111 1111 1111", *KEYS]),
    st.sampled_from(["x", "x ", "-", "π "]),
)
@example(230, 100, "alice@example.com", "x ")
@example(235, 0, "alice@example.com", "-")
def test_a_value_that_is_cut_short_cannot_hide_it(before: int, behind: int, secret: str, filling: str) -> None:
    """Where a long value is cut in the middle of an address, what is kept of it can be recognised still."""
    text = f"{filling * (before // len(filling))} {secret} {filling * (behind // len(filling))}"
    kept = clean_value(text)
    assert kept is not None
    assert len(kept) <= MAX_LENGTH
    if secret[:9] in kept:
        assert find(kept) is not None
