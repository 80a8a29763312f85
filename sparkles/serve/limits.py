"""How much one request may ask for. How many requests there may be is the engine's to say."""

from dataclasses import dataclass

CHARACTERS_PER_TOKEN = 64
"""No text of any length has so many on average; what is longer need not be split into tokens to be refused."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What is above gets an error that names the limit."""

    body_bytes: int = 20_000_000
    """Of a request with its pictures; also of a picture behind a URL."""
    body_seconds: float = 10.0
    """Until a request has arrived, besides 100 microseconds for each byte; also until a picture has been fetched."""
    messages: int = 256
    images: int = 16
    """Of a whole conversation."""
    image_pixels: int = 20_000_000
    """Of a picture, before anything of it is unpacked."""
    tokens: int = 1_024
    """Of an answer."""
    choices: int = 8
    stops: int = 4
    """Stop strings of a request, as of OpenAI's."""
    stop_characters: int = 128
    """Of each."""
    beams: int = 8
    """Of a search for an answer in the web chat."""
