"""
Clients that trust one certificate: made in 3 ms instead of 60.

A client of httpx, and each SDK's, reads all authorities of certifi when it is made. The tests talk to this machine, mostly without TLS.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import certifi

_END = "-----END CERTIFICATE-----\n"


@contextmanager
def one_authority(folder: Path) -> Iterator[None]:
    """Have clients of this process, and of those that it starts, trust only the first authority of certifi."""
    path = folder / "one-authority.pem"
    bundle = Path(certifi.where()).read_text()
    path.write_text(bundle[bundle.index("-----BEGIN") : bundle.index(_END)] + _END)
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(path)
    try:
        yield
    finally:
        del os.environ["SSL_CERT_FILE"]
        if before is not None:
            os.environ["SSL_CERT_FILE"] = before
