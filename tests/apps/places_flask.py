"""Every place of a Flask application that can make a call; each asks for a model that is named after it. At ``/places``: their paths."""

import asyncio
import contextvars
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import flask
import openai
from asgiref.sync import async_to_sync
from flask import Flask, Response, copy_current_request_context, request, stream_with_context
from flask_login import LoginManager, UserMixin
from werkzeug.middleware.dispatcher import DispatcherMiddleware

import voight_middleware as voight
from voight_flask import CostTags

client = voight.wrap(openai.OpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]))
executor = ThreadPoolExecutor(1)


class User(UserMixin):
    def __init__(self, name: str) -> None:
        self.id = name


def create_app() -> Flask:
    """Signs in whoever is named by the header ``x-user``, when somebody asks Flask-Login who it is."""
    app = Flask(__name__)
    app.config["SECRET_KEY"] = "places"
    LoginManager(app).request_loader(lambda request: User(request.headers["x-user"]) if "x-user" in request.headers else None)
    return CostTags().init_app(app)


app = create_app()
mounted = create_app()
PATHS: dict[str, str] = {}


def ask(place: str) -> str:
    return client.chat.completions.create(model=place, messages=[{"role": "user", "content": "?"}]).id


async def aask(place: str) -> str:
    async with openai.AsyncOpenAI(api_key="k", base_url=os.environ["PROVIDER_OPENAI"]) as aclient:
        return (await voight.wrap(aclient).chat.completions.create(model=place, messages=[{"role": "user", "content": "?"}])).id


def page(place: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The view of one place; it gets the place's name."""

    def add(view: Callable[..., Any]) -> Callable[..., Any]:
        PATHS[place] = path = f"/{len(PATHS)}"
        app.add_url_rule(path, endpoint=place, view_func=view, defaults={"place": place})
        return view

    return add


@app.get("/places")
def places() -> dict[str, str]:
    return PATHS


@app.get("/any")
def anywhere() -> str:
    return ask(request.headers["x-place"])


@page("handler, sync")
def sync(place: str) -> str:
    return ask(place)


@page("handler, async")
async def asynchronous(place: str) -> str:
    return await aask(place)


@page("handler, async, with a synchronous client")
async def mixed(place: str) -> str:
    return ask(place)


@page("before_request")
def before(place: str) -> str:
    return place


@page("after_request")
def after(place: str) -> str:
    return place


@page("teardown_request")
def teardown(place: str) -> str:
    return place


@app.before_request
def ask_before() -> None:
    if request.endpoint == "before_request":
        ask("before_request")


@app.after_request
def ask_after(response: Response) -> Response:
    if request.endpoint == "after_request":
        ask("after_request")
    return response


@app.teardown_request
def ask_at_teardown(_error: BaseException | None) -> None:
    if request.endpoint == "teardown_request":
        ask("teardown_request")


@page("template")
def template(place: str) -> str:
    return flask.render_template_string("{{ ask(place) }}", ask=ask, place=place)


@page("streamed response, sync generator")
def generator(place: str) -> Response:
    def steps() -> Iterator[str]:
        yield "a"
        yield ask(place)

    return Response(steps())


@page("streamed response, stream_with_context")
def with_context(place: str) -> Response:
    def steps() -> Iterator[str]:
        yield request.path
        yield ask(place)

    return Response(stream_with_context(steps()))


@page("server-sent events")
def events(place: str) -> Response:
    return Response((f"data: {ask(place)}\n\n" for _ in range(1)), mimetype="text/event-stream")


@page("response.call_on_close")
def on_close(place: str) -> Response:
    response = Response("whole")
    response.call_on_close(lambda: ask(place))
    return response


@page("handler of a specific exception")
def specific(place: str) -> str:
    raise LookupError


@app.errorhandler(LookupError)
def of_lookups(_error: LookupError) -> str:
    return ask("handler of a specific exception")


@page("handler of unexpected exceptions (500)")
def unexpected(place: str) -> str:
    raise RuntimeError


@app.errorhandler(500)
def of_everything(_error: Any) -> tuple[str, int]:
    return ask("handler of unexpected exceptions (500)"), 500


@mounted.get("/")
def in_mounted() -> str:
    return ask("mounted app")


PATHS["mounted app"] = "/mounted/"


@page("asyncio.create_task")
async def create_task(place: str) -> str:
    return await asyncio.create_task(aask(place))


@page("asyncio.gather")
async def gather(place: str) -> str:
    return "".join(await asyncio.gather(aask(place)))


@page("asyncio.to_thread")
async def to_thread(place: str) -> str:
    return await asyncio.to_thread(ask, place)


@page("async_to_sync(fn)")
def to_sync(place: str) -> str:
    return str(async_to_sync(aask)(place))


@page("asyncio.run in a sync handler")
def run(place: str) -> str:
    return asyncio.run(aask(place))


@page("loop.run_in_executor(None, fn)")
async def in_executor(place: str) -> str:
    return await asyncio.get_running_loop().run_in_executor(None, ask, place)


@page("loop.run_in_executor(None, carry(fn))")
async def carried_in_executor(place: str) -> str:
    return await asyncio.get_running_loop().run_in_executor(None, voight.carry(ask), place)


@page("executor.submit(fn)")
def submit(place: str) -> str:
    return executor.submit(ask, place).result()


@page("executor.submit(copy_context().run, fn)")
def submit_context(place: str) -> str:
    return executor.submit(contextvars.copy_context().run, ask, place).result()


@page("executor.submit(carry(fn))")
def submit_carried(place: str) -> str:
    return executor.submit(voight.carry(ask), place).result()


def in_thread(function: Callable[[str], Any], place: str) -> str:
    thread = threading.Thread(target=function, args=(place,))
    thread.start()
    thread.join()
    return place


@page("Thread(target=fn)")
def thread(place: str) -> str:
    return in_thread(ask, place)


@page("Thread(target=copy_current_request_context(fn))")
def thread_with_context(place: str) -> str:
    return in_thread(copy_current_request_context(ask), place)


@page("Thread(target=carry(fn))")
def carried_thread(place: str) -> str:
    return in_thread(voight.carry(ask), place)


@page("Thread(target=carry(fn)) that outlives the request")
def outliving(place: str) -> Response:
    ended = threading.Event()

    def later() -> None:
        ended.wait(10)
        ask(place)

    threading.Thread(target=voight.carry(later)).start()
    response = Response()
    response.call_on_close(ended.set)
    return response


if os.environ.get("GREENLETS"):
    import gevent

    @page("gevent.spawn(fn)")
    def spawned(place: str) -> str:
        return str(gevent.spawn(ask, place).get())

    @page("gevent.spawn(carry(fn))")
    def spawned_carried(place: str) -> str:
        return str(gevent.spawn(voight.carry(ask), place).get())

    @page("gevent.pool.Pool().spawn(carry(fn))")
    def in_pool(place: str) -> str:
        import gevent.pool

        return str(gevent.pool.Pool(2).spawn(voight.carry(ask), place).get())


application = DispatcherMiddleware(app, {"/mounted": mounted})


def create_served() -> Flask:
    """For ``flask run``, which needs a Flask application."""
    app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/mounted": mounted})  # type: ignore[method-assign]
    return app
