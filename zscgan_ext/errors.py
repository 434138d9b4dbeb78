"""The one exception a user can cause."""


class InputError(ValueError):
    """A wrong argument, file or model.

    The message is one line that names what was given, what was found and what is accepted. The
    command line prints it and exits with code 2.
    """
