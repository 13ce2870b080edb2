"""matching/suggest.py: the call that would do what the user probably wants, tried before."""

from __future__ import annotations

import pytest

from matching.descriptions import entry, file_of, model_of, slot
from torchkeep.matching.adaptations import ClassNames
from torchkeep.matching.plan import plan
from torchkeep.matching.policy import Policy
from torchkeep.matching.slots import Slot
from torchkeep.matching.suggest import advise, suggest


def advice(file, model, policy: Policy | None = None, call: str = "load_into(model, 'm.pth'"):
    policy = policy or Policy()
    return advise(plan(file, model, policy), file, model, policy, call)


def suggested(file, model, policy: Policy | None = None) -> Policy:
    policy = policy or Policy()
    found = suggest(plan(file, model, policy), file, model, policy)
    assert found is not None
    assert plan(file, model, found).is_complete
    return found


def test_the_advice_is_the_call_that_skips_whole_modules() -> None:
    file = file_of(a__w=(30,), fc__weight=(10, 4), fc__bias=(10,), a__old=(1,))
    model = model_of(a__w=(30,), fc__weight=(5, 4), fc__bias=(5,))
    assert advice(file, model) == (
        "To load the rest (54.5% of the model): "
        "load_into(model, 'm.pth', adapt={'a.old': 'skip', 'fc.*': 'skip'})."
    )
    assert suggested(file, model).adapt == {"a.old": "skip", "fc.*": "skip"}


def test_the_advice_for_another_dtype_is_a_cast() -> None:
    file, half = file_of(a=(2,)), model_of("float16", a=(2,))
    assert advice(file, half) == (
        "To load it (100.0% of the model): load_into(model, 'm.pth', adapt={'*': 'cast'})."
    )
    file, model = file_of(a=(2,), b=(1,)), model_of("float16", a=(2,), b=(3,))
    assert suggested(file, model).adapt == {"b": "skip", "*": "cast"}


def test_the_advice_for_other_input_channels_and_positions_adapts_them() -> None:
    file = {"stem.weight": entry(8, 3, 4, 4), "pos_embed": entry(1, 17, 8), "fc.w": entry(3, 8)}
    model = {"stem.weight": slot(8, 4, 4, 4), "pos_embed": slot(1, 26, 8), "fc.w": slot(2, 8)}
    assert suggested(file, model).adapt == {
        "fc.*": "skip",
        "stem.weight": "average-channels",
        "pos_embed": "resample",
    }


def test_known_class_names_are_used() -> None:
    policy = Policy(classes=ClassNames(("a", "b", "c"), ("c", "d")))
    file, model = {"x.w": entry(9), "fc.w": entry(3, 8)}, {"x.w": slot(9), "fc.w": slot(2, 8)}
    assert suggested(file, model, policy).adapt == {"fc.w": "classes"}
    assert "classes=('c', 'd')" in advice(file, model, policy)


def test_the_advice_keeps_what_the_call_had() -> None:
    file, model = file_of(a=(1,)), model_of(a=(1,), b=(1,), c=(1,))
    call = "load_into(model, 'm.pth', select='ema', assign=True"
    assert advice(file, model, Policy(adapt={"b": "skip"}, allow=("cast",)), call) == (
        "To load the rest (33.3% of the model): load_into(model, 'm.pth', select='ema', "
        "assign=True, adapt={'c': 'skip', 'b': 'skip'}, allow=('cast',))."
    )


@pytest.mark.parametrize(
    ("old", "new", "rules"),
    [
        ("layers.{}.fc.weight", "blocks.{}.fc.weight", {"layers.*": "blocks.*"}),
        ("{}.attn.weight", "{}.attention.weight", {"*.attn.*": "*.attention.*"}),
        (
            "l{}.weight",
            "net.l{}.deep.weight",
            {f"l{number}.*": f"net.l{number}.deep.*" for number in range(4)},
        ),
        ("a{}.gain", "a{}.gain.value", None),
    ],
)
def test_keys_under_other_names_are_brought_together(old: str, new: str, rules) -> None:
    file = {old.format(number): entry(3, number + 1) for number in range(4)}
    model = {new.format(number): slot(3, number + 1) for number in range(4)}
    if rules is None:
        assert suggest(plan(file, model), file, model, Policy()) is None
        return
    assert suggested(file, model).rename == rules
    assert advice(file, model).startswith("If they are the same under other names (100.0% of the")


def test_a_rename_and_a_new_head_are_suggested_together() -> None:
    file = {f"layers.{n}.w": entry(9, n + 1) for n in range(4)} | {"fc.w": entry(3)}
    model = {f"blocks.{n}.w": slot(9, n + 1) for n in range(4)} | {"fc.w": slot(2)}
    found = suggested(file, model)
    assert (found.rename, found.adapt) == ({"layers.*": "blocks.*"}, {"fc.*": "skip"})


def test_renames_are_not_guessed_between_shapes_that_differ() -> None:
    file = {"layers.0.w": entry(3), "x.w": entry(9)}
    model = {"blocks.0.w": slot(4), "x.w": slot(9)}
    assert suggested(file, model).rename == {}


def test_two_parts_that_fit_alike_are_named() -> None:
    file = file_of(gen__a__w=(1,), gen__b__w=(1,), dis__a__w=(1,), dis__b__w=(1,))
    assert advice(file, model_of(a__w=(1,), b__w=(1,))) == (
        "Several parts of the file fit this model: "
        "say which with rename={'gen.*': '*'} or rename={'dis.*': '*'}."
    )


def test_a_part_of_the_file_that_fits_by_chance_is_not_suggested() -> None:
    file = file_of(x__w=(9,), y__w=(9,), q__w=(1,), r__w=(1,), s__w=(1,))
    assert advice(file, model_of(a__v=(1,), b__v=(1,))).startswith("Nothing matches")


def test_another_models_file_is_called_that() -> None:
    file, model = file_of(x__w=(1,), y__w=(2,)), model_of(a__v=(1,), b__v=(1,))
    assert advice(file, model).startswith("Nothing matches: the file is another model's")


def test_no_call_is_suggested_that_would_skip_most_of_the_model() -> None:
    model = {f"part{n}.w": Slot("float32", (1,)) for n in range(20)}
    assert advice(file_of(part0__w=(1,)), model) == (
        "Only 5.0% of the model would be loaded: is it another network?"
    )


def test_keys_in_wrappers_are_skipped_by_their_bare_name() -> None:
    file = file_of(module__a__w=(1,), module__fc__w=(2,))
    assert suggested(file, model_of(a__w=(1,), fc__w=(3,))).adapt == {"fc.*": "skip"}
