"""Holds the metrics against values worked out by hand, and the bootstrap against resampling in the plain way."""

import math

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef

from capgap_core.metrics import COMPONENTS, constant, measure, resampled, standard_error

# Predicted 1,1,0,0,1,0 against 1,0,0,1,1,0: 2 true positives, 1 false positive, 1 false negative, 2 true negatives.
PAIR_LOGITS = np.eye(2)[[1, 1, 0, 0, 1, 0]]
PAIR_LABELS = np.array([1, 0, 0, 1, 1, 0])


def noisy_classes(n: int, classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), labels] += 1.0
    return logits, labels


def test_two_classes_by_hand() -> None:
    found = measure("accuracy_and_f1", PAIR_LOGITS, PAIR_LABELS)
    assert found == pytest.approx({"accuracy": 4 / 6, "f1": 4 / 6, "accuracy_and_f1": 4 / 6})
    assert measure("accuracy", PAIR_LOGITS, PAIR_LABELS) == pytest.approx({"accuracy": 4 / 6})
    # (2*2 - 1*1) / sqrt(3*3*3*3)
    assert measure("matthews", PAIR_LOGITS, PAIR_LABELS) == pytest.approx({"matthews": 1 / 3})


def test_f1_is_that_of_label_one() -> None:
    logits = np.eye(2)[[1, 0, 0, 0]]
    found = measure("accuracy_and_f1", logits, np.array([1, 1, 0, 0]))
    assert found == pytest.approx({"accuracy": 0.75, "f1": 2 / 3, "accuracy_and_f1": (0.75 + 2 / 3) / 2})


def test_f1_of_three_classes_is_the_macro_mean() -> None:
    # Class 0: precision 1/2, recall 1, F1 2/3; class 1: 1, 1/2, 2/3; class 2: 1, 1, 1.
    found = measure("accuracy_and_f1", np.eye(3)[[0, 0, 1, 2]], np.array([0, 1, 1, 2]))
    assert found["f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_correlations_by_hand() -> None:
    # x = 1,2,3,4 and y = 1,2,3,8: covariance sum 11, squares 5 and 29.
    found = measure("pearson_and_spearman", np.array([[1.0], [2.0], [3.0], [4.0]]), np.array([1.0, 2.0, 3.0, 8.0]))
    assert found["pearson"] == pytest.approx(11 / math.sqrt(5 * 29))
    assert found["spearman"] == pytest.approx(1.0)
    assert found["pearson_and_spearman"] == pytest.approx((11 / math.sqrt(145) + 1) / 2)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6 + 0.1])
def test_constant_predictions_correlate_with_nothing_and_warn_of_nothing(value: float) -> None:
    logits, labels = np.full((7, 1), value, dtype=np.float32), np.arange(7.0)
    assert measure("pearson_and_spearman", logits, labels) == dict.fromkeys(
        ("pearson", "spearman", "pearson_and_spearman"), 0.0
    )
    assert standard_error("pearson_and_spearman", logits, labels) == dict.fromkeys(
        ("pearson", "spearman", "pearson_and_spearman"), 0.0
    )


@pytest.mark.parametrize("metric", list(COMPONENTS))
def test_errors_and_values_have_the_same_names(metric: str) -> None:
    logits, labels = noisy_classes(50, 1 if metric == "pearson_and_spearman" else 2, 0)
    values, errors = measure(metric, logits, labels), standard_error(metric, logits, labels)
    assert values.keys() == errors.keys() == {*COMPONENTS[metric], metric}
    assert errors == standard_error(metric, logits, labels)


def test_error_of_an_accuracy_is_the_binomial_one() -> None:
    # 90 of 100 right.
    logits = np.eye(2)[[0] * 90 + [1] * 10]
    assert standard_error("accuracy", logits, np.zeros(100, dtype=int)) == pytest.approx({"accuracy": 0.03})


@pytest.mark.parametrize("metric", ["accuracy_and_f1", "matthews"])
@pytest.mark.parametrize("classes", [2, 4])
def test_resampled_classes_match_the_library_sample_by_sample(metric: str, classes: int) -> None:
    """The same draws, spelled out as repeated examples, through scikit-learn; small samples often lack a class."""
    logits, labels = noisy_classes(12, classes, 3)
    found = resampled(metric, [logits], labels, resamples=40, seed=9)[0]
    kinds, counts = np.unique(np.column_stack([labels, logits.argmax(1)]), axis=0, return_counts=True)
    lacking = 0
    for i, times in enumerate(np.random.default_rng(9).multinomial(12, counts / 12, size=40)):
        rows = np.repeat(kinds, times, axis=0)
        lacking += len(np.unique(rows)) < classes
        expected = measure(metric, np.eye(classes)[rows[:, 1]], rows[:, 0])
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected)
    assert lacking > 0 or classes == 2


def test_bootstrap_spreads_as_drawing_examples_does() -> None:
    """Drawing kinds of examples by their counts against drawing examples: equal within Monte Carlo error."""
    logits, labels = noisy_classes(200, 4, 3)
    rng, plain = np.random.default_rng(1), []
    for _ in range(500):
        rows = rng.integers(0, 200, 200)
        plain.append(matthews_corrcoef(labels[rows], logits[rows].argmax(1)))
    assert standard_error("matthews", logits, labels)["matthews"] == pytest.approx(np.std(plain), rel=0.12)


def test_resampled_ranks_and_correlations_match_the_library_sample_by_sample() -> None:
    """The same draws, spelled out as repeated examples, through scipy; labels have many ties, as STS-B's do."""
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(40, 1))
    labels = np.round(logits[:, 0] + rng.normal(size=40))
    found = resampled("pearson_and_spearman", [logits], labels, resamples=20, seed=9)[0]
    drawn = np.random.default_rng(9).integers(0, 40, size=(20, 40))
    for i, rows in enumerate(drawn):
        expected = measure("pearson_and_spearman", logits[rows], labels[rows])
        assert {name: values[i] for name, values in found.items()} == pytest.approx(expected)


def test_error_of_a_correlation_is_near_the_formula() -> None:
    # For a bivariate normal the standard error of r is about (1 - r²)/sqrt(n).
    rng = np.random.default_rng(0)
    x = rng.normal(size=2000)
    y = 0.6 * x + 0.8 * rng.normal(size=2000)
    found = standard_error("pearson_and_spearman", x[:, None], y)["pearson"]
    assert found == pytest.approx(0.64 / math.sqrt(2000), rel=0.15)


def test_models_are_resampled_together() -> None:
    """A model against itself has no difference in any sample; an independent one has."""
    logits, labels = noisy_classes(100, 3, 0)
    one, same = resampled("accuracy_and_f1", [logits, logits.copy()], labels, resamples=50, seed=0)
    assert np.array_equal(one["f1"], same["f1"])
    one, other = resampled("accuracy_and_f1", [logits, noisy_classes(100, 3, 7)[0]], labels, resamples=50, seed=0)
    assert np.std(one["f1"] - other["f1"]) > 0


def test_constant_predictor_answers_with_the_commonest_training_label() -> None:
    train, labels = np.array([1, 1, 0]), np.array([0, 0, 1, 1, 1])
    assert constant("accuracy", train, labels) == pytest.approx(3 / 5)
    # All 1: precision 3/5, recall 1, F1 3/4.
    assert constant("accuracy_and_f1", train, labels) == pytest.approx((3 / 5 + 3 / 4) / 2)
    assert constant("accuracy", np.array([0, 0, 1]), labels) == pytest.approx(
        2 / 5
    )  # of train, not of the labels measured
    assert constant("matthews", train, labels) == 0.0
    assert constant("pearson_and_spearman", np.array([0.1, 0.2]), np.array([1.0, 2.0, 3.0])) == 0.0


@pytest.mark.parametrize(
    ("metric", "logits", "labels", "says"),
    [
        ("bleu", np.eye(2), np.array([0, 1]), "bleu"),
        ("accuracy", np.array([[0.0, np.nan]]), np.array([0]), "NaN"),
        ("accuracy", np.zeros((0, 2)), np.array([]), "n of 1 or more"),
        ("accuracy", np.eye(2), np.array([0]), "one for each row"),
        ("pearson_and_spearman", np.eye(2), np.array([0.0, 1.0]), "one column"),
    ],
)
def test_what_cannot_be_measured_is_refused(metric: str, logits: np.ndarray, labels: np.ndarray, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        measure(metric, logits, labels)


def test_the_best_constant_answer_for_f1_is_the_positive_class() -> None:
    labels = np.array([0] * 63 + [1] * 37)
    f1 = 2 * 37 / (37 + 100)
    assert constant("accuracy_and_f1", labels, labels) == pytest.approx((0.37 + f1) / 2)
    assert constant("accuracy", labels, labels) == pytest.approx(0.63)
