"""Runs as they come, and as nobody would want them: what the report's tests tell of."""

from __future__ import annotations

import math
import struct
import zlib

from torchkeep.report import Best, Confusion, Facts, Finding, LayerRow, Mistake, RunReport

EVIL = "<script>document.title='owned'</script>\"'><img src=x onerror=alert(1)>&amp;\u202egnp.exe"
"""Markup, both quotes, an entity and a direction override."""


def png(size: int = 8) -> bytes:
    """Return a grey picture as a PNG file."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", size, size, 8, 0, 0, 0, 0)
    rows = b"".join(
        b"\0" + bytes(column * 255 // size for column in range(size)) for _ in range(size)
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def history(num_epochs: int) -> list[dict[str, object]]:
    """Return epochs in which the losses fall and the accuracy rises."""
    return [
        {
            "epoch": epoch,
            "loss": 2.3 / epoch,
            "val_loss": 2.5 / epoch**0.9,
            "val_accuracy": 1 - 0.9 / epoch,
            "lr": 0.1 * 0.9**epoch,
            "seconds": 1.5,
        }
        for epoch in range(1, num_epochs + 1)
    ]


def confusion(num_classes: int) -> Confusion:
    """Return a matrix in which each class is taken for the next one, once in eleven times."""
    counts = [
        [10 if true == one else int(one == (true + 1) % num_classes) for one in range(num_classes)]
        for true in range(num_classes)
    ]
    return Confusion([f"kind {label}" for label in range(num_classes)], counts)


def usual_run() -> RunReport:
    """Return a run that has everything."""
    return RunReport(
        "Leaves, resnet18",
        best=Best("val_accuracy", 0.925, 12),
        facts=Facts(
            architecture="resnet18",
            weights="resnet18-f37072fd.pth",
            data_folder="/data/leaves",
            counts={"train": {"oak": 80, "elm": 40}, "val": {"oak": 20, "elm": 10, "ash": 3}},
            preprocessing=("resized to 224 pixels", "mirrored at random"),
            settings={"batch_size": 32, "pretrained": True, "milestones": [30, 60], "note": None},
            versions={"torch": "2.14.0"},
            device="CPU, 1 thread",
            duration_s=7385.0,
            git_revision="aaadc1c",
        ),
        history=history(15),
        confusion=Confusion(["oak", "elm", "ash"], [[18, 2, 0], [1, 9, 0], [3, 0, 0]]),
        mistakes=[Mistake(png(), "val/oak/17.png", "oak", "elm", 0.913, 2.44)],
        layers=[
            LayerRow("conv1", "Conv2d", (64, 3, 7, 7), 9408, trainable=False),
            LayerRow("relu", "ReLU", (), 0, trainable=False),
            LayerRow("fc", "Linear", (3, 512), 1539, trainable=True, learning_rate=0.01),
        ],
        findings=[
            Finding("note", "The validation split is small."),
            Finding("problem", "3 files are in both splits.", "Remove the copies."),
        ],
    )


def hostile_run() -> RunReport:
    """Return a run in which every text means harm and many numbers are none."""
    nan, wide = math.nan, "w" * 5000
    return RunReport(
        EVIL,
        result=EVIL,
        best=Best(EVIL, nan, 2),
        facts=Facts(
            *(EVIL, EVIL, EVIL),
            counts={EVIL: {EVIL: 1, wide: 2}},
            preprocessing=(EVIL,),
            settings={EVIL: EVIL, wide: [EVIL, nan]},
            versions={EVIL: EVIL},
            device=EVIL,
            duration_s=nan,
            git_revision=EVIL,
        ),
        history=[
            {"loss": 2.0, "val_loss": nan, EVIL: 1.0, f"val_{EVIL}": EVIL},
            {"loss": math.inf, "val_loss": 10**400, EVIL: nan, wide: 1e308},
            {"loss": 1e-320, "val_loss": None, EVIL: -math.inf, "lr": 0.0},
        ],
        confusion=Confusion(
            [EVIL, wide, "\udc80", ""], [[1, 2, 0, 0], [0, 0, 3, 0], [1] * 4, [0] * 4]
        ),
        mistakes=[
            Mistake(b"<svg onload=alert(1)>", EVIL, EVIL, wide, nan, math.inf),
            Mistake(None, wide, "", "\udc80", 7.0, 1.0),
        ],
        layers=[LayerRow(EVIL, EVIL, (1,), 1, True, nan)],
        findings=[Finding("warning", EVIL, EVIL)],
    )
