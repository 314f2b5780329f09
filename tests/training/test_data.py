"""Which rows a step sees, and how they come."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.errors import InputError
from codeprior.training.data import Feed, batch_rows, read_batch

CPU = torch.device("cpu")


def test_every_epoch_sees_every_image_once_in_a_new_order():
    rows = [batch_rows(3, step, 16, 40, 2) for step in range(5)]  # 80 places: two epochs
    images = np.concatenate([images for images, _ in rows]).reshape(2, 40)
    views = np.concatenate([views for _, views in rows])
    assert np.array_equal(np.sort(images), np.tile(np.arange(40), (2, 1)))
    assert not np.array_equal(images[0], images[1])
    assert set(views) == {0, 1}


def test_rows_of_a_step_depend_on_nothing_drawn_before():
    alone = batch_rows(1, 1234, 64, 100, 5)
    for step in (7, 99, 1234):
        again = batch_rows(1, step, 64, 100, 5)
    assert np.array_equal(alone, again)
    assert not np.array_equal(alone, batch_rows(2, 1234, 64, 100, 5))


def test_a_batch_may_be_larger_than_the_data():
    images, _ = batch_rows(0, 0, 25, 10, 1)
    assert np.array_equal(np.sort(images[:10]), np.arange(10))
    assert np.array_equal(np.sort(images[10:20]), np.arange(10))


@pytest.fixture
def store(tiny) -> CodeStore:
    return CodeStore.open(tiny / "codes")


def feed(store, part=0, n_parts=1, **changes) -> Feed:
    config = TrainConfig(codes=Path("codes"), output=Path("output"), batch_size=12, **changes)
    return Feed(store, config, 10, part, n_parts)


def test_parts_of_a_batch_are_the_batch_however_many(store):
    classes, tokens = feed(store, class_dropout=0.5).batch(7)
    assert (classes == 10).any()
    for n_parts in (2, 3, 6):
        parts = [feed(store, part, n_parts, class_dropout=0.5).batch(7) for part in range(n_parts)]
        assert torch.equal(torch.cat([part[0] for part in parts]), classes)
        assert torch.equal(torch.cat([part[1] for part in parts]), tokens)


def test_a_batch_is_the_rows_of_its_step(store):
    images, views = batch_rows(0, 3, 12, *store.codes.shape[:2])
    classes, tokens = feed(store, class_dropout=0.0).batch(3)
    assert np.array_equal(tokens, [store.codes[i, v] for i, v in zip(images, views, strict=True)])
    assert np.array_equal(classes, [store.labels[i] for i in images])


def test_batches_come_in_order_one_ahead(store):
    whole = feed(store)
    for step, (classes, tokens) in enumerate(whole.batches(4, 9, CPU), 4):
        assert torch.equal(tokens, whole.batch(step)[1])
        assert torch.equal(classes, whole.batch(step)[0])
    assert step == 8
    assert list(whole.batches(5, 5, CPU)) == []


def test_views_are_drawn_anew_for_each_image_and_epoch(store):
    n_images = len(store)
    views = [dict(zip(*batch_rows(0, epoch, n_images, n_images, 10), strict=True)) for epoch in range(3)]
    assert len({tuple(sorted(of.items())) for of in views}) == 3
    assert len(set(views[0].values())) == 10


def test_codes_that_vanished_or_were_cut_short_are_named(store, tmp_path):
    path = tmp_path / "codes.npy"
    np.save(path, store.codes)
    moved = dataclasses.replace(store, codes=np.load(path, mmap_mode="r"))
    read_batch(moved, np.arange(3), 0)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"codes\.npy were cut short"):
        read_batch(moved, np.arange(3), 0)
    path.unlink()
    with pytest.raises(InputError, match=r"codes\.npy have vanished"):
        read_batch(moved, np.arange(3), 0)
