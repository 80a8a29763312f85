import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from sparkles.models.checkpoints import CheckpointError, origin, save_projection, state_hash
from sparkles.models.lightning_module import SparklesModule
from sparkles.models.schedule import linear_warmup_cosine
from sparkles.models.sparkles_chat import SparklesChat
from sparkles.prompt_format import MINIGPT4, PromptFormatError

MakeModel = Callable[..., SparklesChat]

ADAMW = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.05)
SCHEDULE = partial(linear_warmup_cosine, min_lr=1e-3, warmup_lr=1e-4, warmup_steps=2, epoch_steps=6)


def make_module(model: SparklesChat, **options) -> SparklesModule:
    return SparklesModule(model=model, optimizer=ADAMW, scheduler=SCHEDULE, **options)


def make_trainer(folder: Path, **options) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def fit(
    module: SparklesModule,
    batch: dict[str, Tensor],
    folder: Path,
    *,
    max_steps: int = 6,
    ckpt_path: Path | None = None,
) -> L.Trainer:
    """Train on one batch again and again, so that a resumed run sees the same data."""
    trainer = make_trainer(folder, max_steps=max_steps)
    loader = DataLoader([batch] * 6, batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer


@pytest.fixture
def batch(dialogues, make_batch) -> dict[str, Tensor]:
    return make_batch(dialogues)


@pytest.fixture
def checkpoint(model: SparklesChat, batch, tmp_path: Path) -> Path:
    """Three steps into a run of six."""
    path = tmp_path / "half.ckpt"
    fit(make_module(model), batch, tmp_path, max_steps=3).save_checkpoint(path)
    return path


def test_training_lowers_the_loss_and_leaves_frozen_weights_alone(
    model: SparklesChat, batch, tmp_path: Path
) -> None:
    module = make_module(model)
    before = {name: param.clone() for name, param in model.named_parameters()}
    first = model(batch).item()
    trainer = fit(module, batch, tmp_path)
    assert model(batch).item() < first
    changed = {name for name, param in model.named_parameters() if not torch.equal(param, before[name])}
    assert changed == {"projector.layers.0.weight", "projector.layers.0.bias"}
    assert {"train/loss", "lr"} <= set(trainer.callback_metrics)


def test_rate_follows_the_schedule_step_by_step(model: SparklesChat, batch, tmp_path: Path) -> None:
    trainer = fit(make_module(model), batch, tmp_path, max_steps=4)
    quarter_down_the_cosine = 1e-3 + 9e-3 * (1 + 2**-0.5) / 2
    assert trainer.callback_metrics["lr"].item() == pytest.approx(quarter_down_the_cosine, rel=1e-5)


@pytest.mark.parametrize(("options", "times"), [({}, 1), ({"sum_accumulated": True}, 2)])
def test_a_batch_counts_once_however_often_it_is_accumulated_unless_sums_are_asked_for(
    options: dict[str, bool], times: int, make_model: MakeModel, batch, tmp_path: Path
) -> None:
    def step(accumulated: int, **options: bool) -> Tensor:
        module = SparklesModule(model=make_model(), optimizer=partial(torch.optim.SGD, lr=1.0), **options)
        before = module.model.projector.layers[0].weight.detach().clone()
        trainer = make_trainer(tmp_path, max_steps=1, accumulate_grad_batches=accumulated)
        trainer.fit(module, DataLoader([batch] * accumulated, batch_size=None))
        return module.model.projector.layers[0].weight.detach() - before

    torch.testing.assert_close(step(2, **options), times * step(1))


def test_only_matrices_decay(make_model: MakeModel) -> None:
    module = SparklesModule(model=make_model(hidden_features=(8,)), optimizer=ADAMW)
    optimizer = module.configure_optimizers()
    groups = [(group["weight_decay"], [p.ndim for p in group["params"]]) for group in optimizer.param_groups]
    assert groups == [(0.05, [2, 2]), (0.0, [1, 1])]


def test_validation_loss_is_the_mean_over_tokens_for_any_batch_size(
    model: SparklesChat, dialogues, make_batch, tmp_path: Path
) -> None:
    expected = model(make_batch(dialogues)).item()
    loader = DataLoader([make_batch(dialogues[:1]), make_batch(dialogues[1:])], batch_size=None)
    (metrics,) = make_trainer(tmp_path).validate(make_module(model), loader, verbose=False)
    assert metrics["val/loss"] == pytest.approx(expected, rel=1e-5)


def test_checkpoint_holds_the_projector_alone_and_the_hashes_of_the_rest(checkpoint: Path) -> None:
    content = torch.load(checkpoint, weights_only=True)
    assert set(content["state_dict"]) == {"model.projector.layers.0.weight", "model.projector.layers.0.bias"}
    assert {name: len(digest) for name, digest in content["frozen_hashes"].items()} == {
        "vision": 64,
        "qformer": 64,
        "language": 64,
    }


def test_resumed_run_ends_where_the_unbroken_one_does(
    checkpoint: Path, make_model: MakeModel, batch, tmp_path: Path
) -> None:
    unbroken, resumed = make_model(), make_model()
    fit(make_module(unbroken), batch, tmp_path)
    resumed.projector.layers[0].weight.data.zero_()
    fit(make_module(resumed), batch, tmp_path, ckpt_path=checkpoint)
    torch.testing.assert_close(resumed.projector.state_dict(), unbroken.projector.state_dict())


def test_checkpoint_of_other_base_weights_is_refused(
    checkpoint: Path, make_model: MakeModel, batch, tmp_path: Path
) -> None:
    other = make_model()
    other.language.lm_head.weight.data += 1e-3
    with pytest.raises(CheckpointError) as caught:
        fit(make_module(other), batch, tmp_path, ckpt_path=checkpoint)
    message = str(caught.value)
    assert re.search(r"language: trained on sha256 \w{64}, this model has \w{64}", message)
    assert "vision:" not in message
    assert "module.allow_other_base_weights=true" in message


def test_other_base_weights_are_taken_on_request(
    checkpoint: Path, make_model: MakeModel, batch, tmp_path: Path
) -> None:
    other = make_model()
    other.language.lm_head.weight.data += 1e-3
    module = make_module(other, allow_other_base_weights=True)
    assert fit(module, batch, tmp_path, ckpt_path=checkpoint).global_step == 6


def test_checkpoint_of_another_projector_is_refused(
    checkpoint: Path, make_model: MakeModel, batch, tmp_path: Path
) -> None:
    module = make_module(make_model(hidden_features=(8,)))
    with pytest.raises(CheckpointError, match=r"missing: model\.projector\.layers\.2\.weight"):
        fit(module, batch, tmp_path, ckpt_path=checkpoint)


def test_projection_of_other_base_weights_is_refused_unless_allowed(
    checkpoint: Path, model: SparklesChat, make_model: MakeModel
) -> None:
    with pytest.raises(CheckpointError, match=r"half\.ckpt was trained on other frozen weights"):
        make_module(make_model(seed=1), checkpoint=checkpoint)
    module = make_module(make_model(seed=1), checkpoint=checkpoint, allow_other_base_weights=True)
    torch.testing.assert_close(module.model.projector.state_dict(), model.projector.state_dict())


def test_run_with_another_prompt_format_is_refused_unless_allowed(
    model: SparklesChat, make_model: MakeModel, batch, tmp_path: Path
) -> None:
    path, other = tmp_path / "half.ckpt", replace(MINIGPT4, user_prefix="USER: ")
    trained = make_module(model, prompt_format=MINIGPT4)
    fit(trained, batch, tmp_path, max_steps=3).save_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"user_prefix: trained with '###Human: ', configured 'USER: '"):
        make_module(make_model(), prompt_format=other, checkpoint=path)
    with pytest.raises(CheckpointError, match=r"set prompt_format=minigpt4"):
        fit(make_module(make_model(), prompt_format=other), batch, tmp_path, ckpt_path=path)
    allowed = make_module(make_model(), prompt_format=other, allow_other_prompt_format=True)
    assert fit(allowed, batch, tmp_path, ckpt_path=path).global_step == 6


def test_language_model_with_another_separator_is_refused_unless_allowed(model: SparklesChat) -> None:
    model.language.config.end_of_answer = "</s>"
    with pytest.raises(PromptFormatError, match="ends an answer with '###'"):
        make_module(model, prompt_format=MINIGPT4)
    make_module(model, prompt_format=MINIGPT4, allow_other_prompt_format=True)


def test_frozen_weights_are_read_once(
    checkpoint: Path, make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    monkeypatch.setattr(origin, "state_hash", lambda part: hashed.append(part) or state_hash(part))
    model = make_model()
    make_module(model, checkpoint=checkpoint)
    assert hashed == [model.vision, model.qformer, model.language]


def test_next_stage_starts_from_the_projection_of_a_run(
    checkpoint: Path, model: SparklesChat, make_model: MakeModel, tmp_path: Path
) -> None:
    save_projection(model, tmp_path / "projection.safetensors", {})
    for path in (checkpoint, tmp_path / "projection.safetensors"):
        following = make_model()
        following.projector.layers[0].weight.data.zero_()
        module = make_module(following, checkpoint=path)
        torch.testing.assert_close(module.model.projector.state_dict(), model.projector.state_dict())


class Store:
    """Features of a batch's images by their place in it."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}

    def put(self, keys: Tensor, features: Tensor) -> None:
        self.kept |= {int(key[0]): feature for key, feature in zip(keys, features, strict=True)}


def with_cached(batch: dict[str, Tensor], cached: dict[int, Tensor]) -> dict[str, Tensor]:
    """The batch as a datamodule gives it whose cache has the features of some images."""
    pixels = batch["pixel_values"]
    missing = [place for place in range(len(pixels)) if place not in cached]
    return batch | {
        "pixel_values": pixels[missing],
        "is_cached": torch.tensor([place in cached for place in range(len(pixels))]),
        "cached_features": torch.stack([cached[place] for place in sorted(cached)])
        if cached
        else torch.empty(0, dtype=torch.float16),
        "feature_keys": torch.tensor(missing, dtype=torch.uint8).view(-1, 1),
    }


def test_a_step_is_the_same_whatever_features_are_cached(model: SparklesChat, batch) -> None:
    module = make_module(model)
    module.feature_store = store = Store()

    def loss_of(cached: dict[int, Tensor]) -> float:
        return model(module._with_features(with_cached(batch, cached))).item()

    from_pixels = loss_of({})
    num_images = len(batch["pixel_values"])
    assert sorted(store.kept) == list(range(num_images))
    assert from_pixels == pytest.approx(model(batch).item(), rel=1e-3)  # half precision
    some = {place: store.kept[place] for place in (0, 3, 4)}
    store.kept.clear()
    assert loss_of(some) == from_pixels
    assert sorted(store.kept) == [place for place in range(num_images) if place not in some]
    assert loss_of(some | store.kept) == from_pixels


def test_features_that_a_trained_part_makes_have_no_hash(make_model: MakeModel) -> None:
    model = make_model()
    assert make_module(model).encoder_hash
    model.qformer.requires_grad_(True).trainable = True
    assert make_module(model).encoder_hash is None


@pytest.mark.parametrize("stored_as", [torch.float32, torch.bfloat16])
def test_half_precision_computes_what_is_frozen_and_neither_the_loss_nor_what_learns(
    stored_as: torch.dtype, make_model: MakeModel, batch, tmp_path: Path
) -> None:
    expected = make_model()(batch).item()
    model = make_model()
    model.language.to(stored_as)
    losses: list[Tensor] = []
    model.register_forward_hook(lambda _module, _inputs, loss: losses.append(loss.detach()))
    trainer = make_trainer(tmp_path, max_steps=6, precision="bf16-mixed")
    with torch.backends.mkldnn.flags(enabled=False):  # some processors promise instructions that they lack
        trainer.fit(make_module(model), DataLoader([batch] * 6, batch_size=None))
    assert losses[0].item() == pytest.approx(expected, rel=2e-2)
    assert losses[-1] < losses[0]
    assert {loss.dtype for loss in losses} == {torch.float32}
    assert {weight.dtype for weight in model.projector.parameters()} == {torch.float32}
