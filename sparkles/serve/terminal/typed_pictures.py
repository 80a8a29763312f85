"""Pictures between typed words: `@path`, or `@"a path with spaces"`."""

import io
import os.path
import re
from pathlib import Path

import PIL.Image
import PIL.ImageOps

from sparkles.serve.pictures import PictureError, data_url

# No address (me@example.org). A path ends where the sentence goes on: at white space, or at punctuation before white
# space or the end.
_PICTURE = re.compile(r"""(?<![A-Za-z0-9._%+-])@(?:"([^"]+)"|(\S+?)(?=[,;:!?.)\]'"]*(?:\s|$)))""")


def parse_question(text: str) -> tuple[list[dict[str, str]], list[str]]:
    """The question as the parts that `Chat` takes, and the paths of its pictures as they were typed.

    Raises:
        PictureError: a path is no readable picture.

    >>> parse_question("Hello!")
    ([{'text': 'Hello!'}], [])
    """
    parts: list[dict[str, str]] = []
    paths: list[str] = []
    end = 0
    for match in _PICTURE.finditer(text):
        paths.append(match[1] or match[2])
        parts += [{"text": text[end : match.start()]}, {"picture": _data_url(paths[-1])}]
        end = match.end()
    parts.append({"text": text[end:]})
    return [part for part in parts if part != {"text": ""}], paths


def spell(path: str) -> str:
    """As it is typed.

    >>> spell("cat.png"), spell("my cat.png")
    ('@cat.png', '@"my cat.png"')
    """
    match = _PICTURE.match(f"@{path}")
    return f"@{path}" if match and match[2] == path else f'@"{path}"'


def _data_url(path: str) -> str:
    # Unlike the method of Path, this leaves the ~ of an unknown user alone.
    file = Path(os.path.expanduser(path))  # noqa: PTH111
    try:
        with PIL.Image.open(file) as picture:
            picture.load()  # said now, by name, not when the model is asked
            content = file.read_bytes() if picture.format in ("PNG", "JPEG") else _png(picture)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PictureError(
            f"cannot read {path}: {reason}; expected a picture behind @: correct the path, and quote one with "
            'spaces: @"my cat.png"'
        ) from error
    return data_url(content, "image/*")


def _png(picture: PIL.Image.Image) -> bytes:
    """Of any other kind that Pillow reads; of an animation the first frame."""
    file = io.BytesIO()
    PIL.ImageOps.exif_transpose(picture).convert("RGB").save(file, "PNG")
    return file.getvalue()
