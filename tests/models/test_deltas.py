"""Merging deltas, on folders of a few kilobytes in the formats of the released ones."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from sparkles.models.checkpoints import CheckpointError, deltas
from sparkles.models.checkpoints.__main__ import main
from sparkles.models.checkpoints.deltas import merge_delta

Weights = dict[str, Tensor]
EMBEDDING, HEAD, QUERY = (
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.layers.0.self_attn.q_proj.weight",
)
ROWS = 40


def write_folder(folder: Path, weights: Weights, *, kind: str = "safetensors", num_shards: int = 2) -> Path:
    """A folder as `transformers` saves it, of safetensors or of the `.bin` files that were usual before."""
    folder.mkdir(parents=True)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    names = [f"{stem}-{n:05d}-of-{num_shards:05d}.{kind}" for n in range(1, num_shards + 1)]
    weight_map = {key: names[place * num_shards // len(weights)] for place, key in enumerate(weights)}
    for name in names:
        shard = {key: weights[key] for key, home in weight_map.items() if home == name}
        if kind == "safetensors":
            save_file(shard, folder / name)
        else:
            torch.save(shard, folder / name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return folder


def write_config(folder: Path, rows: int) -> None:
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        dtype="float16",
    )
    config.save_pretrained(folder)


def random_weights(rows: int, seed: int) -> Weights:
    torch.manual_seed(seed)
    folder_config = LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
    )
    return {name: tensor.half() for name, tensor in LlamaForCausalLM(folder_config).state_dict().items()}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "llama-7b-hf", random_weights(ROWS, seed=0), kind="bin", num_shards=3)


@pytest.fixture
def make_delta(tmp_path: Path) -> Callable[..., Path]:
    def make(name: str = "delta", *, rows: int = ROWS, kind: str = "safetensors", **changes: Tensor) -> Path:
        folder = write_folder(tmp_path / name, random_weights(rows, seed=1) | changes, kind=kind)
        write_config(folder, rows)
        (folder / "tokenizer.model").write_bytes(b"pieces")
        (folder / "README.md").write_text("a delta")
        return folder

    return make


def read(folder: Path) -> Weights:
    return {
        key: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for key, tensor in load_file(file).items()
    }


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_merged_folder_is_the_sum_and_loads(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    merge_delta(base, make_delta(kind=kind), tmp_path / "out")
    one, other = random_weights(ROWS, seed=0), random_weights(ROWS, seed=1)
    expected = {name: one[name] + other[name] for name in one}
    torch.testing.assert_close(read(tmp_path / "out"), expected, rtol=0, atol=0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.model",
    }
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(model.get_input_embeddings().weight.data, expected[EMBEDDING], rtol=0, atol=0)


def test_one_file_is_merged_into_one_file(make_delta: Callable[..., Path], tmp_path: Path) -> None:
    base = write_folder(tmp_path / "base", random_weights(ROWS, seed=0), num_shards=1)
    (base / "model-00001-of-00001.safetensors").rename(base / "model.safetensors")
    (base / "model.safetensors.index.json").unlink()
    delta = Path(shutil.copytree(base, tmp_path / "single"))
    write_config(delta, ROWS)
    merge_delta(base, delta, tmp_path / "out")
    twice = {name: tensor * 2 for name, tensor in random_weights(ROWS, seed=0).items()}
    torch.testing.assert_close(load_file(tmp_path / "out/model.safetensors"), twice, rtol=0, atol=0)
    assert not (tmp_path / "out/model.safetensors.index.json").exists()


def test_sum_of_a_float32_base_has_the_number_format_of_the_delta(
    make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    weights = {name: tensor.float() + 1e-5 for name, tensor in random_weights(ROWS, seed=0).items()}
    merge_delta(write_folder(tmp_path / "base", weights), make_delta(), tmp_path / "out")
    expected = {name: weights[name].half() + tensor for name, tensor in random_weights(ROWS, seed=1).items()}
    torch.testing.assert_close(read(tmp_path / "out"), expected, rtol=0, atol=0)


def test_row_that_v0_adds_to_the_vocabulary_is_the_deltas(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merge_delta(base, make_delta(rows=ROWS + 1), tmp_path / "out")
    merged, one, other = (
        read(tmp_path / "out"),
        random_weights(ROWS, seed=0),
        random_weights(ROWS + 1, seed=1),
    )
    for name in (EMBEDDING, HEAD):
        torch.testing.assert_close(merged[name][:-1], one[name] + other[name][:-1], rtol=0, atol=0)
        torch.testing.assert_close(merged[name][-1], other[name][-1], rtol=0, atol=0)
    assert "adds 1 to the vocabulary" in " ".join(capsys.readouterr().err.split())


def test_base_with_a_larger_vocabulary_is_explained(make_delta: Callable[..., Path], tmp_path: Path) -> None:
    base = write_folder(tmp_path / "extended", random_weights(ROWS + 1, seed=0))
    with pytest.raises(
        CheckpointError, match=rf"has {ROWS + 1} rows in .*extended but {ROWS} in .*delta"
    ) as caught:
        merge_delta(base, make_delta(), tmp_path / "out")
    assert "Set base= to the original LLaMA weights" in str(caught.value)


def test_one_error_lists_everything_that_does_not_fit(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    delta = make_delta(**{QUERY: torch.zeros(3, 3), "model.mm_projector.weight": torch.zeros(2)})
    first = load_file(delta / "model-00001-of-00002.safetensors")
    dropped = next(name for name in first if "norm" in name)
    save_file(
        {name: tensor for name, tensor in first.items() if name != dropped},
        delta / "model-00001-of-00002.safetensors",
    )
    with pytest.raises(CheckpointError) as caught:
        merge_delta(base, delta, tmp_path / "out")
    message = str(caught.value)
    assert f"{delta} is no delta to {base}" in message
    assert f"missing: {dropped} (16,)" in message
    assert "unexpected: model.mm_projector.weight (2,)" in message
    assert f"shape of {QUERY}: got (3, 3), expected (16, 16)" in message
    assert not (tmp_path / "out").exists()


def test_buffers_of_old_files_are_left_out(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    merge_delta(
        base, make_delta(**{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}), tmp_path / "out"
    )
    assert read(tmp_path / "out").keys() == random_weights(ROWS, seed=0).keys()


def test_interrupted_merge_goes_on_with_the_next_shard(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delta, out, write = make_delta(), tmp_path / "out", deltas.write_safetensors
    written: list[str] = []

    def write_until_the_power_fails(tensors: Weights, path: Path, metadata: Mapping[str, str]) -> None:
        if written:
            raise RuntimeError("power cut")
        written.append(path.name)
        write(tensors, path, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(deltas, "write_safetensors", write_until_the_power_fails)
        with pytest.raises(RuntimeError, match="power cut"):
            merge_delta(base, delta, out)
    assert [path.name for path in out.iterdir()] == written == ["model-00001-of-00002.safetensors"]

    before = (out / written[0]).stat()
    merge_delta(base, delta, out)
    assert (out / written[0]).stat().st_mtime_ns == before.st_mtime_ns
    assert read(out).keys() == random_weights(ROWS, seed=0).keys()
    AutoModelForCausalLM.from_pretrained(out)


def test_shard_of_another_merge_is_not_taken_for_a_finished_one(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    merge_delta(base, make_delta(), tmp_path / "out")
    with pytest.raises(
        CheckpointError, match="exists and was not merged from these files; remove it, or set out="
    ):
        merge_delta(base, make_delta("other"), tmp_path / "out")


def test_merged_model_tells_what_ends_an_answer(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    def taught(delta: Path, end_of_answer: str | None = None) -> str | None:
        out = tmp_path / f"merged-{len(list(tmp_path.iterdir()))}"
        merge_delta(base, delta, out, end_of_answer)
        return json.loads((out / "config.json").read_text()).get("end_of_answer")

    assert taught(make_delta("plain")) is None
    assert taught(make_delta("padded", rows=ROWS + 1)) == "###"
    assert taught(make_delta("vicuna-7b-delta-v1.1")) == "</s>"
    assert taught(make_delta("koala"), "</s>") == "</s>"


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_memory_stays_under_twice_the_largest_shard(tmp_path: Path, kind: str) -> None:
    peak, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        peak.write_text("5")
    except OSError:
        pytest.skip("the peak of this process cannot be measured here")

    def resident(key: str) -> int:
        return int(status.read_text().split(f"{key}:")[1].split()[0]) * 1024

    size = 2 * 1024**2
    names = [f"model.layers.{place}.weight" for place in range(16)]
    weights = {name: torch.zeros(size // 4) for name in names}
    base = write_folder(tmp_path / "base", weights, kind=kind, num_shards=4)
    delta = write_folder(tmp_path / "delta", weights, kind=kind, num_shards=2)
    write_config(delta, ROWS)
    del weights
    peak.write_text("5")
    before = resident("VmRSS")
    merge_delta(base, delta, tmp_path / "out")
    largest_shard = size * len(names) // 2
    assert resident("VmHWM") - before < 2 * largest_shard


def test_weights_that_would_run_code_are_refused(
    base: Path, make_delta: Callable[..., Path], tmp_path: Path
) -> None:
    delta = make_delta(kind="bin")
    torch.save({"weight": Path}, delta / "pytorch_model-00001-of-00002.bin")
    with pytest.raises(CheckpointError, match=r"00001-of-00002\.bin: not readable as weights"):
        merge_delta(base, delta, tmp_path / "out")


def test_what_is_missing_is_named(base: Path, make_delta: Callable[..., Path], tmp_path: Path) -> None:
    delta = make_delta()
    with pytest.raises(
        CheckpointError, match=r"nowhere: no weights; expected a folder in the format of transformers"
    ):
        merge_delta(tmp_path / "nowhere", delta, tmp_path / "out")
    with pytest.raises(CheckpointError, match="is one of the two folders that are added"):
        merge_delta(base, delta, delta)
    (delta / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json: no such file; expected the delta's config"):
        merge_delta(base, delta, tmp_path / "out")
    (base / "pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(
        CheckpointError, match=r"missing: pytorch_model-00002-of-00003\.bin\. Finish the download"
    ):
        merge_delta(base, delta, tmp_path / "out")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def run_command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["checkpoints", *arguments])
        main()

    return run_command


def test_command_merges(
    base: Path,
    make_delta: Callable[..., Path],
    tmp_path: Path,
    run: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run(
        "merge-delta", f"base={base}", f"delta={make_delta()}", f"out={tmp_path / 'out'}", "end_of_answer=###"
    )
    assert json.loads((tmp_path / "out/config.json").read_text())["end_of_answer"] == "###"
    assert "it ends an answer with '###'" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["merge-deltas"], "unknown command 'merge-deltas'; expected merge-delta or export"),
        (["merge-delta", "bse=x"], "merge-delta: unknown key 'bse'; did you mean base?"),
        (
            ["merge-delta", "target=x"],
            "merge-delta: unknown key 'target'; it takes base, delta, out, end_of_answer",
        ),
        (["merge-delta", "base=x"], "merge-delta: missing delta, out; give delta=..."),
        (["merge-delta", "--base", "x"], "merge-delta: expected key=value, got '--base'"),
        (["merge-delta", "base=no", "delta=no", "out=x"], "no: no weights; expected a folder"),
        (["export", "checkpoint=no.ckpt", "out=x.pth"], "no.ckpt: no such file"),
    ],
)
def test_mistakes_end_the_command_with_a_message(
    run: Callable[..., None], arguments: list[str], expected: str
) -> None:
    with pytest.raises(SystemExit, match=expected):  # a message as its code means status 1
        run(*arguments)


def test_help_is_answered_before_torch_is_loaded() -> None:
    program = (
        "import runpy, sys; sys.argv = ['checkpoints', '--help']\n"
        "try: runpy.run_module('sparkles.models.checkpoints', run_name='__main__')\n"
        "except SystemExit as end: sys.exit('torch' in sys.modules or end.code)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "merge-delta base=FOLDER delta=FOLDER out=FOLDER" in result.stdout
