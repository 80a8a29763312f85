import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from sparkles.data import indexed
from sparkles.data.annotations import AnnotationError, write_dialogues
from sparkles.data.datamodule import SampleDataset, SparklesDataModule
from sparkles.data.features import FeatureCache
from sparkles.data.images import ImageTransform
from sparkles.data.mixture import Draw, SubsetSpec
from sparkles.data.sources import DialogueFile
from sparkles.prompt_format import MINIGPT4
from sparkles.types import Dialogue, InputError, Message, Sample

Batch = dict[str, torch.Tensor]
MakeDataModule = Callable[..., SparklesDataModule]


@pytest.fixture
def make_datamodule(
    make_subset: Callable[..., SubsetSpec], tokenizer: Any, transform: ImageTransform
) -> MakeDataModule:
    specs = {
        "cc": make_subset("cc", 5, ratio=2),
        "vg": make_subset("vg", 7),
        "unused": make_subset("unused", 1, ratio=0),
    }
    val_specs = {"val": make_subset("val", 5)}

    def make(**changes: Any) -> SparklesDataModule:
        settings: dict[str, Any] = {
            "subsets": specs,
            "val_subsets": val_specs,
            "tokenizer": tokenizer,
            "prompt_format": MINIGPT4,
            "num_query_tokens": 3,
            "train_transform": transform,
            "eval_transform": transform,
            "max_length": 500,
            "batch_size": 4,
            "steps": 6,
            "seed": 1,
        }
        return SparklesDataModule(**settings | changes)

    return make


def batches_of(datamodule: SparklesDataModule) -> list[Batch]:
    datamodule.setup("fit")
    return list(datamodule.train_dataloader())


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


class Recorder(L.LightningModule):
    """Learns nothing; keeps every training batch and stops the run on demand."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[Batch] = []
        self.fail_at = fail_at

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        if len(self.batches) == self.fail_at:
            raise RuntimeError("power cut")
        self.batches.append(batch)
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(folder: Path, **changes: Any) -> L.Trainer:
    checkpoint = ModelCheckpoint(folder, filename="last", every_n_train_steps=1)
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "callbacks": [checkpoint],
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**settings | changes)


def test_a_batch_keeps_the_contract_with_the_model(make_datamodule: MakeDataModule) -> None:
    for batch in batches_of(make_datamodule()):
        rows, length = batch["input_ids"].shape
        assert rows == 4
        assert batch["labels"].shape == batch["attention_mask"].shape == (rows, length)
        assert (batch["input_ids"] == -200).sum() == 3 * len(batch["pixel_values"])
        assert batch["pixel_values"].dtype == torch.float32
        assert (batch["labels"] != -100).any(dim=1).all()
        assert (batch["input_ids"][batch["attention_mask"] == 0] == 2).all()


def test_the_number_of_workers_changes_nothing(make_datamodule: MakeDataModule) -> None:
    random_crops = ImageTransform(image_size=8, train=True)
    assert_same(
        batches_of(make_datamodule(train_transform=random_crops, num_workers=0)),
        batches_of(make_datamodule(train_transform=random_crops, num_workers=2)),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_by_length_have_less_padding_and_go_on_in_the_middle(
    make_datamodule: MakeDataModule, tmp_path: Path, num_workers: int
) -> None:
    def padding(batches: list[Batch]) -> int:
        return sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)

    plain = batches_of(make_datamodule(num_workers=num_workers))
    by_length = batches_of(make_datamodule(length_window=6, num_workers=num_workers))
    assert padding(by_length) < padding(plain) / 2
    tokens = [
        sorted(token for batch in some for token in batch["labels"].flatten().tolist() if token != -100)
        for some in (plain, by_length)
    ]
    assert tokens[0] == tokens[1]
    datamodule = make_datamodule(length_window=6, num_workers=num_workers)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    loader.load_state_dict(loader.state_dict() | {"position": 2})
    assert_same(list(loader), by_length[2:])


@pytest.mark.parametrize(("setting", "least"), [("batch_size", 1), ("steps", 1), ("num_workers", 0)])
def test_numbers_that_mean_nothing_are_refused(
    make_datamodule: MakeDataModule, setting: str, least: int
) -> None:
    with pytest.raises(InputError, match=rf"{setting}={least - 1}, expected {least} or more"):
        make_datamodule(**{setting: least - 1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"length_window": 0}, r"length_window=0, expected 1 or more; set data\.length_window"),
        ({"length_window": 2, "mix": "per_batch"}, r"set data\.length_window=1 or data\.mix=per_sample"),
    ],
)
def test_batches_by_length_are_refused_where_they_have_no_sense(
    make_datamodule: MakeDataModule, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_datamodule(**changes)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (None, False, False)),
        ({"num_workers": 2}, (2, True, False)),
        (
            {"num_workers": 1, "prefetch_factor": 5, "persistent_workers": False, "pin_memory": True},
            (5, False, True),
        ),
        ({"prefetch_factor": 5, "persistent_workers": True}, (None, False, False)),
    ],
)
def test_who_reads_ahead_is_a_matter_of_configuration(
    make_datamodule: MakeDataModule,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, Any],
    expected: tuple[int | None, bool, bool],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    datamodule = make_datamodule(**settings)
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    assert (loader.prefetch_factor, loader.persistent_workers, loader.pin_memory) == expected


def test_augmentation_is_random_but_leaves_the_generator_alone(make_datamodule: MakeDataModule) -> None:
    datamodule = make_datamodule(train_transform=ImageTransform(image_size=8, train=True, scale=(0.1, 0.9)))
    datamodule.setup("fit")
    before = torch.get_rng_state()
    dataset = datamodule.train_dataloader().dataset
    assert isinstance(dataset, SampleDataset)
    first, again, other = [dataset[Draw("cc", 2, serial)].pictures[0].pixel_values for serial in (0, 0, 1)]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{}, {"accumulate_grad_batches": 2}, {"max_epochs": 3}])
def test_a_run_resumed_in_the_middle_sees_the_batches_of_an_unbroken_one(
    make_datamodule: MakeDataModule, tmp_path: Path, changes: dict[str, Any]
) -> None:
    unbroken = Recorder()
    make_trainer(tmp_path / "unbroken", **changes).fit(unbroken, make_datamodule())

    broken, resumed = Recorder(fail_at=8 if len(unbroken.batches) > 8 else 4), Recorder()
    with pytest.raises(RuntimeError, match="power cut"):
        make_trainer(tmp_path / "broken", **changes).fit(broken, make_datamodule())
    make_trainer(tmp_path / "resumed", **changes).fit(
        resumed, make_datamodule(), ckpt_path=tmp_path / "broken" / "last.ckpt"
    )
    assert_same(broken.batches + resumed.batches, unbroken.batches)


def test_an_epoch_has_a_batch_for_each_accumulated_step_and_the_next_epoch_has_others(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    module = Recorder()
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2, max_epochs=2)
    trainer.fit(module, make_datamodule())
    assert trainer.global_step == 12
    assert len(module.batches) == 24
    assert any(
        not torch.equal(module.batches[i]["labels"], module.batches[12 + i]["labels"]) for i in range(12)
    )


def test_resuming_with_other_data_is_refused(make_datamodule: MakeDataModule, tmp_path: Path) -> None:
    make_trainer(tmp_path).fit(Recorder(), make_datamodule())
    with pytest.raises(ValueError, match=r"cannot resume: .* seed was 1, now 2"):
        make_trainer(tmp_path / "next").fit(
            Recorder(), make_datamodule(seed=2), ckpt_path=tmp_path / "last.ckpt"
        )


def test_validation_takes_every_sample_once_in_order(make_datamodule: MakeDataModule) -> None:
    datamodule = make_datamodule()
    datamodule.setup("validate")
    loader = datamodule.val_dataloader()
    assert not isinstance(loader, list)
    batches = list(loader)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 1]


def test_validating_on_nothing_is_refused(make_datamodule: MakeDataModule, tmp_path: Path) -> None:
    datamodule = make_datamodule(val_subsets=None)
    make_trainer(tmp_path).fit(Recorder(), datamodule)
    with pytest.raises(ValueError, match=r"without data.val_subsets no benchmark would run"):
        make_trainer(tmp_path).validate(Recorder(), datamodule)


def test_cached_images_are_decoded_once(make_datamodule: MakeDataModule, tmp_path: Path) -> None:
    datamodule = make_datamodule(cache_images=True)
    datamodule.setup("fit")
    dataset = datamodule.train_dataloader().dataset
    first = dataset[Draw("cc", 2)]
    for picture in (tmp_path / "cc").iterdir():
        picture.unlink()
    again = dataset[Draw("cc", 2)]
    assert len(again.pictures) == 2
    for one, other in zip(first.pictures, again.pictures, strict=True):
        assert torch.equal(one.pixel_values, other.pixel_values)


def test_an_image_lost_during_the_run_is_named_with_its_sample(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    datamodule = make_datamodule()
    datamodule.setup("fit")
    (tmp_path / "cc" / "cc2-1.png").write_bytes(b"truncated")
    with pytest.raises(ValueError, match=r"(?s)cannot read .*cc2-1.png.*in sample 2 of subset 'cc'"):
        _ = datamodule.train_dataloader().dataset[Draw("cc", 2)]


def test_random_transforms_are_refused_where_pixels_must_be_fixed(make_datamodule: MakeDataModule) -> None:
    random_crops = ImageTransform(image_size=8, train=True)
    with pytest.raises(ValueError, match="cache_images=True would keep one random crop"):
        make_datamodule(train_transform=random_crops, cache_images=True)
    with pytest.raises(ValueError, match="eval_transform is random"):
        make_datamodule(eval_transform=random_crops)


def test_all_missing_files_are_reported_at_once(make_datamodule: MakeDataModule) -> None:
    lost = [
        SubsetSpec(name=name, annotations=Path(f"{name}.json"), images=Path("pictures"))
        for name in ("one", "two")
    ]
    datamodule = make_datamodule(subsets={spec.name: spec for spec in lost})
    expected = r"(?s)'one': no annotation file one.json.*'one': no image folder pictures.*'two': .*make the data first"
    with pytest.raises(FileNotFoundError, match=expected):
        datamodule.setup("fit")


def test_bad_records_of_all_files_are_reported_at_once(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    for name in ("cc", "vg"):
        (tmp_path / f"{name}.json").write_text('[{"question": 1}]')
    with pytest.raises(AnnotationError, match=r"(?s)cc.json, record 0: .*vg.json, record 0: "):
        make_datamodule().setup("fit")


def test_skipping_bad_records_says_which_and_how_many(
    make_datamodule: MakeDataModule, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoil(tmp_path / "cc.json", 1)
    (tmp_path / "vg" / "vg2-0.png").unlink()
    datamodule = make_datamodule(on_bad_record="skip", batch_size=5)
    (batch, *_) = batches_of(datamodule)
    assert len(batch["input_ids"]) == 5
    said = caplog.text
    assert f"{tmp_path}/cc.json: skipped 1 of 5 records" in said
    assert f"{tmp_path}/cc.json, record 1: no 'fix_answer' or 'answer'" in said
    assert f"{tmp_path}/vg.json: skipped 1 of 7 records" in said
    assert f"{tmp_path}/vg.json, record 2: image vg2-0 not found" in said
    assert f"{tmp_path}/vg lacks 1 of the images in use: vg2-0" in said
    assert "unused" not in said
    dataset = datamodule.train_dataloader().dataset
    assert isinstance(dataset, SampleDataset)
    assert [sample.answer for sample in dataset.samples["cc"]] == [f"cc answer {n}" for n in (0, 2, 3, 4)]


def spoil(path: Path, index: int) -> None:
    """Take the answer out of a record."""
    records = json.loads(path.read_text())
    del records[index]["answer"]
    path.write_text(json.dumps(records))


def test_a_bad_record_stops_the_run_and_the_way_around_it_is_named(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    spoil(tmp_path / "cc.json", 3)
    expected = r"(?s)cc.json, record 3: no 'fix_answer' or 'answer'.*data.on_bad_record=skip"
    with pytest.raises(AnnotationError, match=expected):
        make_datamodule().setup("fit")


def test_images_that_two_files_miss_are_counted_over_both(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    again = tmp_path / "cc_again.json"
    again.write_text((tmp_path / "cc.json").read_text())
    for picture in (tmp_path / "cc").iterdir():
        picture.unlink()
    specs = {
        name: SubsetSpec(name=name, annotations=tmp_path / f"{name}.json", images=tmp_path / "cc")
        for name in ("cc", "cc_again")
    }
    with pytest.raises(AnnotationError) as caught:
        make_datamodule(subsets=specs).setup("fit")
    assert f"{tmp_path}/cc lacks 4 of the images in use: cc1-0, cc2-0, cc2-1, cc4-0" in str(caught.value)


def test_skipping_does_not_pass_over_a_file_that_breaks_off(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    path = tmp_path / "cc.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(AnnotationError, match=r"cc.json, record \d: not JSON in UTF-8"):
        make_datamodule(on_bad_record="skip").setup("fit")


def test_a_subset_of_which_nothing_is_left_is_refused(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    (tmp_path / "cc.json").write_text('[{"question": 1}]')
    with pytest.raises(ValueError, match="subsets without samples: cc"):
        make_datamodule(on_bad_record="skip").setup("fit")


def test_an_unknown_way_to_treat_bad_records_is_refused(make_datamodule: MakeDataModule) -> None:
    with pytest.raises(ValueError, match="on_bad_record='ignore', expected 'stop' or 'skip'"):
        make_datamodule(on_bad_record="ignore")


def test_dialogues_of_any_length_are_batched_also_where_a_batch_has_no_images(
    make_datamodule: MakeDataModule, user: Callable[..., Message], tmp_path: Path
) -> None:
    def say(text: str) -> Message:
        return Message(role="assistant", content=text)

    text_only = Dialogue(
        messages=(user("hello"), say("Hi."), user("how are you"), say("Well."), user("?"), say("!"))
    )
    with_images = Dialogue(messages=(user("a", "vg1-0", "vg2-0", "vg2-1"), say("A."), user("b"), say("B.")))
    for name, dialogue in (("text", text_only), ("long", with_images)):
        write_dialogues(tmp_path / f"{name}.json", [dialogue])
    specs = {
        name: SubsetSpec(
            name=name, annotations=tmp_path / f"{name}.json", images=tmp_path / "vg", reader=DialogueFile()
        )
        for name in ("text", "long")
    }
    for chosen, num_images in ((["text"], [0]), (["long"], [6]), (["text", "long"], [0, 3, 6, 9, 12])):
        datamodule = make_datamodule(
            subsets={name: specs[name] for name in chosen}, batch_size=2 * len(chosen)
        )
        for batch in batches_of(datamodule):
            assert len(batch["pixel_values"]) in num_images
            assert (batch["input_ids"] == -200).sum() == 3 * len(batch["pixel_values"])


def test_two_subsets_of_one_name_are_refused(make_datamodule: MakeDataModule) -> None:
    spec = SubsetSpec(name="cc", annotations=Path("a.json"), images=Path("images"))
    with pytest.raises(ValueError, match="two subsets have the same name among cc, cc"):
        make_datamodule(subsets={"first": spec, "second": spec})


def test_the_mixture_is_printed_with_a_sample_and_its_loss_mask(
    make_datamodule: MakeDataModule, capsys: pytest.CaptureFixture[str]
) -> None:
    make_datamodule().setup("fit")
    printed = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in printed.splitlines()]
    assert ["cc", "5", "4", "2", "66.7%"] in rows
    assert ["vg", "7", "6", "1", "33.3%"] in rows
    assert "unused" not in printed
    assert "###Human: question" in printed
    assert "loss on bold green" in printed


def test_preparation_runs_before_anything_is_read(make_datamodule: MakeDataModule) -> None:
    calls: list[str] = []
    make_datamodule(prepare=lambda: calls.append("made")).prepare_data()
    assert calls == ["made"]


def test_the_files_in_use_are_listed(make_datamodule: MakeDataModule, tmp_path: Path) -> None:
    expected = {f"{name}/{name}.json": tmp_path / f"{name}.json" for name in ("cc", "vg", "val")}
    assert make_datamodule().files() == expected


def test_a_subset_may_lie_in_several_files(make_datamodule: MakeDataModule, tmp_path: Path) -> None:
    text = (tmp_path / "vg.json").read_text()
    for number in (1, 2):
        (tmp_path / f"vg_{number}img.json").write_text(text)
    several = SubsetSpec(name="vg", annotations=tmp_path / "vg_*img.json", images=tmp_path / "vg")
    datamodule = make_datamodule(subsets={"vg": several})
    datamodule.setup("fit")
    dataset = datamodule.train_dataloader().dataset
    assert dataset[Draw("vg", 13)].encoded.input_ids == dataset[Draw("vg", 6)].encoded.input_ids
    assert len(datamodule.files()) == 3


def test_joint_turns_are_drawn_as_dialogues_and_weigh_as_the_ratios_of_their_turns(
    make_datamodule: MakeDataModule, make_subset: Callable[..., SubsetSpec]
) -> None:
    subsets = {
        "cc1": make_subset("cc1", 3, ratio=3),
        "cc2": make_subset("cc2", 3, ratio=1.5, turn=2, earlier_turns=("cc1",)),
        "vg1": make_subset("vg1", 2, ratio=1),
    }
    datamodule = make_datamodule(subsets=subsets, turns="joint")
    assert {name: spec.ratio for name, spec in datamodule.subsets.items()} == {"cc1": 0, "cc2": 1.5, "vg1": 1}
    weights = {
        weight
        for batch in batches_of(datamodule)
        for weight in batch["loss_weights"][batch["labels"] != -100].tolist()
    }
    assert weights == {2.0, 1.0}


def test_earlier_turns_name_subsets_that_are_there(
    make_datamodule: MakeDataModule, make_subset: Callable[..., SubsetSpec]
) -> None:
    subsets = {"a": make_subset("a", 2, earlier_turns=("c",)), "b": make_subset("b", 2)}
    with pytest.raises(InputError, match="earlier_turns names 'c', which is none of a, b"):
        make_datamodule(subsets=subsets, turns="joint")


def mean_features(batch: Batch, cache: FeatureCache) -> None:
    """Keep, as features of the pictures of a batch, the mean of their pixels."""
    if len(batch["pixel_values"]):
        means = batch["pixel_values"].mean(dim=(1, 2, 3)).half()
        cache.put(batch["feature_keys"], means.view(-1, 1, 1))


@pytest.mark.parametrize("crops", [0, 2])
def test_batches_hold_the_features_that_are_kept_and_the_pixels_of_other_images(
    make_datamodule: MakeDataModule, tmp_path: Path, crops: int
) -> None:
    train_transform = ImageTransform(image_size=8, train=crops > 0, scale=(0.1, 0.5))
    datamodule = make_datamodule(
        train_transform=train_transform, feature_cache=tmp_path / "features", cached_crops=crops, steps=20
    )
    cache = FeatureCache(tmp_path / "features", encoder_hash="abc", shape=(1, 1))
    datamodule.use_features(cache)
    datamodule.setup("fit")
    seen: set[bytes] = set()
    for batch in datamodule.train_dataloader():
        if "is_cached" in batch:
            num_images = int((batch["input_ids"] == -200).sum()) // 3
            assert len(batch["is_cached"]) == num_images
            assert len(batch["cached_features"]) == batch["is_cached"].sum()
            assert len(batch["pixel_values"]) == len(batch["feature_keys"]) == (~batch["is_cached"]).sum()
            new = {bytes(key.tolist()) for key in batch["feature_keys"]}
            assert not new & seen
            seen |= new
            mean_features(batch, cache)
    # By content: equal pictures share their features.
    pictures = {path.read_bytes() for name in ("cc", "vg") for path in (tmp_path / name).iterdir()}
    assert len(seen) == len(pictures) * max(1, crops)


def test_random_crops_that_are_kept_are_the_same_for_every_seed(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    def crops(seed: int) -> dict[bytes, list[float]]:
        datamodule = make_datamodule(
            train_transform=ImageTransform(image_size=8, train=True, scale=(0.1, 0.5)),
            feature_cache=tmp_path / "features",
            cached_crops=2,
            steps=20,
            seed=seed,
        )
        datamodule.use_features(FeatureCache(tmp_path / f"{seed}", encoder_hash="abc", shape=(1, 1)))
        datamodule.setup("fit")
        return {
            bytes(key.tolist()): pixels.flatten().tolist()
            for batch in datamodule.train_dataloader()
            for key, pixels in zip(batch["feature_keys"], batch["pixel_values"], strict=True)
        }

    first, second = crops(0), crops(1)
    assert first.keys() == second.keys()
    assert first == second


def test_features_of_random_crops_are_kept_only_by_number(
    make_datamodule: MakeDataModule, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"features cannot be kept: set data\.cached_crops"):
        make_datamodule(train_transform=ImageTransform(image_size=8, train=True), feature_cache=tmp_path)


def test_batches_of_large_files_are_those_of_files_in_memory(
    make_datamodule: MakeDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = batches_of(make_datamodule())
    monkeypatch.setattr(indexed, "_SMALL", 0)
    assert_same(batches_of(make_datamodule()), expected)
    datamodule = make_datamodule(num_workers=2)
    datamodule.setup("fit")
    assert isinstance(datamodule._train_samples["cc"][0], Sample)
    loader = datamodule.train_dataloader()
    loader.load_state_dict(loader.state_dict() | {"position": 4})
    assert_same(list(loader), expected[4:])


class Waiting(Recorder):
    """Begins only when large files have been checked."""

    def on_train_start(self) -> None:
        for check in self.trainer.datamodule._checks:
            check.result()


def test_a_run_that_has_begun_stops_when_a_large_file_turns_out_to_hold_bad_records(
    make_datamodule: MakeDataModule,
    make_subset: Callable[..., SubsetSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(indexed, "_SMALL", 0)
    spec = make_subset("many", 40)
    datamodule = make_datamodule(subsets={"many": spec}, steps=1_000)
    datamodule.setup("fit")
    drawn = {draw.index for step in range(3) for draw in datamodule._make_mixture().batch_indices(step)}
    bad = max(set(range(40)) - drawn)
    spoil(spec.annotations, bad)
    datamodule = make_datamodule(subsets={"many": spec}, steps=1_000)
    expected = rf"(?s)record {bad}: no 'fix_answer'.*data.on_bad_record=skip"
    with pytest.raises(AnnotationError, match=expected):
        make_trainer(tmp_path).fit(Waiting(), datamodule)
    rows = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["many", "40", "?", "1", "100.0%"] in rows
    # What may be left out has to be known before the first sample is drawn.
    skipping = make_datamodule(subsets={"many": spec}, on_bad_record="skip")
    skipping.setup("fit")
    assert len(skipping._train_samples["many"]) == 39
