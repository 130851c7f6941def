"""A node that stood still must not carry out what its clients have given up on."""

import time

import pytest

from sekisho.services.stall import StallWatch


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def watch_at(clock: Clock) -> StallWatch:
    return StallWatch(window_s=30, monotonic=clock)


def test_ordinary_ticks_are_no_stall() -> None:
    clock = Clock()
    watch = watch_at(clock)
    for _ in range(50):
        clock.now += 7.5
        assert not watch.stalled
        watch.tick()
    assert not watch.stalled


def test_a_stall_shows_before_the_first_tick_after_it() -> None:
    clock = Clock()
    watch = watch_at(clock)
    clock.now += 7.6
    assert watch.stalled


def test_the_backlog_after_a_stall_is_suspect_for_a_second() -> None:
    clock = Clock()
    watch = watch_at(clock)
    clock.now += 60
    watch.tick()
    clock.now += 0.9
    assert watch.stalled
    clock.now += 0.1
    assert not watch.stalled


def test_a_request_that_waited_too_long_is_too_old_while_the_node_ticks_on() -> None:
    clock = Clock()
    watch = watch_at(clock)
    taken_up_at = watch.now()
    for _ in range(38):  # 3.75 s
        assert not watch.is_too_old(taken_up_at)
        clock.now += 0.1
        watch.tick()
    assert watch.is_too_old(taken_up_at)
    assert not watch.is_too_old(watch.now())


def test_a_request_of_the_backlog_is_too_old_however_lately_it_was_taken_up() -> None:
    clock = Clock()
    watch = watch_at(clock)
    clock.now += 60
    watch.tick()
    clock.now += 0.5
    assert watch.is_too_old(watch.now())


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system's monotonic clock goes on by itself")
def test_a_suspended_system_is_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it was suspended its monotonic clock stood still, but not the one that counts since boot."""
    read, slept = time.clock_gettime, 0.0

    def clock_gettime(clock: int) -> float:
        return read(clock) + (slept if clock == time.CLOCK_BOOTTIME else 0)

    monkeypatch.setattr(time, "clock_gettime", clock_gettime)
    watch = StallWatch(window_s=30)
    assert not watch.stalled
    slept = 3600
    assert watch.stalled
