"""``dramatiq-gevent``, as a module."""

from gevent import monkey

monkey.patch_all()

from dramatiq.cli import main  # noqa: E402

raise SystemExit(main())
