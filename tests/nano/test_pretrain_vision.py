import random
from itertools import islice

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig

from sparkles.config import CONFIG_DIR
from sparkles.models.qformer import QFormer
from sparkles.models.vision import VisionEncoder
from sparkles.nano.corpus import slot_words
from sparkles.nano.language import NUMBERS
from sparkles.nano.pretrain_vision import (
    ATTRIBUTES,
    NORMALIZE_MEAN,
    NORMALIZE_STD,
    NUM_QUERY_TOKENS,
    ReadOut,
    SceneStream,
    cells_of_patches,
    scene_targets,
    use_sincos_positions,
)
from sparkles.nano.world import BACKGROUNDS, COLORS, IMAGE_SIZE, SHAPES, SIZES, random_scene


@pytest.fixture(scope="module")
def config() -> DictConfig:
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose("train")


@pytest.fixture(scope="module")
def parts(config: DictConfig) -> tuple[VisionEncoder, QFormer]:
    torch.manual_seed(0)
    return instantiate(config.model.vision, checkpoint=None), instantiate(
        config.model.qformer, checkpoint=None
    )


def test_pictures_are_normalised_as_in_the_configured_data(config: DictConfig) -> None:
    transform = config.data.eval_transform
    assert (transform.image_size, list(transform.mean), list(transform.std)) == (
        IMAGE_SIZE,
        [NORMALIZE_MEAN] * 3,
        [NORMALIZE_STD] * 3,
    )


@given(st.integers(0, 2**32))
def test_each_query_learns_the_fact_that_its_slot_has_in_words(seed: int) -> None:
    scene = random_scene(random.Random(seed), "train")
    targets = scene_targets(scene)
    assert targets.shape == (NUM_QUERY_TOKENS, len(ATTRIBUTES))
    said = []
    for row in targets.tolist():
        size, color, shape, background, count, _ = row
        words = [
            options[i - 1] for options, i in ((SIZES, size), (list(COLORS), color), (SHAPES, shape)) if i
        ]
        words += [BACKGROUNDS[background - 1]] * bool(background) + [NUMBERS[count]] * bool(count)
        said.append(words or ["nothing"])
    assert said == [list(words[:-1]) for words in slot_words(scene)]
    assert targets[:, -1].tolist() == list(range(NUM_QUERY_TOKENS))


@pytest.mark.parametrize("patches_per_side", [6, 9, 14])
def test_a_patch_lies_in_the_cell_of_its_centre(patches_per_side: int) -> None:
    cells = cells_of_patches(patches_per_side)
    step = IMAGE_SIZE / patches_per_side
    for patch, cell in enumerate(cells.tolist()):
        row, column = divmod(patch, patches_per_side)
        x, y = (column + 0.5) * step, (row + 0.5) * step
        assert cell == int(y // (IMAGE_SIZE / 2)) * 3 + int(x // (IMAGE_SIZE / 3))


def test_batches_repeat_with_their_seed() -> None:
    first, again = (list(islice(SceneStream(3, 4), 2)) for _ in range(2))
    for (pixels, targets), (same_pixels, same_targets) in zip(first, again, strict=True):
        assert pixels.shape == (4, 3, IMAGE_SIZE, IMAGE_SIZE)
        assert torch.equal(pixels, same_pixels)
        assert torch.equal(targets, same_targets)
    assert not torch.equal(first[0][0], first[1][0])


def test_sincos_positions_tell_patches_apart_and_leave_the_class_token(
    parts: tuple[VisionEncoder, QFormer],
) -> None:
    vision, _ = parts
    before = vision.backbone.pos_embed.detach().clone()
    use_sincos_positions(vision)
    after = vision.backbone.pos_embed.detach()
    assert torch.equal(after[0, 0], before[0, 0])
    patches = after[0, 1:]
    distances = torch.cdist(patches, patches) + torch.eye(len(patches)) * 9
    assert distances.min() > 0.1
    assert vision.backbone.pos_embed.requires_grad


def test_every_part_learns_from_the_loss(parts: tuple[VisionEncoder, QFormer]) -> None:
    vision, qformer = parts
    read_out = ReadOut(vision.hidden_size, qformer.hidden_size)
    pixels, targets = next(iter(SceneStream(0, 2)))
    tokens = vision(pixels)
    queries = qformer(tokens)
    assert queries.shape == (2, NUM_QUERY_TOKENS, qformer.hidden_size)
    cells = cells_of_patches(vision.backbone.patch_embed.grid_size[0])
    by_query, of_patches = read_out.losses(queries, tokens[:, 1:], targets, cells)
    assert by_query.keys() == ATTRIBUTES.keys()
    (sum(by_query.values()) + of_patches).backward()
    trained = [*vision.backbone.blocks.parameters(), qformer.query_tokens, *read_out.parameters()]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained if p.ndim > 1)


def test_perfect_read_outs_have_no_loss() -> None:
    """Features that spell the classes out one-hot, read by heads that copy them."""
    width = sum(ATTRIBUTES.values())
    read_out = ReadOut(width, width)
    with torch.no_grad():
        for heads in (read_out.queries, read_out.patches):
            start = 0
            for name, size in ATTRIBUTES.items():
                if name in heads:
                    heads[name].weight.copy_(50 * torch.eye(width)[start : start + size])
                    heads[name].bias.zero_()
                start += size
    _, targets = next(iter(SceneStream(1, 3)))
    features = torch.cat(
        [torch.nn.functional.one_hot(targets[..., i], n) for i, n in enumerate(ATTRIBUTES.values())], dim=-1
    ).float()
    cells = cells_of_patches(6)
    by_query, of_patches = read_out.losses(features, features[:, cells], targets, cells)
    assert max(loss.item() for loss in by_query.values()) < 1e-6
    assert of_patches.item() < 1e-6
