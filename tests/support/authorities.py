"""
A list of certificate authorities that has one, and is read at once.

Every client of every SDK reads the list of the system when it is made, which takes 40 ms of CPU: more than most tests. None of them asks
anybody over TLS. ``authority.pem`` is a certificate of nobody, and its key is gone.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FILE = Path(__file__).with_name("authority.pem")


@contextmanager
def few_authorities() -> Iterator[None]:
    """Have clients read the short list, here and in processes that are started in the block."""
    platform.platform()  # the SDKs tell it to their providers, and it starts `uname` when it is asked first
    before = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = str(FILE)
    try:
        yield
    finally:
        if before is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = before
