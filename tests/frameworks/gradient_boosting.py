"""XGBoost, LightGBM: models pickled, and in their own files."""

from __future__ import annotations

import pickle
from pathlib import Path

import joblib
import lightgbm
import numpy as np
import xgboost

from frameworks.expected import expecting

X = np.random.default_rng(0).normal(size=(40, 4))
Y = (X[:, 0] > 0).astype(int)


def write(folder: Path) -> None:
    xgb = xgboost.XGBClassifier(n_estimators=2).fit(X, Y)
    lgb = lightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(X, Y)
    for name, model, framework in (("xgb", xgb, "XGBoost"), ("lgb", lgb, "LightGBM")):
        facts = {"framework": framework, "role": "object", "verdict": "needs-trust"}
        path = expecting(folder / f"{name}.pkl", **facts)
        path.write_bytes(pickle.dumps(model))
        joblib.dump(model, expecting(folder / f"{name}.joblib", **facts))
    xgb.save_model(expecting(folder / "xgb.json"))
    xgb.get_booster().save_model(folder / "xgb.ubj")
    lgb.booster_.save_model(folder / "lgb.txt")
