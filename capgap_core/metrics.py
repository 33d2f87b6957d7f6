"""Task metrics, their standard errors, and the score that no model is needed for.

Logits are (n, c): one column a class, or one column for regression. Point values come from scikit-learn and scipy;
the bootstrap needs hundreds of values at once and computes the same formulas from example weights.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

Floats = NDArray[np.float64]

COMPONENTS: dict[str, tuple[str, ...]] = {
    "accuracy": (),
    "accuracy_and_f1": ("accuracy", "f1"),
    "matthews": (),
    "pearson_and_spearman": ("pearson", "spearman"),
}
"""Primary metric → the parts whose mean it is; every one is better when higher."""

RESAMPLES = 500
_CELLS_AT_ONCE = 2_000_000


def measure(metric: str, logits: NDArray[Any], labels: NDArray[Any]) -> dict[str, float]:
    """Return the primary metric under its own name, after its components.

    Parameters
    ----------
    metric
        A key of ``COMPONENTS``.
    logits
        (n, c), finite.
    labels
        (n,): class ids, or numbers for regression.

    Returns
    -------
    dict
        Fractions, not per cent. F1 is that of label id 1 for two classes, the macro mean for more. A correlation with
        constant predictions or labels is 0.
    """
    predictions, truth = predicted(metric, logits), _truth(metric, logits, labels)
    if metric == "pearson_and_spearman":
        parts = {"pearson": _pearson(predictions, truth), "spearman": _spearman(predictions, truth)}
    elif metric == "matthews":
        return {"matthews": float(matthews_corrcoef(truth, predictions))}
    else:
        parts = {"accuracy": float(accuracy_score(truth, predictions))}
        if metric == "accuracy":
            return parts
        average = "binary" if logits.shape[1] == 2 else "macro"
        parts["f1"] = float(f1_score(truth, predictions, average=average, zero_division=0.0))  # pyright: ignore[reportArgumentType]
    return {**parts, metric: sum(parts.values()) / len(parts)}


def standard_error(metric: str, logits: NDArray[Any], labels: NDArray[Any], *, seed: int = 0) -> dict[str, float]:
    """Return the standard error over examples of everything ``measure`` returns.

    Accuracy has the binomial sqrt(p(1 - p)/n); the others the standard deviation over ``RESAMPLES`` seeded bootstrap
    samples of the examples (Efron 1979).
    """
    errors: dict[str, float] = {}
    if metric != "accuracy":
        values = resampled(metric, [logits], labels, resamples=RESAMPLES, seed=seed)[0]
        errors = {name: float(np.std(value, ddof=1)) for name, value in values.items()}
    if "accuracy" in (metric, *COMPONENTS[metric]):
        right = float(accuracy_score(_truth(metric, logits, labels), predicted(metric, logits)))
        errors["accuracy"] = math.sqrt(right * (1.0 - right) / len(labels))
    return errors


def calibration_error(logits: NDArray[Any], labels: NDArray[Any], *, bins: int = 15) -> float:
    """Return the expected calibration error: how far confidence is from accuracy (Guo et al., arXiv 1706.04599, eq. 3).

    Parameters
    ----------
    logits
        (n, c) of classes.
    labels
        (n,): class ids.
    bins
        Of equal width, of the probability of the likeliest class; one at a border belongs to the lower.
    """
    scaled = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    sure = (scaled / scaled.sum(axis=1, keepdims=True)).max(axis=1)
    right = logits.argmax(axis=1) == np.asarray(labels)
    place = np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - sure, minlength=bins)
    return float(np.abs(gaps).sum() / len(right))


def constant(metric: str, train_labels: NDArray[Any], labels: NDArray[Any]) -> float:
    """Return the primary metric, on ``labels``, of the best that one answer for all can do.

    That answer is the commonest class of ``train_labels`` (the lowest id of several); with F1, which never counts the
    first class, the one of the two that scores best there. For regression it is their mean, which correlates with
    nothing: 0.
    """
    train_labels, labels = np.asarray(train_labels), np.asarray(labels)
    if metric == "pearson_and_spearman":
        return measure(metric, np.full((len(labels), 1), float(train_labels.mean())), labels)[metric]
    counts = np.bincount(train_labels.astype(np.int64), minlength=max(2, int(labels.max()) + 1))

    def always(answer: int, truth: NDArray[Any]) -> float:
        logits = np.zeros((len(truth), len(counts)))
        logits[:, answer] = 1.0
        return measure(metric, logits, truth)[metric]

    answers = [0, 1] if metric == "accuracy_and_f1" else [int(counts.argmax())]
    return always(max(answers, key=lambda answer: always(answer, train_labels)), labels)


def resampled(
    metric: str, models: Sequence[NDArray[Any]], labels: NDArray[Any], *, resamples: int, seed: int
) -> list[dict[str, Floats]]:
    """Return what ``measure`` gives on bootstrap samples of the examples, the same samples for every model.

    Parameters
    ----------
    models
        The logits, each (n, c), of models that answered the same examples.
    labels
        (n,).

    Returns
    -------
    list
        For each model: metric → (resamples,) values.
    """
    predictions = [predicted(metric, logits) for logits in models]
    truth = _truth(metric, models[0], labels)
    rng = np.random.default_rng(seed)
    if metric == "pearson_and_spearman":
        return _resampled_correlations(predictions, truth, resamples, rng)
    # Examples with the same label and the same predictions cannot be told apart: draw how often each kind comes.
    kinds, counts = np.unique(np.column_stack([truth, *predictions]), axis=0, return_counts=True)
    weights = rng.multinomial(len(truth), counts / len(truth), size=resamples).astype(np.float64)
    classes = max(int(kinds.max()) + 1, models[0].shape[1])
    return [_weighted_classes(metric, weights, kinds[:, i + 1], kinds[:, 0], classes) for i in range(len(models))]


def predicted(metric: str, logits: NDArray[Any]) -> NDArray[Any]:
    """Return (n,) what (n, c) logits say: the likeliest class id, or the number itself for regression."""
    if metric not in COMPONENTS:
        raise ValueError(f"metric = {metric}: must be one of {', '.join(COMPONENTS)}")
    if logits.ndim != 2 or len(logits) == 0:
        raise ValueError(f"logits of shape {logits.shape}: must be (n, c) with n of 1 or more")
    if not np.isfinite(logits).all():
        raise ValueError("logits: must be finite; a model that answers NaN cannot be measured")
    if metric != "pearson_and_spearman":
        return logits.argmax(axis=1).astype(np.int64)
    if logits.shape[1] != 1:
        raise ValueError(f"logits of shape {logits.shape}: regression has one column")
    return logits[:, 0].astype(np.float64)


def _truth(metric: str, logits: NDArray[Any], labels: NDArray[Any]) -> NDArray[Any]:
    labels = np.asarray(labels)
    if labels.shape != (len(logits),):
        raise ValueError(f"labels of shape {labels.shape}: must be ({len(logits)},), one for each row of logits")
    return labels.astype(np.float64 if metric == "pearson_and_spearman" else np.int64)


def _is_constant(values: Floats) -> bool:
    """Say whether the values differ by no more than rounding (the threshold at which scipy warns)."""
    mean = float(values.mean())
    return float(np.linalg.norm(values - mean)) <= 1e-13 * abs(mean)


def _pearson(x: Floats, y: Floats) -> float:
    if _is_constant(x) or _is_constant(y):
        return 0.0
    return float(stats.pearsonr(x, y)[0])  # pyright: ignore[reportArgumentType]


def _spearman(x: Floats, y: Floats) -> float:
    return _pearson(stats.rankdata(x), stats.rankdata(y))


def _weighted_classes(
    metric: str, weights: Floats, predictions: NDArray[Any], truth: NDArray[Any], classes: int
) -> dict[str, Floats]:
    """Return the metrics of (r, k) weights over k kinds of examples; each (r,)."""
    eye = np.eye(classes)
    said, true = weights @ eye[predictions], weights @ eye[truth]
    right = weights @ (eye[truth] * (predictions == truth)[:, None])
    total = weights.sum(axis=1)
    if metric == "matthews":
        return {"matthews": _weighted_matthews(said, true, right, total)}
    accuracy = right.sum(axis=1) / total
    if metric == "accuracy":
        return {"accuracy": accuracy}
    present = said + true
    each = np.divide(2 * right, present, out=np.zeros_like(right), where=present > 0)
    # A class that a sample neither holds nor predicts is left out of the macro mean, as in scikit-learn.
    f1 = each[:, 1] if classes == 2 else each.sum(axis=1) / (present > 0).sum(axis=1)
    return {"accuracy": accuracy, "f1": f1, metric: (accuracy + f1) / 2}


def _weighted_matthews(said: Floats, true: Floats, right: Floats, total: Floats) -> Floats:
    """Return the R_K statistic (Gorodkin 2004), which is Matthews' for two classes; 0 where it is undefined."""
    covariance = right.sum(axis=1) * total - (said * true).sum(axis=1)
    spread = (total**2 - (said**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
    return np.divide(covariance, np.sqrt(spread), out=np.zeros_like(total), where=spread > 0)


def _resampled_correlations(
    predictions: Sequence[Floats], truth: Floats, resamples: int, rng: np.random.Generator
) -> list[dict[str, Floats]]:
    found: list[list[Floats]] = [[] for _ in predictions]
    for weights in _example_weights(len(truth), resamples, rng):
        ranked_truth = _weighted_ranks(weights, truth)
        for values, prediction in zip(found, predictions, strict=True):
            pearson = _weighted_pearson(weights, np.broadcast_to(prediction, weights.shape), truth[None, :])
            spearman = _weighted_pearson(weights, _weighted_ranks(weights, prediction), ranked_truth)
            values.append(np.stack([pearson, spearman]))
    joined = [np.concatenate(values, axis=1) for values in found]
    return [{"pearson": p, "spearman": s, "pearson_and_spearman": (p + s) / 2} for p, s in joined]


def _example_weights(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """Yield (r, n) counts of how often each sample drew each example, few enough at once for memory."""
    at_once = max(1, _CELLS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        rows = min(at_once, resamples - start)
        drawn = rng.integers(0, n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _weighted_ranks(weights: Floats, values: Floats) -> Floats:
    """Return (r, n) average ranks that ``values`` (n,) would have were each repeated by its weight."""
    distinct, group = np.unique(values, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(len(distinct)))
    held = np.add.reduceat(weights[:, order], starts, axis=1)
    return (held.cumsum(axis=1) - (held - 1.0) / 2.0)[:, group]


def _weighted_pearson(weights: Floats, x: Floats, y: Floats) -> Floats:
    """Return (r,) correlations of (r, n) x and y under weights; 0 where one is constant."""
    total = weights.sum(axis=1, keepdims=True)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    squares = (weights * x * x).sum(axis=1) * (weights * y * y).sum(axis=1)
    scale = (np.abs(x).max(axis=1) * np.abs(y).max(axis=1)) ** 2
    products = (weights * x * y).sum(axis=1)
    return np.divide(products, np.sqrt(squares), out=np.zeros(len(x)), where=squares > 1e-24 * scale)
