"""Sentence Transformers: a model's folder, and the model pickled whole."""

from __future__ import annotations

from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer, models

from frameworks.expected import expecting


def write(folder: Path) -> None:
    words = models.BoW(["cat", "dog"])
    dense = models.Dense(words.get_sentence_embedding_dimension(), 4)
    model = SentenceTransformer(modules=[words, dense], device="cpu")
    model.save(str(folder / "model"))
    path = expecting(folder / "whole.pt", role="module", framework="Sentence Transformers")
    torch.save(model, path)
