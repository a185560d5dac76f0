"""A provider's URL: its host name is kept, and everything else in it is cut off before anything is written."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

import voight_middleware as voight
from voight_middleware.ledger import open_ledger
from voight_middleware.pricing import OverridesError, PriceBook, read_overrides
from voight_middleware.pricing.price_call import price_call
from voight_middleware.providers.hosts import host_name
from voight_middleware.records.call import Call

NewCall = Callable[..., Call]


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://eu.api.openai.com/v1", "eu.api.openai.com"),
        ("https://user:secret@proxy.internal/v1?key=abc", "proxy.internal"),
        ("user:secret@proxy.internal:8080/v1", "proxy.internal"),
        ("https://user:p@ss@proxy.internal", "proxy.internal"),
        ("//proxy.internal/v1", "proxy.internal"),
        ("https://proxy.internal?key=a@b", "proxy.internal"),
        ("https://proxy.internal#key@x", "proxy.internal"),
        ("https://proxy.internal\\@evil.example/", "proxy.internal"),
        ("API.OpenAI.com.", "api.openai.com"),
        ("localhost:11434", "localhost"),
        ("http://[::1]:8000/v1", "::1"),
        ("::1", "::1"),
        ("https://bücher.example/v1", "bücher.example"),
        ("https://user:sec/ret@proxy.internal", None),
        ("https://", None),
        ("", None),
        (None, None),
        ("a host with spaces", None),
        ("https://" + "a" * 300, None),
    ],
)
def test_a_url_is_reduced_to_its_host(url: str | None, host: str | None) -> None:
    """Credentials, port, path and query are gone. A text that is not a host is nothing at all."""
    assert host_name(url) == host
    assert host_name(host) == host


def test_no_secret_of_a_url_is_kept_anywhere(tmp_path: Path) -> None:
    """record() and metered_call(): the folder of ledger and journal has the host and none of the secrets."""
    ledger = tmp_path / "ledger.db"
    voight.configure(ledger=str(ledger))
    url = "https://user:hunter2@eu.api.openai.com/v1/tenant-7?key=abc123"
    usage = {"prompt_tokens": 1000, "completion_tokens": 1000}
    voight.record(provider="openai", model="gpt-5.4-pro", usage=usage, endpoint="chat", base_url=url, tags={"user_id": "u_1"})
    with voight.metered_call(provider="openai", model="gpt-5.4-pro", base_url=url, tags={"user_id": "u_1"}) as call:
        call.report(usage)
    assert voight.flush(10)
    opened = open_ledger(str(ledger))
    try:
        calls = list(opened.calls())
    finally:
        opened.close()
    # $30 and $180 a million, a tenth more on a regional host
    assert [(one.host, one.cost_usd, one.cost_status) for one in calls] == [("eu.api.openai.com", Decimal("0.231"), "priced")] * 2
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert not any(secret in written for secret in (b"hunter2", b"abc123", b"tenant-7"))


def test_a_wrong_base_url_is_not_printed() -> None:
    """The error names the type: the value itself can be a URL with a password."""
    with pytest.raises(ValueError, match="base_url must be a string, not bytes"):
        voight.record(provider="openai", model="m", usage={"prompt_tokens": 1}, base_url=b"https://u:hunter2@h/")  # type: ignore[arg-type]


def test_a_url_of_an_older_journal_is_cut_too(new_call: NewCall) -> None:
    """Versions before this one kept the whole URL."""
    call = new_call(model="gpt-5.4-pro", host="https://u:hunter2@eu.api.openai.com/v1", raw_usage=json.dumps({"prompt_tokens": 1000}))
    price_call(call, PriceBook())
    assert (call.host, call.cost_usd) == ("eu.api.openai.com", Decimal("0.033"))


@pytest.mark.parametrize("host", ["https://llm.internal/v1", "u:hunter2@llm.internal"])
def test_a_url_in_a_file_of_prices_is_refused(tmp_path: Path, host: str) -> None:
    """Such a rule would never match, and the calls would silently have another price."""
    path = tmp_path / "prices.toml"
    path.write_text(f'[[price]]\nmodel = "*"\nhost = "{host}"\ninput = 1\n')
    with pytest.raises(OverridesError, match="must be a host name") as caught:
        read_overrides(path)
    assert "hunter2" not in str(caught.value)
