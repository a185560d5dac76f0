"""
A nightly script, metered by voight-middleware. It makes a few LLM calls per user, in threads.

The SDK reads the provider from ``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``.
"""

from __future__ import annotations

from typing import NamedTuple

import openai

import voight_middleware as voight
from voight_middleware.cli import main as voight_command
from voight_middleware.threads import CarryingThreadPoolExecutor


class User(NamedTuple):
    id: str
    plan: str
    notes: list[str]


USERS = [
    User(f"u_{number}", ("free", "pro")[number % 2], [f"note {note}" for note in range(number)])
    for number in range(1, 6)
]

# The one line around the client.
client = voight.wrap(openai.OpenAI())


def answer(question: str) -> str:
    completion = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": question}]
    )
    return completion.choices[0].message.content or ""


@voight.tag(feature="digest")
def digest(user: User, pool: CarryingThreadPoolExecutor) -> str:
    """Every call in here belongs to the user, also in the threads of the pool."""
    with voight.tag(user_id=user.id, plan=user.plan):
        summaries = pool.map(answer, [f"Summarise: {note}" for note in user.notes])
        return answer("Write a digest of: " + "; ".join(summaries))


def main() -> int:
    """Write the digests, and print the cost of each user."""
    with voight.tag(route="script nightly.py"), CarryingThreadPoolExecutor(4) as pool:
        answer("Which news are there today?")  # for all users together: it has no owner
        for user in USERS:
            print(f"{user.id}: {digest(user, pool)[:60]}")
    voight.flush()
    print()
    return voight_command(["top", "--by", "user"])


if __name__ == "__main__":
    raise SystemExit(main())
