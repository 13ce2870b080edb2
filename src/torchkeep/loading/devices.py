"""The device that a caller asks for."""

from __future__ import annotations

import torch

from torchkeep.errors import WrongArgument


def usable_device(device: str | torch.device) -> torch.device:
    """Return the device, on which tensors can be made here.

    Raises:
        WrongArgument: PyTorch knows none of that name, or there is none here.
    """
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise WrongArgument(
            f"device {str(device)!r} can't be used here ({reason})",
            advice="Use 'cpu', or a device that this PyTorch and this machine have.",
        ) from None
