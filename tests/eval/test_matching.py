from collections.abc import Callable

from sparkles.eval.benchmark import Prediction
from sparkles.eval.matching import answer_words, content_key, dialogue_key, match, shared_content

Make = Callable[..., Prediction]


def test_items_are_paired_by_id_whatever_their_order(make_prediction: Make) -> None:
    ours = [make_prediction("1"), make_prediction("2"), make_prediction("3")]
    theirs = [make_prediction("4"), make_prediction("3"), make_prediction("2")]
    found = match(ours, theirs)
    assert [(one.item_id, other.item_id) for one, other in found.pairs] == [("2", "2"), ("3", "3")]
    assert (found.only_ours, found.only_theirs, found.other_content) == (1, 1, 0)


def test_one_id_with_other_content_is_no_pair_unless_asked_for(make_prediction: Make) -> None:
    ours = [make_prediction("1", pictures=["/a/red.png"])]
    theirs = [make_prediction("1", pictures=["/a/green.png"])]
    assert (match(ours, theirs).pairs, match(ours, theirs).other_content) == ([], 1)
    assert len(match(ours, theirs, "id").pairs) == 1


def test_content_stays_the_same_in_another_folder_and_with_another_answer(make_prediction: Make) -> None:
    one = make_prediction("1", pictures=["/a/red.png"], answer="TRUE")
    moved = make_prediction("1", pictures=["/elsewhere/red.png"], answer="FALSE")
    assert content_key(one) == content_key(moved)
    assert content_key(one) != content_key(make_prediction("1", pictures=["/a/red.png"], question="Other?"))


def test_a_dialogue_is_known_by_its_answers_but_not_by_its_rating(make_prediction: Make) -> None:
    one = make_prediction(answers=["a", "b"], rating=3.0, judge="x")
    assert dialogue_key(one) == dialogue_key(make_prediction(answers=["a", "b"], rating=9.0, judge="y"))
    assert dialogue_key(one) != dialogue_key(make_prediction(answers=["a", "c"], rating=3.0, judge="x"))


def test_items_overlap_by_sentence_and_by_picture(make_prediction: Make) -> None:
    found = shared_content(
        [
            make_prediction("1", question="Is it red?", pictures=["a", "b"]),
            make_prediction("2", question="Is it red?", pictures=["c", "d"]),
            make_prediction("3", question="Is it blue?", pictures=["d", "e"]),
            make_prediction("4", question="Is it green?", pictures=["f", "g"]),
        ]
    )
    assert found is not None
    assert found.pairs.toarray().astype(int).tolist() == [
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [0, 1, 1, 0],
        [0, 0, 0, 1],
    ]


def test_items_with_nothing_in_common_do_not_overlap(make_prediction: Make) -> None:
    assert shared_content([make_prediction(str(n), pictures=[f"{n}.png"]) for n in range(3)]) is None


def test_words_are_those_of_all_answers(make_prediction: Make) -> None:
    assert answer_words(make_prediction(answers=["two words", "and three more"], rating=1.0)) == 5
