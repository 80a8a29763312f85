"""Endpoint responder and client against a server that is not ours: `transformers serve` with tiny random models.

Needs the packages of the extra `serve` and accelerate; skipped where they are missing.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from sparkles.eval.bison import Bison
from sparkles.eval.endpoint import EndpointResponder
from sparkles.eval.run import evaluate
from sparkles.llm_client import LLMClient
from sparkles.types import Image, Message, Prompt

MISSING = [name for name in ("fastapi", "uvicorn", "accelerate") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"transformers serve needs {', '.join(MISSING)}: pip install transformers[serving]",
    ),
]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}assistant: "
)
SIDE, PATCH = 8, 4
"""Pixels of a picture and of a patch: four image tokens."""


def save_model(folder: Path, *, sees: bool) -> Path:
    """A Llama with random weights and a tokenizer of single bytes; with `sees`, as the language model of a LLaVA."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlamaForCausalLM,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bytes_ = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    bytes_.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_.decoder = decoders.ByteLevel()
    bytes_.add_special_tokens([AddedToken("</s>", special=True), AddedToken("<image>", special=True)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_, eos_token="</s>", pad_token="</s>", chat_template=CHAT_TEMPLATE
    )
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=2_048,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    if not sees:
        LlamaForCausalLM(text).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=PATCH,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=vision, text_config=text, image_token_id=image_token, vision_feature_layer=-1
        )
    )
    model.save_pretrained(folder)
    LlavaProcessor(
        CLIPImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("server") / "log"
    command = ["-m", "transformers.cli.transformers", "serve", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        server = subprocess.Popen([sys.executable, *command], stdout=output, stderr=output, env=environment)
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://localhost:{port}/health", timeout=1).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.2)
        yield f"http://localhost:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def responder(base_url: str, tmp_path: Path, request: pytest.FixtureRequest) -> EndpointResponder:
    """With the tiny model that `sees` pictures, or with the one that does not."""
    folder = save_model(tmp_path / "model", sees=request.param)
    client = partial(LLMClient, base_url=base_url, attempts=1, timeout=60.0, concurrency=1)
    return EndpointResponder(
        model=str(folder), client=client, captions=not request.param, max_tokens=8,
        journal=tmp_path / "journal.jsonl",
    )  # fmt: skip


@pytest.fixture
def prompt(pictures: Path) -> Prompt:
    red, green = (
        Image(image_id=number, caption=f"something {color}", path=pictures / f"{color}.png")
        for number, color in enumerate(["red", "green"], start=1)
    )
    return Prompt(
        messages=(
            Message(role="user", content="See IMAGE#1<Img><ImageHere></Img>!", images=(red,)),
            Message(role="assistant", content="I do."),
            Message(role="user", content="And IMAGE#2<Img><ImageHere></Img>?", images=(green,)),
        )
    )


@pytest.mark.parametrize("responder", [True, False], indirect=True, ids=["pictures", "captions"])
def test_a_dialogue_is_answered_and_every_picture_counted(
    responder: EndpointResponder, prompt: Prompt, tmp_path: Path
) -> None:
    [response] = responder.respond([prompt])
    assert response.failure == ""
    [record] = [json.loads(line)["record"] for line in (tmp_path / "journal.jsonl").read_text().splitlines()]
    spelled = "user: See IMAGE#1{}!\nassistant: I do.\nuser: And IMAGE#2{}?\nassistant: "
    shown = (
        ["", ""] if not responder.captions else [" [caption: something red]", " [caption: something green]"]
    )
    image_tokens = 0 if responder.captions else 2 * (SIDE // PATCH) ** 2
    assert record["usage"]["input_tokens"] == len(spelled.format(*shown)) + image_tokens
    assert record["usage"]["output_tokens"] <= 8
    assert responder.endpoints[0]["answered_by"] == [record["model"]]


@pytest.mark.parametrize("responder", [True], indirect=True)
def test_a_benchmark_runs_on_it(
    responder: EndpointResponder, bison_file: Path, pictures: Path, tmp_path: Path
) -> None:
    benchmark = Bison(annotations=bison_file, images=pictures)
    metrics = evaluate([benchmark], responder, None, tmp_path / "run", progress=False)
    assert (metrics["bison/num"], metrics["bison/unscored"]) == (4, 4)  # random weights conclude nothing


@pytest.mark.parametrize("responder", [True], indirect=True)
def test_another_picture_is_another_question(
    responder: EndpointResponder, prompt: Prompt, pictures: Path
) -> None:
    """Greedy answers of 8 random tokens; the same but for one picture."""
    from dataclasses import replace

    other = replace(prompt.messages[2], images=(replace(prompt.images[1], path=pictures / "33.jpg"),))
    both = responder.respond([prompt, replace(prompt, messages=(*prompt.messages[:2], other))])
    assert [response.failure for response in both] == ["", ""]
