from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from app.engine.staging import Image, Staged, Staging

CPU = torch.device("cpu")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def images(*values: int, size: tuple[int, int] = (4, 6)) -> list[Image]:
    return [Image(torch.full((*size, 3), value, dtype=torch.uint8), size, value % 2 == 0) for value in values]


def values(staged: Staged, device: torch.device = CPU) -> list[int]:
    """Of the pixels as they arrive, each image's being all alike."""
    pixels = staged.arrive(device)
    firsts: list[int] = pixels[:, 0, 0, 0].tolist()
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return firsts


def test_images_become_one_tensor_in_their_order() -> None:
    batch = images(3, 1, 2)
    staged = Staging(CPU)(batch)
    assert staged.images == tuple(batch)
    pixels = staged.arrive(CPU)
    assert (pixels.dtype, pixels.shape) == (torch.uint8, (3, 4, 6, 3))
    assert values(staged) == [3, 1, 2]


@pytest.mark.parametrize("indices", [[0], [2, 0], [1, 2]])
def test_some_of_them(indices: list[int]) -> None:
    batch = images(3, 1, 2)
    some = Staging(CPU)(batch).take(indices)
    assert some.images == tuple(batch[index] for index in indices)
    assert values(some) == [(3, 1, 2)[index] for index in indices]


def test_all_of_them_cost_nothing() -> None:
    staged = Staging(CPU)(images(3, 1))
    assert staged.take(range(2)) is staged


def test_on_the_cpu_there_is_nothing_to_wait_for() -> None:
    assert Staging(CPU)(images(1)).copied is None


def test_a_batch_without_room_is_left_to_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(tensors: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as scarce:
        scarce.setattr(torch, "stack", no_room)
        staged = Staging(CPU)(images(3, 1))
        assert staged.pixels is None
        with pytest.raises(RuntimeError, match="allocate"):
            staged.arrive(CPU)
    assert values(staged) == [3, 1]


def test_an_image_alone_is_not_copied() -> None:
    [alone] = images(7)
    staged = Staging(CPU)([alone])
    assert staged.pixels is not None
    assert staged.pixels.data_ptr() == alone.pixels.data_ptr()
    assert values(staged) == [7]


def test_a_batch_stays_as_it_is_while_others_are_staged() -> None:
    staging = Staging(CPU)
    first = staging(images(1, 2))
    staging(images(3, 4))
    with ThreadPoolExecutor(1) as other:
        assert values(other.submit(staging, images(5, 6)).result()) == [5, 6]
    assert values(first) == [1, 2]


@pytest.mark.gpu
@cuda
def test_batches_of_one_thread_follow_each_other_through_one_buffer() -> None:
    device = torch.device("cuda")
    staging = Staging(device)
    for size in ((40, 60), (320, 480), (40, 60)):
        for start in (10, 20, 30):
            staged = staging(images(*range(start, start + 4), size=size))
            pixels = staged.arrive(device)
            assert pixels.device.type == "cuda"
            assert values(staged, device) == list(range(start, start + 4))


@pytest.mark.gpu
@cuda
def test_a_batch_travels_while_the_device_computes() -> None:
    staging = Staging(torch.device("cuda"))
    staging(images(5, 6, size=(320, 480)))  # for its memory, since to allocate any may wait for the device
    # Far longer than a copy takes; `_sleep` counts cycles of the device.
    torch.cuda._sleep(1_000_000_000)  # type: ignore[no-untyped-call]
    busy = torch.cuda.Event()  # type: ignore[no-untyped-call]
    busy.record()
    staged = staging(images(7, 8, size=(320, 480)))
    assert staged.copied is not None
    staged.copied.synchronize()
    assert not busy.query(), "the copy did not wait for the pass"  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    assert values(staged, torch.device("cuda")) == [7, 8]
    assert values(staged.take([1]), torch.device("cuda")) == [8]
