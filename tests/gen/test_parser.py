"""The parser's path, with spaCy and benepar (`pip install 'sparkles[stats]'`) and models that are trained here.

The published models are downloads of their own. These know five sentences, and are loaded from files in the same way.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sparkles.gen import verbs
from sparkles.gen.verbs import find_pairs_by
from sparkles.prompt_format import image_reference

pytestmark = pytest.mark.slow
spacy = pytest.importorskip("spacy")
benepar = pytest.importorskip("benepar")

SENTENCES = (
    "Compare|compare|VERB|ROOT|0 the|the|DET|det|2 bridge|bridge|NOUN|dobj|0 in|in|ADP|prep|2 "
    "IMAGE#7|image#7|PROPN|pobj|3 .|.|PUNCT|punct|0",
    "Write|write|VERB|ROOT|0 a|a|DET|det|3 short|short|ADJ|amod|3 poem|poem|NOUN|dobj|0 about|about|ADP|prep|3 "
    "IMAGE#7|image#7|PROPN|pobj|4 .|.|PUNCT|punct|0",
    "Can|can|AUX|aux|2 you|you|PRON|nsubj|2 tell|tell|VERB|ROOT|2 a|a|DET|det|4 story|story|NOUN|dobj|2 "
    "about|about|ADP|prep|4 IMAGE#7|image#7|PROPN|pobj|5 ?|?|PUNCT|punct|2",
    "IMAGE#7|image#7|PROPN|nsubj|1 is|be|AUX|ROOT|1 nice|nice|ADJ|acomp|1 .|.|PUNCT|punct|1",
    "Describe|describe|VERB|ROOT|0 the|the|DET|det|2 bridges|bridge|NOUN|dobj|0 in|in|ADP|prep|2 "
    "IMAGE#7|image#7|PROPN|pobj|3 .|.|PUNCT|punct|0",
)
"""Words as text|lemma|part of speech|dependency|head."""


def annotated(nlp: Any, sentence: str) -> Any:
    from spacy.tokens import Doc
    from spacy.training import Example

    words, lemmas, pos, deps, heads = zip(*(word.split("|") for word in sentence.split()), strict=True)
    fields = {"lemmas": list(lemmas), "pos": list(pos), "deps": list(deps), "heads": list(map(int, heads))}
    return Example.from_dict(Doc(nlp.vocab, words=list(words)), fields)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A pipeline with the parts of English ones that are looked at, trained until it knows its sentences."""
    nlp = spacy.blank("en")
    nlp.add_pipe("tok2vec")
    nlp.add_pipe("morphologizer")
    nlp.add_pipe("parser", config={"min_action_freq": 1})
    nlp.add_pipe("trainable_lemmatizer", config={"min_tree_freq": 1})
    spacy.util.fix_random_seed(0)
    optimizer = nlp.initialize(lambda: [annotated(nlp, sentence) for sentence in SENTENCES])
    for _ in range(60):
        nlp.update([annotated(nlp, sentence) for sentence in SENTENCES], sgd=optimizer, drop=0.0)
    folder = tmp_path_factory.mktemp("models") / "en_tiny"
    nlp.to_disk(folder)
    return str(folder)


@pytest.fixture(scope="module")
def constituents(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A parser of benepar with random weights: root verbs are read off spaCy's tree, not off its."""
    import torch
    from benepar.char_lstm import RetokenizerForCharLSTM
    from benepar.nkutil import HParams
    from benepar.parse_chart import ChartParser

    torch.manual_seed(0)
    settings = HParams(
        use_chars_lstm=True, use_pretrained=False, use_encoder=True, predict_tags=True, d_model=32, d_char_emb=8,
        char_lstm_input_dropout=0.0, morpho_emb_dropout=0.0, encoder_max_len=64, num_heads=2, d_kv=16, d_ff=32,
        relu_dropout=0.0, residual_dropout=0.0, attention_dropout=0.0, num_layers=1, d_label_hidden=16, d_tag_hidden=16,
        tag_loss_scale=1.0, force_root_constituent=True,
    )  # fmt: skip
    parser = ChartParser(
        tag_vocab={"UNK": 0, "NN": 1, "VB": 2},
        label_vocab={"": 0, "S": 1, "NP": 2},
        char_vocab=RetokenizerForCharLSTM.build_vocab([words.split() for words in SENTENCES]),
        hparams=settings,
    )
    path = tmp_path_factory.mktemp("models") / "benepar_tiny"
    torch.save({"config": parser.config, "state_dict": parser.state_dict()}, path)
    return str(path)


@pytest.fixture(autouse=True)
def _models(pipeline: str, constituents: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(verbs, "SPACY_MODEL", pipeline)
    monkeypatch.setattr(verbs, "BENEPAR_MODEL", constituents)
    find_pairs_by.cache_clear()
    yield
    find_pairs_by.cache_clear()


@pytest.mark.parametrize(
    ("question", "pair"),
    [
        (f"Compare the bridge in {image_reference(7)}.", ("compare", "bridge")),
        (f"Describe the bridges in {image_reference(7)}.", ("describe", "bridge")),
        (
            f"{image_reference(7)} is nice. Can you tell a story about {image_reference(7)}?",
            ("tell", "story"),
        ),
        (f"Write a short poem about {image_reference(7)}. {image_reference(7)} is nice.", ("write", "poem")),
        (f"{image_reference(7)} is nice.", None),
    ],
)
def test_root_verbs_are_found_by_the_parser(question: str, pair: tuple[str, str] | None) -> None:
    find = find_pairs_by("auto")
    assert find.name == f"spaCy {Path(verbs.SPACY_MODEL)} + benepar {Path(verbs.BENEPAR_MODEL)}"
    assert find(question) == pair
