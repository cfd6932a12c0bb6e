"""Laws of turns: a higher priority that wants room goes first, on its own cluster, and equals do not wait for each other."""

from __future__ import annotations

from raysweep.cluster.turns import LOOK, Turns


def turns(others: list, *, priority: int = 0, cluster: str = "c", clock=lambda: 0.0) -> Turns:
    return Turns(sweep="ours", priority=priority, most=4, cluster=cluster, others=lambda: others, clock=clock)


def says(name: str, **more) -> dict:
    return {"sweep": name, "priority": 0, "cluster": "c", "wants": True, **more}


def test_only_higher_priority_on_the_same_cluster_goes_first():
    others = [says("equal"), says("high", priority=2), says("far", priority=9, cluster="d"), says("low", priority=-1)]
    assert turns(others).look() == ("high",)


def test_who_has_all_it_can_have_is_not_waited_for():
    other = turns([], priority=1)
    for started, running, waiting, wants in [(0, 0, 9, True), (3, 4, 9, True), (4, 4, 9, False), (1, 1, 0, False)]:
        other.has(running=running, started=started, waiting=waiting)
        assert bool(turns([other.says()]).look()) is wants


def test_a_run_that_says_nothing_of_turns_is_not_waited_for():
    assert turns([{"holder": "a trial on a laptop", "beat": 3}]).look() == ()


def test_others_are_asked_now_and_then_only():
    asked, now = [], [0.0]

    def others():
        asked.append(1)
        return []

    ours = Turns(sweep="ours", priority=0, most=1, cluster="c", others=others, clock=lambda: now[0])
    for _ in range(100):
        ours.look()
    assert len(asked) == 1
    now[0] += LOOK
    ours.look()
    assert len(asked) == 2
