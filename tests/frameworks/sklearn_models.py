"""scikit-learn's estimators, by pickle and by joblib with each of its compressions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn import (
    cluster,
    compose,
    decomposition,
    ensemble,
    feature_extraction,
    gaussian_process,
    impute,
    linear_model,
    model_selection,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

from frameworks.expected import expecting

RNG = np.random.default_rng(0)
X = RNG.normal(size=(40, 4))
Y = (X[:, 0] > 0).astype(int)


def _estimators() -> dict[str, Any]:
    scaled = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear_model.LogisticRegression()
    )
    columns = compose.ColumnTransformer(
        [("a", preprocessing.MinMaxScaler(), [0, 1]), ("b", impute.SimpleImputer(), [2, 3])]
    )
    search = model_selection.GridSearchCV(svm.SVC(), {"C": [0.1, 1.0]}, cv=2)
    function = preprocessing.FunctionTransformer(np.log1p)
    return {
        "pipeline": scaled.fit(X, Y),
        "columns": columns.fit(X),
        "search": search.fit(X, Y),
        "function": pipeline.make_pipeline(function, tree.DecisionTreeClassifier()).fit(abs(X), Y),
        "forest": ensemble.RandomForestClassifier(3).fit(X, Y),
        "boosting": ensemble.GradientBoostingClassifier(n_estimators=3).fit(X, Y),
        "histogram_boosting": ensemble.HistGradientBoostingClassifier(max_iter=3).fit(X, Y),
        "isolation": ensemble.IsolationForest(n_estimators=3).fit(X),
        "svc": svm.SVC(probability=False).fit(X, Y),
        "kmeans": cluster.KMeans(2, n_init=1).fit(X),
        "pca": decomposition.PCA(2).fit(X),
        "knn": neighbors.KNeighborsClassifier().fit(X, Y),
        "bayes": naive_bayes.GaussianNB().fit(X, Y),
        "gaussian_process": gaussian_process.GaussianProcessClassifier().fit(X, Y),
        "mlp": neural_network.MLPClassifier((3,), max_iter=500, tol=1e-2).fit(X, Y),
        "sgd": linear_model.SGDClassifier().fit(X, Y),
        "ridge": linear_model.Ridge().fit(X, Y),
        "labels": preprocessing.LabelEncoder().fit(["cat", "dog"]),
        "one_hot": preprocessing.OneHotEncoder().fit([["a"], ["b"]]),
        "tfidf": feature_extraction.text.TfidfVectorizer().fit(["a cat", "the dog"]),
        "counts": feature_extraction.text.CountVectorizer().fit(["a cat", "the dog"]),
    }


def write(folder: Path) -> None:
    estimators = _estimators()
    facts = {"role": "object", "framework": "scikit-learn", "verdict": "needs-trust"}
    for name, estimator in estimators.items():
        for protocol in (0, 2, 5):
            path = expecting(folder / f"{name}_{protocol}.pkl", container="pickle", **facts)
            path.write_bytes(pickle.dumps(estimator, protocol))
        joblib.dump(estimator, expecting(folder / f"{name}.joblib", **facts))
    several = {"scaler": estimators["pca"], "model": estimators["forest"], "classes": ["a", "b"]}
    for compress in (3, "zlib", "gzip", "bz2", "lzma", "xz"):
        path = expecting(folder / f"compressed_{compress}.joblib")
        joblib.dump(several, path, compress=compress)
    joblib.dump({"x": X, "y": Y}, expecting(folder / "arrays.joblib", framework=None))
    joblib.dump([X, "a", 3], expecting(folder / "list.joblib", framework=None))
