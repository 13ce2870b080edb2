"""loading/adapting.py: what adaptations compute, compared with timm where it does the same."""

from __future__ import annotations

import pytest
import torch

from torchkeep.contents import Storage, TensorEntry, contiguous_stride
from torchkeep.errors import LoadMismatch
from torchkeep.loading.adapting import COMPUTATIONS, adapted
from torchkeep.matching.adaptations import ADAPTATIONS, ClassNames, adapt
from torchkeep.matching.slots import Slot
from torchkeep.tensors import dtype_name, same_bits


def made(
    tensor: torch.Tensor, live: torch.Tensor, *names: str, classes: ClassNames | None = None
) -> torch.Tensor:
    """Return what a tensor becomes for a place; doing it again must change nothing."""
    shape = tuple(tensor.shape)
    entry = TensorEntry(
        dtype_name(tensor.dtype), shape, contiguous_stride(shape), Storage("", 0, 0)
    )
    slot = Slot(dtype_name(live.dtype), tuple(live.shape))
    steps = adapt(entry, slot, names, classes or ClassNames())
    assert steps is not None
    result = adapted(tensor, live, steps, "fc.weight")
    assert (result.shape, result.dtype) == (live.shape, live.dtype)
    assert same_bits(adapted(tensor, result, steps), result)
    return result


def test_every_adaptation_is_computed() -> None:
    assert COMPUTATIONS.keys() == ADAPTATIONS.keys()


def test_rows_that_are_not_taken_stay_the_models() -> None:
    file, live = torch.randn(3, 4), torch.randn(5, 4)
    found = made(file, live, "slice")
    assert torch.equal(found[:3], file)
    assert torch.equal(found[3:], live[3:])
    assert torch.equal(made(live, file, "slice"), live[:3])
    names = ClassNames(("a", "b", "c"), ("c", "x", "a", "y", "z"))
    found = made(file, live, "classes", classes=names)
    assert torch.equal(found[[0, 2]], file[[2, 0]])
    assert torch.equal(found[[1, 3, 4]], live[[1, 3, 4]])


@pytest.mark.parametrize(
    ("one", "other"), [("float16", "float32"), ("float32", "float16"), ("float16", "bfloat16")]
)
def test_rows_that_stay_lose_nothing_by_a_cast(one: str, other: str) -> None:
    file = torch.randn(3, 4).to(getattr(torch, one))
    live = torch.randn(5, 4).to(getattr(torch, other))
    found = made(file, live, "slice", "cast")
    assert torch.equal(found[:3], file.to(live.dtype))
    assert torch.equal(found[3:], live[3:])


@pytest.mark.parametrize(
    ("file", "dtype"),
    [
        (torch.tensor([1e6, 1.0]), torch.float16),
        (torch.tensor([1.0, 65520.0]), torch.float16),
        (torch.tensor([500.0]), torch.float8_e4m3fn),
        (torch.tensor([1e300], dtype=torch.float64), torch.bfloat16),
        (torch.tensor([300, 1]), torch.uint8),
        (torch.tensor([-1]), torch.uint16),
        (torch.tensor([-1]), torch.uint64),
        (torch.tensor([1 << 63], dtype=torch.uint64), torch.int64),
        (torch.tensor([1e4]).to(torch.float8_e5m2), torch.float8_e4m3fn),
    ],
)
def test_a_cast_makes_no_other_number_of_one(file: torch.Tensor, dtype: torch.dtype) -> None:
    live = torch.zeros(file.shape).to(dtype)
    with pytest.raises(LoadMismatch) as caught:
        made(file, live, "cast")
    old, new = dtype_name(file.dtype), dtype_name(dtype)
    problem = f"'fc.weight' ({old} to {new}) has numbers that are too large for a cast"
    assert problem in str(caught.value)


@pytest.mark.parametrize("one", ["int8", "uint8", "int16", "uint16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("other", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_small_integers_are_cast_between_all_dtypes(one: str, other: str) -> None:
    if one == other:
        return
    file = torch.tensor([0, 1, 127]).to(getattr(torch, one))
    live = torch.zeros(3, dtype=getattr(torch, other))
    assert made(file, live, "cast").tolist() == [0, 1, 127]


def test_a_cast_keeps_what_is_infinite_and_rounds_what_is_near_the_largest() -> None:
    file = torch.tensor([torch.inf, -torch.inf, torch.nan, 65519.0, -0.0, 1e-30])
    found = made(file, torch.zeros(6, dtype=torch.float16), "cast")
    assert same_bits(found, file.half())
    assert found[3] == 65504


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_input_channels_are_repeated_as_timm_does_it(channels: int, dtype: torch.dtype) -> None:
    timm = pytest.importorskip("timm.models")
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float64 else {}  # it adds in float32
    file = torch.randn(8, 5 if channels == 3 else 3, 5, 5).to(dtype)
    if channels != 3:
        name = "sum-channels" if channels == 1 else "repeat-channels"
        found = made(file, torch.zeros(8, channels, 5, 5, dtype=dtype), name)
        torch.testing.assert_close(found, timm.adapt_input_conv(channels, file), **close)
    else:
        found = made(file, torch.zeros(8, 3, 5, 5, dtype=dtype), "repeat-channels")
        torch.testing.assert_close(found, (file[:, :3].double() * (5 / 3)).to(dtype))


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_averaged_channels_give_for_grey_what_they_gave(channels: int) -> None:
    file, image = torch.randn(8, 3, 5, 5), torch.randn(1, 1, 9, 9)
    kernel = made(file, torch.zeros(8, channels, 5, 5), "average-channels")
    found = torch.conv2d(image.expand(-1, channels, -1, -1), kernel)
    torch.testing.assert_close(
        found, torch.conv2d(image.expand(-1, 3, -1, -1), file), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("old", "new", "extra"), [(14, 24, 1), (16, 7, 0), (7, 8, 2)])
def test_positions_are_resized_as_timm_does_it(old, new, extra, dtype) -> None:
    timm = pytest.importorskip("timm.layers")
    file = torch.randn(1, old * old + extra, 8).to(dtype)
    live = torch.zeros(1, new * new + extra, 8, dtype=dtype)
    expected = timm.resample_abs_pos_embed(
        file, [new, new], old_size=[old, old], num_prefix_tokens=extra
    )
    assert same_bits(made(file, live, "resample"), expected.contiguous())
    assert same_bits(made(file[0], live[0], "resample"), expected[0].contiguous())
    grid = file[:, extra:].reshape(1, old, old, 8)
    wider = timm.resample_abs_pos_embed_nhwc(grid, [new, new + 1])
    live = torch.zeros(1, new, new + 1, 8, dtype=dtype)
    assert same_bits(made(grid, live, "resample"), wider.contiguous())
    turned = made(grid.permute(0, 3, 1, 2), live.permute(0, 3, 1, 2).contiguous(), "resample")
    assert same_bits(turned, wider.permute(0, 3, 1, 2).contiguous())


@pytest.mark.parametrize(("old", "new", "extra"), [(13, 23, 0), (27, 47, 3)])
def test_what_stands_behind_a_table_of_relative_biases_is_kept(old, new, extra) -> None:
    file = torch.randn(old * old + extra, 4)
    found = made(file, torch.zeros(new * new + extra, 4), "resample")
    assert torch.equal(found[new * new :], file[old * old :])
    grid = file[: old * old].t().reshape(1, 4, old, old)
    resized = torch.nn.functional.interpolate(grid, (new, new), mode="bicubic", antialias=True)
    assert torch.equal(found[: new * new], resized.reshape(4, -1).t())
