"""The tags of an erased person: neither their ids nor their sessions stay."""

import pytest

from voight_middleware.ledger.erasure import erased_tags
from voight_middleware.records.tags import Tags

ALICE, TOKEN = "alice@example.com", "erased:1"


@pytest.mark.parametrize(
    ("tags", "erased"),
    [
        (Tags(user_id=ALICE, plan="pro", session_id="s-1"), Tags(user_id=TOKEN, plan="pro")),
        (Tags(user_id="bob", session_id=ALICE), Tags(user_id="bob")),
        (Tags(user_id="bob", tenant_id=ALICE, session_id="s-2"), Tags(user_id="bob", tenant_id=TOKEN, session_id="s-2")),
        (Tags(user_id="bob", extra={"note": f"for {ALICE}"}), Tags(user_id="bob", extra={"note": TOKEN})),
    ],
    ids=["the user", "in the session's name", "the tenant", "inside of a text"],
)
def test_erased_tags(tags: Tags, erased: Tags) -> None:
    """A session goes if it is the person's own, or is named after them."""
    assert erased_tags(tags, {ALICE}, TOKEN) == erased
