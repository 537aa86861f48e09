"""Errors of this package. A message says what was given, what was expected and what to do."""


class VlmReuseError(Exception):
    """Base class of all errors that this package raises."""


class ConfigError(VlmReuseError):
    """A parameter is unknown, of the wrong type, or out of range."""


class ModelError(VlmReuseError):
    """The model cannot be loaded, or failed while it was running."""


class ImageError(VlmReuseError):
    """A camera message does not hold a usable picture.

    cause: a short, stable key for counters, such as 'truncated' or 'encoding'.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class InvalidRequestError(VlmReuseError):
    """A request is invalid: a question or a standing question that cannot be asked like this."""
