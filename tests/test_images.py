"""Images: every source gives the same kind of set; what is wrong with the data is said in one line."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from codeprior import embedded
from codeprior.crops import centre_crop, ten_crop, view, views
from codeprior.errors import InputError
from codeprior.images import BadImageError, open_images


def picture(seed, size=(20, 24), mode="RGB"):
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], len(mode))
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Three classes of odd sizes and kinds; `snake` sorts last."""
    root = tmp_path / "animals"
    for name, mode in [("snake", "RGB"), ("cat", "L"), ("dog", "RGBA")]:
        (root / name).mkdir(parents=True)
        for number in range(2):
            picture(number, (17 + 9 * number, 23), mode).save(root / name / f"{number}.png")
    return root


def parquet(path, rows, column="image", metadata=None):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": row, "path": None} for row, _ in rows]
    table = pa.table({column: cells, "label": [label for _, label in rows]})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


# -- embedded data --


def test_digits_are_split_into_1500_and_297_without_a_shared_image():
    train, heldout = open_images("digits"), open_images("digits:heldout")
    assert (len(train), len(heldout)) == (1500, 297)
    assert train.class_names == tuple("0123456789")
    assert set(heldout.labels) == set(range(10))
    from sklearn.datasets import load_digits

    together = np.concatenate([train.labels, heldout.labels])
    assert np.array_equal(np.bincount(together), np.bincount(load_digits().target))


def test_digits_are_upscaled_bicubically_and_do_not_depend_on_the_seed():
    images = open_images("digits", seed=5)
    square = Image.fromarray(embedded.load("digits")[0][7]).convert("RGB")
    assert np.array_equal(images.read(7, 16), np.asarray(square.resize((16, 16), Image.Resampling.BICUBIC)))
    assert images.digest == open_images("digits").digest


def test_photos12_has_twelve_classes_of_recognisable_size():
    images = open_images("photos12:heldout")
    assert np.array_equal(np.bincount(images.labels), [embedded.N_HELDOUT_CROPS] * 12)
    assert images.class_names[0] == "astronaut"
    assert images.read(3, 32).std() > 20
    assert images.digest == open_images("photos12:heldout").digest


@pytest.mark.parametrize("size", [(256, 256), (384, 256), (256, 300)])
@pytest.mark.parametrize("end", ["right", "bottom"])
def test_held_out_crops_share_no_pixel_with_training_crops(size, end):
    generator = np.random.default_rng(size[0])
    train = embedded.crop_boxes(size, end, 500, generator, heldout=False)
    heldout = embedded.crop_boxes(size, end, 500, generator, heldout=True)
    axis = {"right": 0, "bottom": 1}[end]
    assert train[:, 2 + axis].max() <= heldout[:, axis].min()
    for boxes in (train, heldout):
        assert boxes.min() >= 0
        assert (boxes[:, 2:] <= size).all()
        assert np.array_equal(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1])
        assert (boxes[:, 2] - boxes[:, 0]).min() >= 60


# -- class folders --


def test_a_folder_gives_its_classes_in_the_order_of_their_names(folder):
    images = open_images(str(folder))
    assert images.class_names == ("cat", "dog", "snake")
    assert images.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.labels.dtype == np.int64
    assert images.read_many(range(6), 16).shape == (6, 16, 16, 3)
    assert not images.skipped


def test_greyscale_is_replicated_to_three_channels(folder):
    pixels = open_images(str(folder)).read(0, 16)
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_sixteen_bit_greyscale_keeps_its_range(tmp_path):
    (tmp_path / "a").mkdir()
    ramp = np.linspace(0, 65535, 16 * 16).reshape(16, 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a" / "0.png")
    pixels = open_images(str(tmp_path)).read(0, 16)
    assert np.array_equal(pixels[..., 0], ramp // 257)


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path):
    (tmp_path / "a").mkdir()
    picture(0).quantize(8).save(tmp_path / "a" / "0.png", transparency=bytes([0, 128, 255]))
    assert open_images(str(tmp_path)).read(0, 16).shape == (16, 16, 3)


def test_threaded_reading_gives_the_same_images(folder):
    images = open_images(str(folder))
    assert np.array_equal(images.read_many([4, 1], 128), np.stack([images.read(4, 128), images.read(1, 128)]))


def test_the_digest_names_content_not_place(folder, tmp_path):
    digest = open_images(str(folder)).digest
    moved = folder.rename(tmp_path / "moved")
    assert open_images(str(moved)).digest == digest
    picture(9, (40, 40)).save(moved / "cat" / "0.png")
    assert open_images(str(moved)).digest != digest


def test_opening_decodes_nothing_and_a_corrupt_image_is_refused_by_name_when_read(folder):
    (folder / "dog" / "0.png").write_bytes(b"not a picture")
    (folder / "snake" / "1.png").write_bytes(encoded(picture(1, (90, 90)))[:2000])
    images = open_images(str(folder))
    assert images.read(3, 16).shape == (16, 16, 3)
    with pytest.raises(
        BadImageError, match=r"^dog/0\.png is not a readable image .*; mend it or use --bad-images skip"
    ):
        images.read(2, 16)
    with pytest.raises(InputError, match=r"^snake/1\.png is not"):
        images.read_many(range(3, 6), 16)


def test_corrupt_images_are_skipped_and_named_if_asked_for(folder):
    whole = open_images(str(folder))
    (folder / "dog" / "0.png").write_bytes(b"")
    images = open_images(str(folder), bad_images="skip")
    assert images.labels.tolist() == [0, 0, 1, 2, 2]
    assert np.array_equal(images.read(2, 16), whole.read(3, 16))
    assert len(images.skipped) == 1
    assert images.skipped[0].startswith("dog/0.png")


def test_a_truncated_jpeg_is_bad(folder):
    path = folder / "cat" / "2.jpg"
    picture(3, (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(InputError, match="truncated"):
        open_images(str(folder)).read(2, 16)


def test_images_outside_the_class_folders_are_refused_or_skipped(folder):
    picture(0).save(folder / "stray.png")
    with pytest.raises(InputError, match=r"1 images lie outside the class folders .* first stray\.png"):
        open_images(str(folder))
    images = open_images(str(folder), bad_images="skip")
    assert len(images) == 6
    assert images.skipped == ["stray.png (outside the class folders)"]


def test_a_class_folder_may_hold_its_images_one_level_deeper(folder):
    (folder / "cat" / "images").mkdir()
    for path in list((folder / "cat").glob("*.png")):
        path.rename(folder / "cat" / "images" / path.name)
    assert open_images(str(folder)).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_parent_of_class_folders_is_refused_with_what_to_give(folder, tmp_path):
    with pytest.raises(InputError, match=r"holds 3 folders of images; if these are the classes, give .*animals"):
        open_images(str(tmp_path))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "holds no images"),
        (lambda root: picture(0).save(root / "a.png"), "no class folders; put the images in one folder a class"),
        (lambda root: (root / "empty").mkdir(), "class folder .*empty holds no images"),
    ],
)
def test_folders_without_images_are_refused(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        open_images(str(tmp_path))


def test_a_wrong_path_is_one_line_that_says_what_is_allowed(tmp_path):
    with pytest.raises(InputError, match="digits, digits:heldout, photos12") as caught:
        open_images(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InputError, match=r"cannot read images from notes\.txt"):
        open_images(str(tmp_path / "notes.txt"))


# -- parquet and npz --


def test_parquet_rows_are_read_across_row_groups_with_the_hub_s_class_names(tmp_path):
    pictures = [picture(seed, (16, 16)) for seed in range(5)]
    names = '{"info": {"features": {"label": {"names": ["no", "yes"], "_type": "ClassLabel"}}}}'
    rows = [(encoded(image), number % 2) for number, image in enumerate(pictures)]
    images = open_images(str(parquet(tmp_path / "a.parquet", rows, "img", {"huggingface": names})))
    assert images.class_names == ("no", "yes")
    assert images.labels.tolist() == [0, 1, 0, 1, 0]
    assert all(np.array_equal(images.read(i, 16), np.asarray(pictures[i])) for i in (4, 0, 3, 1, 2))


def test_parquet_shards_of_one_split_are_joined_and_splits_kept_apart(tmp_path):
    for split, shard in [("train", 0), ("train", 1), ("test", 0)]:
        rows = [(encoded(picture(shard)), shard)] * 3
        parquet(tmp_path / f"{split}-0000{shard}-of-00002.parquet", rows)
    with pytest.raises(InputError, match=r"several splits \(test, train\); give one: .*train-\*\.parquet"):
        open_images(str(tmp_path))
    assert open_images(f"{tmp_path}/train-*.parquet").labels.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(InputError, match="no files match"):
        open_images(f"{tmp_path}/validation-*.parquet")


def test_corrupt_parquet_rows_are_named(tmp_path):
    rows = [(encoded(picture(0)), 0), (b"junk", 1), (None, 0)]
    path = str(parquet(tmp_path / "a.parquet", rows))
    with pytest.raises(InputError, match=r"a\.parquet row 1 is not"):
        open_images(path).read_many(range(3), 16)
    assert open_images(path, bad_images="skip").labels.tolist() == [0]


def test_damaged_or_foreign_parquet_is_one_line(tmp_path):
    path = parquet(tmp_path / "a.parquet", [(encoded(picture(0)), 0)], column="photo")
    with pytest.raises(InputError, match="columns photo, label; images must be in image or img"):
        open_images(str(path))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="cannot read images from"):
        open_images(str(path))


def test_without_pyarrow_parquet_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"pip install 'codeprior\[data\]'"):
        open_images(str(tmp_path / "a.parquet"))


def test_npz_is_read_with_or_without_labels_and_in_greyscale(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", pixels, np.array([0, 2, 1, 2]))
    images = open_images(str(tmp_path / "a.npz"))
    assert images.class_names == ("0", "1", "2")
    assert np.array_equal(images.read_many(range(4), 16), pixels)
    np.savez(tmp_path / "b.npz", pixels[..., 0])
    images = open_images(str(tmp_path / "b.npz"))
    assert images.labels.tolist() == [0] * 4
    assert np.array_equal(images.read(1, 16)[..., 2], pixels[1, ..., 0])


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 3))}, "must be uint8"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.zeros(3, int)}, "must be 2 integers from 0"),
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "arr_1": np.array([0, -1])}, "must be 2 integers from 0"),
        ({"images": np.zeros((2, 4, 4, 3), np.uint8)}, "it must hold arr_0"),
    ],
)
def test_wrong_npz_arrays_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=message):
        open_images(str(tmp_path / "a.npz"))


def test_a_truncated_npz_is_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, np.zeros((2, 4, 4, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(InputError, match="cannot read"):
        open_images(str(path))


# -- crops and views --


def test_an_image_of_the_right_size_is_not_touched():
    image = picture(0, (16, 16))
    assert np.array_equal(centre_crop(image, 16), np.asarray(image))


def test_large_images_are_halved_by_box_averages_first():
    image = picture(0, (64, 64))
    halves = np.asarray(image, np.float64)
    for _ in range(2):  # 64 -> 32 -> 16; Pillow rounds, half up, after each direction
        halves = np.floor((halves[:, 0::2] + halves[:, 1::2]) / 2 + 0.5)
        halves = np.floor((halves[0::2] + halves[1::2]) / 2 + 0.5)
    assert np.array_equal(centre_crop(image, 16), halves)


def test_the_centre_is_cut_from_the_longer_side():
    columns = np.zeros((16, 21, 3), np.uint8)
    columns[...] = np.arange(21)[:, None]
    assert np.array_equal(centre_crop(Image.fromarray(columns), 16)[0, :, 0], np.arange(2, 18))


def adm_centre_crop(image, size):
    """The definition, as Dhariwal and Nichol's data loader words it, one step a line."""
    width, height = image.size
    while min(width, height) >= 2 * size:
        width, height = width // 2, height // 2
        image = image.resize((width, height), resample=Image.BOX)
    scale = size / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), resample=Image.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


@pytest.mark.parametrize("size", [(40, 40), (61, 43), (43, 90), (131, 77), (16, 300), (9, 12)])
@pytest.mark.parametrize("side", [16, 17])
def test_the_centre_crop_is_adm_s_definition(size, side):
    image = picture(0, size)
    assert np.array_equal(centre_crop(image, side), adm_centre_crop(image, side))


@pytest.mark.parametrize("large", [16, 17, 18, 19, 21, 35])
def test_ten_crops_are_pillow_s_in_torchvision_s_order(large):
    square, side = picture(1, (large, large)), 16
    far, middle = large - side, round((large - side) / 2)
    boxes = [(0, 0), (far, 0), (0, far), (far, far), (middle, middle)]  # (left, top)
    cut = [
        np.asarray(whole.crop((left, top, left + side, top + side)))
        for whole in (square, square.transpose(Image.Transpose.FLIP_LEFT_RIGHT))
        for left, top in boxes
    ]
    assert np.array_equal(ten_crop(np.asarray(square), side), np.stack(cut))


def test_both_ranges_are_twenty_views_of_an_image(folder):
    images = open_images(str(folder))
    both = images.read_views(4, 40, "ten-crop-1.1+1.05")
    assert both.shape == (20, 40, 40, 3)
    assert np.array_equal(both[:10], images.read_views(4, 40, "ten-crop-1.1"))
    assert np.array_equal(both[10:], images.read_views(4, 40, "ten-crop-1.05"))
    assert np.array_equal(both[4], images.read(4, 44)[2:42, 2:42])
    assert np.array_equal(both[10], images.read(4, 42)[:40, :40])
    assert np.array_equal(images.read_views(4, 40, "flip")[1], images.read(4, 40)[:, ::-1])


def test_views_are_the_image_its_mirror_and_shifts_by_one_pixel():
    image = np.asarray(picture(0, (8, 8)))
    assert [len(views(image, name)) for name in ("centre", "flip", "shift")] == [1, 2, 5]
    assert all(np.array_equal(views(image, name)[0], image) for name in ("centre", "flip", "shift"))
    assert np.array_equal(view(image, "flip", 1), image[:, ::-1])
    down, up, right, left = views(image, "shift")[1:]
    assert np.array_equal(down[1:], image[:-1])
    assert np.array_equal(down[0], image[0])
    assert np.array_equal(up[:-1], image[1:])
    assert np.array_equal(right[:, 1:], image[:, :-1])
    assert np.array_equal(left[:, :-1], image[:, 1:])
    with pytest.raises(ValueError, match="flip has views 0 to 1"):
        view(image, "flip", 2)


# -- real data, where it is at hand --


@pytest.fixture(scope="module")
def real_data():
    if "CODEPRIOR_TEST_DATA" not in os.environ:
        pytest.skip("CODEPRIOR_TEST_DATA names no folder with cifar10/ and imagenet-sample/")
    return Path(os.environ["CODEPRIOR_TEST_DATA"])


def test_cifar10_parquet_has_ten_balanced_named_classes(real_data):
    images = open_images(f"{real_data}/cifar10/test-*.parquet")
    assert np.array_equal(np.bincount(images.labels), [1000] * 10)
    assert images.class_names[3] == "cat"
    assert images.read(9999, 32).shape == (32, 32, 3)


def test_photographs_with_greyscale_files_among_them_are_read(real_data):
    images = open_images(str(real_data / "imagenet-sample"))
    assert len(images.class_names) == len(images) == 200
    assert images.read_many(range(200), 64).shape == (200, 64, 64, 3)
