import pytest

from sparkles.data.annotations import read_dialogues
from sparkles.gen import demonstrations
from sparkles.gen.candidates import shape_of
from sparkles.gen.demonstrations import select
from sparkles.types import InputError
from tests.gen.scripted import dialogue

SHIPPED = demonstrations.__file__.replace(".py", ".json")


def test_the_shipped_ones_serve_every_recipe() -> None:
    assert {shape_of(one)[0] for one in read_dialogues(SHIPPED)} == {1, 2, 3}
    assert {shape_of(one)[0] for one in select(read_dialogues(SHIPPED))} >= {2, 3}


def test_where_none_is_fit_the_reasons_are_said() -> None:
    with pytest.raises(InputError, match=r"none of 1 dialogues is fit .* left out 1 by long_answers"):
        select([dialogue(2, 1)])
