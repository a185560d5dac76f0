"""``rq`` with the jobs imported before it forks, as its documentation advises: not once in every job."""

import rq_app  # noqa: F401
from rq.cli import main

main()
