"""A variable that cannot be read: it falls back alone, and to what does less."""

import pytest

from voight_middleware.config.settings import EXIT_SECONDS, Settings, usable_settings

HOME = {"HOME": "/home/x", "XDG_STATE_HOME": "/state"}
GOOD = {
    "VOIGHT_LEDGER": "sqlite:////data/ledger.db",
    "VOIGHT_RELEASE": "2026.11",
    "VOIGHT_ENABLED": "false",
    "VOIGHT_PII": "redact",
    "VOIGHT_EXIT_TIMEOUT": "2",
}


@pytest.mark.parametrize("bad", [*GOOD, "VOIGHT_DELIVERY", "VOIGHT_KEY", "VOIGHT_PSEUDONYM_KEY", "VOIGHT_JOURNAL_LIMIT"])
def test_the_good_variables_hold(bad: str) -> None:
    """What is named beside a mistake is what is used."""
    wrong = {"VOIGHT_RELEASE": "\x00", "VOIGHT_LEDGER": "mysql://nowhere"}.get(bad, "no such value")
    settings, errors = usable_settings({**HOME, **GOOD, bad: wrong})
    assert len(errors) == (bad != "VOIGHT_RELEASE")
    right = Settings.from_environment(environ={**HOME, **GOOD})
    for variable, name in (("VOIGHT_LEDGER", "ledger"), ("VOIGHT_ENABLED", "enabled"), ("VOIGHT_EXIT_TIMEOUT", "exit_timeout")):
        if variable != bad:
            assert getattr(settings, name) == getattr(right, name)


@pytest.mark.parametrize(
    ("variable", "name", "value"),
    [
        ("VOIGHT_ENABLED", "enabled", False),
        ("VOIGHT_PII", "pii", {"*": "redact"}),
        ("VOIGHT_PSEUDONYM_KEY", "pii", {"*": "redact"}),
        ("VOIGHT_REQUEST_IDENTITY", "request_identity", False),
        ("VOIGHT_INGEST", "ingest", False),
        ("VOIGHT_LEDGER", "ingest", False),
        ("VOIGHT_KEY", "events", None),
        ("VOIGHT_EXIT_TIMEOUT", "exit_timeout", EXIT_SECONDS),
    ],
)
def test_a_bad_variable_falls_back_to_what_does_less(variable: str, name: str, value: object) -> None:
    """Nothing is sent, shown or kept that a mistyped word was meant to forbid."""
    settings, errors = usable_settings({**HOME, variable: "mysql://typo"})
    assert getattr(settings, name) == value
    assert variable in str(errors[0])
