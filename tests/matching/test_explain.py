"""matching/explain.py: what a person reads when a plan leaves something over."""

from __future__ import annotations

from torchkeep.contents import Storage, TensorEntry, contiguous_stride
from torchkeep.matching.explain import Call, advise, summarize, table
from torchkeep.matching.plan import plan
from torchkeep.matching.slots import Slot


def file_of(**shapes: tuple[int, ...] | str) -> dict[str, TensorEntry]:
    return {
        key.replace("__", "."): TensorEntry("float32", shape, contiguous_stride(shape), _STORAGE)
        for key, shape in shapes.items()
    }


def model_of(dtype: str = "float32", **shapes: tuple[int, ...]) -> dict[str, Slot]:
    return {key.replace("__", "."): Slot(dtype, shape) for key, shape in shapes.items()}


_STORAGE = Storage("0", 0, 0)
CALL = Call("m.pth")


def test_the_summary_counts_what_is_left_over() -> None:
    steps = plan(file_of(a=(1,), b=(2,), c=(1,)), model_of(b=(3,), c=(1,), d=(1,)))
    assert summarize(steps) == (
        "1 missing in the file, 1 with another shape or dtype, 1 unexpected in the file"
    )


def test_the_table_shows_both_shapes_and_the_nearest_name() -> None:
    steps = plan(
        file_of(fc__weight=(10, 4), head__bias=(1,)), model_of(fc__weight=(5, 4), heads__bias=(1,))
    )
    assert table(steps) == (
        "  missing in the file (1):\n"
        "    heads.bias (the file has head.bias)\n"
        "  with another shape or dtype (1):\n"
        "    fc.weight: float32 [10, 4] in the file, float32 [5, 4] in the model\n"
        "  unexpected in the file (1):\n"
        "    head.bias"
    )


def test_a_long_table_is_cut() -> None:
    steps = plan({}, {f"k{n}": Slot("float32", ()) for n in range(20)})
    assert table(steps).endswith("    k7\n    ... and 12 more")


def test_the_advice_is_the_call_that_skips_whole_modules() -> None:
    file = file_of(a__w=(1,), fc__weight=(10, 4), fc__bias=(10,), a__old=(1,))
    model = model_of(a__w=(1,), fc__weight=(5, 4), fc__bias=(5,))
    text = advise(plan(file, model), file, model, CALL)
    assert text == (
        "To load the rest: load_into(model, 'm.pth', adapt={'a.old': 'skip', 'fc.*': 'skip'})."
    )
    assert plan(file, model, adapt={"a.old": "skip", "fc.*": "skip"}).is_complete


def test_the_advice_for_another_dtype_is_a_cast() -> None:
    file, model = file_of(a=(2,), b=(1,)), model_of("float16", a=(2,), b=(3,))
    half = {"a": model["a"]}
    steps = plan({"a": file["a"]}, half)
    assert advise(steps, file, half, CALL) == (
        "To cast: load_into(model, 'm.pth', adapt={'*': 'cast'})."
    )
    text = advise(plan(file, model), file, model, CALL)
    assert "cast to the model's dtypes: " in text
    assert "adapt={'b': 'skip', '*': 'cast'}" in text


def test_the_advice_keeps_what_the_call_had() -> None:
    file, model = file_of(a=(1,)), model_of(a=(1,), b=(1,), c=(1,))
    call = Call("m.pth", select="ema", adapt={"b": "skip"}, assign=True)
    text = advise(plan(file, model, adapt=call.adapt), file, model, call)
    assert text == (
        "To load the rest: load_into(model, 'm.pth', select='ema', "
        "adapt={'c': 'skip', 'b': 'skip'}, assign=True)."
    )


def test_a_common_first_part_is_recognised() -> None:
    file = file_of(model__a__w=(1,), model__b__w=(1,), loss__w=(1,))
    model = model_of(a__w=(1,), b__w=(1,))
    assert advise(plan(file, model), file, model, CALL) == (
        "The file's keys match after their first part, 'model': "
        "load_into(torch.nn.ModuleDict({'model': model}), 'm.pth')."
    )


def test_a_part_of_the_file_that_fits_by_chance_is_not_suggested() -> None:
    file = file_of(enc__a__w=(9,), enc__b__w=(9,), q__w=(1,), r__w=(1,), s__w=(1,))
    model = model_of(a__w=(1,), b__w=(1,))
    assert advise(plan(file, model), file, model, CALL).startswith("Nothing matches")


def test_another_models_file_is_called_that() -> None:
    file, model = file_of(x__w=(1,), y__w=(2,)), model_of(a__w=(1,), b__w=(1,))
    assert advise(plan(file, model), file, model, CALL).startswith("Nothing matches: the file is")


def test_no_call_is_suggested_that_would_skip_most_of_the_model() -> None:
    model = {f"part{n}.w": Slot("float32", (1,)) for n in range(20)}
    file = file_of(part0__w=(1,))
    assert advise(plan(file, model), file, model, CALL) == (
        "Only 5% of the model would be loaded: is it another network?"
    )


def test_keys_in_wrappers_are_skipped_by_their_bare_name() -> None:
    file = file_of(module__a__w=(1,), module__fc__w=(2,))
    model = model_of(a__w=(1,), fc__w=(3,))
    text = advise(plan(file, model), file, model, CALL)
    assert "adapt={'fc.*': 'skip'}" in text
    assert plan(file, model, adapt={"fc.*": "skip"}).is_complete
