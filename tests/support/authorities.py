"""
A list of certificate authorities that has one, and is read at once.

Every client of an SDK reads the list of the system when it is made, which takes 40 to 60 ms of CPU: more than most tests. None of them asks
anybody over TLS. ``authority.pem`` is a certificate of nobody, and its key is gone.
"""

import os
import platform
from pathlib import Path

FILE = Path(__file__).with_name("authority.pem")


def trust_nobody() -> None:
    """Have clients read the short list, in this process and in those that it starts."""
    os.environ["SSL_CERT_FILE"] = str(FILE)
    platform.platform()  # the SDKs tell it to their providers, and it starts `uname` when it is asked first: not in a test
    platform.uname().processor  # noqa: B018


def of_the_system() -> dict[str, str]:
    """Return the environment of a process that talks over TLS, such as one that installs something."""
    return {name: value for name, value in os.environ.items() if name != "SSL_CERT_FILE"}
