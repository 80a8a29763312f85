"""Files of others fill our parts exactly, or are refused with every reason."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    Blip2VisionModelWithProjection,
    OPTConfig,
)

from sparkles.models.checkpoints import CheckpointError
from sparkles.models.qformer import QFormer
from sparkles.models.vision import VisionEncoder

SIZE, PATCH, WIDTH, DEPTH, HEADS, HIDDEN = 32, 8, 24, 2, 2, 40
QUERIES, Q_WIDTH, Q_LAYERS, Q_HIDDEN = 5, 16, 4, 32


def make_vision(**options) -> VisionEncoder:
    eva = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    eva |= {"mlp_ratio": HIDDEN / WIDTH, "use_post_transformer_norm": False}
    return VisionEncoder(name="eva_giant_patch14_224", **eva | options).eval()


def make_qformer(**options) -> QFormer:
    return QFormer(
        vision_hidden_size=WIDTH,
        hidden_size=Q_WIDTH,
        num_hidden_layers=Q_LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=Q_HIDDEN,
        num_query_tokens=QUERIES,
        **options,
    ).eval()


def randomize(module: torch.nn.Module) -> None:
    """Leave no weight at a value that another could have by default, such as ones and zeros of a norm."""
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)


# --- Hugging Face ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def blip2() -> Blip2VisionModelWithProjection:
    """The vision side of Hugging Face's BLIP-2, with ln_vision's epsilon as in the original."""
    torch.manual_seed(0)
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_hidden_layers=DEPTH,
            num_attention_heads=HEADS,
            image_size=SIZE,
            patch_size=PATCH,
        ).to_dict(),
        qformer_config=Blip2QFormerConfig(
            vocab_size=11,
            hidden_size=Q_WIDTH,
            num_hidden_layers=Q_LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=Q_HIDDEN,
        ).to_dict(),
        text_config=OPTConfig(vocab_size=11, hidden_size=16).to_dict(),
        num_query_tokens=QUERIES,
    )
    model = Blip2VisionModelWithProjection(config).eval()
    randomize(model)
    model.vision_model.post_layernorm.eps = 1e-5
    return model


@pytest.mark.parametrize("saved", ["one file", "shards", "index", "torch file"])
def test_hugging_face_blip2_gives_the_same_vectors(
    saved: str, blip2: Blip2VisionModelWithProjection, tmp_path: Path
) -> None:
    path = tmp_path
    if saved == "torch file":
        path /= "pytorch_model.bin"
        torch.save(blip2.state_dict(), path)
    else:
        blip2.save_pretrained(tmp_path, max_shard_size="50GB" if saved == "one file" else "20KB")
        assert len(list(tmp_path.glob("*.safetensors"))) > 1 or saved == "one file"
        path /= {"one file": "model.safetensors", "shards": "", "index": "model.safetensors.index.json"}[
            saved
        ]
    vision, qformer = make_vision(checkpoint=path), make_qformer(checkpoint=path)

    pixels = torch.randn(3, 3, SIZE, SIZE)
    with torch.no_grad():
        image_tokens = blip2.vision_model(pixels).last_hidden_state
        queries = blip2.qformer(
            query_embeds=blip2.query_tokens.expand(3, -1, -1), encoder_hidden_states=image_tokens
        ).last_hidden_state
        torch.testing.assert_close(vision(pixels), image_tokens)
        torch.testing.assert_close(qformer(vision(pixels)), queries)


def test_missing_shard_is_named(blip2: Blip2VisionModelWithProjection, tmp_path: Path) -> None:
    blip2.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = max(tmp_path.glob("*.safetensors"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(str(shard))}: no such file"):
        make_vision(checkpoint=tmp_path)


# --- LAVIS ----------------------------------------------------------------------------------------------------


@pytest.fixture
def lavis(tmp_path: Path) -> Callable[..., list[Path]]:
    """Writes `eva_vit_g.pth`, with more than BLIP-2 uses, and the file with Q-Former and ln_vision."""
    torch.manual_seed(1)
    whole, qformer = make_vision(depth=DEPTH + 1, use_post_transformer_norm=True), make_qformer()
    randomize(whole)
    randomize(qformer)

    def write(**changes: Tensor | None) -> list[Path]:
        eva = {**whole.backbone.state_dict(), "head.weight": torch.ones(7, WIDTH), "head.bias": torch.ones(7)}
        eva |= {name: tensor for name, tensor in changes.items() if tensor is not None}
        blip2 = {"query_tokens": qformer.query_tokens.data, **whole.ln_vision.state_dict(prefix="ln_vision.")}
        for name, tensor in qformer.transformer.state_dict().items():
            name = name.replace("attention.attention.", "attention.self.")
            name = re.sub(r"^layernorm", "embeddings.LayerNorm", name)
            blip2[f"Qformer.bert.{name}"] = tensor
        blip2 |= {
            "t5_proj.weight": torch.ones(4, Q_WIDTH),
            "Qformer.bert.embeddings.position_ids": torch.ones(1, 9),
        }
        paths = [tmp_path / "eva_vit_g.pth", tmp_path / "blip2_pretrained_flant5xxl.pth"]
        torch.save({name: eva[name] for name in eva if changes.get(name, eva[name]) is not None}, paths[0])
        torch.save({"model": blip2, "epoch": 3}, paths[1])
        return paths

    return write


def test_lavis_files_fill_both_parts(lavis: Callable[..., list[Path]]) -> None:
    paths = lavis()
    vision, qformer = make_vision(checkpoint=paths), make_qformer(checkpoint=paths[1])
    eva = torch.load(paths[0], weights_only=True)
    blip2 = torch.load(paths[1], weights_only=True)["model"]
    expected = {f"backbone.{name}": eva[name] for name in vision.backbone.state_dict()}
    expected |= {name: tensor for name, tensor in blip2.items() if name.startswith("ln_vision.")}
    torch.testing.assert_close(vision.state_dict(), expected, rtol=0, atol=0)
    looking = "crossattention.{}.query.weight"
    torch.testing.assert_close(
        qformer.transformer.encoder.layer[2].state_dict()[looking.format("attention")],
        blip2["Qformer.bert.encoder.layer.2." + looking.format("self")],
        rtol=0,
        atol=0,
    )


def test_recorded_files_give_the_recorded_vectors(golden: Path) -> None:
    sizes = json.loads((golden / "meta.json").read_text())["dims"]
    vision = VisionEncoder(
        name="eva_giant_patch14_224",
        checkpoint=[golden / "eva_vit.pth", golden / "blip2_qformer.pth"],
        img_size=sizes["img"],
        patch_size=sizes["patch"],
        embed_dim=sizes["vit_dim"],
        depth=sizes["vit_depth"],
        num_heads=sizes["vit_heads"],
        mlp_ratio=4.3637,
        use_post_transformer_norm=False,
    ).eval()
    qformer = QFormer(
        vision_hidden_size=sizes["vit_dim"],
        hidden_size=sizes["qf_hidden"],
        num_hidden_layers=sizes["qf_layers"],
        num_attention_heads=sizes["qf_heads"],
        intermediate_size=sizes["qf_inter"],
        num_query_tokens=sizes["num_query"],
        checkpoint=golden / "blip2_qformer.pth",
    ).eval()
    recorded = load_file(golden / "samples.safetensors")
    samples = json.loads((golden / "samples.json").read_text())
    batches = [name for name, sample in samples.items() if sample["kind"] == "batch"]
    first = {name: samples[name]["members"][0] for name in batches}
    compared = [
        name
        for name in batches
        if f"{name}/pixel_values" in recorded and f"{first[name]}/qformer_out" in recorded
    ]
    assert compared
    for name in compared:
        with torch.no_grad():
            tokens = vision(recorded[f"{name}/pixel_values"][0])
            queries = qformer(tokens)
        for got, part in ((tokens, "ln_vision_out"), (queries, "qformer_out")):
            expected = recorded[f"{first[name]}/{part}"]
            assert (got[: len(expected)] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_positions_of_another_image_size_are_resampled_without_antialiasing(
    lavis: Callable[..., list[Path]],
) -> None:
    paths = lavis()
    half = make_vision(checkpoint=paths, img_size=SIZE // 2)
    class_position, patches = torch.load(paths[0], weights_only=True)["pos_embed"].split(
        [1, (SIZE // PATCH) ** 2], 1
    )
    grid = patches.mT.unflatten(2, (SIZE // PATCH, SIZE // PATCH))
    smaller = F.interpolate(grid, scale_factor=0.5, mode="bicubic", antialias=False).flatten(2).mT
    torch.testing.assert_close(half.backbone.pos_embed.data, torch.cat([class_position, smaller], dim=1))


def test_eva_alone_lacks_ln_vision(lavis: Callable[..., list[Path]]) -> None:
    with pytest.raises(CheckpointError) as caught:
        make_vision(checkpoint=lavis()[0])
    assert re.search(r"eva_vit_g\.pth \(read as EVA\) does not fit VisionEncoder", str(caught.value))
    assert re.findall(r"(missing|unexpected|shape of):? (\S+)", str(caught.value)) == [
        ("missing", "ln_vision.weight"),
        ("missing", "ln_vision.bias"),
    ]


def test_final_norm_that_blip2_does_not_apply_is_never_loaded(lavis: Callable[..., list[Path]]) -> None:
    with pytest.raises(CheckpointError, match=r"missing: backbone\.norm\.weight"):
        make_vision(checkpoint=lavis(), use_post_transformer_norm=True)


def test_every_other_key_must_fit(lavis: Callable[..., list[Path]]) -> None:
    paths = lavis(
        **{
            "blocks.0.attn.proj.bias": None,
            "blocks.0.attn.k_bias": torch.zeros(3),
            "mask_token": torch.zeros(1, 1, 4),
            "cls_token": torch.zeros(1, 1, 99),
        }
    )
    with pytest.raises(CheckpointError) as caught:
        make_vision(checkpoint=paths)
    complaint, *problems, _ = str(caught.value).split("\n  ")
    assert complaint == (
        f"{paths[0]} (read as EVA) and {paths[1]} (read as BLIP-2 of LAVIS) do not fit VisionEncoder:"
    )
    assert problems == [
        f"missing: backbone.blocks.0.attn.proj.bias ({WIDTH},)",
        "unexpected: backbone.blocks.0.attn.k_bias (3,)",
        "unexpected: mask_token (1, 1, 4)",
        f"shape of backbone.cls_token: got (1, 1, 99), expected (1, 1, {WIDTH})",
    ]


def test_file_for_another_part_is_refused(lavis: Callable[..., list[Path]], tmp_path: Path) -> None:
    paths = lavis()
    save_file({"llama_proj.weight": torch.ones(1)}, tmp_path / "projection.safetensors")
    with pytest.raises(CheckpointError, match=r"unexpected: llama_proj\.weight"):
        make_vision(checkpoint=[*paths, tmp_path / "projection.safetensors"])
    with pytest.raises(CheckpointError, match=r"missing: query_tokens"):
        make_qformer(checkpoint=paths[0])


def test_weights_that_come_twice_are_refused(lavis: Callable[..., list[Path]]) -> None:
    paths = lavis()
    with pytest.raises(CheckpointError, match=r"both hold ln_vision\.bias"):
        make_vision(checkpoint=[*paths, paths[1]])


def test_text_side_of_a_pretrained_qformer_is_left_aside(lavis: Callable[..., list[Path]]) -> None:
    """The first stage of LAVIS saves word embeddings, a second feed-forward path and heads as well."""
    path = lavis()[1]
    weights = torch.load(path, weights_only=True)["model"]
    text_path = [name.replace("_query", "") for name in weights if "_query." in name]
    heads = (
        "Qformer.bert.embeddings.word_embeddings.weight Qformer.bert.embeddings.position_embeddings.weight "
        "Qformer.cls.predictions.bias vision_proj.weight text_proj.bias itm_head.weight temp visual_encoder.cls_token"
    )
    others = dict.fromkeys([*text_path, *heads.split()], torch.ones(1))
    second = path.with_name("blip2_pretrained.pth")
    torch.save({"model": weights | others}, second)
    torch.testing.assert_close(
        make_qformer(checkpoint=second).state_dict(),
        make_qformer(checkpoint=path).state_dict(),
        rtol=0,
        atol=0,
    )


# --- timm -----------------------------------------------------------------------------------------------------


def test_file_of_timm_fills_the_encoder_but_not_its_pooling(tmp_path: Path) -> None:
    options = {
        "name": "vit_base_patch16_siglip_224",
        "img_size": SIZE,
        "patch_size": PATCH,
        "ln_vision": False,
    }
    options |= {"embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_ratio": 2}
    first = VisionEncoder(**options).eval()
    randomize(first)
    published = {
        **first.backbone.state_dict(),
        "attn_pool.latent": torch.ones(1, 1, WIDTH),
        "head.bias": torch.ones(2),
    }
    save_file(published, tmp_path / "model.safetensors")
    second = VisionEncoder(checkpoint=tmp_path, **options).eval()
    pixels = torch.randn(1, 3, SIZE, SIZE)
    torch.testing.assert_close(second(pixels), first(pixels))
    save_file(published | {"extra": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"vision transformer of timm\)(?s:.*)unexpected: backbone\.extra"
    ):
        VisionEncoder(checkpoint=tmp_path, **options)


# --- reading --------------------------------------------------------------------------------------------------


def test_long_lists_are_cut_for_each_kind_of_problem(tmp_path: Path) -> None:
    qformer, path = make_qformer(), tmp_path / "weights.safetensors"
    save_file({f"extra{number}": torch.zeros(1) for number in range(11)}, path)
    with pytest.raises(CheckpointError) as caught:
        make_qformer(checkpoint=path)
    message = str(caught.value)
    assert f"missing: ... and {len(qformer.state_dict()) - 8} more" in message
    assert message.count("unexpected: extra") == 8
    assert "unexpected: ... and 3 more" in message


@pytest.mark.parametrize("content", [[torch.zeros(1)], torch.zeros(1)], ids=["list", "tensor"])
def test_file_without_names_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(
        CheckpointError, match=r"weights\.pth: not readable as weights \(it holds a (list|Tensor)"
    ):
        make_qformer(checkpoint=tmp_path / "weights.pth")


def test_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: no such file; expected weights as"):
        make_qformer(checkpoint=tmp_path)
