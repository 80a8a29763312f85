"""What is installed on request only."""

from collections.abc import Iterator
from contextlib import contextmanager

from sparkles.types import InputError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Say how to install what is imported here, where it is missing.

    Raises:
        InputError: in place of the ImportError.
    """
    try:
        yield
    except ImportError as error:
        raise InputError(f"{error.name} is not installed; pip install 'sparkles[{extra}]'") from error
