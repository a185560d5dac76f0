"""Hosts: the only part of a provider's address that is kept, and the provider that bills for it."""

from __future__ import annotations

import functools
import ipaddress
import re
from functools import lru_cache

from voight_middleware.lazy import lazy_pattern

_SCHEME = lazy_pattern(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)
_END = lazy_pattern(r"[/?#\\]")
_ADDRESS = lazy_pattern(r"[0-9a-f:.]*:[0-9a-f.]*:[0-9a-f:.]*")
"""An IPv6 address without brackets."""
_NAME = lazy_pattern(r"[\w.-]{1,253}|\[[0-9a-f:.]{2,45}\]")


@lru_cache(1024)
def host_name(url: str | None) -> str | None:
    """
    Return the host name of a URL, in lower case, without credentials, port, path and query.

    Return None if there is none. A string without a scheme, such as ``api.openai.com/v1``, is read
    as a URL too. The other parts can be secrets: a user's password, or a key in the query.
    """
    if url is None:
        return None
    text = url.strip()
    start = _SCHEME.match(text)
    if start is not None:
        text = text[start.end() :]
    text = _END.split(text, maxsplit=1)[0].rpartition("@")[2].lower()
    if _ADDRESS.fullmatch(text) is not None:
        return text
    name, colon, port = text.rpartition(":")
    if colon and not text.endswith("]"):
        if port and not port.isdecimal():
            return None
        text = name
    text = text.rstrip(".")
    if _NAME.fullmatch(text) is None:
        return None
    return text.strip("[]")


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach *host*, by its name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


_HOSTS = (
    ("openai.azure.com", "azure"),
    ("cognitiveservices.azure.com", "azure"),
    ("services.ai.azure.com", "azure"),
    ("models.ai.azure.com", "azure"),
    ("inference.ai.azure.com", "azure"),
    ("azure-api.net", "azure"),
    ("azure-api.us", "azure"),
    ("azure-api.cn", "azure"),
    ("openai.azure.us", "azure"),
    ("openai.azure.cn", "azure"),
    ("cognitiveservices.azure.us", "azure"),
    ("cognitiveservices.azure.cn", "azure"),
    ("openrouter.ai", "openrouter"),
    ("groq.com", "groq"),
    ("deepseek.com", "deepseek"),
    ("mistral.ai", "mistral"),
    ("together.xyz", "together"),
    ("together.ai", "together"),
    ("x.ai", "xai"),
    ("fireworks.ai", "fireworks"),
    ("perplexity.ai", "perplexity"),
    ("cerebras.ai", "cerebras"),
    ("moonshot.ai", "moonshotai"),
    ("novita.ai", "novita"),
    ("cohere.com", "cohere"),
    ("cohere.ai", "cohere"),
    ("z.ai", "zai"),
    ("minimax.io", "minimax"),
    ("baseten.co", "baseten"),
    ("arcee.ai", "arcee"),
    ("avian.io", "avian"),
    ("doubleword.ai", "doubleword"),
    ("cloud.ovh.net", "ovhcloud"),
    ("githubcopilot.com", "github-copilot"),
    ("huggingface.co", "huggingface"),
    ("databricks.com", "databricks"),
    ("azuredatabricks.net", "databricks"),
    ("aiplatform.googleapis.com", "vertex"),
    ("-aiplatform.googleapis.com", "vertex"),
    ("rep.googleapis.com", "vertex"),
    ("claude.googleapis.com", "anthropic"),
    ("googleapis.com", "google"),
    ("amazonaws.com", "bedrock"),
    ("amazonaws.com.cn", "bedrock"),
    ("api.aws", "bedrock"),
    ("openai.com", "openai"),
    ("anthropic.com", "anthropic"),
)
"""The provider that bills, by the end of the host name: a domain, or a hyphen and a part of one."""
PROVIDERS = tuple(dict.fromkeys(name for _, name in _HOSTS))
"""The names of all providers whose hosts are known."""


@functools.lru_cache(1024)
def billing_provider(host: str) -> str | None:
    """Return the provider that bills for *host*; None for an unknown host, such as a proxy."""
    # Anthropic's own platform, bought through a marketplace
    if host.startswith("aws-external-anthropic."):
        return "anthropic"
    return next(
        (
            name
            for end, name in _HOSTS
            if host == end or host.endswith(end if end[0] == "-" else f".{end}")
        ),
        None,
    )


_PLATFORMS = {
    "BaseAzureClient": "azure",
    "BaseFoundryClient": "azure",
    "BaseBedrockClient": "bedrock",
    "BaseVertexClient": "vertex",
}


def platform(client_class: type) -> str | None:
    """
    Return the provider that bills for a cloud client, by its class in the SDK; None for any other
    client.

    The host does not matter.
    """
    return next(
        (_PLATFORMS[cls.__name__] for cls in client_class.__mro__ if cls.__name__ in _PLATFORMS),
        None,
    )
