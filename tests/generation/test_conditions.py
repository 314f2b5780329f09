import numpy as np
import pytest

from codeprior.errors import InputError
from codeprior.generation.conditions import Conditions, find_classes

NAMES = ("tench", "golden_retriever", "great white shark", "tiger cat", "Tench")


def conditions(*wanted: str, by_lot: bool = False, seed: int = 0) -> Conditions:
    return Conditions(NAMES, None, None, find_classes(wanted, NAMES), by_lot, seed)


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ((), [0, 1, 2, 3, 4]),
        (("3", "1"), [3, 1]),
        (("3,1,0",), [3, 1, 0]),
        (("golden retriever", "TIGER CAT"), [1, 3]),
        (("golden_retriever,2",), [1, 2]),
        (("tench",), [0]),  # of equal names the first
    ],
)
def test_classes_are_given_by_number_or_name(wanted, numbers):
    assert find_classes(wanted, NAMES).tolist() == numbers


def test_a_name_with_a_comma_is_one_class():
    assert find_classes(("goldfish, Carassius auratus",), ("tench", "goldfish, Carassius auratus")).tolist() == [1]


def test_a_name_goes_before_a_number():
    assert find_classes(("7",), ("3", "7")).tolist() == [1]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("golden retreiver", "no class 'golden retreiver' in this checkpoint; perhaps you meant 'golden retriever'"),
        ("5", "a class must be between 0 and 4, got 5"),
        ("-1", "a class must be between 0 and 4, got -1"),
        ("dog", "no class 'dog' in this checkpoint; give a name or 0 to 4"),
    ],
)
def test_a_class_that_is_not_there_is_refused(word, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        find_classes((word,), NAMES)


def test_classes_have_equal_shares_in_any_run_of_indices():
    assert np.bincount(conditions().numbers(np.arange(20))).tolist() == [4] * 5
    assert np.bincount(conditions().numbers(np.arange(3, 16))).tolist() == [3, 2, 2, 3, 3]


def test_lots_belong_to_the_index_and_fall_on_all_alike():
    drawn = conditions("0", "2", by_lot=True).numbers(np.arange(2000))
    assert np.array_equal(drawn[500:510], conditions("0", "2", by_lot=True).numbers(np.arange(500, 510)))
    assert abs((drawn == 2).sum() - 1000) < 5 * np.sqrt(500)
    assert set(drawn) == {0, 2}
    assert not np.array_equal(drawn, conditions("0", "2", by_lot=True, seed=1).numbers(np.arange(2000)))
