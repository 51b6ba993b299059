"""What goes wrong in an environment, said to its author."""


class EnvError(Exception):
    """An environment that cannot be found, built or run; the message names it and the next move."""
