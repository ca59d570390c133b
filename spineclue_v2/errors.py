"""The one exception a user meets: a sentence that says what is wrong, where, and what to run."""


class InputError(Exception):
    """Bad input of any kind. Commands print its one sentence and end with exit code 2."""
