"""The miniature's tokenizer: every word of the scenes world is one token, and any other text still goes in.

A Unigram model with LLaMA's conventions (words carry the space before them as a low line, unknown characters become
bytes), so the encoder treats it exactly as the full-size tokenizer.
"""

import re
import string
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

UNKNOWN, BOS, EOS = "<unk>", "<s>", "</s>"
_FORMAT_PIECES = (
    "###",
    "Human:",
    "Assistant:",
    "IMAGE#",
    "▁IMAGE#",
    "<Img>",
    "</Img>",
    "▁</Img>",
    "▁<Img>",
    "ImageContent",
)
_WORD = re.compile(r"( ?)([A-Za-z][A-Za-z-]*|[^\sA-Za-z])")


def build_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer whose whole words are those of `texts`.

    >>> tokenizer = build_tokenizer(["a big red star"])
    >>> tokenizer.tokenize("a red star ñ")
    ['▁a', '▁red', '▁star', '▁', '<0xC3>', '<0xB1>']
    """
    words = sorted(
        {("▁" if space else "") + word for text in texts for space, word in _WORD.findall(" " + text)}
    )
    pairs = [f"{number:02d}" for number in range(100)]  # image ids are read two digits at a time
    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "▁", "\n"]
    specials = [UNKNOWN, BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
    # A Unigram tokenizer takes the split with the largest sum of scores, so whole words must beat their letters.
    scored = dict.fromkeys(specials, 0.0)
    scored |= {piece: -20.0 for piece in letters if piece not in scored}
    scored |= dict.fromkeys((*words, *pairs), -8.0)
    scored |= dict.fromkeys(_FORMAT_PIECES, -4.0)
    model = models.Unigram(list(scored.items()), unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        clean_up_tokenization_spaces=False,
    )
