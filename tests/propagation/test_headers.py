"""Tags across services: signed by one, believed by the next, sent to nobody else."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from email.message import Message
from types import SimpleNamespace
from typing import Any

import flask
import httpx
import openai
import pytest
import requests
from django.http.request import HttpHeaders
from fastapi import Depends, FastAPI, Request
from multidict import CIMultiDict
from requests.adapters import HTTPAdapter
from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse
from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.wrappers import Request as WerkzeugRequest

import voight_middleware as voight
from voight_fastapi import cost_tags
from voight_flask import CostTags
from voight_middleware.config.keys import PseudonymKey
from voight_middleware.diagnostics import counters
from voight_middleware.middleware.wsgi import CostTagMiddleware as WsgiMiddleware
from voight_middleware.pipeline.meter import current_meter
from voight_middleware.propagation.headers import HEADER, sign

from ..support.depth import times
from ..support.patching import Patch

KEY = "k" * 32
OTHER = "o" * 32
HOSTS = {"reports.internal"}
URL = "http://reports.internal/x"


@pytest.fixture(autouse=True)
def key(voight_calls: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has a key, and a ledger of its own."""
    monkeypatch.setenv("VOIGHT_HEADER_KEY", KEY)
    voight.configure()


def of_starlette(*values: str) -> Any:
    return HTTPConnection({"type": "http", "headers": [(HEADER.encode(), value.encode("latin-1")) for value in values]})


def of_werkzeug(*values: str) -> Any:
    builder = EnvironBuilder(headers=[(HEADER, value) for value in values])
    try:
        return WerkzeugRequest(builder.get_environ())
    finally:
        builder.close()


def of_django(*values: str) -> Any:
    return SimpleNamespace(headers=HttpHeaders({"HTTP_VOIGHT_TAGS": ",".join(values)} if values else {}))


REQUESTS = pytest.mark.parametrize("request_of", [of_starlette, of_werkzeug, of_django])


def header_of(**tags: str) -> str:
    """What a service sends for these tags."""
    with voight.tag(**tags):
        return voight.inject_headers(dict[str, str](), url=URL, hosts=HOSTS)[HEADER]


def refused() -> int:
    return counters["refused_headers"]


# -- out and in ---------------------------------------------------------------------------------------------------------------


@REQUESTS
def test_what_one_service_sends_the_next_one_reads(request_of: Callable[..., Any]) -> None:
    """Every tag but route and release arrives, whatever is in it; and is told apart from a header that is not there."""
    tags = {"user_id": "ü=7,;\"%+ &'", "plan": "pro", "tenant_id": "acme", "session_id": "s;1", "feature": "a=b,c;d"}
    request = request_of(header_of(**tags, route="GET /a", release="1"))
    assert voight.tags_from_signed_headers()(request) == tags
    assert [voight.tags_from_signed_headers(name)(request) for name in tags] == list(tags.values())
    assert voight.tags_from_signed_headers("route")(request) is None
    assert voight.tags_from_signed_headers()(request_of()) is voight.tags_from_signed_headers("user_id")(request_of()) is None
    assert refused() == 0


def test_personal_data_does_not_leave() -> None:
    """What is sent is what the ledger would keep."""
    sent = header_of(user_id="alice@example.com", feature="of alice@example.com")
    assert "alice" not in sent
    assert voight.tags_from_signed_headers("user_id")(of_starlette(sent)).startswith("email:")


def test_the_names_of_getters_are_checked() -> None:
    """A tag that no header can carry is a mistake that is seen when the application starts."""
    with pytest.raises(ValueError, match="write user_id"):
        voight.tags_from_signed_headers("user")


def test_nothing_is_sent_without_tags_key_or_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a header that was there, handed on from a client or by a redirect, is taken away."""
    old = {"Voight-Tags": "forged", "Accept": "*/*"}
    assert voight.inject_headers(dict(old), url=URL, hosts=HOSTS) == {"Accept": "*/*"}
    with voight.tag(user_id="u"):
        assert HEADER in voight.inject_headers({}, url=URL, hosts=HOSTS)
        voight.configure(enabled=False)
        assert voight.inject_headers(dict(old), url=URL, hosts=HOSTS) == {"Accept": "*/*"}
        monkeypatch.delenv("VOIGHT_HEADER_KEY")
        voight.configure()
        assert voight.inject_headers(dict(old), url=URL, hosts=HOSTS) == {"Accept": "*/*"}


@pytest.mark.parametrize("kind", [dict, Message, CIMultiDict, httpx.Headers])
def test_another_spelling_does_not_stay_beside_it(kind: Any) -> None:
    """A header that a client has sent, and a proxy hands on: sent twice, the next service would believe neither."""
    headers = kind()
    headers["Voight-Tags"] = "forged"
    with voight.tag(user_id="u"):
        voight.inject_headers(headers, url=URL, hosts=HOSTS)
    assert [value[:9] for name, value in headers.items() if name.lower() == HEADER] == ["user_id=u"[:9]]


@pytest.mark.parametrize(
    ("url", "goes"),
    [
        ("http://reports.internal/x", True),
        ("https://REPORTS.internal:8443", True),
        (httpx.URL("http://reports.internal/x"), True),
        ("http://api.openai.com/v1", False),
        ("http://reports.internal.evil.com/", False),
        ("http://xreports.internal/", False),
        ("http://reports.internal@evil.com/", False),
        ("http://evil.com\\@reports.internal/", False),
        ("http://evil.com\t@reports.internal/", False),
        ("http://evil.com/?reports.internal", False),
        ("http://a.mesh.internal/", True),
        ("http://mesh.internal/", False),
        ("http://amesh.internal/", False),
        ("http://[::1]:80/", True),
        ("http://evil.com%2f.mesh.internal/", False),
        ("http://evil.com%00.mesh.internal/", False),
        ("http://evil.com;.mesh.internal/", False),
        ("http://reports.internal./", False),
        ("/relative", False),
        ("http://[broken", False),
        (None, False),
    ],
)
def test_only_named_hosts_see_it(url: Any, goes: bool) -> None:
    """A whole name, or the end of one behind a point; and what could be read in two ways goes nowhere."""
    with voight.tag(user_id="u"):
        sent = voight.inject_headers(dict[str, str](), url=url, hosts={"reports.internal", ".mesh.internal", "::1"})
    assert (HEADER in sent) is goes


@pytest.mark.parametrize("hosts", [set(), "", {"*"}, {"."}, {"http://reports.internal"}, {"reports.internal:80"}, {"*.internal"}])
def test_a_name_that_is_none_sends_nothing(hosts: Any) -> None:
    """No pattern lets all hosts see it by accident."""
    with voight.tag(user_id="u"):
        assert voight.inject_headers({}, url=URL, hosts=hosts) == {}
        assert voight.inject_headers({}, url="http://api.openai.com", hosts=hosts) == {}
        assert HEADER in voight.inject_headers({}, url=URL, hosts="reports.internal"), "one name needs no set"


def test_too_many_tags_leave_the_user() -> None:
    """Extra keys go first; what does not fit even so is not sent."""
    extra = {f"key_{number}": "x" * 200 for number in range(30)}
    assert voight.tags_from_signed_headers()(of_starlette(header_of(user_id="u", plan="pro", **extra))) == {"user_id": "u", "plan": "pro"}
    long = dict.fromkeys(("plan", "tenant_id"), "\U0001f600" * 256)
    assert voight.tags_from_signed_headers()(of_starlette(header_of(user_id="u", **long))) == {"user_id": "u"}
    with voight.tag(plan="\U0001f600" * 256, tenant_id="\U0001f600" * 256):
        assert voight.inject_headers({}, url=URL, hosts=HOSTS) == {}


# -- refused headers -----------------------------------------------------------------------------------------------------------


def forgeries() -> dict[str, tuple[str, ...]]:
    """Headers that nobody may be billed by; made when the test runs, with its key."""
    good = header_of(user_id="u_7")
    key, now = PseudonymKey("v1", KEY), time.time()
    return {
        "unsigned": ("user_id=victim",),
        "another user": (good.replace("u_7", "u_8"),),
        "a longer life": (good.replace(";e=1", ";e=2"),),
        "another key": (sign({"user_id": "u_7"}, PseudonymKey("v1", OTHER), now + 60),),
        "an unknown version": (sign({"user_id": "u_7"}, PseudonymKey("v2", KEY), now + 60),),
        "expired": (sign({"user_id": "u_7"}, key, now - 31),),
        "from the future": (sign({"user_id": "u_7"}, key, now + 95),),
        "cut off": (good[:-1],),
        "cut off early": (good[: len(good) // 2],),
        "longer": (good + "A",),
        "too long": (sign({"user_id": "u_7", "x": "y" * 4096}, key, now + 60),),
        "sent twice": (good, good),
        "sent twice, by two": (good, header_of(user_id="u_8")),
        "no text": ("\x00\xff\xfe",),
        "empty": (" ",),
        "no pairs": (sign({}, key, now + 60),),
        "other digits": (good.replace(";e=1", ";e=\u0661".encode().decode("latin-1")),),
    }


@REQUESTS
def test_what_is_not_believed(request_of: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    """It names nobody, raises nothing, and is counted."""
    for count, (kind, values) in enumerate(forgeries().items(), 1):
        assert voight.tags_from_signed_headers()(request_of(*values)) is None, kind
        assert refused() == count, kind
    assert "u_7" not in caplog.text


def test_every_changed_character_is_seen() -> None:
    """There is no place in a header that the signature does not hold."""
    good = header_of(user_id="u_7", plan="pro")
    for place, character in enumerate(good):
        for other in {"0", "A", ";", ",", chr(ord(character) ^ 1)} - {character}:
            changed = good[:place] + other + good[place + 1 :]
            assert voight.tags_from_signed_headers()(of_starlette(changed)) is None, (changed, good)


def test_a_header_is_good_for_a_minute(patch: Patch) -> None:
    """And for the difference of two clocks: a copy of it names nobody later, though it was read before."""
    clock = time.time()
    patch("time", SimpleNamespace(time=lambda: clock), within="propagation.headers")
    request = of_starlette(header_of(user_id="u_7"))
    for seconds, user in ((0, "u_7"), (89, "u_7"), (92, None), (-29, "u_7"), (-32, None)):
        patch("time", SimpleNamespace(time=lambda at=clock + seconds: at), within="propagation.headers")
        assert voight.tags_from_signed_headers("user_id")(request) == user, seconds


def test_a_key_is_exchanged_without_a_gap() -> None:
    """First all services read with the new one, then they write with it, then the old one goes."""
    read = voight.tags_from_signed_headers("user_id")
    voight.configure(header_key=f"v1:{KEY},v2:{OTHER}")
    written_with_old = header_of(user_id="u_7")
    voight.configure(header_key=f"v2:{OTHER},v1:{KEY}")
    written_with_new = header_of(user_id="u_7")
    for keys in (f"v1:{KEY},v2:{OTHER}", f"v2:{OTHER},v1:{KEY}"):
        voight.configure(header_key=keys)
        assert read(of_starlette(written_with_old)) == read(of_starlette(written_with_new)) == "u_7"
    voight.configure(header_key=f"v2:{OTHER}")
    assert read(of_starlette(written_with_new)) == "u_7"
    assert read(of_starlette(written_with_old)) is None


def test_the_pseudonym_key_signs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a key of its own a service believes no header, not even one that the other secret has signed."""
    monkeypatch.delenv("VOIGHT_HEADER_KEY")
    voight.configure(pseudonym_key=KEY)
    signed = sign({"user_id": "u_7"}, PseudonymKey("v1", KEY), time.time() + 60)
    assert voight.tags_from_signed_headers("user_id")(of_starlette(signed)) is None
    assert refused() == 1
    assert KEY not in repr(current_meter().settings)


# -- services -------------------------------------------------------------------------------------------------------------------


LIMITS = httpx.Limits(max_connections=200, keepalive_expiry=1)
"""uvicorn closes what was idle for five seconds, and httpx may be about to use it."""
QUESTION: Any = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}
GETTERS: Any = {
    "user_getter": voight.tags_from_signed_headers("user_id"),
    "plan_getter": voight.tags_from_signed_headers("plan"),
    "tenant_getter": voight.tags_from_signed_headers("tenant_id"),
    "tags_getter": voight.tags_from_signed_headers(),
}


def reports(provider: Any) -> FastAPI:
    """Service B: makes the calls, knows no user of its own."""
    client = voight.wrap(openai.AsyncOpenAI(api_key="k", base_url=provider.openai_base_url))

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.close()

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(voight.CostTagMiddleware, **GETTERS)

    @app.get("/report")
    async def report(request: Request, wanted_by: str) -> dict[str, Any]:
        with voight.tag(wanted_by=wanted_by):
            await client.chat.completions.create(**QUESTION)
        return {"got": request.headers.get(HEADER)}

    return app


def front(url: str, hosts: set[str]) -> FastAPI:
    """Service A: signs users in, and asks B."""

    async def tags_along(request: httpx.Request) -> None:
        await voight.ainject_headers(request.headers, url=request.url, hosts=hosts)

    client = httpx.AsyncClient(event_hooks={"request": [tags_along]}, limits=LIMITS, timeout=60)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    async def signed_in(connection: HTTPConnection) -> str | None:
        await asyncio.sleep(0.001)
        return connection.headers.get("x-session")

    def plan(connection: HTTPConnection) -> str:
        return "pro" if int(connection.headers["x-session"][2:]) % 2 else "free"

    app = FastAPI(lifespan=lifespan)
    app.add_middleware(voight.CostTagMiddleware, user_getter=signed_in, plan_getter=plan)

    @app.get("/ask")
    async def ask(request: Request) -> None:
        answer = await client.get(f"{url}/report", params={"wanted_by": request.headers["x-session"]})
        answer.raise_for_status()

    return app


@pytest.mark.slow
def test_the_users_of_one_service_own_the_calls_of_the_next(serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """Many users at once through two servers, twice each: every call belongs to its user, at the other service's own route."""
    url = serve(front(serve(reports(voight_provider)), {"127.0.0.1"}))
    users = [f"u_{number}" for number in range(times(40, 200))]

    async def visit() -> None:
        async with httpx.AsyncClient(limits=LIMITS, timeout=60) as http:
            for _ in range(2):
                answers = await asyncio.gather(*(http.get(f"{url}/ask", headers={"x-session": user}) for user in users))
                assert {answer.status_code for answer in answers} == {200}

    asyncio.run(visit())
    serve.stop()
    calls = voight_calls.all()
    assert len(calls) == 2 * len(users)
    for call in calls:
        tags = call.tags
        assert (tags.user_id, call.attribution, tags.route) == (tags.extra["wanted_by"], "getter", "GET /report")
        assert tags.plan == ("pro" if int(tags.user_id[2:]) % 2 else "free")
    assert {call.tags.user_id for call in calls} == set(users)
    assert refused() == 0


@pytest.mark.slow
def test_a_client_cannot_name_an_owner(serve: Any, voight_provider: Any, voight_calls: Any) -> None:
    """A header from outside is ignored by the service behind, and not handed on by the one in front."""
    behind = serve(reports(voight_provider))
    forged = sign({"user_id": "victim"}, PseudonymKey("v1", OTHER), time.time() + 60)
    with httpx.Client() as http:
        http.get(f"{behind}/report", params={"wanted_by": "x"}, headers={HEADER: forged}).raise_for_status()
        http.get(f"{behind}/report", params={"wanted_by": "x"}, headers=[(HEADER, forged), (HEADER, header_of(user_id="u"))])
        http.get(f"{serve(front(behind, {'127.0.0.1'}))}/ask", headers={"x-session": "u_1", HEADER: forged}).raise_for_status()
    serve.stop()
    assert sorted((call.tags.user_id or "", call.attribution) for call in voight_calls) == [("", "none"), ("", "none"), ("u_1", "getter")]


def redirecting(to: str) -> FastAPI:
    app = FastAPI()

    @app.get("/away")
    async def away(request: Request) -> RedirectResponse:
        return RedirectResponse(f"{to}/echo")

    @app.get("/echo")
    async def echo(request: Request) -> str | None:
        return request.headers.get(HEADER)

    return app


@pytest.mark.slow
def test_a_redirect_to_another_host_loses_it(serve: Any) -> None:
    """The hook of httpx runs for every hop; within the named host it stays. So does an adapter of requests."""
    other = serve(redirecting(""))
    away = serve(redirecting(other)).replace("127.0.0.1", "localhost")
    stays = serve(redirecting(other.replace("127.0.0.1", "localhost"))).replace("127.0.0.1", "localhost")

    def tags_along(request: httpx.Request) -> None:
        voight.inject_headers(request.headers, url=request.url, hosts={"localhost"})

    class TagsAlong(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> requests.Response:
            voight.inject_headers(request.headers, url=request.url, hosts={"localhost"})
            return super().send(request, *args, **kwargs)

    with httpx.Client(event_hooks={"request": [tags_along]}, follow_redirects=True) as http, requests.Session() as session:
        session.mount("http://", TagsAlong())
        session.trust_env = False
        with voight.tag(user_id="u_7"):
            for ask in (http.get, session.get):
                assert ask(f"{stays}/away").json().startswith("user_id=u_7;")
                assert ask(f"{away}/away").json() is None
                assert ask(f"{away}/echo").json().startswith("user_id=u_7;")


def spends(*_: Any) -> str:
    voight.record(provider="openai", model="gpt-5-nano", usage={"prompt_tokens": 1})
    return ""


@pytest.mark.slow
def test_wsgi_flask_and_a_dependency_read_it(serve: Any, voight_calls: Any) -> None:
    """The same getters serve every middleware."""
    headers = {HEADER: header_of(user_id="u_7", plan="pro", feature="f")}

    def wsgi(environ: Any, start_response: Any) -> list[bytes]:
        spends()
        start_response("200 OK", [])
        return []

    builder = EnvironBuilder(headers=list(headers.items()))
    iterable, _, _ = run_wsgi_app(WsgiMiddleware(wsgi, **GETTERS), builder.get_environ())
    list(iterable)
    builder.close()

    app = flask.Flask("b")
    CostTags(app, **GETTERS)
    app.route("/")(spends)
    app.test_client().get("/", headers=headers)

    def without_arguments() -> None:
        spends()

    def caller(request: Request) -> Any:
        return GETTERS["tags_getter"](request)

    behind = FastAPI(dependencies=[Depends(cost_tags(caller, plan=lambda tags: tags["plan"], tags=lambda tags: tags))])
    behind.get("/")(without_arguments)
    url = serve(behind)
    with httpx.Client() as http:
        http.get(url, headers=headers).raise_for_status()
    serve.stop()
    owners = [(call.tags.user_id, call.tags.plan, dict(call.tags.extra)) for call in voight_calls]
    assert owners == [("u_7", "pro", {"feature": "f"})] * 3
