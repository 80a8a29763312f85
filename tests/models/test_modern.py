"""`model=modern` as it ships, with tiny random files in place of the real ones."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sparkles.config import CONFIG_DIR, register_resolvers
from sparkles.data.collate import pad_batch
from sparkles.data.encoding import Encoder
from sparkles.data.tokenizer import load_tokenizer
from sparkles.models.checkpoints import load_projection, save_projection
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import image_reference
from sparkles.types import Image, Message, Prompt, Sample

VIT = "vit_base_patch16_siglip_224"
VIT_SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
RESAMPLER_SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def weights_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder as timm publishes it, with the pooling that we leave out, and a chat model with its tokenizer."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    (folder / "vision").mkdir()
    save_file(
        timm.create_model(VIT, num_classes=0, **VIT_SIZES).state_dict(),
        folder / "vision" / "model.safetensors",
    )

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.save_pretrained(folder / "language")
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder / "language")
    return folder


@pytest.fixture(params=["resampler", "pooling"])
def cfg(request: pytest.FixtureRequest, weights_dir: Path) -> Iterator[DictConfig]:
    sizes = [f"++model.vision.{name}={size}" for name, size in VIT_SIZES.items()]
    if request.param == "resampler":
        sizes += [f"model.qformer.{name}={size}" for name, size in RESAMPLER_SIZES.items()]
    register_resolvers()
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        yield compose(
            "train",
            [
                "data=sparkles_dialogue",
                "model=modern",
                f"model/qformer={request.param}",
                f"model.vision.checkpoint={weights_dir / 'vision'}",
                f"model.language.path={weights_dir / 'language'}",
                f"model.vision.name={VIT}",
                "model.vision.dtype=float32",  # some CPUs lack the instructions that bfloat16 takes
                "model.language.dtype=float32",
                "model.projector.hidden_features=[40]",
                "model.qformer.num_query_tokens=4",
                *sizes,
            ],
        )


def build(cfg: DictConfig) -> SparklesChat:
    torch.manual_seed(0)
    return instantiate(cfg.model, _convert_="all")


@pytest.fixture
def model(cfg: DictConfig) -> SparklesChat:
    return build(cfg)


@pytest.fixture
def encoder(cfg: DictConfig) -> Encoder:
    return Encoder(
        tokenizer=load_tokenizer(cfg.model.language.path),
        prompt_format=instantiate(cfg.prompt_format),
        num_query_tokens=cfg.data.num_query_tokens,
        max_length=512,
    )


@pytest.fixture
def dialogues() -> list[Sample]:
    """About two images, one image and none."""

    def make(answer: str, *image_ids: int) -> Sample:
        content = f"What is in {' and '.join(map(image_reference, image_ids)) or 'a forest'}?"
        images = tuple(Image(image_id=image_id) for image_id in image_ids)
        return Sample(
            prompt=Prompt(messages=(Message(role="user", content=content, images=images),)), answer=answer
        )

    return [make("A cat and a dog.", 1, 2), make("A cow.", 3), make("Trees.")]


@pytest.fixture
def to_batch(cfg: DictConfig, encoder: Encoder, dialogues: list[Sample]) -> Callable[..., dict[str, Tensor]]:
    def make(*, answered: bool) -> dict[str, Tensor]:
        encode = encoder.encode_sample if answered else lambda sample: encoder.encode_prompt(sample.prompt)
        size = cfg.data.train_transform.image_size
        generator = torch.Generator().manual_seed(3)
        return pad_batch(
            [encode(sample) for sample in dialogues],
            [torch.randn(3, size, size, generator=generator) for sample in dialogues for _ in sample.images],
            pad_token_id=encoder.pad_token_id,
            side="right" if answered else "left",
        )

    return make


def test_images_are_normalized_as_the_encoder_was_trained(cfg: DictConfig) -> None:
    assert cfg.data.train_transform.mean == cfg.data.eval_transform.mean == [0.5, 0.5, 0.5]
    assert cfg.data.train_transform.std == cfg.data.eval_transform.std == [0.5, 0.5, 0.5]


def test_sizes_follow_the_parts(cfg: DictConfig, model: SparklesChat) -> None:
    vectors = model.encode_images(torch.randn(2, 3, 32, 32))
    assert vectors.shape == (2, cfg.data.num_query_tokens, model.qformer.hidden_size)
    assert model.projector(vectors).shape == (2, cfg.data.num_query_tokens, model.language.config.hidden_size)


def test_texts_are_in_the_chat_template_of_the_language_model(
    encoder: Encoder, dialogues: list[Sample]
) -> None:
    ids = encoder.encode_sample(dialogues[2]).input_ids
    assert encoder.tokenizer.decode(ids).rstrip() == (
        "<|im_start|>user\nWhat is in a forest?<|im_end|>\n<|im_start|>assistant\nTrees.<|im_end|>"
    )


def test_what_is_trainable_learns_answers_and_is_kept(
    cfg: DictConfig, model: SparklesChat, to_batch: Callable[..., dict[str, Tensor]], tmp_path: Path
) -> None:
    batch = to_batch(answered=True)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    losses = []
    for _ in range(8):
        loss = model(batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]

    save_projection(model, tmp_path / "trained.safetensors", {})
    fresh = build(cfg)
    assert fresh(batch).item() != pytest.approx(model(batch).item(), rel=1e-4)
    load_projection(fresh, tmp_path / "trained.safetensors")
    assert fresh(batch).item() == pytest.approx(model(batch).item(), rel=1e-5)


def test_answers_are_generated_for_every_prompt(
    model: SparklesChat, to_batch: Callable[..., dict[str, Tensor]], encoder: Encoder
) -> None:
    ids = model.generate(
        to_batch(answered=False), max_new_tokens=5, do_sample=False, pad_token_id=encoder.pad_token_id
    )
    assert len(ids) == 3
    assert 1 <= ids.shape[1] <= 5
