"""Lifetimes around loops of the schedule."""

from __future__ import annotations

from tactician.memory.arena import Lifetime, lifetimes


def test_what_crosses_a_loop_lives_through_all_of_it() -> None:
    # steps 1 to 3 are a loop: it reads 0 early, makes 1 for itself, and 2 for later
    steps = [([], [0]), ([0], [1]), ([1], [2]), ([], []), ([2], [])]
    live = lifetimes(steps, {0: 0, 1: 1, 2: 2}, loops=[(1, 3)])
    assert live == {0: Lifetime(0, 3), 1: Lifetime(1, 2), 2: Lifetime(1, 4)}
