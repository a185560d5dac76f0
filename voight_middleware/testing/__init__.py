"""
For tests: the pytest fixtures ``voight_calls`` and ``voight_provider`` (``voight_pytest``, loaded
by pytest itself), and the loopback provider (``testing.provider.LoopbackProvider``).
"""
