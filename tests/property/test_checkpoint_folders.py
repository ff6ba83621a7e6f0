"""Folders of checkpoints: one run at a time, nothing left over, nobody else's folders touched."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from dynalyze import Initialization
from dynalyze.errors import DynalyzeWarning, InvalidInputError
from dynalyze.training import DiagonalHead, claim, train, train_many
from dynalyze.training.checkpoints import latest_checkpoint, save_checkpoint
from dynalyze.training.claim import claimed

TENSORS = {"weights": torch.arange(3.0)}
X = np.random.default_rng(0).standard_normal((12, 4, 3))


def run(folder, steps, **options):
    init = Initialization.gaussian(6, log10_alpha=-1, rng=1)
    head, data = DiagonalHead(3), (X, 0.5 * X)
    return train(
        head,
        data,
        init=init,
        lr=0.01,
        steps=steps,
        checkpoint=folder,
        checkpoint_every=3,
        **options,
    )


FOREIGN = (
    "step-000000000",
    "step-000000001",
    "step-000000999",
    "step-0-notes",
    "step-by-step",
    "step-1",
    ".step-000000003.12",
    ".step-000000003.backup",
    ".initial.77",
)


def test_foreign_folders_are_neither_read_nor_removed(tmp_path):
    for name in FOREIGN:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text(name)
    (tmp_path / "step-000000777").write_text("a file")
    whole = run(None, 20)
    run(tmp_path, 10)
    again = run(tmp_path, 20)
    np.testing.assert_array_equal(again.theta[-1], whole.theta[-1])
    assert latest_checkpoint(tmp_path).name == "step-000000020"
    for name in FOREIGN:
        assert (tmp_path / name / "thesis.txt").read_text() == name
    ours = {"step-000000018", "step-000000020", "step-000000777"}
    assert {place.name for place in tmp_path.iterdir()} == {*FOREIGN, *ours}


def test_a_foreign_folder_with_files_of_our_names_is_never_removed(tmp_path):
    for step in (1, 2):
        place = tmp_path / f"step-{step:09d}"
        place.mkdir()
        (place / "state.json").write_text('{"format": 3, "digest": "0"}')
    for step in (10, 20, 30):
        save_checkpoint(tmp_path, step, TENSORS, {})
    assert sorted(int(place.name[5:]) for place in tmp_path.iterdir()) == [1, 2, 20, 30]


def test_a_foreign_folder_in_the_place_of_a_checkpoint_is_named(tmp_path):
    (tmp_path / "step-000000003").mkdir()
    with pytest.raises(InvalidInputError, match=r"step-000000003 is no checkpoint, and stands"):
        run(tmp_path, 5)


def test_a_billion_steps_come_after_the_steps_before(tmp_path):
    for step in (999_999_999, 1_000_000_000, 1_000_000_001):
        save_checkpoint(tmp_path, step, TENSORS, {})
    assert latest_checkpoint(tmp_path).name == "step-1000000001"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_killed_runs_left_is_removed(tmp_path):
    run(tmp_path, 5)
    for name, files in {
        ".step-000000004.4711": [],
        ".step-000000006.4712": ["tensors.safetensors"],
        ".step-000000007.4713": [".tmp5MHLoE"],  # what safetensors was writing
        ".step-000000002.47130": ["tensors.safetensors", "state.json"],
        ".initial.4714": ["tensors.safetensors"],
        ".step-000000007.4715": [".tmpN37q2b"],  # safetensors' own, before it has its name
    }.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_bytes(b"half")
    run(tmp_path, 9)
    assert {place.name for place in tmp_path.iterdir()} == {"step-000000006", "step-000000009"}


def test_a_second_process_gets_one_clear_error(tmp_path):
    seconds = []

    def again(step, losses):
        if step == 4:
            with pytest.raises(InvalidInputError) as caught:
                run(tmp_path, 10)
            seconds.append(str(caught.value))

    first = run(tmp_path, 10, callback=again)
    assert first.success
    assert f"is in use by process {os.getpid()} on " in seconds[0]
    assert "wait for its end, or give another folder" in seconds[0]
    assert run(tmp_path, 12).success


HOLDER = """
import sys, time
from dynalyze.training.claim import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_folder_is_free_again_when_its_process_was_killed(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(InvalidInputError, match=f"in use by process {process.pid} on"):
            run(tmp_path, 5)
    finally:
        process.kill()
        process.communicate()
    assert run(tmp_path, 5).success
    assert sorted(place.name for place in tmp_path.iterdir()) == [
        "step-000000003",
        "step-000000005",
    ]


def test_of_many_that_want_a_folder_at_once_each_has_it_alone(tmp_path):
    import threading

    inside, most, refused = [], [], []

    def work():
        for _ in range(40):
            try:
                with claimed(tmp_path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(1e-4)
                    inside.pop()
            except InvalidInputError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(most) + len(refused) == 240
    assert all("in use by" in text for text in refused)


def test_a_file_system_without_locks_is_named_once(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(file, how):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(DynalyzeWarning, match="file system without locks") as caught:
        run(tmp_path, 5)
    assert len(caught) == 1
    assert claim.__doc__


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInputError, match="cannot be used as a folder for checkpoints"):
        run(tmp_path / "file", 5)


def test_runs_that_share_a_generator_share_it_after_a_crash_too(tmp_path):
    def batched(folder, callback=None):
        generator = np.random.default_rng(3)
        inits = [Initialization.gaussian(6, log10_alpha=-1, rng=seed) for seed in (1, 2)]
        return train_many(
            DiagonalHead(3), (X, 0.5 * X), inits, lr=0.01, steps=20, optimizer="sgd", batch_size=5,
            rngs=[generator, generator], checkpoint=folder, checkpoint_every=4, callback=callback,
        )  # fmt: skip

    batched(tmp_path, lambda step, losses: step == 10)
    for one, other in zip(batched(None), batched(tmp_path), strict=True):
        np.testing.assert_array_equal(one.theta, other.theta)


def test_as_many_checkpoints_are_kept_as_asked_for(tmp_path):
    run(tmp_path, 20, keep_checkpoints=3)
    kept = sorted(int(place.name[5:]) for place in tmp_path.iterdir())
    assert kept == [15, 18, 20]
    with pytest.raises(InvalidInputError, match="keep_checkpoints=0: must be a positive integer"):
        run(tmp_path, 30, keep_checkpoints=0)
