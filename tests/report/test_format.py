import pytest

from codeprior.report.format import count, duration, listing, number, parameters, percent, score


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (count(1797), "1,797"),
        (number(23.536, 2, 0.018), "23.54 ± 0.02"),
        (number(None), "–"),
        (percent(0.9523), "95.2\u00a0%"),
        (score(2.404), "2.40"),
        (score(0.2061, 0.0057), "0.206 ± 0.006"),
        (parameters(870912), "870.91 k"),
        (parameters(110888448), "110.89 M"),
        (parameters(12), "12"),
        (duration(0.44), "0.4 s"),
        (duration(59.7), "1 min 0 s"),
        (duration(252), "4 min 12 s"),
        (duration(12000), "3 h 20 min"),
        (duration(190800), "2 d 5 h"),
        (listing(["a"]), "a"),
        (listing(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_are_shown_as_people_read_them(shown: str, expected: str) -> None:
    assert shown == expected
