"""Flask, and WSGI without a framework: where code can run that a request has caused, and whose calls are made there."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .matrix import check_column
from .web import serve

GUNICORN = "gunicorn places_flask:application -b 127.0.0.1:{port} --log-level critical --keep-alive 60"
SERVERS = {
    "flask run": "flask --app places_flask:create_served run --port {port}",
    "gunicorn sync": f"{GUNICORN} -k sync",
    "gunicorn gthread": f"{GUNICORN} -k gthread --threads 1",
    "gunicorn gevent": f"{GUNICORN} -k gevent",
}
NEXT = "next request on the same thread or connection"
COLUMNS = [("Flask", server, command) for server, command in SERVERS.items()]
COLUMNS += [("WSGI", server, SERVERS[server].replace("places_flask", "places_wsgi")) for server in ("gunicorn gthread", "gunicorn gevent")]


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "server", "command"), COLUMNS, ids=[f"{framework}-{server}" for framework, server, _ in COLUMNS])
def test_owner_in_each_place_of_a_wsgi_application(framework: str, server: str, command: str, workers: Any, voight_provider: Any) -> None:
    """Every place has the owner that the table says, under every server, and who comes after it is nobody."""
    port = serve(workers, voight_provider, command, **({"GREENLETS": "1"} if server == "gunicorn gevent" else {}))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        places: dict[str, str] = client.get("/places").json()
        for number, (place, path) in enumerate(places.items()):
            status = client.get(path, headers={"x-user": f"user-{number}"}).status_code
            assert status == (500 if place.endswith("(500)") else 200), place
            assert client.get("/any", headers={"x-place": NEXT}).status_code == 200
    workers.wait_until(lambda: len(workers.calls_so_far()) == 2 * len(places))
    owners: dict[str, set[str | None]] = {}
    for call in workers.calls():
        owners.setdefault(str(call.requested_model), set()).add(call.tags.user_id)
    found = {}
    for number, place in enumerate(places):
        found[place] = "works" if owners[place] == {f"user-{number}"} else "lost" if owners[place] == {None} else "wrong"
    found[NEXT] = "works" if owners[NEXT] == {None} else "wrong"
    check_column("WSGI", framework, server, found)
