"""Images from every kind of source come out alike, bad ones are refused, and a run can resume."""

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import tracemalloc
import types
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from consistency_edu import image_sets
from consistency_edu.data import InputError, choose_device, load_digits, tensor_batches
from consistency_edu.files import BOUNDS, read_file
from consistency_edu.image_loader import image_batches, shuffled_rows
from consistency_edu.image_sets import ImageSet, load_images, save_images, to_floats, to_pixels

COUNT = 24  # images, of two classes, every third of which is for testing


def encoded(pixels, kind="PNG", **options):
    """The bytes of an image file with `pixels`, `[H, W]` or `[H, W, 3]`."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (COUNT, 6, 6, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(pixels):
    """SPLIT/CLASS/NN.png -> content; the class is ant for the first half, bee for the second."""
    names = [
        f"{'test' if k % 3 == 2 else 'train'}/{'ant' if k < COUNT // 2 else 'bee'}/{k:02d}.png"
        for k in range(COUNT)
    ]
    return {name: encoded(row) for name, row in zip(names, pixels)}


def write_folder(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def parts(pixels, split):
    """The images and labels of `split` that belong to `pixels`."""
    keep = np.arange(COUNT) % 3 == 2
    keep = keep if split == "test" else ~keep
    labels = np.arange(COUNT) >= COUNT // 2
    return torch.from_numpy(pixels[keep]).permute(0, 3, 1, 2), torch.from_numpy(labels[keep]).long()


def test_pixels_and_floats_are_inverse_and_rounded():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_pixels(to_floats(every)), every)
    assert to_floats(every)[[0, 255]].tolist() == [-1, 1]
    assert to_pixels(torch.tensor([-3.0, 3.0, 0.002, 0.005])).tolist() == [0, 255, 128, 128]
    assert to_pixels(torch.tensor([0.0039])).tolist() == [128]  # 127.997: truncation gives 127


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("kind", ["folder", "tar", "tar.xz", "wrapped", "npz", "npy"])
def test_every_source_gives_the_same_set(kind, split, tmp_path, pixels, files):
    images, labels = parts(pixels, split)
    if kind == "folder":
        source = write_folder(tmp_path / "set", {**files, "README.md": b"", "train/.x.png": b""})
    elif kind == "npz":
        source = tmp_path / "set.npz"
        both = {f"{s}_images": parts(pixels, s)[0].permute(0, 2, 3, 1) for s in ("train", "test")}
        both |= {f"{s}_labels": parts(pixels, s)[1][:, None] for s in ("train", "test")}
        np.savez(source, **both, classes=np.array(["ant", "bee"]))
    elif kind == "npy":
        for s in ("train", "test"):
            source = save_images(ImageSet(*parts(pixels, s), ("ant", "bee")), tmp_path / "set", s)
    else:
        around = "photos-main/" if kind == "wrapped" else "./"
        mode = "w:xz" if kind == "tar.xz" else "w"
        members = {around + name: content for name, content in reversed(files.items())}
        source = write_tar(tmp_path / "set.tar", members, mode)
    found = load_images(source, split)
    assert torch.equal(found.images, images) and torch.equal(found.labels, labels)
    assert found.classes == ("ant", "bee") and found.images.dtype == torch.uint8


def test_a_class_without_test_images_shifts_nothing(tmp_path, files):
    fewer = {n: c for n, c in files.items() if not n.startswith("test/ant")}
    found = load_images(write_folder(tmp_path, fewer), "test")
    assert found.classes == ("ant", "bee") and set(found.labels.tolist()) == {1}


def test_folders_of_classes_and_flat_ones(tmp_path, files):
    content = list(files.values())
    classes = {f"{'ba'[k % 2]}/{k}.png": content[k] for k in range(4)}
    found = load_images(write_folder(tmp_path / "classes", classes))
    assert found.classes == ("a", "b") and found.labels.tolist() == [0, 0, 1, 1]
    flat = load_images(write_folder(tmp_path / "flat", {f"{k}.png": content[k] for k in range(4)}))
    assert flat.labels is None and len(flat) == 4
    with pytest.raises(InputError, match="no labels"):
        image_batches(flat, 2, with_labels=True)


def test_sizes_and_channels(tmp_path, pixels):
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = 200  # the square in the middle
    grey = np.full((8, 8), 7, np.uint8)
    mixed = write_folder(tmp_path / "mixed", {"a.png": encoded(wide), "b.png": encoded(grey)})
    with pytest.raises(InputError, match=r"'b.png' has 8 x 8 pixels .* 16 x 8.*size=8"):
        load_images(mixed)
    found = load_images(mixed, size=4).images
    assert found.shape == (2, 3, 4, 4)
    assert (found[0] > 180).all() and (found[1] == 7).all()
    assert load_images(mixed, size=4, channels=1).images.shape == (2, 1, 4, 4)
    grey_first = write_folder(
        tmp_path / "grey", {"a.png": encoded(grey), "b.png": encoded(wide[:, :8])}
    )
    both = load_images(grey_first).images  # one in colour, so all are
    assert torch.equal(both, load_images(grey_first, channels=3).images) and (both[0] == 7).all()
    assert both.shape == (2, 3, 8, 8)
    with pytest.raises(InputError, match="size= and channels= are for image files"):
        load_images("digits", size=4)
    with pytest.raises(InputError, match="size >= 1"):
        load_images("digits", size=0)


def test_photographs_come_upright(tmp_path):
    image = Image.fromarray(np.zeros((4, 8, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_images(tmp_path).images.shape == (1, 3, 8, 4)


def test_deep_images_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 3000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="'deep.png' has more than 8 bits"):
        load_images(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_a_corrupt_image_is_named(content, tmp_path, files):
    some = dict(list(files.items())[:5])
    name = list(some)[3]
    some[name] = some[name][:-30] if content is None else content
    for source in (write_folder(tmp_path / "set", some), write_tar(tmp_path / "set.tar", some)):
        with pytest.raises(InputError, match=f"cannot read image '{name}'.*remove") as caught:
            load_images(source, name.split("/")[0])
        assert str(caught.value).count("\n") == 0 and "BytesIO" not in str(caught.value)


@pytest.mark.parametrize("name", ["../out/0.png", "a/../../0.png", "/etc/0.png", "..\\x\\0.png"])
def test_a_tar_that_climbs_is_refused_and_writes_nothing(name, tmp_path, files):
    inside = tmp_path / "inside"
    inside.mkdir()
    path = write_tar(inside / "evil.tar", {**files, name: files["train/ant/00.png"]})
    before = set(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="climbs out of its folder"):
        load_images(path)
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_a_tar_with_links_is_refused(kind, tmp_path, files):
    path = write_tar(tmp_path / "set.tar", files)
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("train/ant/link.png")
        member.type, member.linkname = kind, "train/ant/00.png"
        archive.addfile(member)
    with pytest.raises(InputError, match="link or a device.*dereference"):
        load_images(path)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_truncated_tar_is_never_taken_for_a_small_one(mode, tmp_path, files):
    whole = write_tar(tmp_path / "set.tar", files, mode).read_bytes()
    end = len(whole) - (tarfile.RECORDSIZE if mode == "w" else 1)
    cuts = [0, 1, 100, 511, 512, 513, *range(600, end, 397)]
    for cut in [c for c in cuts if c < end]:
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="no whole tar archive"):
            load_images(tmp_path / "cut.tar")


def test_a_tar_with_a_broken_header_is_refused(tmp_path, files):
    path = write_tar(tmp_path / "set.tar", files)
    content = bytearray(path.read_bytes())
    second = content.index(b"train/ant/01.png")
    content[second] ^= 1  # its checksum no longer fits
    path.write_bytes(content)
    with pytest.raises(InputError, match="no whole tar archive"):
        load_images(path)


def test_mixed_depths_and_deep_folders_are_refused(tmp_path, files):
    content = files["train/ant/00.png"]
    with pytest.raises(InputError, match="put all images into CLASS/ or SPLIT/CLASS/"):
        load_images(write_folder(tmp_path / "a", {"ant/0.png": content, "1.png": content}))
    deep = {"train/ant/x/0.png": content, "train/bee/y/1.png": content}
    with pytest.raises(InputError, match="lies too deep"):
        load_images(write_folder(tmp_path / "b", deep))


def test_unknown_names_splits_and_empty_places(tmp_path, files):
    with pytest.raises(InputError, match="no image set 'cifar': did you mean 'cifar10'"):
        load_images("cifar")
    with pytest.raises(InputError, match="no file or folder '.*missing.tar'"):
        load_images(tmp_path / "missing.tar")
    with pytest.raises(InputError, match="holds no images .*png"):
        load_images(tmp_path)
    folder = write_folder(tmp_path / "set", files)
    with pytest.raises(InputError, match="called 'tset': did you mean 'test'.*test, train"):
        load_images(folder, "tset")
    with pytest.raises(InputError, match="called 'test': Choose one of train"):
        load_images(folder / "train", "test")
    with pytest.raises(InputError, match="no split 'val'"):
        load_images("digits", "val")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(InputError, match="name a folder or .npz"):
        load_images(tmp_path / "notes.txt")


def test_labels_that_do_not_match(tmp_path, pixels):
    path, right = tmp_path / "set.npz", np.arange(COUNT)
    for labels, words in (
        (right[1:], "labels of shape .23. for 24 images"),
        (right - 1, "labels from -1 to 22"),
        (right / 2, "float64 labels"),
        (np.eye(COUNT, dtype=np.int64), "labels of shape"),
    ):
        np.savez(path, images=pixels, labels=labels)
        with pytest.raises(InputError, match=words):
            load_images(path)
    for count in (2, 23):
        np.savez(path, images=pixels, labels=right, classes=[f"{k}" for k in range(count)])
        with pytest.raises(InputError, match=f"labels from 0 to 23 for {count} classes"):
            load_images(path)


def test_arrays_that_are_no_images(tmp_path, pixels):
    path = tmp_path / "set.npz"
    for images, words in (
        (pixels / 255, "float64 images"),
        (pixels[:0], "is empty"),
        (pixels[..., :2], "one or three channels"),
        (np.array([{}] * 3), "cannot read"),
    ):
        np.savez(path, images=images)
        with pytest.raises(InputError, match=words):
            load_images(path)
    np.savez(path, pictures=pixels)
    with pytest.raises(InputError, match="no array called train_images"):
        load_images(path)
    path.write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(InputError, match="cannot read"):
        load_images(path)
    np.savez(path, images=pixels[..., 0])
    assert load_images(path).images.shape == (COUNT, 1, 6, 6)


def test_a_truncated_npy_is_refused(tmp_path, pixels):
    folder = save_images(ImageSet(*parts(pixels, "train"), ("ant", "bee")), tmp_path / "set")
    file = folder / "train_images.npy"
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(InputError, match="cannot read"):
        load_images(folder)


def test_pickles_are_never_loaded(tmp_path):
    class Boom:
        def __reduce__(self):
            return os.abort, ()

    (tmp_path / "set.npz").write_bytes(pickle.dumps(Boom()))
    with pytest.raises(InputError, match="cannot read"):
        load_images(tmp_path / "set.npz")


def test_the_cache_is_used_once_and_follows_its_source(tmp_path, pixels, files, monkeypatch):
    cache, path = tmp_path / "cache", write_tar(tmp_path / "set.tar", files)
    first = load_images(path, cache=cache)
    with monkeypatch.context() as patch:
        patch.setattr(image_sets, "_files_in_tar", None)  # would raise if it were called
        again = load_images(path, cache=cache)
        assert torch.equal(again.images, parts(pixels, "train")[0]) and again.classes
        assert torch.equal(again.labels, first.labels)
    assert load_images(path, "test", cache=cache).images.shape[0] == COUNT // 3
    assert load_images(path, size=3, cache=cache).images.shape[-1] == 3
    fewer = dict(list(files.items())[:-3])
    os.utime(write_tar(path, fewer), ns=(1, 1))
    assert len(load_images(path, cache=cache)) == len(first) - 2
    assert len(list(cache.iterdir())) == 4  # and nothing half-written


def test_the_cache_follows_each_file_of_a_folder(tmp_path, files):
    folder = write_folder(tmp_path / "set", files)
    before = load_images(folder, cache=tmp_path / "cache").images.clone()
    new = encoded(np.full((6, 6, 3), 9, np.uint8), compress_level=0)  # of another length
    (folder / "train" / "ant" / "00.png").write_bytes(new)
    after = load_images(folder, cache=tmp_path / "cache").images
    assert (after[0] == 9).all() and torch.equal(after[1:], before[1:])


def test_a_failed_decoding_leaves_nothing_in_the_cache(tmp_path, files):
    some = {**files, "train/bee/zz.png": b"broken"}
    with pytest.raises(InputError, match="zz.png"):
        load_images(write_tar(tmp_path / "set.tar", some), cache=tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_arrays_in_a_folder_are_mapped_not_read(tmp_path):
    shape = (200_000, 3, 64, 64)  # 2.5 GB, a hole in the file
    np.lib.format.open_memmap(tmp_path / "train_images.npy", "w+", np.uint8, shape).flush()
    x, _ = next(image_batches(load_images(tmp_path), 8))
    assert x.shape == (8, 3, 64, 64) and (x == -1).all()


def test_processes_decode_what_threads_decode(tmp_path, pixels, files, monkeypatch):
    monkeypatch.setattr(
        image_sets,
        "_workers",
        lambda n: image_sets.ProcessPoolExecutor(2, image_sets.multiprocessing.get_context("fork")),
    )
    found = load_images(write_tar(tmp_path / "set.tar", files))
    assert torch.equal(found.images, parts(pixels, "train")[0])
    with pytest.raises(InputError, match="cannot read image 'b.png'"):
        broken = {"a.png": files["train/ant/00.png"], "b.png": b""}
        load_images(write_tar(tmp_path / "bad.tar", broken))


def test_cifar10_comes_through_torchvision(tmp_path, pixels, monkeypatch):
    class Fake:
        def __init__(self, root, train, download):
            if "broken" in root:
                raise RuntimeError("Dataset not found or corrupted.")
            self.data, self.classes = pixels, ["ant", "bee"]
            self.targets = [int(train)] * COUNT

    fakes = types.ModuleType("torchvision"), types.ModuleType("torchvision.datasets")
    fakes[1].CIFAR10 = Fake  # the real one takes seconds to import
    for fake in fakes:
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    found = load_images("cifar10", cache=tmp_path)
    assert found.images.shape == (COUNT, 3, 6, 6) and found.labels.tolist() == [1] * COUNT
    assert torch.equal(found.images[:, 2], torch.from_numpy(pixels[..., 2]))
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert load_images(tmp_path, "test").labels.tolist() == [0] * COUNT
    with pytest.raises(InputError, match="not whole in .*cifar-10-python.tar.gz"):
        load_images("cifar10", cache=tmp_path / "broken")
    with pytest.raises(InputError, match="no split 'val'"):
        load_images("cifar10", "val", cache=tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_in_bytes_are_the_digits(split):
    images, labels = load_digits(split)
    found = load_images("digits", split)
    assert torch.equal(found.labels, labels) and len(found.classes) == 10
    assert (to_floats(found.images) - images).abs().max() <= 0.5 / 127.5 + 1e-6
    x, y = next(tensor_batches(images, labels, 4, with_labels=True))
    assert x.shape == (4, 1, 8, 8) and y.shape == (4,)


def test_devices_that_are_not_there(monkeypatch):
    with pytest.raises(InputError, match="no device 'gpu'"):
        choose_device("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="sees no GPU: choose 'cpu'"):
        load_images("digits", device="cuda")
    with pytest.raises(InputError, match="sees no GPU"):
        image_batches(load_images("digits"), 4, device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="no GPU 'cuda:2': the last one is cuda:1"):
        choose_device("cuda:2")
    assert choose_device("cuda:1") == torch.device("cuda", 1)


def test_a_set_too_big_for_the_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    images = torch.zeros(501, dtype=torch.uint8)
    with pytest.raises(InputError, match="device='cpu'.*image_batches"):
        image_sets._check_room(images, torch.device("cuda"))
    image_sets._check_room(images[:500], torch.device("cuda"))
    image_sets._check_room(images, torch.device("cpu"))


@pytest.mark.parametrize(("count", "batch"), [(7, 3), (4, 9), (5, 5), (1, 2)])
def test_every_epoch_is_a_permutation(count, batch):
    steps = 6 * count
    pieces = [shuffled_rows(count, 3, k * batch, (k + 1) * batch) for k in range(steps)]
    index, coins = (torch.cat(v) for v in zip(*pieces))
    epochs = index.split(count)
    assert all(sorted(e.tolist()) == list(range(count)) for e in epochs if len(e) == count)
    whole, tosses = shuffled_rows(count, 3, 0, steps * batch)
    assert torch.equal(index, whole) and torch.equal(coins, tosses)
    assert count < 4 or not torch.equal(epochs[0], epochs[1])


@pytest.fixture
def numbered():
    """100 images of 2 x 3 pixels: the number on the left, 200 and 201 to its right; its label."""
    number = torch.arange(100, dtype=torch.uint8)
    row = torch.stack([number, number.new_full((100,), 200), number.new_full((100,), 201)], 1)
    classes = tuple(map(str, range(100)))
    return ImageSet(row[:, None, None].repeat(1, 1, 2, 1), number.long(), classes)


def test_batches_keep_labels_and_mirror_half(numbered, generator):
    batches = image_batches(numbered, 40, with_labels=True, flip=True, generator=generator)
    mirrored = 0
    for x, labels in [next(batches) for _ in range(25)]:
        assert x.dtype == torch.float32 and x.abs().max() <= 1
        pixels = to_pixels(x)
        is_mirrored = pixels[:, 0, 0, 1] != 200
        is_mirrored |= pixels[:, 0, 0, 0] == 201
        left = torch.where(is_mirrored, pixels[:, 0, 1, 2], pixels[:, 0, 1, 0])
        assert torch.equal(left.long(), labels)
        mirrored += int(is_mirrored.sum())
    assert 430 < mirrored < 570
    x, labels = next(image_batches(numbered, 40, generator=generator))
    assert labels is None and (to_pixels(x)[:, 0, 0, 2] == 201).all()


def test_the_generator_steers_the_order(numbered):
    def batch(seed):
        made = image_batches(numbered, 50, generator=torch.Generator().manual_seed(seed))
        return next(made)[0]

    assert torch.equal(batch(0), batch(0)) and not torch.equal(batch(0), batch(1))
    torch.manual_seed(5)
    first = next(image_batches(numbered, 50))[0]
    assert not torch.equal(next(image_batches(numbered, 50))[0], first)
    torch.manual_seed(5)
    assert torch.equal(next(image_batches(numbered, 50))[0], first)


def other_device(batches):
    """Make `batches` believe that its set lives elsewhere, so that it reads ahead."""
    batches.fetch.device = torch.device("cpu", 0)
    return batches


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_resume(numbered, ahead, generator):
    batches = image_batches(numbered, 30, with_labels=True, flip=True, generator=generator)
    batches = other_device(batches) if ahead else batches
    reference = image_batches(numbered, 30, with_labels=True, flip=True)
    reference.load_state_dict(batches.state_dict())
    states, seen = [], []
    for _ in range(9):
        states.append(batches.state_dict())
        seen.append(next(batches))
        expected = next(reference)
        assert torch.equal(seen[-1][0], expected[0]) and torch.equal(seen[-1][1], expected[1])
    for start in (5, 0, 8):
        batches.load_state_dict(states[start])
        for x, labels in seen[start:]:
            y, same = next(batches)
            assert torch.equal(x, y) and torch.equal(labels, same)
    with pytest.raises(InputError, match="the run had 100 images, now there are 4"):
        image_batches(ImageSet(numbered.images[:4]), 2).load_state_dict(states[0])


def test_workers_share_a_batch(numbered):
    def batches(part):
        made = torch.Generator().manual_seed(0)
        return image_batches(numbered, 24, with_labels=True, flip=True, part=part, generator=made)

    whole, workers = batches((0, 1)), [batches((rank, 3)) for rank in range(3)]
    for _ in range(6):
        x, labels = next(whole)
        pieces = [next(worker) for worker in workers]
        assert all(len(piece) == 8 for piece, _ in pieces)
        assert torch.equal(torch.cat([p for p, _ in pieces]), x)
        assert torch.equal(torch.cat([p for _, p in pieces]), labels)
    assert whole.state_dict() == workers[2].state_dict()
    for part in ((2, 2), (-1, 2), (0, 5)):
        with pytest.raises(InputError, match="equal parts"):
            batches(part)


def test_bad_batches(numbered):
    with pytest.raises(InputError, match="at least 1"):
        image_batches(numbered, 0)


def test_the_state_survives_a_file(numbered, tmp_path):
    batches = image_batches(numbered, 30)
    next(batches)
    torch.save(batches.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == batches.state_dict() and state["position"] == 30


@pytest.mark.slow
def test_the_order_is_the_same_in_a_fresh_process(numbered):
    program = "from consistency_edu.image_loader import *; print(shuffled_rows(1000, 7, 990, 1010))"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert found.stdout.strip() == str(shuffled_rows(1000, 7, 990, 1010))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_batches_are_the_same(numbered):
    def batches(images, device=None):
        made = torch.Generator().manual_seed(0)
        options = dict(with_labels=True, flip=True, device=device, generator=made)
        return image_batches(images, 30, **options)

    here, there, ahead = (
        batches(numbered),
        batches(numbered.to("cuda")),
        batches(numbered, "cuda"),
    )
    for _ in range(20):
        x, labels = next(here)
        for y, same in (next(there), next(ahead)):
            assert y.is_cuda and same.is_cuda
            assert torch.equal(to_pixels(y).cpu(), to_pixels(x)) and torch.equal(same.cpu(), labels)


# ------------------------------------------------------------------ a reader's own images


def write_zip(path, files, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def test_classes_keep_their_names_in_natural_order(tmp_path, files):
    content = files["train/ant/00.png"]
    for kinds in (["cat2", "cat10", "dog"], ["1", "9", "10", "100"], ["2b", "10a", "x"]):
        folder = tmp_path / kinds[0]
        found = load_images(write_folder(folder, {f"{k}/0.png": content for k in kinds}))
        assert found.classes == tuple(kinds) and sorted(found.labels.tolist()) == [
            *range(len(kinds))
        ]


@pytest.mark.parametrize("kind", ["zip", "deflated", "tar", "folder", "wrapped"])
def test_edms_dataset_json_goes_before_the_folders(kind, tmp_path, pixels):
    names = [f"{k // 9:05d}/img{k:08d}.png" for k in range(COUNT)]
    files = dict(zip(names, map(encoded, pixels)))
    labels = [(5 * k) % 12 for k in range(COUNT)]  # none of class 11

    def source(said, number):
        some = {**files, "dataset.json": json.dumps({"labels": said}).encode()}
        path = tmp_path / f"{number}.{kind}"
        if kind in ("tar", "folder"):
            return {"tar": write_tar, "folder": write_folder}[kind](path, some)
        around = "cifar/" * (kind == "wrapped")
        method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        return write_zip(path, {around + name: content for name, content in some.items()}, method)

    found = load_images(source([[n, k] for n, k in zip(names, labels)][::-1], 0))
    assert torch.equal(found.images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
    assert found.labels.tolist() == labels and found.classes == tuple(map(str, range(12)))
    none = load_images(source(None, 1))
    assert none.labels is None and none.classes == () and len(none) == COUNT
    with pytest.raises(InputError, match="has no class for .*img00000003.png"):
        load_images(source([[n, 0] for n in names if "003" not in n], 2))


@pytest.mark.parametrize(
    "said",
    [
        b"", b"{", b"[]", b"{}", b'{"labels": 3}', b'{"labels": [["0.png"]]}', b"[" * 10**5,
        b'{"labels": [["0.png", "cat"]]}', b'{"labels": [["0.png", 1.5]]}',
        b'{"labels": [["0.png", -1]]}', b'{"labels": [["0.png", true]]}',
        b'{"labels": [["0.png", [0, 1]]]}', b'{"labels": [[3, 0]]}', b'{"labels": {"0.png": 1}}',
        b'{"labels": [["0.png", 1000000000000]]}', b'{"labels": [["0.png", null]]}',
    ],
)  # fmt: skip
def test_a_dataset_json_that_says_something_else_is_refused(said, tmp_path, pixels):
    path = write_zip(tmp_path / "set.zip", {"0.png": encoded(pixels[0]), "dataset.json": said})
    with pytest.raises(InputError, match="whole numbers from 0|of at most"):
        load_images(path)


def test_zips_of_class_folders_and_what_is_wrong_with_zips(tmp_path, pixels, files):
    images, labels = parts(pixels, "test")
    found = load_images(write_zip(tmp_path / "a.zip", files), "test", cache=tmp_path / "cache")
    assert torch.equal(found.images, images) and torch.equal(found.labels, labels)
    assert found.classes == ("ant", "bee")
    whole = (tmp_path / "a.zip").read_bytes()
    for cut in (4, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.zip").write_bytes(whole[:cut])
        with pytest.raises(InputError, match="no whole zip"):
            load_images(tmp_path / "cut.zip")
    wrong = bytearray(whole)
    wrong[whole.index(b"\x89PNG") + 50] ^= 1
    (tmp_path / "bit.zip").write_bytes(wrong)
    with pytest.raises(InputError, match="no whole zip"):
        load_images(tmp_path / "bit.zip")
    with pytest.raises(InputError, match="climbs out"):
        load_images(write_zip(tmp_path / "evil.zip", {**files, "../x.png": whole}))
    link = zipfile.ZipInfo("train/ant/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="link or a device"):
        load_images(tmp_path / "a.zip")


def test_what_is_transparent_lies_on_white(tmp_path):
    clear, half = np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)
    half[..., 3] = 128
    grey = np.full((4, 4, 2), (100, 0), np.uint8)
    palette = Image.fromarray(clear[..., :3]).convert("P")
    marked = Image.fromarray(np.full((4, 4), 9, np.uint8))  # grey, whose 9 is the hole
    for image, shape, value, options in (
        (Image.fromarray(clear), 3, 255, {}),
        (Image.fromarray(half), 3, 127, {}),
        (Image.fromarray(grey, "LA"), 1, 255, {}),
        (palette, 3, 255, {"transparency": palette.getpixel((0, 0))}),
        (marked, 1, 255, {"transparency": 9}),
        (marked, 1, 9, {"transparency": 8}),
    ):
        image.save(tmp_path / "a.png", **options)
        found = load_images(tmp_path).images
        assert found.shape == (1, shape, 4, 4) and (found == value).all(), image.mode


def test_other_kinds_of_pixels(tmp_path):
    bits = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")
    bits.save(tmp_path / "a.png")
    assert load_images(tmp_path).images.tolist() == [[[[0, 255], [255, 0]]]]
    (tmp_path / "a.png").unlink()
    Image.new("CMYK", (4, 4), (0, 255, 255, 0)).save(tmp_path / "a.tif")
    assert load_images(tmp_path).images[0, :, 0, 0].tolist() == [255, 0, 0]
    for kind in (2, 4, 6):  # colour, grey and colour with transparency, of 16 bits a channel
        (tmp_path / "a.tif").write_bytes(png_by_hand(2, 2, depth=16, kind=kind))
        with pytest.raises(InputError, match="more than 8 bits"):
            load_images(tmp_path)


def test_one_image_in_colour_makes_a_set_of_colour(tmp_path):
    grey, colour = np.full((4, 4), 7, np.uint8), np.full((4, 4, 3), (1, 2, 3), np.uint8)
    for order in ("grey, colour", "colour, grey"):
        images = [encoded(grey if word == "grey" else colour) for word in order.split(", ")]
        some = {f"{k}.png": content for k, content in enumerate(images)}
        for place in (write_zip(tmp_path / "a.zip", some), write_folder(tmp_path / order, some)):
            found = load_images(place, cache=tmp_path / "cache" / order).images
            both = [[7, 7, 7], [1, 2, 3]]
            expected = both if order[0] == "g" else both[::-1]
            assert found[:, :, 0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 1, 4, 4), "to_pixels makes them of floats"),
        (torch.zeros(2, 1, 4, 4, dtype=torch.int64), "holds int64"),
        (np.zeros((2, 1, 4, 4), np.uint8), "is a ndarray: give a tensor"),
    ],
)
def test_images_of_another_type_are_refused(images, words):
    with pytest.raises(InputError, match=words):
        ImageSet(images)


def test_labels_and_classes_of_another_type_are_refused():
    images = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    for labels, classes, words in (
        ([0, 1], ("a", "b"), "a list of labels: give a tensor"),
        (torch.tensor([0.0, 1.0]), ("a", "b"), "torch.float32 labels"),
        (torch.tensor([0, 1]), ("a", "a"), "two classes of one name"),
        (torch.tensor([0, 1]), (1, 2), "class called 1"),
        (torch.tensor([0, 1]), ("a", "b\x1b[2J"), "name that prints"),
        (torch.tensor([0, 1]), ("a", "caf\udce9"), "name that prints"),
    ):
        with pytest.raises(InputError, match=words):
            ImageSet(images, labels, classes)


def test_pixels_and_floats_are_not_taken_for_one_another():
    with pytest.raises(InputError, match="uint8"):
        to_floats(torch.rand(3))
    with pytest.raises(InputError, match="to_floats"):
        to_pixels(torch.tensor([0, 255], dtype=torch.uint8))


# ------------------------------------------------------------------ sizes that files claim


def png_by_hand(width, height, depth=8, kind=0):
    """The bytes of a PNG of `width` x `height`, of which the pixels are for 2 x 2 only."""

    def chunk(name, content):
        check = struct.pack(">I", zlib.crc32(name + content))
        return struct.pack(">I", len(content)) + name + content + check

    row = b"\0" + bytes(2 * {0: 1, 2: 3, 4: 2, 6: 4}[kind] * depth // 8)
    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(2 * row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_an_image_that_claims_billions_of_pixels_is_refused(tmp_path):
    for width, height in ((2**13, 2**13 + 1), (2**31 - 1, 2**31 - 1), (2**30, 1)):
        (tmp_path / "a.png").write_bytes(png_by_hand(width, height))
        with pytest.raises(InputError, match="pixels, of at most|exceeds limit"):
            load_images(tmp_path)
    many = {f"{k}.png": png_by_hand(2**13, 2**13) for k in range(3)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "sysconf", lambda name: 2**13)  # a machine of 64 MB
        with pytest.raises(InputError, match="cannot read|and the memory less"):
            load_images(write_folder(tmp_path, many))
        with pytest.raises(InputError, match="and the memory less: take a smaller size="):
            image_sets._in_memory((2, 1, 2**13, 2**13), np.uint8)


@pytest.fixture
def small(monkeypatch):
    """Bounds that a test can exceed."""
    monkeypatch.setitem(BOUNDS, "bytes in an archive", (60_000, "unpack it"))
    monkeypatch.setitem(BOUNDS, "bytes in one file", (20_000, "take it out"))
    monkeypatch.setitem(BOUNDS, "files", (40, "split the set"))


def test_members_that_are_larger_than_the_bound_are_not_read(small, tmp_path, files):
    for name, content, words in (
        ("a.png", bytes(20_001), "20,001 bytes in one file, of at most 20,000: take it out"),
        ("a.txt", bytes(60_001), "bytes in an archive, of at most 60,000: unpack it"),
    ):
        some = {**files, f"train/ant/{name}": content}
        for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with pytest.raises(InputError, match=words):
                load_images(write_zip(tmp_path / "set.zip", some, method))
        for mode in ("w", "w:gz", "w:xz"):
            with pytest.raises(InputError, match=words):
                load_images(write_tar(tmp_path / "set.tar", some, mode))
    many = {f"{k}.png": b"" for k in range(41)}
    for source in (write_zip(tmp_path / "b.zip", many), write_tar(tmp_path / "b.tar", many)):
        with pytest.raises(InputError, match="files, of at most 40"):
            load_images(source)
    with pytest.raises(InputError, match="files, of at most 40"):
        load_images(write_folder(tmp_path / "b", many))
    np.savez_compressed(tmp_path / "set.npz", images=np.zeros((60_001, 1, 1), np.uint8))
    with pytest.raises(InputError, match="bytes in an archive"):
        load_images(tmp_path / "set.npz")


def test_a_zip_that_holds_more_than_it_claims_is_cut_off(tmp_path):
    path = write_zip(tmp_path / "set.zip", {"a.png": bytes(10**8)}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes().replace(struct.pack("<I", 10**8), struct.pack("<I", 100))
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match="no whole zip"):
        load_images(path)
    assert tracemalloc.get_traced_memory()[1] < 10**7
    tracemalloc.stop()
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):  # which Python unpacks whole
        with pytest.raises(InputError, match="deflate"):
            load_images(write_zip(path, {"a.png": bytes(10**6)}, method))
        path.rename(tmp_path / "set.npz")
        with pytest.raises(InputError, match="deflate"):
            load_images(tmp_path / "set.npz")


def test_tars_whose_headers_claim_too_much(tmp_path, files):
    whole = write_tar(tmp_path / "a.tar", files).read_bytes()
    for kind, size, words in (
        (tarfile.REGTYPE, 2**40, "bytes in an archive|bytes in one file"),
        (tarfile.XHDTYPE, 2**33 - 1, "bytes in a header, of at most"),
        (tarfile.GNUTYPE_LONGNAME, 2**32, "bytes in a header, of at most"),
        (tarfile.REGTYPE, -1024, "claims -1,024 bytes"),
    ):
        member = tarfile.TarInfo("train/ant/99.png")
        member.type, member.size = kind, size
        (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + whole)
        with pytest.raises(InputError, match=words):
            load_images(tmp_path / "a.tar")


@pytest.mark.parametrize(
    "shape", ["(10**9, 10**3, 10**3)", "(2**62, 4, 4)", "(10**12,)", "(-5, 4, 4)"]
)
@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_that_claim_a_huge_shape(shape, kind, tmp_path, pixels):
    file = io.BytesIO()
    np.save(file, pixels[..., 0])
    start, end = file.getvalue().index(b"'shape': ") + 9, file.getvalue().index(b"), }") + 1
    claim = str(eval(shape)).encode()
    content = file.getvalue()[:start] + claim + file.getvalue()[end:]
    space = len(claim) - (end - start)
    content = content.replace(b" " * max(space, 0) + b"\n", b"\n", 1)
    content = content if space >= 0 else content.replace(b"\n", b" " * -space + b"\n", 1)
    (tmp_path / "train_images.npy").write_bytes(content)
    place = tmp_path
    if kind == "npz":
        place = write_zip(tmp_path / "set.npz", {"train_images.npy": content})
    with pytest.raises(InputError, match="cannot read"):
        load_images(place)


def test_labels_up_to_a_trillion_make_no_classes(tmp_path, pixels):
    labels = np.arange(COUNT)
    labels[3] = 10**12
    np.savez(tmp_path / "set.npz", images=pixels, labels=labels)
    with pytest.raises(InputError, match="1,000,000,000,001 classes, of at most 100,000"):
        load_images(tmp_path / "set.npz")
    np.savez(tmp_path / "set.npz", images=pixels, labels=np.zeros((0,), np.int64))
    with pytest.raises(InputError, match=r"shape \[0\] for 24 images"):
        load_images(tmp_path / "set.npz")


def test_folders_that_never_end_and_files_that_are_none(tmp_path, files):
    folder = write_folder(tmp_path / "set", files)
    (folder / "train" / "ant" / "loop").symlink_to(folder)
    with pytest.raises(InputError, match="links to a folder that the set has already"):
        load_images(folder)
    (folder / "train" / "ant" / "loop").unlink()
    (folder / "train" / "cat").symlink_to(
        write_folder(tmp_path / "cats", {"0.png": files["train/ant/00.png"]})
    )
    assert load_images(folder).classes == ("ant", "bee", "cat")  # links are followed
    for place in (folder / "train" / "bee" / "pipe.png", folder / "train" / "bee" / "dataset.json"):
        os.mkfifo(place)
        for cache in (None, tmp_path / "cache"):
            with pytest.raises(InputError, match="pipe, a device or a broken link"):
                load_images(folder, cache=cache)
        place.unlink()
    (folder / "train" / "bee" / "zero.png").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="pipe, a device or a broken link"):
        load_images(folder)
    os.mkfifo(tmp_path / "pipe.tar")
    os.mkfifo(tmp_path / "pipe.npz")
    for path in ("/dev/null", tmp_path / "pipe.tar", tmp_path / "pipe.npz", "/dev/zero"):
        with pytest.raises(InputError, match="is a pipe or a device"):
            load_images(path)
    for path in (tmp_path, tmp_path / "pipe.tar"):
        with pytest.raises(InputError, match="is a folder, a pipe or a device"):
            read_file(path, "bytes of JSON")
