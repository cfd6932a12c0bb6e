"""Runs on one store, in any order of their operations, stopped, killed and taken over: held against a small model.

Real: the store, leases, the schedule and the searcher that asks both, checkpoints' folders, eviction and prune. Not real: time,
training, and Tune. A seed is one interleaving; a failing one is printed, and makes the same one again:

    RAYSWEEP_INTERLEAVINGS=20000 pytest -s tests/cluster/test_interleavings.py     so many, from the first seed on
    RAYSWEEP_SEED=123 RAYSWEEP_INTERLEAVINGS=1 pytest -s tests/cluster/test_interleavings.py

`--basetemp` below a disk in memory makes them faster.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from interleaving import Process, World
from ray.tune.search import Searcher
from storing import TRAINED, node, write_weights

from raysweep.cluster.searcher import COMMITTED, StageSearcher, param_space, point_key
from raysweep.learn.checkpoints import RECORD
from raysweep.learn.ranks import Ranks
from raysweep.plan.schedule import Schedule, settled
from raysweep.store import evaluations, stages
from raysweep.store import leases as leases_module
from raysweep.store.eviction import Eviction
from raysweep.store.files import Files
from raysweep.store.leases import LEASE, Leases
from raysweep.store.prune import prune, spare
from raysweep.store.stages import Stages
from raysweep.store.store import Store
from raysweep.trial import in_flight as in_flight_module
from raysweep.trial import leasing

ENOUGH = int(os.environ.get("RAYSWEEP_INTERLEAVINGS", 40))
FIRST = int(os.environ.get("RAYSWEEP_SEED", 0))
NODES = {name: node(name * 16) for name in "abcd"}
CHAINS = {"t1": ("a", "b"), "t2": ("a", "c"), "t3": ("d",)}
RANKS = Ranks(rank=0, size=1, local_rank=0)
MOST = 6  # runs, of which two or three begin together, and others when one was killed
QUIET = 600.0  # seconds after which nobody is stopped or killed any more
AT_LAST = 3_000.0  # seconds after which nobody may be at work


class Model:
    """What must be true, kept beside the store: who took which number and when, and what was ever complete."""

    def __init__(self, root: Path) -> None:
        self.root, self.world = root, None
        self.takers: dict[str, list[Process]] = {}
        self.taken: dict[str, float] = {}
        self.ended: set[tuple[str, int]] = set()
        self.records: dict[str, bytes] = {}
        self.done: set[str] = set()

    def watch(self, act: str, path: str, process: Process | None, result: object) -> None:
        """A change that was made."""
        home, _, rest = path.partition("/")
        if (
            act in ("create", "write_bytes")
            and home == "leases"
            and result is not False
            and not rest.startswith("beats")
        ):
            self._leased(*rest.split("/"), process)
        if home == "stages":
            self._stage_holds(rest.partition("/")[0][-1])
        if home == "trials" and path.endswith("record.json"):
            self.done.add(rest.partition("/")[0])
        if act in ("remove", "move"):
            self.all_holds()

    def _leased(self, stage: str, name: str, process: Process) -> None:
        takers = self.takers.setdefault(stage, [])
        if name.endswith(".end"):
            token = int(name.removesuffix(".end"))
            assert takers[token - 1] is process, f"{process.name} ended {stage}/{token} of {takers[token - 1].name}"
            self.ended.add((stage, token))
            return
        assert int(name) == len(takers) + 1, f"{stage}/{name} was given after {len(takers)} numbers"
        before = takers[-1] if takers else None
        if before and (stage, len(takers)) not in self.ended:
            silent = self.world.now - before.beaten
            was_dead = silent > LEASE or before.came_back >= self.taken[stage]  # it was found dead, and woke up since
            assert was_dead or before is process, f"{stage} was taken from {before.name}, silent for {silent:.0f} s"
        takers.append(process)
        self.taken[stage] = self.world.now

    def believers(self) -> None:
        """Of all that live one at most holds the highest number of a stage, and it is the one who took it."""
        for stage, takers in self.takers.items():
            highest = len(takers)
            who = [
                one
                for one in self.world.processes
                for each in one.leases
                if not one.dead and each.held.get(stage) == highest
            ]
            assert not who or who == [takers[-1]], f"{[one.name for one in who]} hold {stage}/{highest}"

    def all_holds(self) -> None:
        """What was complete is, and what a record names is there and right."""
        for name in NODES:
            self._stage_holds(name)
        for trial in self.done:
            home = self.root / "trials" / trial
            tables = json.loads((home / "record.json").read_bytes())["tables"]
            assert all((home / tables["folder"] / name).is_file() for name in tables["digests"]), trial

    def _stage_holds(self, name: str) -> None:
        home = self.root / "stages" / f"{NODES[name].slug}-{NODES[name].id}"
        try:
            record = (home / "record.json").read_bytes()
        except FileNotFoundError:
            assert name not in self.records, f"the record of {name} is gone"
            return
        assert self.records.setdefault(name, record) == record, f"the record of {name} was written again"
        for file in ["record.json", *(one for one in os.listdir(home) if one.startswith("weights-"))]:
            self._names(name, home, json.loads((home / file).read_bytes()))

    def _names(self, name: str, home: Path, record: dict) -> None:
        assert all((home / record["commit"] / file).is_file() for file in record["digests"]), f"{name} lacks its curve"
        if record["files"] and not (home / evaluations.dropped(record["weights"])).exists():
            for file in record["files"]:
                content = home / record["commit"] / file
                assert content.is_file(), f"{content} is named and gone"
                assert content.read_bytes() == name.encode(), f"{content} is not what was committed"


class Run:
    """One run of the sweep: the loop that Tune is, and its workers."""

    def __init__(self, world: World, name: str, *, slots: int, keep: str) -> None:
        self.world, self.process = world, world.process(name)
        self.slots, self.keep = slots, keep
        self.said: list[tuple[str, str, dict]] = []
        self.out: dict[str, str] = {}
        self.tokens: dict[str, dict[str, int]] = {}

    def main(self) -> None:
        """Submit, then hand out trials until the searcher says that it is all."""
        self.store = self.world.store()
        self._submit()
        self.store.files.write_bytes("sweeps/small/sweep.yaml", b"keep: shared")
        held = {one: bool(record["files"]) for one, record in self.store.stage_records().items()}
        held = {name: held[name * 16] for name in NODES if name * 16 in held}
        done = self.store.done(CHAINS)
        chains = {trial: chain for trial, chain in CHAINS.items() if trial not in done}
        leases = Leases(self.store.files, holder=self.process.name, there=self._is_there, clock=self.world.clock)
        with self.world.beating(leases):
            self.searcher = StageSearcher(
                {point_key({"trial": trial}): trial for trial in chains},
                Schedule(chains, done_stages=settled(chains.values(), held=held), slots=self.slots),
                give_up_after=1000,
                on_drop=lambda trial, because: None,
                on_out=lambda trial, tokens: self.tokens.update({trial: dict(tokens)}),
                elsewhere=lambda trial: trial in self.store.done([trial]),
                eviction=Eviction(self.store, {t: tuple(s * 16 for s in c) for t, c in chains.items()}, keep=self.keep),
                leases=leases,
            )
            self.searcher.set_search_properties(None, None, param_space({"trial": tuple(chains)}))
            self._hand_out()

    def _submit(self) -> None:
        points = [{"values": {"t": t}, "trial": t, "stages": [s * 16 for s in c]} for t, c in CHAINS.items()]

        def new(known):
            fresh = [one for one in points if one not in (known or {}).get("points", [])][
                : self.world.random.randint(1, 3)
            ]
            return {"name": "small", "settings": "x", "model": "tiny", "points": fresh} if fresh else None

        while len((self.store.submissions.union("small") or {"points": ()})["points"]) < len(points):
            self.store.submissions.add("small", new)

    def _hand_out(self) -> None:
        number = 0
        while True:
            while self.said:
                kind, attempt, said = self.said.pop(0)
                if kind == "result":
                    self.searcher.on_trial_result(attempt, said)
                else:
                    self.searcher.on_trial_complete(attempt, said, error=not said)
                    del self.out[attempt]
            suggested = None
            if len(self.out) < self.slots:
                number += 1
                suggested = self.searcher.suggest(str(number))
                if suggested == Searcher.FINISHED and not self.out:
                    return
                if isinstance(suggested, dict):
                    self.out[str(number)] = suggested["trial"]
                    self.world.start(self.process, partial(self._work, str(number), suggested["trial"]))
            if not isinstance(suggested, dict):
                self.world.sleep(self.world.random.uniform(1.0, 10.0))

    def _is_there(self, stage: str) -> bool:
        found = self.store.stage(NODES[stage])
        return found is not None and (found.has_weights or not any(stage in chain[:-1] for chain in CHAINS.values()))

    def _work(self, attempt: str, trial: str) -> None:
        try:
            self._train(attempt, trial)
            self.said.append(("complete", attempt, {"status": "done"}))
        except (OSError, Again) as error:
            logging.getLogger(__name__).info("%s of %s: %r", trial, self.process.name, error)
            self.said.append(("complete", attempt, {}))

    def _train(self, attempt: str, trial: str) -> None:
        store, chain = self.world.store(), CHAINS[trial]

        def lacking() -> list[str]:
            found = {name: store.stage(NODES[name]) for name in chain}
            held = {name: one.has_weights for name, one in found.items() if one is not None}
            there = settled([chain], held=held)
            return [name for name in chain if name not in there]

        with leasing.leased(store, self.tokens[trial], RANKS, holder=self.process.name, lacking=lacking) as held:
            for name in lacking():
                if name not in held.tokens:
                    raise Again(f"the weights of {name} went meanwhile")
                self._make(store, name, held.tokens[name])
                held.committed(name)
                self.said.append(("result", attempt, {COMMITTED: name}))
        store.commit_trial(trial, {"status": "done", "stages": list(chain)}, evals=[], predictions=[])

    def _make(self, store: Store, name: str, token: int) -> None:
        world, stage = self.world, NODES[name]
        world.sleep(world.random.uniform(0.0, 20.0))  # data are read, an engine is opened
        with in_flight_module.in_flight(store, stage, RANKS, token=token) as folder:
            for step in range(2):
                checkpoint = folder / f"step-{step}"
                checkpoint.mkdir(exist_ok=True)
                (checkpoint / RECORD).write_text(str(token))
                world.sleep(world.random.uniform(1.0, 40.0))
                takers = world.model.takers[name]
                if len(takers) == token:
                    assert (checkpoint / RECORD).is_file(), (
                        f"{self.process.name}'s checkpoint of {name}/{token} is gone"
                    )
            with store.aside() as aside:
                write_weights(aside / "weights", name.encode())
                store.commit_stage(stage, aside, TRAINED, curve=[{"step": 1}], token=token)


class Again(Exception):
    """A trial that must be tried again."""


def pruner(world: World) -> None:
    """Somebody who frees what can go, now and then."""
    store = world.store()
    while world.now < QUIET and len(world.model.done) < len(CHAINS):
        world.sleep(world.random.uniform(20.0, 300.0))
        prune(store, spare(store))


@contextmanager
def real_code_in(world: World, monkeypatch: pytest.MonkeyPatch):
    """The real code asks the world for the time, and all are on other machines than all others."""
    with monkeypatch.context() as patch:
        patch.setattr(leases_module, "_machine", lambda: None)
        patch.setattr(leasing, "beating", world.beating)
        patch.setattr(leasing, "Leases", partial(Leases, clock=world.clock))
        patch.setattr(leasing, "time", SimpleNamespace(sleep=world.sleep))
        patch.setattr("uuid.uuid4", world.uuid4)
        patch.setattr(os, "fsync", lambda handle: None)  # nobody pulls the plug here
        yield


def interleaving(root: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> World:
    """Everything that happens in one world, until all runs have ended."""
    shutil.rmtree(root, ignore_errors=True)
    model = Model(root)
    world = World(root, seed, model.watch)
    model.world, world.model = world, model
    chance, runs = world.random, 0

    def begin() -> None:
        nonlocal runs
        runs += 1
        run = Run(world, f"run {runs}", slots=chance.randint(1, 2), keep=chance.choice(["shared", "none"]))
        world.start(run.process, run.main)

    crash, stop = chance.choice([0.0, 0.002, 0.01]), chance.choice([0.0, 0.003, 0.01])

    def between() -> None:
        model.believers()
        assert world.now < AT_LAST, f"somebody waits for ever at {world.now:.0f}: {world.waiting()}"
        if len(model.done) == len(CHAINS):
            return
        if world.now >= QUIET:
            if not world.at_work:
                begin()
        elif runs < MOST and world.at_work and chance.random() < crash:
            chance.choice(world.at_work).dead = True
            begin()
        elif world.at_work and chance.random() < stop:
            chance.choice(world.at_work).stopped_until = world.now + chance.choice(
                [5.0, LEASE + 5, 2 * LEASE, 4 * LEASE]
            )

    with real_code_in(world, monkeypatch):
        try:
            for _ in range(chance.randint(2, 3)):
                begin()
            world.start(world.process("pruner"), partial(pruner, world))
            world.run(between)
        finally:
            world.end()
    model.all_holds()
    assert Store(root).done(CHAINS) == {*CHAINS}
    return world


def run_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    logging.disable(logging.WARNING)
    cores = os.sched_getaffinity(0)
    if (
        "RAYSWEEP_INTERLEAVINGS" in os.environ
    ):  # a long run: one thread runs at a time, and gives way to another beside it
        os.sched_setaffinity(0, {max(cores)})
    began, steps = time.monotonic(), 0
    try:
        for seed in range(FIRST, FIRST + count):
            try:
                steps += interleaving(tmp_path / "store", seed, monkeypatch).steps
            except BaseException as error:
                error.add_note(f"the seed of this interleaving is {seed}")
                raise
    finally:
        logging.disable(logging.NOTSET)
        os.sched_setaffinity(0, cores)
    took = time.monotonic() - began
    print(
        f"\n{count} interleavings of {steps / count:.0f} steps each, in {took:.1f} s: {60 * count / took:.0f} a minute"
    )


def test_no_interleaving_of_runs_breaks_a_law(tmp_path, monkeypatch):
    run_seeds(tmp_path, monkeypatch, ENOUGH)


def test_a_seed_makes_the_same_interleaving_again(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.ERROR)
    worlds = [interleaving(tmp_path / "store", 114, monkeypatch) for _ in range(2)]
    assert worlds[0].steps == worlds[1].steps and worlds[0].now == worlds[1].now


def _overwrites(files: Files, path: str, content: bytes) -> bool:
    files.write_bytes(path, content)
    return True


def _removes_all(stages_: Stages, of, token: int = 0):
    return _with_all_removed(stages_.files.beside / ".in-flight" / of.id, token)


@contextmanager
def _with_all_removed(home: Path, token: int):
    (home / str(token)).mkdir(parents=True, exist_ok=True)
    yield home / str(token)
    shutil.rmtree(home, ignore_errors=True)


def _drops_without_a_word(stages_: Stages, folder: str, within: str, *, why: str) -> None:
    stages_.files.remove(f"stages/{folder}/{within}")
    stages_.files.create(f"stages/{folder}/{evaluations.dropped(within)}", b"{}")


def _beside_the_first(stages_: Stages, of, first, full, made):
    stages_.files.write_json(f"{first.path}/record.json", full)
    return stages_.stage(of)


def _always(self, *_: object) -> bool:
    return True


def _never(self, *_: object) -> bool:
    return False


def _same_number(leases: Leases, stage: str, token: int) -> bool:
    said = {"holder": leases._holder, "by": leases._id}
    leases._files.write_json(f"leases/{stage}/{max(1, token - 1)}", said)
    return True


MUTANTS = {
    "a lease is overwritten": (Files, "create", _overwrites),
    "a takeover keeps the number": (Leases, "_create", _same_number),
    "all that live are dead": (Leases, "_alive", _never),
    "nobody is ever dead": (Leases, "_alive", _always),
    "what is freed is not heard of": (Leases, "news", lambda self: []),
    "what is freed is forgotten": (Schedule, "freed", lambda self, stage: None),
    "a lease is given back in silence": (Leases, "release", lambda self, stages, *, committed: None),
    "a record is written again": (Stages, "_beside", _beside_the_first),
    "weights go before it is said": (Stages, "_drop", _drops_without_a_word),
    "all commits have one name": (stages, "commit_name", lambda token: "1-" + 12 * "0"),
    "checkpoints of a higher token go": (Stages, "in_flight", _removes_all),
    "who takes over removes what is higher": (
        in_flight_module,
        "drop_lower",
        lambda folder: [shutil.rmtree(one, ignore_errors=True) for one in folder.parent.iterdir() if one != folder],
    ),
}


RARE = ("all commits have one name", "checkpoints of a higher token go", "who takes over removes what is higher")


@pytest.mark.parametrize(
    "mutant", [pytest.param(one, marks=[pytest.mark.slow] if one in RARE else []) for one in MUTANTS]
)
def test_what_breaks_a_law_is_caught(tmp_path, monkeypatch, mutant):
    monkeypatch.setattr(*MUTANTS[mutant])
    with pytest.raises((AssertionError, OSError)) as caught:
        run_seeds(tmp_path, monkeypatch, 150)
    print(f"{mutant}: {caught.value.__notes__[0]}: {caught.value}")
