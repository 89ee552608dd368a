"""What may go wrong for reasons that people can put right."""


class UserError(ValueError):
    """Something the user can put right; the command line shows it as one line, without a traceback."""


class PassingError(UserError):
    """What may be gone at the next try, such as a source that does not answer: the only mistake worth repeating."""
