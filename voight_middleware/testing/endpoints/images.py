"""
OpenAI's images: generated, edited and varied. GPT image models report tokens. DALL·E reports no
usage and is billed per image.
"""

from __future__ import annotations

from typing import Any, Literal

from voight_middleware.testing.accounting import Charge
from voight_middleware.testing.endpoints.response import (
    EndpointRequest,
    EndpointResponse,
    need,
    now,
    plain,
    present,
    reported,
    stream,
)
from voight_middleware.testing.fake_data import IMAGE, SVG, SVG_MODEL, FakeResponse, Json

_OUTPUT_TOKENS = {"low": 272, "high": 4160, "xhigh": 4160, "max": 4160}
_MEDIUM_TOKENS = 1056
_INPUT_IMAGE_TOKENS = 194


def generate(request: EndpointRequest) -> EndpointResponse:
    """
    ``POST /v1/images/generations``. With ``svg`` or ``output_format: svg``, the response also has
    the usage of the drawing model.
    """
    need(request.body, "prompt")
    return _draw(request, "image_generation", 0)


def edit(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/images/edits``."""
    need(request.body, "prompt")
    given = request.body.get("images") or request.body.get("image")
    need({"image": given}, "image")
    return _draw(request, "image_edit", len(given) if isinstance(given, list) else 1)


def vary(request: EndpointRequest) -> EndpointResponse:
    """``POST /v1/images/variations``: DALL·E 2 only."""
    need(request.body, "image")
    return _per_image(request.body)


def _draw(
    request: EndpointRequest, kind: Literal["image_generation", "image_edit"], images: int
) -> EndpointResponse:
    body = {"model": "gpt-image-1.5", **request.body}
    if str(body["model"]).startswith("dall-e"):
        return _per_image(body)
    made, number = FakeResponse(body, None, None), _number(body, "n", 1)
    author: Any = body.get("svg") or ({} if body.get("output_format") == "svg" else None)
    shape = {
        "background": "opaque",
        "output_format": "png" if author is None else "svg",
        "quality": "medium",
        "size": "1024x1024",
    }
    shape |= {name: body[name] for name in shape if body.get(name) not in (None, "auto")}
    output = number * _OUTPUT_TOKENS.get(shape["quality"], _MEDIUM_TOKENS)
    # not in the events
    details = (
        {}
        if body.get("stream")
        else {"output_tokens_details": {"image_tokens": output, "text_tokens": 0}}
    )
    usage = reported(
        request.options,
        lambda: _usage(made.input_tokens, images * _INPUT_IMAGE_TOKENS, output) | details,
    )
    charge = Charge(usage, images=number)
    if body.get("stream"):
        picture = {"b64_json": IMAGE, "created_at": now(), **shape}
        partial = [
            {"type": f"{kind}.partial_image", **picture, "partial_image_index": index}
            for index in range(int(body.get("partial_images") or 0))
        ]
        return stream(
            [*partial, {"type": f"{kind}.completed", **picture, **present(usage)}], charge
        )
    svg_usage = None if author is None else made.svg_usage(author.get("model") or SVG_MODEL)
    data = [{"b64_json": IMAGE if author is None else SVG} for _ in range(number)]
    drawn = {
        "created": now(),
        **shape,
        "data": data,
        **present(usage),
        **present(svg_usage, "svg_usage"),
    }
    return plain(drawn, charge, Charge(svg_usage))


def _per_image(body: Json) -> EndpointResponse:
    number = _number(body, "n", 1)
    image = (
        {"b64_json": IMAGE}
        if body.get("response_format") == "b64_json"
        else {"url": "https://images.invalid/img-1.png"}
    )
    return plain({"created": now(), "data": [image] * number}, Charge(images=number))


def _number(body: Json, name: str, default: int) -> int:
    """Return a number. Forms have numbers as texts."""
    return int(body.get(name) or default)


def _usage(text: int, image: int, output: int) -> Json:
    details = {"image_tokens": image, "text_tokens": text}
    total = text + image + output
    return {
        "input_tokens": text + image,
        "input_tokens_details": details,
        "output_tokens": output,
        "total_tokens": total,
    }
