"""Errors a person reads: what was given, what was expected, what to do."""


class VlmReuseError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(VlmReuseError):
    """A parameter is unknown, of the wrong type, or out of range."""


class ModelError(VlmReuseError):
    """The model cannot be loaded, or failed while it ran."""


class ImageError(VlmReuseError):
    """A camera message is not a picture that can be used.

    cause: a short stable key for counters, such as 'truncated' or 'encoding'.
    """

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


class InvalidRequestError(VlmReuseError):
    """A question cannot be asked as it was given."""
