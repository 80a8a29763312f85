import json
from pathlib import Path
from typing import Any

import pytest

from sparkles.data.parts import parts, records_of

RECORDS: list[dict[str, Any]] = [
    {"id": number, "text": f"größe {number}, {{[}}" * (number % 4), "more": [{"id": 0}, {"idle": 1}]}
    for number in range(20)
]
TEXTS = {
    "plain.json": json.dumps(RECORDS),
    "compact.json": json.dumps(RECORDS, separators=(",", ":"), ensure_ascii=False),
    "indented.json": f" \r\n{json.dumps(RECORDS, indent=3)}\n\n",
    "lines.jsonl": "\n".join(map(json.dumps, RECORDS)),
    "ended.jsonl": "".join(f"{json.dumps(one, ensure_ascii=False)}\r\n" for one in RECORDS),
}


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("size", [1, 250, 10_000])
@pytest.mark.parametrize("name", TEXTS)
def test_parts_hold_all_records_in_order_where_they_stand(
    name: str, size: int, start: bytes, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(start + TEXTS[name].encode())
    cut = parts(path, size)
    assert (len(cut) == 1) == (size > path.stat().st_size)
    found = [one for part in cut for one in records_of(path, part)]
    assert [one.record for one in found] == RECORDS
    for one in found:
        assert one.span is not None
        assert json.loads(path.read_bytes()[slice(*one.span)]) == one.record


@pytest.mark.parametrize(
    "text",
    [
        '[{"a": [{"a": 1}, {"a": 2}]}, {"a": 3}]',
        '[{"a": 1}, {"a": 2}, {"b": "}, {"a": 3}]',
        '[{"a": 1}, {"a": 2},]',
        '[{"a": 1}, {"a": 2} {"a": 3}]',
    ],
)
def test_a_wrong_guess_does_not_pass(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    cut = parts(path, 1)
    with pytest.raises(ValueError, match=r"Expecting|Unterminated"):
        _ = [one for part in cut for one in records_of(path, part)]


@pytest.mark.parametrize("text", ['{"1": {"a": 1}}', "[]", '[{"a": 1}]', '[{"a": 1}, {"a": 2}] and more'])
def test_what_gives_nothing_to_guess_by_has_no_parts(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    assert parts(path, 1) == []
