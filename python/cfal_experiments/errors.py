"""The error that a user can act on."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one line that names the thing and the remedy; commands print it and exit with
    status 2.
    """


class NotFinite(InputError):
    """Training came to no finite validation loss; other settings may."""
