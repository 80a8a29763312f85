"""How published files name the weights of the vision encoder and of the Q-Former, and what else lies in them.

A layout is a list of rules. Each is a pattern of whole keys with the name that `VisionEncoder` or `QFormer` has for
such a tensor, or with None where the tensor is not for that part and is left aside by name. The first rule that
matches decides. A key that none matches keeps its name, so that it is reported as unexpected.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Rule = tuple[str, str | None]

_REST_OF_LAVIS = r"temp|itm_head\..+|(t5|opt|llm|llama|vision|text)_(proj|model)\..+"
_REST_OF_HUGGING_FACE = (
    r"embeddings\..+|itm_head\..+|language_model\..+|(language|vision|text)_projection\..+"
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The naming of one kind of file."""

    name: str
    sign: str
    """Pattern that some key of every such file begins with, and no key of the layouts listed behind it."""
    rules: tuple[Rule, ...]

    def is_that_of(self, keys: Iterable[str]) -> bool:
        return any(re.match(self.sign, key) for key in keys)

    def our_name(self, key: str) -> str | None:
        """What we call a tensor of the file; None: it is not for this part.

        >>> QFORMER_LAYOUTS[1].our_name("Qformer.bert.encoder.layer.0.attention.self.key.bias")
        'transformer.encoder.layer.0.attention.attention.key.bias'
        >>> QFORMER_LAYOUTS[1].our_name("t5_proj.weight") is None
        True
        """
        for pattern, ours in self.rules:
            if match := re.fullmatch(pattern, key):
                return None if ours is None else match.expand(ours)
        return key


def vision_layouts(depth: int) -> tuple[Layout, ...]:
    """Layouts of the files that hold weights of a `VisionEncoder` with `depth` blocks."""

    def eva(prefix: str) -> tuple[Rule, ...]:
        """Keys as in EVA's code, which are those of timm's `Eva`; the last blocks and both ends go unused."""
        used = "|".join(map(str, range(depth)))
        return (
            (rf"{prefix}blocks\.(?!({used})\.)\d+\..+", None),
            (rf"{prefix}(norm|fc_norm|head)\..+", None),
            (rf"{prefix}((cls_token|pos_embed|patch_embed|blocks)(\..+)?)", r"backbone.\1"),
        )

    layer = r"vision_model\.encoder\.layers\.(\d+)\."
    hugging_face = (
        (r"vision_model\.embeddings\.class_embedding", "backbone.cls_token"),
        (r"vision_model\.embeddings\.position_embedding", "backbone.pos_embed"),
        (r"vision_model\.embeddings\.patch_embedding\.(.+)", r"backbone.patch_embed.proj.\1"),
        (layer + r"layer_norm(\d)\.(.+)", r"backbone.blocks.\1.norm\2.\3"),
        (layer + r"self_attn\.qkv\.(.+)", r"backbone.blocks.\1.attn.qkv.\2"),
        (layer + r"self_attn\.projection\.(.+)", r"backbone.blocks.\1.attn.proj.\2"),
        (layer + r"mlp\.(.+)", r"backbone.blocks.\1.mlp.\2"),
        (r"vision_model\.post_layernorm\.(.+)", r"ln_vision.\1"),
        (rf"query_tokens|qformer\..+|{_REST_OF_HUGGING_FACE}", None),
    )
    lavis = (
        (r"ln_vision\..+", r"\g<0>"),
        *eva(r"visual_encoder\."),
        (rf"query_tokens|Qformer\..+|{_REST_OF_LAVIS}", None),
    )
    timm = (
        (r"(fc_norm|attn_pool|head)\..+", None),
        (r".+", r"backbone.\g<0>"),
    )
    return (
        Layout(name="BLIP-2 of Hugging Face", sign=r"vision_model\.", rules=hugging_face),
        Layout(name="BLIP-2 of LAVIS", sign=r"Qformer\.", rules=lavis),
        Layout(name="EVA", sign=r"blocks\.\d+\.attn\.q_bias", rules=eva("")),
        Layout(name="a vision transformer of timm", sign=r"patch_embed\.", rules=timm),
    )


QFORMER_LAYOUTS = (
    Layout(
        name="BLIP-2 of Hugging Face",
        sign=r"qformer\.",
        rules=(
            # The feed-forward layers of text tokens, of which we have none.
            (r"qformer\.encoder\.layer\.\d+\.(intermediate|output)\..+", None),
            (r"qformer\.(.+)", r"transformer.\1"),
            (rf"vision_model\..+|{_REST_OF_HUGGING_FACE}", None),
        ),
    ),
    Layout(
        name="BLIP-2 of LAVIS",
        sign=r"Qformer\.",
        rules=(
            # Text embeddings, the feed-forward layers of text tokens, and the head that predicts words.
            (r"Qformer\.bert\.embeddings\.(position_ids|(word|position)_embeddings\.weight)", None),
            (r"Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\..+", None),
            (r"Qformer\.cls\..+", None),
            (r"Qformer\.bert\.embeddings\.LayerNorm\.(.+)", r"transformer.layernorm.\1"),
            (r"Qformer\.bert\.(.+attention)\.self\.(.+)", r"transformer.\1.attention.\2"),
            (r"Qformer\.bert\.(.+)", r"transformer.\1"),
            (rf"ln_vision\..+|visual_encoder\..+|{_REST_OF_LAVIS}", None),
        ),
    ),
)
