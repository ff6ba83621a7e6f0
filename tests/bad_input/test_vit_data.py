"""Image data in the published formats, whole, truncated and damaged."""

import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from claims import every

torch = pytest.importorskip("torch")

from dynalyze.errors import InvalidInputError, SavedFileError  # noqa: E402
from dynalyze.training.vit import (  # noqa: E402
    VisionData,
    VisionTransformer,
    ViTOptions,
    ViTShape,
    cifar,
    digits,
    image_folder,
    train_vit,
)
from dynalyze.training.vit.images import Images, batches, epoch_order  # noqa: E402


class _Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings as Python 2 did, which wrote the published archives: all of them bytes."""

    def save_string(self, value: bytes | str) -> None:
        content = value if isinstance(value, bytes) else value.encode("ascii")
        self.write(b"T" + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch: ClassVar = {
        **pickle._Pickler.dispatch,  # type: ignore[attr-defined]
        bytes: save_string,
        str: save_string,
    }


def _python2(content: Any) -> bytes:
    buffer = io.BytesIO()
    _Python2Pickler(buffer, protocol=2).dump(content)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def _python3(content: Any) -> bytes:
    return pickle.dumps(content, protocol=2)


def _images(n: int, n_classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, n_classes, n)


def _write(folder: Path, kind: str, dump: Callable[[Any], bytes] = _python2) -> Path:
    """A small CIFAR in one of the published formats; returns the folder that it unpacks to."""
    ten = kind.startswith("cifar-10-")
    place = folder / kind
    place.mkdir()
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"] if ten else ["train", "test"]
    for seed, name in enumerate(names):
        count = 20 if name == "train" else 4
        pixels, labels = _images(count, 10 if ten else 100, seed)
        if kind.endswith(("bin", "binary")):
            coarse = [] if ten else [labels // 5]
            columns = [c.astype(np.uint8)[:, None] for c in (*coarse, labels)]
            (place / f"{name}.bin").write_bytes(np.hstack([*columns, pixels]).tobytes())
        else:
            batch = {b"batch_label": b"x", b"data": pixels, b"filenames": [b"a.png"] * count}
            key = b"labels" if ten else b"fine_labels"
            batch[key] = [int(label) for label in labels]
            (place / name).write_bytes(dump(batch))
    return place


KINDS = ("cifar-10-batches-py", "cifar-10-batches-bin", "cifar-100-python", "cifar-100-binary")


def _everything(images: Images) -> torch.Tensor:
    return images.load(np.arange(len(images.labels)), None, slice(None))


@pytest.mark.parametrize("dump", [_python2, _python3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_published_format(tmp_path: Path, kind: str, dump: Callable[[Any], bytes]) -> None:
    place = _write(tmp_path, kind, dump)
    archive = tmp_path / f"{kind}.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(place, arcname=kind)
    ten = kind.startswith("cifar-10-")
    seeds = range(5) if ten else range(1)
    parts = [_images(4 if ten else 20, 10 if ten else 100, seed) for seed in seeds]
    for path in (place, tmp_path, archive):
        data = cifar(path)
        expected = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
        np.testing.assert_array_equal(_everything(data.train).numpy(), expected)
        np.testing.assert_array_equal(
            data.train.labels, np.concatenate([labels for _, labels in parts])
        )
        assert len(data.test.labels) == 4
        assert (data.name, data.n_classes) == (("CIFAR-10", 10) if ten else ("CIFAR-100", 100))
        np.testing.assert_allclose(data.mean, (expected / 255).mean((0, 2, 3)), rtol=1e-12)
        np.testing.assert_allclose(data.deviation, (expected / 255).std((0, 2, 3)), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [1, 100, 5000])
def test_truncated_batches_are_refused(tmp_path: Path, kind: str, cut: int) -> None:
    place = _write(tmp_path, kind)
    victim = sorted(place.iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-cut])
    with pytest.raises(SavedFileError, match=rf"{victim.name}.*(truncated|damaged)"):
        cifar(place)


def test_a_batch_that_lost_whole_records_is_refused(tmp_path: Path) -> None:
    place = _write(tmp_path, "cifar-10-batches-bin")
    victim = place / "data_batch_3.bin"
    victim.write_bytes(victim.read_bytes()[:-3073])
    with pytest.raises(SavedFileError, match=r"hold \[4, 4, 3, 4, 4\] images.*truncated"):
        cifar(place)


@pytest.mark.parametrize(
    ("kind", "victim", "found"),
    [
        ("cifar-10-batches-bin", "test_batch.bin", "test_batch.bin of CIFAR-10 holds 3 images"),
        ("cifar-100-binary", "test.bin", "test.bin of CIFAR-100 holds 3 images"),
        ("cifar-100-binary", "train.bin", "holds 4 images and the training set 19"),
    ],
)
def test_a_set_that_lost_whole_records_is_refused(
    tmp_path: Path, kind: str, victim: str, found: str
) -> None:
    file = _write(tmp_path, kind) / victim
    file.write_bytes(file.read_bytes()[: -(3073 if kind.startswith("cifar-10-") else 3074)])
    with pytest.raises(SavedFileError, match=f"{found}.*five times as many: a file is truncated"):
        cifar(file.parent)


def test_a_missing_batch_and_a_wrong_folder(tmp_path: Path) -> None:
    place = _write(tmp_path, "cifar-10-batches-py")
    (place / "data_batch_2").unlink()
    with pytest.raises(SavedFileError, match=r"lacks data_batch_2 of CIFAR-10"):
        cifar(place)
    with pytest.raises(InvalidInputError, match=r"none of the published versions of CIFAR"):
        cifar(tmp_path / "..")
    with pytest.raises(InvalidInputError, match=r"there is no file or folder"):
        cifar(tmp_path / "absent.tar.gz")


def test_truncated_archive(tmp_path: Path) -> None:
    place = _write(tmp_path, "cifar-10-batches-bin")
    archive = tmp_path / "a.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(place, arcname="cifar-10-batches-bin")
    archive.write_bytes(archive.read_bytes()[:20000])
    with pytest.raises(SavedFileError, match=r"cannot be read as an archive"):
        cifar(archive)


def test_labels_of_the_other_cifar(tmp_path: Path) -> None:
    place = _write(tmp_path, "cifar-10-batches-bin")
    victim = place / "test_batch.bin"
    victim.write_bytes(b"\x63" + victim.read_bytes()[1:])
    with pytest.raises(SavedFileError, match=r"holds labels .* 99, and there are 10 classes"):
        cifar(place)


def test_a_pickle_that_calls_something_is_refused(tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "touched",))

    place = _write(tmp_path, "cifar-10-batches-py")
    (place / "test_batch").write_bytes(pickle.dumps({b"data": Harm()}, protocol=2))
    with pytest.raises(SavedFileError, match=r"it asks for .*, which a batch does not need"):
        cifar(place)
    assert not (tmp_path / "touched").exists()


def _folder(root: Path, size: tuple[int, int] = (40, 30)) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for name in ("n01440764", "n01443537"):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}_{i}.JPEG")
    return root


def test_class_folders(tmp_path: Path) -> None:
    from PIL import Image

    grey = np.full((64, 128), 77, dtype=np.uint8)
    _folder(tmp_path)
    Image.fromarray(grey).save(tmp_path / "train" / "n01440764" / "n01440764_0.JPEG")
    data = image_folder(tmp_path, image_size=16, n_workers=2)
    assert data.n_classes == 2
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test.labels.tolist() == [0, 0, 1, 1]
    images = _everything(data.train)
    assert images.shape == (6, 3, 16, 16)
    assert images.dtype == torch.uint8
    assert bool((images[0] == 77).all())
    cropped = data.train.load(np.arange(6), np.random.default_rng(1), slice(2, 4))
    whole = data.train.load(np.arange(6), np.random.default_rng(1), slice(None))
    torch.testing.assert_close(cropped, whole[2:4])
    assert not torch.equal(whole, images)


def test_damaged_images_and_folders(tmp_path: Path) -> None:
    _folder(tmp_path)
    victim = tmp_path / "train" / "n01440764" / "n01440764_1.JPEG"
    victim.write_bytes(victim.read_bytes()[:300])
    data = image_folder(tmp_path, image_size=16)
    with pytest.raises(SavedFileError, match=r"n01440764_1\.JPEG cannot be decoded"):
        _everything(data.train)
    (tmp_path / "val" / "n09999999").mkdir()
    with pytest.raises(InvalidInputError, match=r"same classes, got 2 and 3; .*n09999999"):
        image_folder(tmp_path)
    with pytest.raises(InvalidInputError, match=r"must hold the folders train and val"):
        image_folder(tmp_path / "train")


@pytest.mark.parametrize("source", ["arrays", "files"])
@pytest.mark.parametrize("n_ranks", [2, 3, 7])
def test_ranks_share_the_batches_of_one_process(tmp_path: Path, source: str, n_ranks: int) -> None:
    data: VisionData
    if source == "arrays":
        data = cifar(_write(tmp_path, "cifar-10-batches-bin"))
    else:
        data = image_folder(_folder(tmp_path), image_size=8)
    order = epoch_order(len(data.train.labels), 3, 5)
    alone = list(batches(data.train, order, 4, seed=(1, 2)))
    later = list(batches(data.train, order, 4, first=1, seed=(1, 2)))
    for a, b in zip(alone[1:], later, strict=True):
        torch.testing.assert_close(a.inputs, b.inputs)
    shares = [
        list(batches(data.train, order, 4, seed=(1, 2), rank=r, n_ranks=n_ranks))
        for r in range(n_ranks)
    ]
    for number, whole in enumerate(alone):
        parts = [s[number] for s in shares if every(s[number].targets >= 0)]
        torch.testing.assert_close(torch.cat([p.inputs for p in parts]), whole.inputs)
        torch.testing.assert_close(torch.cat([p.targets for p in parts]), whole.targets)
        assert {s[number].size for s in shares} == {whole.size}
        assert every(len(s[number].inputs) for s in shares)


def test_augmentation_shifts_and_reflects(tmp_path: Path) -> None:
    data = cifar(_write(tmp_path, "cifar-10-batches-bin"))
    plain = _everything(data.train)
    moved = data.train.load(np.arange(20), np.random.default_rng(0), slice(None))
    padded = torch.nn.functional.pad(plain, (4, 4, 4, 4))
    crops = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (n, C, 9, 9, 32, 32)
    both = torch.stack([crops, crops.flip(-1)])
    equal = (both == moved[None, :, :, None, None]).all((2, 5, 6))  # (2, n, 9, 9)
    assert equal.sum((0, 2, 3)).tolist() == [1] * 20
    assert equal.any((1, 2, 3)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTShape(width=0), r"width=0: must be a positive integer"),
        (lambda: ViTShape(patch_size=5), r"patch_size=5 must divide image_size=32"),
        (lambda: VisionTransformer(ViTShape.digits(), scale=0.0), r"scale must be positive"),
        (lambda: ViTOptions(optimizer="adamw"), r"optimizer must be 'adam' or 'sgd', got 'adamw'"),
        (lambda: ViTOptions(precision="int8"), r"precision must be .*, got 'int8'"),
        (lambda: ViTOptions(lr=0.0), r"lr must be positive and finite, got 0.0"),
        (lambda: ViTOptions(momentum=1.0), r"momentum must lie in \[0, 1\), got 1.0"),
        (lambda: ViTOptions(batch_size=0), r"batch_size=0: must be a positive integer"),
        (lambda: ViTOptions(n_epochs=5), r"warmup_epochs .* n_epochs=5, got 15"),
        (lambda: train_vit(shape=ViTShape()), r"images \(3, 32, 32\) of 10 .* images \(1, 8, 8\)"),
        (lambda: train_vit(checkpoint_every=0), r"checkpoint_every=0: must be a positive integer"),
        (
            lambda: train_vit(options=ViTOptions(precision="float16"), device="cpu"),
            r"precision='float16' needs a GPU",
        ),
    ],
)
def test_arguments_out_of_range(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_digits_are_split_once_and_for_all() -> None:
    data = digits()
    assert (len(data.train.labels), len(data.test.labels)) == (1437, 360)
    assert _everything(data.test).shape == (360, 1, 8, 8)
    assert _everything(data.train).max() == 240
