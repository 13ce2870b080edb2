"""An image file, as a picture."""

from __future__ import annotations

import pytest
from PIL import Image

from torchkeep.errors import DamagedFile, FileMissing
from torchkeep.training.data import read_image


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(FileMissing, match=r"nowhere\.png: there is no such file"):
        read_image(tmp_path / "nowhere.png")


def test_what_is_no_image_by_its_content_is_no_image(tmp_path):
    (tmp_path / "x.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(DamagedFile, match="it can't be read as an image"):
        read_image(tmp_path / "x.png")
    Image.new("L", (1, 3000)).save(tmp_path / "thin.png")
    with pytest.raises(DamagedFile, match="it is 1 x 3000 pixels"):
        read_image(tmp_path / "thin.png")


def test_any_byte_of_an_image_may_be_wrong(tmp_path):
    path = tmp_path / "x.png"
    Image.linear_gradient("L").save(path)
    whole = path.read_bytes()
    num_refused = 0
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            assert read_image(path).mode == "RGB"
        except DamagedFile:
            num_refused += 1
    assert num_refused > len(whole) // 2


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("L", 100, (100, 100, 100)),
        ("1", 1, (255, 255, 255)),
        ("LA", (0, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("I;16", 0x8000, (128, 128, 128)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path, mode, color, expected):
    path = tmp_path / "x.png"
    Image.new(mode, (3, 2), color).save(path)
    assert read_image(path).getpixel((1, 1)) == expected


def test_floats_from_0_to_1_are_shares_and_others_are_shades(tmp_path):
    for value, expected in ((0.5, 128), (128.0, 128), (1.0, 255), (2.0, 2)):
        Image.new("F", (3, 2), value).save(tmp_path / "x.tif")
        assert read_image(tmp_path / "x.tif").getpixel((1, 1)) == (expected,) * 3


def test_an_image_is_turned_as_its_camera_says(tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").size == (2, 4)
