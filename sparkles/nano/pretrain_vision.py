"""Teach the miniature's ViT and Q-Former to see: each query token learns one fact of the scene.

Query k < 6 describes the object at `PLACES[k]`, then come the background and the count. All queries share one
linear read-out per attribute, so a single linear projector can later carry every fact into the language model.
The ViT's patches get a read-out of their own (what stands in this patch's cell), which a plain ViT needs in order
to leave the plateau where all shapes look alike.
"""

import random
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import nn
from torch.utils.data import IterableDataset
from torchvision.transforms.functional import to_tensor

from sparkles.models.vision import VisionEncoder
from sparkles.nano.world import (
    BACKGROUNDS,
    COLORS,
    COLUMNS,
    PLACES,
    ROWS,
    SHAPES,
    SIZES,
    Scene,
    random_scene,
    render,
)

NUM_QUERY_TOKENS = len(PLACES) + 2  # one for each place, the background, the count
ATTRIBUTES = {  # read-out -> number of classes; class 0 is "this query does not say"
    "size": 1 + len(SIZES),
    "color": 1 + len(COLORS),
    "shape": 1 + len(SHAPES),
    "background": 1 + len(BACKGROUNDS),
    "count": 1 + len(PLACES),
    "slot": NUM_QUERY_TOKENS,
}
PATCH_ATTRIBUTES = ("size", "color", "shape")
NORMALIZE_MEAN, NORMALIZE_STD = 0.5, 0.25


def use_sincos_positions(vision: VisionEncoder) -> None:
    """Start the learned position embedding as sines and cosines, from which it learns much sooner."""
    position: torch.Tensor = vision.backbone.pos_embed.data
    grid = vision.backbone.patch_embed.grid_size
    position[0, 1:] = 0.5 * build_sincos2d_pos_embed(list(grid), dim=position.shape[-1])


def scene_targets(scene: Scene) -> np.ndarray:
    """Classes of every query: int64[Q, len(ATTRIBUTES)]."""
    targets = np.zeros((NUM_QUERY_TOKENS, len(ATTRIBUTES)), dtype=np.int64)
    for index, thing in enumerate(scene.things):
        if thing is not None:
            targets[index, :3] = (
                1 + SIZES.index(thing.size),
                1 + list(COLORS).index(thing.color),
                1 + SHAPES.index(thing.shape),
            )
    targets[-2, 3] = 1 + BACKGROUNDS.index(scene.background)
    targets[-1, 4] = scene.count
    targets[:, 5] = np.arange(NUM_QUERY_TOKENS)
    return targets


class SceneStream(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Endless batches of training scenes: pixel_values float[B, 3, S, S], targets int64[B, Q, attributes].

    Deterministic by seed; meant for at most one loader worker.
    """

    def __init__(self, seed: int, batch_size: int) -> None:
        self.seed = seed
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        rng = random.Random(self.seed)
        while True:
            scenes = [random_scene(rng, "train") for _ in range(self.batch_size)]
            pixels = torch.stack([to_tensor(render(scene)) for scene in scenes])
            yield (
                (pixels - NORMALIZE_MEAN) / NORMALIZE_STD,
                torch.from_numpy(np.stack([scene_targets(s) for s in scenes])),
            )


class ReadOut(nn.Module):
    """The linear classifiers that exist in pretraining only."""

    def __init__(self, vision_width: int, query_width: int) -> None:
        super().__init__()
        self.queries = nn.ModuleDict(
            {name: nn.Linear(query_width, size) for name, size in ATTRIBUTES.items()}
        )
        self.patches = nn.ModuleDict(
            {name: nn.Linear(vision_width, ATTRIBUTES[name]) for name in PATCH_ATTRIBUTES}
        )

    def losses(
        self, queries: torch.Tensor, patches: torch.Tensor, targets: torch.Tensor, patch_cells: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Cross entropy of each read-out of the queries, and of the patches (summed)."""
        by_query = {
            name: F.cross_entropy(head(queries).flatten(0, 1), targets[..., index].flatten())
            for index, (name, head) in enumerate(self.queries.items())
        }
        patch_targets = targets[:, patch_cells]  # [B, patches, attributes]
        patch_loss = torch.stack(
            [
                F.cross_entropy(head(patches).flatten(0, 1), patch_targets[..., index].flatten())
                for index, (name, head) in enumerate(self.patches.items())
            ]
        ).sum()
        return by_query, patch_loss


def cells_of_patches(grid: int) -> torch.Tensor:
    """Index into `PLACES` of the cell that each patch's centre lies in: int64[grid * grid].

    >>> cells_of_patches(3).tolist()
    [0, 1, 2, 3, 4, 5, 3, 4, 5]
    """
    centre = (torch.arange(grid) + 0.5) / grid
    rows, columns = (centre * ROWS).long(), (centre * COLUMNS).long()
    return (rows[:, None] * COLUMNS + columns[None, :]).flatten()
