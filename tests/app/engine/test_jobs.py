from __future__ import annotations

from app.engine.jobs import Batch, Job, Lane


def test_lanes_are_alike_by_model_and_size() -> None:
    lane = Lane("a", (20, 30))
    assert lane == Lane("a", (20, 30))
    assert lane not in {Lane("b", (20, 30)), Lane("a", (30, 20))}
    assert lane.pixels == 600


def test_jobs_and_batches_are_no_other_however_alike() -> None:
    jobs = [Job("a", "caller", 1, 2.0, None) for _ in range(2)]
    assert len({*jobs}) == 2
    assert jobs[0] != jobs[1]
    batches = [Batch(Lane("a", (2, 3)), jobs, "idle", 0.0) for _ in range(2)]
    assert batches[0] != batches[1]
