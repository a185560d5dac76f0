"""
A Celery application, metered by voight-middleware. The LLM calls of a task belong to its sender.

Run as a script, it starts a worker, sends the tasks of a few users, and prints the cost of each
user. The SDK reads the provider from ``OPENAI_API_KEY`` and ``OPENAI_BASE_URL``. The broker is
``CELERY_BROKER_URL``; the default is a local folder, which needs no server.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import openai
from celery import Celery, chain

import voight_middleware as voight
from voight_celery import instrument_celery
from voight_middleware.cli import main as voight_command

# -- the application -------------------------------------------------------------------------------

FOLDER = Path(
    os.environ.get(
        "EXAMPLE_FOLDER", Path(tempfile.gettempdir()) / f"voight-celery-example-{os.getuid()}"
    )
)
FOLDER.mkdir(parents=True, exist_ok=True)

app = Celery("app", broker=os.environ.get("CELERY_BROKER_URL", "filesystem://"))
if app.conf.broker_url == "filesystem://":
    messages = {
        "data_folder_in": str(FOLDER),
        "data_folder_out": str(FOLDER),
        "control_folder": str(FOLDER / "control"),
    }
    app.conf.broker_transport_options = messages

# The one line for tasks. The sender's tags travel in a header of the task.
instrument_celery(app)

# The one line around each client. It returns the same object.
client = voight.wrap(openai.OpenAI())


def answer(question: str) -> str:
    completion = client.chat.completions.create(
        model="gpt-4o-mini", messages=[{"role": "user", "content": question}]
    )
    return completion.choices[0].message.content or ""


@app.task
def summarise(text: str) -> str:
    """Belongs to its sender."""
    return answer(f"Summarise: {text}")


@app.task
def translate(text: str) -> str:
    """The second task of a chain belongs to the sender of the chain."""
    return answer(f"Translate into French: {text}")


@app.task(bind=True, max_retries=3)
def classify(self: Any, text: str) -> str:
    """A retry belongs to the sender of the first try."""
    try:
        return answer(f"Classify: {text}")
    except openai.APIError as error:
        raise self.retry(exc=error, countdown=1) from error


@app.task
def nightly_digest(users: list[str]) -> None:
    """
    A task of beat has no owner. It names the user of each call, also for the tasks that it sends.
    """
    for user in users:
        with voight.tag(user_id=user, plan="pro", feature="digest"):
            answer("What happened today?")
            summarise.delay("the day")


# -- one command -----------------------------------------------------------------------------------

TASKS = 3 * 4 + 1 + 2
WAIT_SECONDS = 120


def send() -> None:
    """Send tasks as web requests would. There, the middleware sets the tags."""
    for number, plan in enumerate(("free", "pro", "team"), start=1):
        with voight.tag(user_id=f"u_{number}", plan=plan, route="POST /documents"):
            summarise.delay("Once upon a time…")
            classify.delay("I want my money back!")
            chain(summarise.s("All's well that ends well."), translate.s()).delay()
    nightly_digest.delay(["u_1", "u_2"])


def main() -> int:
    """Run all tasks and print the costs. Return the exit code of the report."""
    command = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "app",
        "worker",
        "--pool",
        "prefork",
        "--concurrency",
        "2",
        "--loglevel",
        "INFO",
    ]
    # These features need a broker that delivers a message to all workers.
    options = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    print(f"Starting a worker on {app.conf.broker_url}")
    log = Path("worker.log").absolute()
    with log.open("w") as output:
        worker = subprocess.Popen(
            [*command, *options], cwd=Path(__file__).parent, stdout=output, stderr=output
        )
    try:
        send()
        deadline = time.monotonic() + WAIT_SECONDS
        while (
            (done := log.read_text().count(" succeeded in ")) < TASKS
            and time.monotonic() < deadline
            and worker.poll() is None
        ):
            time.sleep(0.2)
    finally:
        worker.terminate()
        worker.wait()
    print(f"{done} tasks are done; the worker's log is {log}\n")
    return voight_command(["top", "--by", "user"])


if __name__ == "__main__":
    raise SystemExit(main())
