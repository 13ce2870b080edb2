"""Classify images with a file that `torchkeep export` has written, without PyTorch.

    python classify.py photos.onnx IMAGE...

It needs numpy, pillow and onnxruntime. How an image is prepared, and what the outputs stand for,
the file says itself.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def prepare(path, recipe):
    """Return an image as the network takes it: `[1, channels, height, width]`."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    if len(recipe["mean"]) == 1:
        picture = picture.convert("L")
    height, width, how = recipe["height"], recipe["width"], RESAMPLING[recipe["interpolation"]]
    if recipe["resize"] is None:
        picture = picture.resize((width, height), how)
    else:  # the shorter side, then the middle
        side, (wide, high) = recipe["resize"], picture.size
        sides = (side, side * high // wide) if wide <= high else (side * wide // high, side)
        picture = picture.resize(sides, how)
        left, top = (
            # where it is too small, half of the black that is missing comes before it
            round((has - wants) / 2) if has >= wants else -((wants - has) // 2)
            for has, wants in zip(sides, (width, height), strict=True)
        )
        picture = picture.crop((left, top, left + width, top + height))
    pixels = np.asarray(picture).reshape(height, width, -1).transpose(2, 0, 1)[None]
    if recipe.get("pixels"):  # the file normalises by itself
        return pixels
    mean, std = (np.array(recipe[key], np.float32)[:, None, None] for key in ("mean", "std"))
    return (pixels * np.float32(1 / 255) - mean) / std


def main(model, *images):
    """Print the likeliest class of each image."""
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    texts = session.get_modelmeta().custom_metadata_map
    if missing := {"classes", "preprocessing"} - texts.keys():
        sys.exit(f"{model} does not say its {' and '.join(sorted(missing))}: who exported it knows")
    classes, recipe = json.loads(texts["classes"]), json.loads(texts["preprocessing"])
    name = session.get_inputs()[0].name
    for image in images:
        (scores,) = session.run(None, {name: prepare(image, recipe)})
        shares = np.exp(scores[0] - scores[0].max())
        shares /= shares.sum()
        best = shares.argmax()
        # A name is text of whoever made the file, and a terminal obeys what is in it.
        name_of_best = "".join(x if x.isprintable() else "?" for x in str(classes[best]))
        print(f"{image}: {name_of_best} {shares[best]:.1%}")


if __name__ == "__main__":
    main(*sys.argv[1:])
