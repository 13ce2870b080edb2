"""matching/policy.py: what may be asked for is checked when it is asked for."""

from __future__ import annotations

import pytest

from torchkeep.errors import WrongArgument
from torchkeep.matching.policy import Policy, listed


@pytest.mark.parametrize(
    "given",
    [{"adapt": {"*": "resize"}}, {"adapt": {"a": ("cast", "resize")}}, {"allow": ("resize",)}],
)
def test_an_unknown_adaptation_is_refused(given) -> None:
    with pytest.raises(WrongArgument, match=r"'resize' is no adaptation .* Use one of classes, sl"):
        Policy(**given)


def test_leaving_things_alone_is_asked_for_by_pattern_only() -> None:
    with pytest.raises(WrongArgument, match="'skip' is no adaptation that can be asked for here"):
        Policy(allow=("skip",))


@pytest.mark.parametrize("share", [-0.1, 1.1, 50])
def test_a_coverage_that_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(
        WrongArgument, match=r"is no share of the model\. Give a number from 0 to 1"
    ):
        Policy(min_coverage=share)


def test_the_first_pattern_that_matches_counts() -> None:
    policy = Policy(adapt={"fc.*": "skip", "*": ("cast", "slice")})
    assert policy.rule_for("fc.w") == ("skip",)
    assert policy.rule_for("a.w") == ("cast", "slice")
    assert Policy(adapt={"fc": "skip"}).rule_for("fc.w") == ("skip",)  # a module's name covers it
    assert Policy(adapt={"fc": "skip"}).rule_for("fc2.w") == ()
    assert Policy().rule_for("a") == ()


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(
        WrongArgument, match=r"adapt: the pattern 'fx\.\*' matches no key of the mo"
    ):
        Policy(adapt={"fx.*": "skip"}).refuse_idle(["fc.w"])


def test_one_name_is_a_list_of_one() -> None:
    assert listed("cast") == ("cast",)
    assert listed(["cast", "skip"]) == ("cast", "skip")
