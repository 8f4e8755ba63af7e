"""Data: the real thing, checked, cached safely, never replaced by anything else."""

from __future__ import annotations

import gzip
import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from basics import composed, tiny

from dpexp.errors import ConfigError, DataError
from dpexp.train.data import sources
from dpexp.train.data.dataset import load
from dpexp.train.data.sharding import subset
from dpexp.train.data.sources import mnist_split


def test_mnist_is_the_original():
    dataset = load(composed("data.size=60000"))
    assert dataset.tensors["train_inputs"].shape == (60_000, 1, 28, 28)
    assert dataset.tensors["test_inputs"].shape == (10_000, 1, 28, 28)
    assert dataset.classes == 10
    # Published mean and standard deviation of MNIST's training images in [0, 1].
    assert dataset.tensors["train_inputs"].mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert dataset.tensors["train_inputs"].std().item() == pytest.approx(0.3081, abs=1e-4)


def test_a_subset_is_seeded_and_nested():
    assert torch.equal(subset(1000, 100, seed=1), subset(1000, 200, seed=1)[:100])
    assert not torch.equal(subset(1000, 100, seed=1), subset(1000, 100, seed=2))
    assert len(set(subset(1000, 1000, seed=1).tolist())) == 1000


def test_images_and_labels_of_a_subset_belong_together():
    images, labels = mnist_split("train")
    chosen = subset(60_000, 500, seed=0)
    dataset = load(composed("data.size=500"))
    assert torch.equal(dataset.tensors["train_labels"], torch.tensor(labels)[chosen].long())
    expected = torch.tensor(images)[chosen].float() / 255
    torch.testing.assert_close(dataset.tensors["train_inputs"], expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b"not xz at all"])
def test_a_damaged_packaged_file_is_an_error(tmp_path, monkeypatch, damage):
    source = Path(sources.__file__).parent / "mnist"
    for file in source.glob("*.xz"):
        (tmp_path / "mnist").mkdir(exist_ok=True)
        (tmp_path / "mnist" / file.name).write_bytes(damage(file.read_bytes()))
    monkeypatch.setattr(sources.resources, "files", lambda _: tmp_path)
    sources._decoded.cache_clear()
    with pytest.raises(DataError, match=r"packaged file .* is damaged.*install dpexp again"):
        mnist_split("t10k")


def test_an_unwritable_cache_is_an_error(tmp_path):
    test_fashion_mnist_is_read_through_torchvision(tmp_path)
    pin = tmp_path / "torchvision" / "fashion_mnist-train.sha256"
    pin.unlink()
    pin.mkdir()
    with pytest.raises(DataError, match="data cache"):
        load(composed("data=fashion_mnist", f"data.cache={tmp_path}", "data.size=50", "batch.size=10"))


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_offline_the_folder_and_the_alternatives_are_named(tmp_path, monkeypatch, name):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with pytest.raises(DataError) as caught:
        load(composed(f"data={name}", f"data.cache={tmp_path}"))
    for word in (f"data={name}", str(tmp_path), "data=mnist", "data=synthetic"):
        assert word in str(caught.value)


def test_fashion_mnist_is_read_through_torchvision(tmp_path):
    raw = tmp_path / "torchvision" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 60), ("t10k", 20)):
        images = np.full((count, 28, 28), 255, np.uint8)
        labels = np.arange(count, dtype=np.uint8) % 10
        for kind, header, array in (
            ("images-idx3", struct.pack(">4i", 2051, count, 28, 28), images),
            ("labels-idx1", struct.pack(">2i", 2049, count), labels),
        ):
            (raw / f"{prefix}-{kind}-ubyte").write_bytes(header + array.tobytes())
            (raw / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.tobytes()))
    dataset = load(composed("data=fashion_mnist", f"data.cache={tmp_path}", "data.size=50", "batch.size=10"))
    assert dataset.tensors["train_inputs"].shape == (50, 1, 28, 28)
    assert dataset.tensors["train_inputs"].unique().tolist() == [1.0]


def test_a_download_that_changed_since_is_an_error(tmp_path):
    test_fashion_mnist_is_read_through_torchvision(tmp_path)
    labels = tmp_path / "torchvision" / "FashionMNIST" / "raw" / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-1] + b"\x07")  # torchvision has no checksum of it
    with pytest.raises(DataError, match=r"fashion_mnist-test in .* is damaged: its SHA-256"):
        load(composed("data=fashion_mnist", f"data.cache={tmp_path}", "data.size=50", "batch.size=10"))


def test_cifar10_is_read_through_torchvision(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    folder = tmp_path / "torchvision" / CIFAR10.base_folder
    folder.mkdir(parents=True)

    def write(name: str, content: dict) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    batch = {"data": np.full((10, 3072), 51, np.uint8), "labels": list(range(10))}
    trains = [[name, write(name, batch)] for name, _ in CIFAR10.train_list]
    tests = [[name, write(name, batch)] for name, _ in CIFAR10.test_list]
    meta = write("batches.meta", {"label_names": list("abcdefghij")})
    monkeypatch.setattr(CIFAR10, "train_list", trains)
    monkeypatch.setattr(CIFAR10, "test_list", tests)
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": meta})
    dataset = load(composed("data=cifar10", f"data.cache={tmp_path}", "data.size=40", "batch.size=10"))
    assert dataset.tensors["train_inputs"].shape == (40, 3, 32, 32)
    assert dataset.tensors["train_inputs"].mean().item() == pytest.approx(0.2)


def test_synthetic_data_is_seeded_and_of_any_shape():
    config = composed("data=synthetic", "data.shape=[2,3]", "data.classes=4", "data.size=500")
    first, second, other = load(config), load(config), load(composed("data=synthetic", "seed=1", "data.shape=[2,3]"))
    assert first.input_shape == (2, 3)
    assert first.classes == 4
    assert torch.equal(first.tensors["train_inputs"], second.tensors["train_inputs"])
    assert not torch.equal(first.tensors["test_inputs"][:9], other.tensors["test_inputs"][:9])


def test_synthetic_data_can_be_learned():
    dataset = load(composed("data=synthetic", "data.size=2000"))
    inputs, labels = dataset.tensors["train_inputs"].flatten(1), dataset.tensors["train_labels"]
    means = torch.stack([inputs[labels == label].mean(0) for label in range(10)])
    nearest = torch.cdist(dataset.tensors["test_inputs"].flatten(1), means).argmin(1)
    assert (nearest == dataset.tensors["test_labels"]).double().mean() > 0.75


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "train_inputs": np.arange(600, dtype=np.float32).reshape(100, 2, 3),
        "train_labels": np.arange(100) % 3,
        "test_inputs": np.zeros((10, 2, 3), np.float32),
        "test_labels": np.arange(10) % 3,
    } | changes


def test_ones_own_arrays(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    dataset = load(composed("data=arrays", f"data.path={tmp_path}/mine.npz", "data.size=90", "batch.size=10"))
    assert (dataset.input_shape, dataset.classes) == ((2, 3), 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_inputs": np.zeros(100)}, r"must be \(n, ...\) numbers"),
        ({"train_inputs": np.array([["a"]] * 100)}, r"must be \(n, ...\) numbers"),
        ({"train_labels": np.zeros(99, int)}, r"must be \(100,\) integers"),
        ({"test_labels": np.zeros(10)}, r"must be \(10,\) integers"),
        ({"test_labels": np.full(10, -1)}, "10 test labels are not in the range of train_labels, 0 to 2"),
        (
            {"train_labels": np.arange(100) % 3 - 1},
            "3 different values from -1 to 1; labels must run from 0",
        ),
        ({"train_labels": np.arange(100) + 1}, "100 different values from 1 to 100"),
        ({"train_labels": np.arange(100) * 10}, "100 different values from 0 to 990"),
        ({"train_labels": np.zeros(100, int)}, "1 different value from 0 to 0"),
        ({"train_inputs": np.full((100, 2, 3), np.nan)}, "train_inputs has 540 NaN or infinite values in float32"),
        ({"test_inputs": np.zeros((10, 4), np.float32)}, "shapes must be equal"),
        (
            {"test_inputs": np.zeros((10, 2, 3), np.uint8)},
            "train_inputs are floating-point numbers, test_inputs uint8 grey levels; give both",
        ),
        (
            {"test_inputs": np.zeros((10, 2, 3), np.int64)},
            "train_inputs are floating-point numbers, test_inputs integers; give both the same type",
        ),
        (
            {"train_inputs": np.full((100, 2, 3), 2**63, np.uint64)},
            r"has 9,223,372,036,854,775,808; torch's integers end",
        ),
        (
            {"train_inputs": np.full((100, 2, 3), 1e300)},
            "train_inputs has 540 NaN or infinite values in float32; .*, or set dtype=float64",
        ),
    ],
)
def test_bad_arrays_are_named(tmp_path, changes, message):
    np.savez(tmp_path / "mine.npz", **arrays(**changes))
    with pytest.raises(DataError, match=message):
        load(composed("data=arrays", f"data.path={tmp_path}/mine.npz", "data.size=90", "batch.size=10"))


@pytest.mark.parametrize("kind", ["u2", "i8", ">f4", "f8", "g"])
def test_arrays_of_any_numbers_are_taken(tmp_path, kind):
    np.savez(
        tmp_path / "mine.npz",
        **{name: array.astype(kind) for name, array in arrays().items() if "inputs" in name},
        **{name: array.astype("u4") for name, array in arrays().items() if "labels" in name},
    )
    dataset = load(composed("data=arrays", f"data.path={tmp_path}/mine.npz", "data.size=100", "batch.size=10"))
    assert dataset.tensors["train_inputs"].sum() == pytest.approx(arrays()["train_inputs"].sum())


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"\x93NUMPY"])
def test_a_damaged_file_of_arrays_is_an_error(tmp_path, content):
    (tmp_path / "mine.npz").write_bytes(content)
    with pytest.raises(DataError, match="can't be read as"):
        load(composed("data=arrays", f"data.path={tmp_path}/mine.npz", "data.size=90", "batch.size=10"))


def test_damaged_torchvision_files_are_distinguished_from_absent_ones(tmp_path):
    raw = tmp_path / "torchvision" / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{split}-{kind}-ubyte").write_bytes(struct.pack(">4i", 2051, 5, 28, 28))
    with pytest.raises(DataError, match=r"is damaged .*: delete it"):
        load(composed("data=fashion_mnist", f"data.cache={tmp_path}", "data.size=50", "batch.size=10"))


def test_missing_arrays_are_named(tmp_path):
    np.savez(tmp_path / "mine.npz", train_inputs=np.zeros((3, 3)))
    with pytest.raises(DataError, match="no train_labels, test_inputs, test_labels: it must"):
        load(composed("data=arrays", f"data.path={tmp_path}/mine.npz", "data.size=90", "batch.size=10"))


def test_a_pickle_in_disguise_is_not_run(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays(train_labels=np.array([object()] * 100)))
    with pytest.raises(DataError, match=r"can't be read as an \.npz file"):
        load(composed("data=arrays", f"data.path={tmp_path}/mine.npz", "data.size=90", "batch.size=10"))


def test_asking_for_more_than_the_file_has_is_an_error(tmp_path):
    np.savez(tmp_path / "mine.npz", **arrays())
    with pytest.raises(ConfigError, match="arrays has 100 training samples"):
        load(composed("data=arrays", f"data.path={tmp_path}/mine.npz", "data.size=101", "batch.size=10"))


def test_data_come_in_the_dtype_of_the_job():
    assert load(tiny()).tensors["train_inputs"].dtype == torch.float64


def of_file(tmp_path, *overrides):
    return composed("data=arrays", "data.size=100", "batch.size=10", f"data.path={tmp_path / 'mine.npz'}", *overrides)


IDS = np.arange(600).reshape(100, 2, 3) + 2**24 + 1  # no float32 can hold them


@pytest.mark.parametrize("kind", ["i4", "i8", "u4", ">i4"])
def test_integers_stay_what_they_are(tmp_path, kind):
    np.savez(tmp_path / "mine.npz", **arrays(train_inputs=IDS.astype(kind), test_inputs=IDS[:10].astype(kind)))
    inputs = load(of_file(tmp_path)).tensors["train_inputs"]
    assert inputs.dtype == torch.int64
    assert sorted(inputs.flatten().tolist()) == IDS.flatten().tolist()


def as_folder(path, **content):
    path.mkdir()
    for name, array in content.items():
        np.save(path / f"{name}.npy", array)
    return f"data.path={path}"


@pytest.mark.parametrize("kind", ["u1", ">f4"])
def test_a_folder_of_arrays_is_read_as_one_file(tmp_path, kind):
    content = {name: array.astype(kind if "inputs" in name else "i8") for name, array in arrays().items()}
    np.savez(tmp_path / "mine.npz", **content)
    whole = load(of_file(tmp_path, "data.size=90"))
    folder = load(of_file(tmp_path, "data.size=90", as_folder(tmp_path / "d", **content)))
    assert all(torch.equal(folder.tensors[name], tensor) for name, tensor in whole.tensors.items())


def test_the_training_inputs_of_a_folder_may_be_larger_than_memory(tmp_path):
    features = 50_000
    samples = 2 * psutil.virtual_memory().total // (8 * features)  # of which the disk holds none
    content = arrays(train_labels=np.arange(samples) % 3, test_inputs=np.zeros((10, features)))
    del content["train_inputs"]
    folder = as_folder(tmp_path / "d", **content)
    np.lib.format.open_memmap(tmp_path / "d" / "train_inputs.npy", "w+", np.float64, (samples, features))
    assert load(of_file(tmp_path, "data.size=90", folder)).tensors["train_inputs"].shape == (90, features)


def test_a_damaged_file_in_a_folder_is_named_by_its_folder(tmp_path):
    path = as_folder(tmp_path / "d", **arrays())
    (tmp_path / "d" / "train_inputs.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"can't be read as \.npy files: damaged"):
        load(of_file(tmp_path, path))


def test_a_folder_that_lacks_a_file_is_an_error(tmp_path):
    content = arrays()
    del content["test_labels"]
    with pytest.raises(DataError, match="no test_labels: it must"):
        load(of_file(tmp_path, as_folder(tmp_path / "d", **content)))


@pytest.mark.parametrize(("scale", "dtype", "most"), [("true", torch.float32, 1.0), ("false", torch.int64, 255)])
def test_bytes_are_grey_levels_unless_the_setting_says_otherwise(tmp_path, scale, dtype, most):
    grey = np.full((100, 2, 3), 255, np.uint8)
    np.savez(tmp_path / "mine.npz", **arrays(train_inputs=grey, test_inputs=grey[:10]))
    inputs = load(of_file(tmp_path, f"data.scale_uint8={scale}")).tensors["train_inputs"]
    assert (inputs.dtype, inputs.max().item()) == (dtype, most)
