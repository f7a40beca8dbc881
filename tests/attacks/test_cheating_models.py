"""No model that treats examples together gets a certificate; the refusal names the line."""

import pytest
from tests.attacks.cheating_models import CHEATS, FILE, Classifier

from cloister.errors import CloisterError
from cloister.privacy._certificate import check_model


def test_what_the_cheats_are_made_of_is_honest() -> None:
    certificate = check_model(Classifier(), Classifier.losses, Classifier.batch())
    assert certificate.verdict == "independent"


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheating_model_is_refused_with_its_code_and_its_line(name: str) -> None:
    cheat = CHEATS[name]
    with pytest.raises(CloisterError) as caught:
        check_model(*cheat.build())
    assert caught.value.code == cheat.code, caught.value
    if cheat.line is not None:
        assert f"{FILE}:{cheat.line})" in caught.value.what
