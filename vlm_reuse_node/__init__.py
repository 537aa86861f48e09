"""Robot perception with vision-language models that does not pay twice for the same pixels."""

__version__ = '0.1.0'
