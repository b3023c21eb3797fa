"""The error that a user can mend."""


class RevmuxError(ValueError):
    """Something a user asked for cannot be done; the message is one sentence that says what to change."""
