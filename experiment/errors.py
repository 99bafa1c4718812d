"""What a user's mistake raises."""


class UserError(Exception):
    """A mistake that the user can mend. Its text is one line: what is wrong, and the remedy.

    The commands print it on stderr and exit with status 2, without a traceback.
    """
