"""Threads that work ahead: results keep the order of the items, and nobody waits for what need not be done."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

from codeprior.parts import in_order


def test_results_come_in_the_order_of_the_items():
    with ThreadPoolExecutor(3) as pool:
        assert list(in_order(pool, lambda item: item**2, range(50), 4)) == [item**2 for item in range(50)]


def test_whoever_stops_early_waits_only_for_what_has_begun():
    begun, go_on = [], Event()

    def work(item):
        begun.append(item)
        if item == 1:
            go_on.wait()

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, range(100), 50)
        next(results)
        results.close()
        go_on.set()
    assert begun in ([0], [0, 1])
