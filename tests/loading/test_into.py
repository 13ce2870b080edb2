"""loading.load_into: planned, done, proven, or refused with the model untouched."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch as reference
import torch

from torchkeep.errors import (
    DamagedFile,
    FileMissing,
    LoadMismatch,
    NotAModelFile,
    ProofFailed,
    WrongArgument,
)
from torchkeep.identify import inspect
from torchkeep.loading import ClassNames, load_into, plan
from torchkeep.matching.plan import Assignment
from torchkeep.saving import save
from torchkeep.tensors import same_bits


def net(classes: int = 10) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, classes)
    )


def trained() -> torch.nn.Module:
    model = net()
    model(torch.randn(5, 4))  # moves the BatchNorm statistics
    return model


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    values = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(same_bits(a, b) for a, b in values)


def parallel(model: torch.nn.Module) -> torch.nn.Module:
    return torch.nn.DataParallel(model)


def compiled(model: torch.nn.Module) -> torch.nn.Module:
    return torch.compile(model, backend="eager")


def both(model: torch.nn.Module) -> torch.nn.Module:
    return compiled(parallel(model))


def plain(model: torch.nn.Module) -> torch.nn.Module:
    return model


WRAPPERS = [plain, parallel, compiled, both]


# --- What can be loaded ------------------------------------------------------------------------


def write_checkpoint(model: torch.nn.Module, path: Path) -> None:
    optimizer = torch.optim.Adam(model.parameters())
    state = {"epoch": 3, "model_state_dict": model.state_dict(), "opt": optimizer.state_dict()}
    torch.save(state, path)


WRITERS: dict[str, Callable[[torch.nn.Module, Path], object]] = {
    "ours.safetensors": save,
    "ours.pth": save,
    "torch.pth": lambda model, path: torch.save(model.state_dict(), path),
    "legacy.pth": lambda model, path: torch.save(
        model.state_dict(), path, _use_new_zipfile_serialization=False
    ),
    "whole.pth": torch.save,
    "whole_legacy.pth": lambda model, path: torch.save(
        model, path, _use_new_zipfile_serialization=False
    ),
    "checkpoint.ckpt": write_checkpoint,
    "reference.safetensors": lambda model, path: reference.save_model(model, str(path)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_fills_the_model(tmp_path: Path, name: str) -> None:
    model, other = trained(), net()
    WRITERS[name](model, tmp_path / name)
    report = load_into(other, tmp_path / name)
    assert same(model, other)
    assert report.digests.keys() == model.state_dict().keys()
    assert report.coverage == 1
    assert len(report.loaded) == len(model.state_dict())
    assert (report.skipped, report.unused) == ((), ())


@pytest.mark.parametrize("target", WRAPPERS)
@pytest.mark.parametrize("source", WRAPPERS)
def test_wrappers_on_either_side_are_matched(tmp_path: Path, source, target) -> None:
    model, other = trained(), net()
    torch.save(source(model).state_dict(), tmp_path / "a.pth")
    load_into(target(other), tmp_path / "a.pth")
    assert same(model, other)


def test_what_was_dropped_from_the_names_is_reported(tmp_path: Path) -> None:
    torch.save(both(trained()).state_dict(), tmp_path / "a.pth")
    report = load_into(net(), tmp_path / "a.pth")
    assert set(report.plan.stripped) == {"_orig_mod", "module"}
    assert report.loaded[0] == Assignment("0.weight", "_orig_mod.module.0.weight")
    assert "dropped from the file's names: " in str(report)


def test_the_training_mode_and_gradient_flags_are_left_as_they_are(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "a.pth")
    other = net().eval()
    other[0].requires_grad_(False)
    for assign in (False, True):
        load_into(other, tmp_path / "a.pth", assign=assign)
        assert not other.training
        assert [p.requires_grad for p in other.parameters()] == [False, False, *[True] * 4]


def test_layouts_in_memory_and_in_the_file_may_differ(tmp_path: Path) -> None:
    model, other = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)
    torch.save(model.to(memory_format=torch.channels_last).state_dict(), tmp_path / "a.pth")
    load_into(other, tmp_path / "a.pth")
    assert torch.equal(other.weight, model.weight)
    assert other.weight.is_contiguous()
    torch.save(other.state_dict(), tmp_path / "b.pth")
    turned = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    load_into(turned, tmp_path / "b.pth")
    assert torch.equal(turned.weight, model.weight)


def test_an_optimizer_made_before_still_trains_the_model(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "a.pth")
    other = net()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    load_into(other, tmp_path / "a.pth")
    before = other[0].weight.clone()
    other(torch.randn(5, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(other[0].weight, before)


# --- Choosing ----------------------------------------------------------------------------------


def test_the_moving_average_is_loaded_on_demand(tmp_path: Path) -> None:
    model, average = trained(), trained()
    state = {"model_state_dict": model.state_dict(), "ema_state_dict": average.state_dict()}
    torch.save(state, tmp_path / "a.pth")
    one, two = net(), net()
    report = load_into(one, tmp_path / "a.pth")
    assert report.state_dict == "model_state_dict"
    assert report.why == "'model_state_dict' is the model's state dict, beside 'ema_state_dict'."
    assert load_into(two, tmp_path / "a.pth", select="ema").state_dict == "ema_state_dict"
    assert same(one, model)
    assert same(two, average)


def test_an_averaged_models_file_loads_into_the_model_itself(tmp_path: Path) -> None:
    model, other = trained(), net()
    average = torch.optim.swa_utils.AveragedModel(model)
    torch.save(average.state_dict(), tmp_path / "a.pth")
    report = load_into(other, tmp_path / "a.pth")
    assert report.unused == ("n_averaged",)
    assert same(model, other)


# --- Mismatches --------------------------------------------------------------------------------


@pytest.fixture
def untouched() -> Iterator[Callable[[torch.nn.Module], torch.nn.Module]]:
    """Watch models, and check at the end that none of their tensors was changed or replaced."""
    watched: list[tuple[torch.nn.Module, dict, dict]] = []

    def watch(model: torch.nn.Module) -> torch.nn.Module:
        state = model.state_dict(keep_vars=True)
        copies = {key: value.clone() for key, value in state.items() if not value.is_meta}
        watched.append((model, dict(state), copies))
        return model

    yield watch
    for model, state, copies in watched:
        now = model.state_dict(keep_vars=True)
        assert all(now[key] is value for key, value in state.items())
        assert all(same_bits(now[key], value) for key, value in copies.items())


def test_another_number_of_classes_is_refused_with_the_call_that_works(
    tmp_path: Path, untouched
) -> None:
    path = tmp_path / "a.pth"
    torch.save(trained().state_dict(), path)
    model = untouched(net(5))
    with pytest.raises(LoadMismatch) as caught:
        load_into(model, path)
    text = str(caught.value)
    assert f"{path}: the file and the model differ: 2 with another shape or dtype." in text
    assert f"load_into(model, {str(path)!r}, adapt={{'2.*': 'skip'}})" in text
    assert "2.weight: float32 [10, 8] in the file, float32 [5, 8] in the model" in text
    assert caught.value.mismatched == ("2.weight", "2.bias")
    assert caught.value.missing == caught.value.unexpected == ()


def test_the_suggested_call_works_and_says_what_it_left_alone(tmp_path: Path) -> None:
    model, other = trained(), net(5)
    head = other[2].weight.clone()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    report = load_into(other, tmp_path / "a.pth", adapt={"2.*": "skip"})
    assert report.skipped == report.unused == ("2.weight", "2.bias")
    assert torch.equal(other[2].weight, head)
    assert torch.equal(other[0].weight, model[0].weight)
    assert report.coverage == pytest.approx(56 / 101)
    assert "55.4% of the model's parameters, proven equal to the file; 2 skipped; 2 unused" in str(
        report
    )


def test_another_models_file_is_refused(tmp_path: Path, untouched) -> None:
    torch.save(torch.nn.Conv2d(1, 1, 1).state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match="Nothing matches: the file is another model's"):
        load_into(untouched(net()), tmp_path / "a.pth")


def test_a_prefix_before_all_keys_comes_off_and_is_reported(tmp_path: Path) -> None:
    model, other = trained(), net()
    state = {f"model.{key}": value for key, value in model.state_dict().items()}
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "a.ckpt")
    report = load_into(other, tmp_path / "a.ckpt")
    assert same(model, other)
    assert report.plan.stripped == ("model",)
    assert "dropped from the file's names: model" in str(report)


def test_a_prefix_of_the_model_is_added_and_reported(tmp_path: Path) -> None:
    model, other = trained(), torch.nn.ModuleDict({"backbone": net()})
    torch.save(model.state_dict(), tmp_path / "a.pth")
    report = load_into(other, tmp_path / "a.pth")
    assert same(model, other)
    assert report.plan.added == ("backbone",)
    assert "added to the file's names: backbone" in str(report)


def test_another_dtype_is_refused_and_cast_on_demand(tmp_path: Path, untouched) -> None:
    model = trained()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match=r"To load it .*: load_into\(.*adapt=\{'\*': 'cast'\}"):
        load_into(untouched(net().half()), tmp_path / "a.pth")
    for assign in (False, True):
        half = net().half()
        report = load_into(half, tmp_path / "a.pth", adapt={"*": "cast"}, assign=assign)
        assert same(half, model.half())
        assert sum(bool(step.adaptations) for step in report.loaded) == 8
        assert "; 8 adapted" in str(report)
        model.float()
        model.load_state_dict(torch.load(tmp_path / "a.pth"))


def test_a_missing_and_a_damaged_file_leave_the_model_alone(tmp_path: Path, untouched) -> None:
    model = untouched(net())
    with pytest.raises(FileMissing, match="there is no such file"):
        load_into(model, tmp_path / "no.pth")
    (tmp_path / "a.pth").write_text("<!DOCTYPE html><html>404</html>")
    with pytest.raises(NotAModelFile):
        load_into(model, tmp_path / "a.pth")
    save(trained(), tmp_path / "b.safetensors")
    data = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "b.safetensors").write_bytes(data[:-1])
    with pytest.raises(DamagedFile, match="truncated"):
        load_into(model, tmp_path / "b.safetensors")


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_a_tensor_that_differs_from_its_digest_leaves_the_model_alone(
    tmp_path: Path, untouched, name: str, assign: bool
) -> None:
    path = tmp_path / name
    save(trained(), path)
    entry = inspect(path).state_dicts[0].entries["2.weight"]
    data = bytearray(path.read_bytes())
    data[entry.storage.offset] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match=r"tensor '2\.weight' differs from what was saved"):
        load_into(untouched(net()), path, assign=assign)


def test_nothing_but_tensors_is_a_state_dict_whatever_they_are_called(tmp_path: Path) -> None:
    model = torch.nn.Module()
    model.w = torch.nn.Parameter(torch.zeros(2, 3))
    torch.save({"w": torch.ones(2, 3)}, tmp_path / "a.pth")
    assert "nothing but tensors" in load_into(model, tmp_path / "a.pth").why
    assert torch.equal(model.w, torch.ones(2, 3))


def test_one_shard_alone_is_refused_with_what_it_belongs_to(tmp_path: Path) -> None:
    save(trained(), tmp_path / "model.safetensors", shard_nbytes=50)
    shard = min(tmp_path.glob("model-00001-of-*.safetensors"))
    with pytest.raises(LoadMismatch, match=r"several shards: give model\.safetensors\.index\.json"):
        load_into(net(), shard)


@pytest.mark.parametrize("assign", [True, False])
def test_a_tensor_that_was_saved_without_values_is_refused(tmp_path: Path, assign: bool) -> None:
    model, other = net().to("meta"), net()
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match="has no values"):
        load_into(other, tmp_path / "a.pth", assign=assign)


def test_a_file_without_a_state_dict_is_refused(tmp_path: Path, untouched) -> None:
    torch.save({"epoch": 3}, tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match="there is no state dict in this file"):
        load_into(untouched(net()), tmp_path / "a.pth")


# --- Tied and shared tensors -------------------------------------------------------------------


class Tied(torch.nn.Module):
    def __init__(self, *, is_tied: bool = True) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        if is_tied:
            self.head.weight = self.embedding.weight


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    "name", ["ours.safetensors", "ours.pth", "torch.pth", "reference.safetensors"]
)
def test_tied_parameters_stay_tied_whatever_the_file_left_out(
    tmp_path: Path, name: str, assign: bool
) -> None:
    model, other = Tied(), Tied()
    WRITERS[name](model, tmp_path / name)
    report = load_into(other, tmp_path / name, assign=assign)
    assert torch.equal(other.head.weight, model.head.weight)
    assert other.head.weight is other.embedding.weight
    assert {item.target for item in report.loaded} == {"embedding.weight", "head.weight"}
    assert report.coverage == 1


@pytest.mark.parametrize("name", ["ours.safetensors", "reference.safetensors"])
def test_a_name_that_was_left_out_as_tied_fills_an_untied_model(tmp_path: Path, name: str) -> None:
    model, other = Tied(), Tied(is_tied=False)
    WRITERS[name](model, tmp_path / name)
    load_into(other, tmp_path / name)
    assert torch.equal(other.head.weight, model.head.weight)
    assert torch.equal(other.embedding.weight, model.head.weight)


def test_two_values_for_one_tied_tensor_are_refused_before_the_act(
    tmp_path: Path, untouched
) -> None:
    model = Tied(is_tied=False)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match="is one tensor in the model, and the file has two diff"):
        load_into(untouched(Tied()), tmp_path / "a.pth")
    with torch.no_grad():
        model.head.weight.copy_(model.embedding.weight)
    torch.save(model.state_dict(), tmp_path / "b.pth")
    load_into(Tied(), tmp_path / "b.pth")  # two equal ones are no contradiction


# --- Buffers and extra state -------------------------------------------------------------------


class Counting(torch.nn.Linear):
    """Keeps something besides tensors."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.seen: object = 0
        self.register_buffer("cache", torch.zeros(2), persistent=False)

    def get_extra_state(self) -> object:
        return self.seen

    def set_extra_state(self, state: object) -> None:
        self.seen = state


@pytest.mark.parametrize("value", [7, {"a": [1, 2]}, torch.tensor([3, 4])])
def test_extra_state_is_given_back(tmp_path: Path, value: object) -> None:
    model, other = torch.nn.Sequential(Counting()), torch.nn.Sequential(Counting())
    model[0].seen = value
    for path in (tmp_path / "a.pth", tmp_path / "b.ckpt"):
        torch.save(
            {"state.dict": model.state_dict()} if path.suffix == ".ckpt" else model.state_dict(),
            path,
        )
        report = load_into(parallel(other), path)
        assert repr(other[0].seen) == repr(value)
        assert report.extra_state == ("module.0._extra_state",)
        assert [item.target for item in report.loaded] == ["module.0.weight", "module.0.bias"]
        assert "2 tensors loaded" in str(report)
        assert "; 1 with extra state (not compared)" in str(report)
        other[0].seen = 0


def test_missing_extra_state_is_a_mismatch(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match=r"adapt=\{'_extra_state': 'skip'\}"):
        load_into(Counting(), tmp_path / "a.pth")


# --- Models on meta, and models that resist ----------------------------------------------------


def test_a_model_on_meta_is_filled_by_assignment(tmp_path: Path) -> None:
    model = trained()
    save(model, tmp_path / "a.safetensors")
    with torch.device("meta"):
        other = net()
    with pytest.raises(LoadMismatch, match=r"'0.weight' is on the meta device.* Pass assign=True"):
        load_into(other, tmp_path / "a.safetensors")
    load_into(other, tmp_path / "a.safetensors", assign=True)
    assert same(model, other)
    assert type(other[0].weight) is torch.nn.Parameter
    other(torch.randn(5, 4)).sum().backward()


def test_assigning_reaches_what_a_module_caches(tmp_path: Path) -> None:
    model, other = torch.nn.LSTM(2, 3), torch.nn.LSTM(2, 3)
    save(model, tmp_path / "a.pth")
    load_into(other, tmp_path / "a.pth", assign=True)
    data = torch.randn(4, 1, 2)
    assert torch.equal(model(data)[0], other(data)[0])


def test_a_lazy_model_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match=r"'weight' is not initialised yet. Run one batch"):
        load_into(torch.nn.LazyLinear(2), tmp_path / "a.pth")


def test_an_expanded_buffer_needs_assignment(tmp_path: Path) -> None:
    class Expanded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.zeros(1).expand(3))

    torch.save({"mask": torch.arange(3.0), "x.weight": torch.ones(1)}, tmp_path / "a.pth")
    skip = {"x.*": "skip"}
    with pytest.raises(LoadMismatch, match=r"'mask' has elements that share memory.*assign=True"):
        load_into(Expanded(), tmp_path / "a.pth", adapt=skip)
    model = Expanded()
    load_into(model, tmp_path / "a.pth", adapt=skip, assign=True)
    assert model.mask.tolist() == [0, 1, 2]


def test_a_model_that_changes_itself_fails_the_proof(tmp_path: Path) -> None:
    class Resetting(torch.nn.Linear):
        def set_extra_state(self, state: object) -> None:
            self.reset_parameters()

        def get_extra_state(self) -> int:
            return 1

    torch.save(Resetting(2, 2).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ProofFailed, match="differs from the file's"):
        load_into(Resetting(2, 2), tmp_path / "a.pth")


def test_nothing_in_a_hostile_pickle_runs(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it ran",))

    model, other = trained(), net()
    torch.save({"model": model.state_dict(), "x": Hostile()}, tmp_path / "a.pth")
    load_into(other, tmp_path / "a.pth")
    assert same(model, other)
    assert not (tmp_path / "it ran").exists()


# --- Adapting, and how much must fit -----------------------------------------------------------


def test_a_classifier_keeps_the_rows_of_classes_with_the_same_names(tmp_path: Path) -> None:
    model, other = net(3), net(4)
    save(model, tmp_path / "a.safetensors", metadata={"classes": ["cat", "dog", "owl"]})
    head = other[2].weight.clone()
    names = ["owl", "emu", "cat", "elk"]
    for assign in (False, True):
        report = load_into(
            other,
            tmp_path / "a.safetensors",
            adapt={"2.*": "classes"},
            classes=names,
            assign=assign,
        )
        assert torch.equal(other[2].weight[[0, 2]], model[2].weight[[2, 0]])
        assert torch.equal(other[2].weight[[1, 3]], head[[1, 3]])
        assert "; 2 adapted" in str(report)
    assert report.coverage == pytest.approx((40 + 16 + 18) / (40 + 16 + 36))


@pytest.mark.parametrize(
    "values",
    [
        {"classes": ["a", "b"]},
        {"meta": {"class_to_idx": {"b": 1, "a": 0}}},
        {"id2label": {"0": "a", "1": "b"}},
        {"names": {0: "a", 1: "b"}},
    ],
)
def test_class_names_are_found_where_files_have_them(tmp_path: Path, values) -> None:
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    torch.save({"state_dict": model.state_dict(), **values}, tmp_path / "a.pth")
    load_into(other, tmp_path / "a.pth", adapt={"*": "classes"}, classes=["b", "a"])
    assert torch.equal(other.weight, model.weight[[1, 0]])


def test_class_names_that_nobody_said_are_asked_for(tmp_path: Path, untouched) -> None:
    model, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        WrongArgument, match=r"does not say what its classes are .*ClassNames\(file"
    ):
        load_into(untouched(other), tmp_path / "a.pth", adapt={"*": "classes"}, classes=["b", "a"])
    names = ClassNames(file=("a", "b"), model=("b", "a"))
    load_into(torch.nn.Linear(2, 2), tmp_path / "a.pth", adapt={"*": "classes"}, classes=names)


def test_fresh_values_are_made_where_they_were_asked_for(tmp_path: Path) -> None:
    model, other = trained(), net(5)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with torch.no_grad():
        other[2].weight.fill_(7)
    report = load_into(other, tmp_path / "a.pth", adapt={"2.*": "reset"})
    assert (other[2].weight.abs() < 1).all()
    assert report.plan.reset == ("2.weight", "2.bias")
    assert "; 2 given fresh values" in str(report)
    with torch.device("meta"):
        empty = net(5)
    with pytest.raises(LoadMismatch, match=r"'2.weight' is on the meta device, and would be left"):
        load_into(empty, tmp_path / "a.pth", adapt={"2.*": "skip"}, assign=True)
    load_into(empty, tmp_path / "a.pth", adapt={"2.*": "reset"}, assign=True)
    assert not any(value.is_meta for value in empty.state_dict().values())
    assert torch.equal(empty[0].weight, model[0].weight)


def test_what_can_not_make_fresh_values_is_refused_before_the_act(
    tmp_path: Path, untouched
) -> None:
    model = torch.nn.Module()
    model.scale = torch.nn.Parameter(torch.ones(2))
    torch.save({"other.scale": torch.ones(3)}, tmp_path / "a.pth")
    rules = {"scale": "reset", "other.scale": "skip"}
    with pytest.raises(WrongArgument, match="'scale' can't be reset: a Module has no reset_param"):
        load_into(untouched(model), tmp_path / "a.pth", adapt=rules)


def test_a_share_that_is_enough_is_loaded_and_the_rest_reported(tmp_path: Path, untouched) -> None:
    model, other = trained(), net(5)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(LoadMismatch, match="2 with another shape or dtype"):
        load_into(untouched(net(5)), tmp_path / "a.pth", min_coverage=0.6)
    report = load_into(other, tmp_path / "a.pth", min_coverage=0.5)
    assert torch.equal(other[0].weight, model[0].weight)
    assert "; 2 left as they were, nothing fits" in str(report)
    assert len(report.plan.mismatched) == 2


def test_keys_are_renamed_by_rules(tmp_path: Path) -> None:
    model, other = trained(), net()
    state = {f"trunk.{key}.value": value for key, value in model.state_dict().items()}
    torch.save(state, tmp_path / "a.pth")
    load_into(other, tmp_path / "a.pth", rename={"trunk.*.value": "*"})
    assert same(model, other)


# --- A plan without the act --------------------------------------------------------------------


def test_a_plan_says_what_a_load_would_do_and_touches_nothing(tmp_path: Path, untouched) -> None:
    torch.save({"model": trained().state_dict(), "epoch": 1}, tmp_path / "a.pth")
    steps = plan(untouched(net(5)), tmp_path / "a.pth")
    assert not steps.is_allowed
    text = str(steps)
    assert text.startswith(
        "'model' is its only state dict.\n7 tensors as they are, 2 that don't fit; 55.4% of the"
    )
    assert f"load_into(model, {str(tmp_path / 'a.pth')!r}, adapt={{'2.*': 'skip'}})" in text
    steps = plan(untouched(net(5)), tmp_path / "a.pth", adapt={"2.*": "skip"})
    assert steps.is_allowed
    assert steps.skipped == ("2.weight", "2.bias")
    with torch.device("meta"):
        assert plan(net(), tmp_path / "a.pth").is_complete


# --- New tensors: devices, dtypes, mapping -----------------------------------------------------


def test_new_tensors_may_have_the_dtype_that_is_wanted(tmp_path: Path) -> None:
    model = trained().to(torch.float64)
    save(model, tmp_path / "a.safetensors")
    for dtype, allow in (("file", ()), (torch.float16, ("cast",)), (torch.float64, ())):
        with torch.device("meta"):
            other = net()
        load_into(other, tmp_path / "a.safetensors", assign=True, dtype=dtype, allow=allow)
        expected = model if dtype == "file" else trained_as(model, dtype)
        assert same(expected, other)


def trained_as(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    return copy.deepcopy(model).to(dtype)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_mapped_file_is_the_models_memory(tmp_path: Path, name: str) -> None:
    model = trained()
    save(model, tmp_path / name)
    with torch.device("meta"):
        other = net()
    report = load_into(other, tmp_path / name, assign=True, mmap=True)
    assert same(model, other)
    assert set(report.digests.values()) == {"mapped"}
    assert mapped_files() >= {str(tmp_path / name)}
    with torch.no_grad():
        other[0].weight.fill_(3)  # stays private
    assert same(load_into_new(tmp_path / name), model)
    with pytest.raises(WrongArgument, match="what was mapped was not read"):
        report.check(other)


def mapped_files() -> set[str]:
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists a process's maps")
    return {line.split(maxsplit=5)[-1].strip() for line in maps.read_text().splitlines()}


def load_into_new(path: Path) -> torch.nn.Module:
    model = net()
    load_into(model, path)
    return model


def test_options_of_new_tensors_need_new_tensors(tmp_path: Path) -> None:
    for given in ({"mmap": True}, {"dtype": "file"}, {"device": "cpu"}):
        with pytest.raises(WrongArgument, match=r"mmap, device and dtype .* Pass assign=True with"):
            load_into(net(), tmp_path / "a.pth", **given)


# --- What happens afterwards -------------------------------------------------------------------


def test_a_model_that_initialises_itself_again_is_caught_later(tmp_path: Path) -> None:
    class Late(torch.nn.Linear):
        is_ready = False

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            if not self.is_ready:
                self.reset_parameters()
                self.is_ready = True
            return super().forward(values)

    model, other = Late(2, 2), Late(2, 2)
    torch.save(model.state_dict(), tmp_path / "a.pth")
    report = load_into(other, tmp_path / "a.pth")
    report.check(other)
    other(torch.ones(1, 2))
    with pytest.raises(
        ProofFailed, match=r"what was loaded from .* has changed in 2 of 2 tensors: 'wei"
    ):
        report.check(other)


# --- Models that say something else of themselves, and what is no model -------------------------


class Copying(torch.nn.BatchNorm1d):
    """Gives copies of its tensors, or nothing of them."""

    gives: tuple[str, ...] = ("weight", "bias", "running_mean")

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {key: value.clone() for key, value in state.items() if key in self.gives}


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("gives", [Copying.gives, ("weight",), ()])
def test_the_live_tensors_are_filled_whatever_a_state_dict_gives(
    tmp_path: Path, gives: tuple[str, ...], assign: bool
) -> None:
    model, other = torch.nn.BatchNorm1d(3), Copying(3)
    torch.nn.init.normal_(model.weight)
    model(torch.randn(5, 3))
    other.gives = gives
    torch.save(model.state_dict(), tmp_path / "a.pth")
    report = load_into(other, tmp_path / "a.pth", assign=assign)
    assert torch.equal(other.weight, model.weight)
    assert torch.equal(other.running_mean, model.running_mean)
    assert report.coverage == 1
    assert report.digests.keys() == model.state_dict().keys()


def test_what_a_state_dict_leaves_out_is_missing_if_the_file_lacks_it(tmp_path: Path) -> None:
    other = Copying(3)
    other.gives = ("weight",)
    state = torch.nn.BatchNorm1d(3).state_dict()
    del state["bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(LoadMismatch) as caught:
        load_into(other, tmp_path / "a.pth")
    assert caught.value.missing == ("bias",)


def test_what_is_no_model_is_refused_by_its_type(tmp_path: Path) -> None:
    torch.save(trained().state_dict(), tmp_path / "a.pth")
    with pytest.raises(WrongArgument, match=r"is of type OrderedDict, and should be a torch"):
        load_into(net().state_dict(), tmp_path / "a.pth")
    with pytest.raises(WrongArgument, match="rename is of type str, and should be a dict"):
        load_into(net(), tmp_path / "a.pth", rename="a.*=*")
    with pytest.raises(WrongArgument, match="device 'gpu' can't be used here"):
        load_into(net(), tmp_path / "a.pth", assign=True, device="gpu")


def test_new_tensors_are_made_on_the_device_that_was_asked_for(tmp_path: Path, monkeypatch) -> None:
    torch.save(trained().state_dict(), tmp_path / "a.pth")
    asked: list[object] = []
    whole = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", lambda t, *a, **k: asked.append(a) or whole(t, *a, **k))
    # There may be no other kind of device here, and this spelling is one that nobody else uses.
    monkeypatch.setattr("torchkeep.loading.into.usable_device", torch.device)
    load_into(net(), tmp_path / "a.pth", assign=True, device="cpu:0")
    assert asked.count((torch.device("cpu:0"),)) == len(net().state_dict())


def test_samples_with_texts_are_not_run_by_themselves(tmp_path: Path) -> None:
    class Told(torch.nn.Linear):
        def forward(self, values: torch.Tensor, how: str = "plain") -> torch.Tensor:
            return super().forward(values) * (2 if how == "twice" else 1)

    model = Told(2, 2)
    save(model, tmp_path / "a.safetensors", samples={"values": torch.ones(1, 2), "how": "twice"})
    report = load_into(Told(2, 2), tmp_path / "a.safetensors")
    assert report.replayed is None
    assert "; the file's samples were not run, since they hold more than tensors: " in str(report)
    assert load_into(Told(2, 2), tmp_path / "a.safetensors", replay=False).not_replayed == ""


def test_raw_samples_that_are_not_run_are_told_of(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    raw = torch.ones(1, 2, dtype=torch.uint8)
    save(model, tmp_path / "a.safetensors", samples=raw, preprocess=lambda values: values / 255)
    report = load_into(torch.nn.Linear(2, 2), tmp_path / "a.safetensors")
    assert report.replayed is None
    assert "since they are raw inputs: torchkeep.replay(model, path, preprocess=...)" in str(report)
