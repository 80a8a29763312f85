import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkles.data import indexed
from sparkles.data.annotations import AnnotationError, Reading, read_file, write_dialogues
from sparkles.data.indexed import IndexedSamples, read_samples
from sparkles.data.mixture import SubsetSpec
from sparkles.data.sources import DialogueFile, Reader
from sparkles.types import Dialogue, Sample

MakeSubset = Callable[..., SubsetSpec]


@pytest.fixture(autouse=True)
def every_file_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "_SMALL", 0)
    monkeypatch.setattr(indexed, "_PART", 500)  # of the bytes of about three records


@pytest.fixture
def spec(make_subset: MakeSubset) -> SubsetSpec:
    return make_subset("größe", 7)


def samples_of(spec: SubsetSpec, reader: Reader | None = None) -> list[Sample]:
    """As the index gives them."""
    found = read_samples(spec.annotations, reader or spec.reader, spec.folder).values
    assert isinstance(found, IndexedSamples)
    return list(found)


def in_memory(spec: SubsetSpec, reader: Reader | None = None) -> list[Sample]:
    return list(read_file(spec.annotations, (reader or spec.reader).parse, spec.folder).values)


def beside(spec: SubsetSpec) -> list[Path]:
    return sorted(spec.annotations.parent.glob(f".{spec.annotations.name}.*"))


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("lines", [False, True])
def test_samples_are_those_of_a_file_in_memory(
    make_subset: MakeSubset, tmp_path: Path, lines: bool, start: bytes
) -> None:
    spec = make_subset("größe", 7)
    records = json.loads(spec.annotations.read_bytes())
    path = tmp_path / ("a.jsonl" if lines else "a.json")
    text = "\n".join(map(json.dumps, records)) if lines else json.dumps(records, ensure_ascii=False)
    path.write_bytes(start + text.encode())
    spec = SubsetSpec(name="a", annotations=path, images=spec.images)
    samples = samples_of(spec)
    assert samples == in_memory(spec)
    assert len(samples) == 7
    assert samples_of(spec)[2:4] == samples[2:4]


def test_a_record_may_hold_several_samples(
    tmp_path: Path, dialogue: Dialogue, make_subset: MakeSubset
) -> None:
    images = make_subset("images", 0).images
    for name in ("7", "12", "3"):
        (images / f"{name}.png").touch()
    write_dialogues(tmp_path / "d.json", [dialogue] * 3)
    spec = SubsetSpec(name="d", annotations=tmp_path / "d.json", images=images, reader=DialogueFile())
    assert samples_of(spec) == in_memory(spec)
    assert len(samples_of(spec)) == 6
    second = DialogueFile(turns=[2])
    assert samples_of(spec, second) == in_memory(spec, second), "each reader has an index of its own"
    assert samples_of(spec) == in_memory(spec)


def test_a_file_is_read_as_a_whole_only_once(spec: SubsetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = samples_of(spec)

    def refuse(path: Path, *_: object) -> None:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(indexed, "records", refuse)
    monkeypatch.setattr(indexed, "parts", refuse)
    assert samples_of(spec) == expected


def test_where_records_end_is_found_out_if_it_was_guessed_wrong(spec: SubsetSpec) -> None:
    records = json.loads(spec.annotations.read_bytes())
    for record in records:  # each holds what separates the first two
        record["raw"] = [{"uniform_question": number} for number in range(90)]
    spec.annotations.write_text(json.dumps(records))
    assert samples_of(spec) == in_memory(spec)
    assert len(samples_of(spec)) == 7


def test_what_was_changed_or_damaged_is_read_again(spec: SubsetSpec) -> None:
    expected = samples_of(spec)
    for path in beside(spec):
        content = path.read_bytes()
        for damaged in (content[:-1] + b"!", content[:-9], b""):
            path.write_bytes(damaged)
            assert samples_of(spec) == expected
            assert path.read_bytes() == content, "and replaced"
    records = json.loads(spec.annotations.read_bytes())
    spec.annotations.write_text(json.dumps(records[::-1], indent=3))
    assert samples_of(spec) == expected[::-1]


def test_a_bad_record_is_named_as_ever(spec: SubsetSpec) -> None:
    expected = samples_of(spec)
    picture = next(image.path for sample in expected for image in sample.images)
    assert picture is not None
    picture.rename(picture.with_suffix(".gif"))
    assert "record 1: image größe1-0 not found" in problems(spec)
    picture.with_suffix(".gif").rename(picture)
    records = json.loads(spec.annotations.read_bytes())
    del records[5]["answer"]
    spec.annotations.write_text(json.dumps(records))
    assert "record 5: no 'fix_answer' or 'answer'" in problems(spec)


def problems(spec: SubsetSpec) -> str:
    return "\n".join(read_samples(spec.annotations, spec.reader, spec.folder).problems)


@pytest.mark.parametrize("text", ["[{]", '[{"a": 1}'])
def test_what_is_no_json_is_refused(tmp_path: Path, spec: SubsetSpec, text: str) -> None:
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(AnnotationError, match="not JSON"):
        read_samples(path, spec.reader, spec.folder)


def test_a_dict_of_records_stays_in_memory(tmp_path: Path, spec: SubsetSpec) -> None:
    path = tmp_path / "by_id.json"
    path.write_text(
        json.dumps({str(n): one for n, one in enumerate(json.loads(spec.annotations.read_bytes()))})
    )
    by_id = read_samples(path, spec.reader, spec.folder)
    assert isinstance(by_id.values, list)
    assert len(by_id.values) == 7


def test_a_small_file_gets_no_index(spec: SubsetSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indexed, "_SMALL", 10**6)
    assert isinstance(read_samples(spec.annotations, spec.reader, spec.folder).values, list)
    assert not beside(spec)


def test_where_nothing_can_be_kept_work_goes_on(
    spec: SubsetSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise PermissionError(f"no room for {path}")

    monkeypatch.setattr(indexed, "write_whole", refuse)
    assert samples_of(spec) == in_memory(spec)
    assert "has to be read as a whole by each run: no room for" in caplog.text


def read_at_once(spec: SubsetSpec) -> Reading[Sample]:
    """With its samples before they are checked."""
    reading = read_samples(spec.annotations, spec.reader, spec.folder, check="later")
    assert reading.check is not None
    return reading


def test_samples_are_there_before_they_are_checked_and_the_check_leaves_the_index(spec: SubsetSpec) -> None:
    expected = in_memory(spec)
    reading = read_at_once(spec)
    assert list(reading.values) == expected
    assert reading.check is not None
    assert reading.check.result() == []
    assert len(beside(spec)) == 2
    again = read_samples(spec.annotations, spec.reader, spec.folder, check="later")
    assert again.check is None
    assert again.image_ids == {image.image_id for sample in expected for image in sample.images}
    assert list(again.values) == expected


def test_a_check_that_is_made_elsewhere_is_not_made_here(spec: SubsetSpec) -> None:
    reading = read_samples(spec.annotations, spec.reader, spec.folder, check="elsewhere")
    assert reading.check is None
    assert list(reading.values) == in_memory(spec)
    assert not beside(spec)


def test_what_is_bad_is_named_by_the_later_check(spec: SubsetSpec) -> None:
    picture = next(image.path for sample in in_memory(spec) for image in sample.images)
    assert picture is not None
    records = json.loads(spec.annotations.read_bytes())
    del records[5]["answer"]
    spec.annotations.write_text(json.dumps(records))
    picture.unlink()
    check = read_at_once(spec).check
    assert check is not None
    missing, malformed = check.result()
    assert "record 1: image größe1-0 not found" in missing
    assert f"{spec.annotations}, record 5: no 'fix_answer' or 'answer'" in malformed


def test_records_of_several_samples_are_looked_into_at_once(
    tmp_path: Path, dialogue: Dialogue, spec: SubsetSpec
) -> None:
    for name in ("7", "12", "3"):
        (spec.images / f"{name}.png").touch()
    write_dialogues(tmp_path / "d.json", [dialogue] * 3)
    reading = read_samples(tmp_path / "d.json", DialogueFile(), spec.folder, check="later")
    assert reading.check is None
    assert len(reading.values) == 6
