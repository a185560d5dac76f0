"""Tags on their way to other services and into workers."""
