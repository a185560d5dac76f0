"""The configuration of a process: settings, files, keys and paths."""
