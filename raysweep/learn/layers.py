"""A sharded model that is whole one layer at a time, asked by ranks that do not keep step.

Ranks ask questions of their own, and none knows how many passes the others make. Every pass brings the shards of each
layer together as it comes to it; a rank that has made its last pass goes on giving its shards to those of the others,
until all have. What is not a layer (embeddings, the last norm) is whole all the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from torch import nn

from raysweep.learn.ranks import Ranks

__all__ = ["LayerByLayer", "weights_in"]

Gather = Callable[[Sequence[nn.Parameter]], AbstractContextManager[Any]]


class LayerByLayer:
    """Inside, calls into `model` are ordinary ones, any number on each rank; every rank enters and leaves.

    `gather` makes parameters whole while its context is open; entering it is a collective call, leaving it is not.
    """

    def __init__(self, model: nn.Module, gather: Gather, ranks: Ranks):
        self._gather = gather
        self._ranks = ranks
        self._layers = _layers(model)
        self._own = _own_parameters(self._layers)
        within = {id(parameter) for own in self._own for parameter in own}
        self._others = [parameter for parameter in model.parameters() if id(parameter) not in within]
        self._whole = ExitStack()  # for all the time
        self._layer = ExitStack()  # the one that a pass is in
        self._passed = len(self._layers)  # how many layers of the last pass came together

    def __enter__(self) -> LayerByLayer:
        if self._others:
            self._whole.enter_context(self._gather(self._others))
        for layer, own in zip(self._layers, self._own, strict=True):
            before = layer.register_forward_pre_hook(self._entering(own, first=layer is self._layers[0]))
            after = layer.register_forward_hook(lambda *_: self._layer.close())
            self._whole.callback(before.remove)
            self._whole.callback(after.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Where a pass broke off by an error, the others are still in theirs."""
        self._layer.close()
        self._give(self._own[self._passed :])
        while self._someone_passes(mine=False):
            self._give(self._own)
        self._whole.close()

    def _give(self, layers: Sequence[Sequence[nn.Parameter]]) -> None:
        """Bring layers together for the others."""
        for own in layers:
            with self._gather(own):
                pass

    def _entering(self, own: Sequence[nn.Parameter], *, first: bool) -> Callable[..., None]:
        def enter(*_: Any) -> None:
            self._layer.close()
            if first:
                self._give(self._own[self._passed :])
                self._someone_passes(mine=True)
                self._passed = 0
            self._passed += 1
            self._layer.enter_context(self._gather(own))

        return enter

    def _someone_passes(self, *, mine: bool) -> bool:
        return self._ranks.sum([float(mine)])[0] > 0


def weights_in(module: nn.Module) -> int:
    """How many weights a module has on all ranks together."""
    return sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in module.parameters())


def _layers(model: nn.Module) -> list[nn.Module]:
    """The list of modules that holds the most weights: a language model's layers."""
    rows = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(rows, key=weights_in, default=()))


def _own_parameters(layers: Sequence[nn.Module]) -> list[list[nn.Parameter]]:
    """Each layer's parameters, without those that it shares with another one."""
    users = Counter(id(parameter) for layer in layers for parameter in layer.parameters())
    return [[parameter for parameter in layer.parameters() if users[id(parameter)] == 1] for layer in layers]
