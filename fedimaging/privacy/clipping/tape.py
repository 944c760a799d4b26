"""What happened inside a model in one forward pass: each use of a layer that trains, and a proof that none is missing."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node

from fedimaging.privacy.clipping.batch import Unsupported, modules_of
from fedimaging.privacy.clipping.layers import SPREAD, rule_for
from fedimaging.privacy.clipping.rules import Rule

_UNSEEN = "a trainable parameter is used outside its own layer; take engine 'loop' or 'vmap'."
_NOT_SCANS = "a {} is used without gradient, with further arguments, or on rows that are not scans; take engine 'loop' or 'vmap'."


class Use(NamedTuple):
    """One call of a layer: its input, and the place in the graph where the gradient of its output arrives.

    The place is noted when the call returns, so a later in-place change of the output does not move it.
    """

    layer: nn.Module
    rule: Rule
    parameters: dict[str, nn.Parameter]
    a: Tensor
    version: int
    node: Node
    output: int


class Copied(NamedTuple):
    """A parameter of which its layer used a copy for every scan: `copies`, S times its numbers, a leaf of the graph."""

    parameter: nn.Parameter
    copies: Tensor


class Entries(Protocol):
    """Who takes in what a backward pass finds, with gradients off. alone: the parameters concerned have no other use."""

    def enter(self, use: Use, g: Tensor, alone: bool) -> None:
        """A use and the gradient at its output (S, ...)."""

    def enter_by_scan(self, parameter: nn.Parameter, by_scan: Tensor, alone: bool) -> None:
        """A parameter's gradients of each scan, end to end (S numel,)."""


@dataclass
class Tape:
    """The uses of one forward pass, in order. `parameters`: all that train, in the model's order. `copied`: those with copies."""

    parameters: list[nn.Parameter]
    copied: list[Copied]
    uses: list[Use] = field(default_factory=list)

    def sweep(self, total: Tensor, entries: Entries) -> None:
        """Go backward from `total` and enter all that it depends on. The tape is empty then. Raises Unsupported where a
        parameter's use was not seen.

        On a CPU a use is entered as soon as its gradient is there, and both are then let go of. On a GPU all are entered at
        the end, by the thread that may be capturing.
        """
        reached, ends, copied = self._reached(total)
        calls = Counter(p for use in reached.values() for p in use.parameters.values())
        calls.update(copy.parameter for copy in copied)

        def take(place: int, g: Tensor) -> None:
            use = reached.pop(place)
            _check(use, g)
            entries.enter(use, _by_scan(g, use.a.shape[0]), all(calls[p] == 1 for p in use.parameters.values()))

        last = [place for place in reached if place in ends or total.device.type != "cpu"]
        for place in reached.keys() - set(last):
            reached[place].node.register_hook(partial(_on_backward, take, place, reached[place].output))
        edges = [GradientEdge(reached[place].node, reached[place].output) for place in last]
        wanted = cast(Sequence[Tensor], [*(copy.copies for copy in copied), *edges])  # PyTorch takes both kinds together
        found = list(torch.autograd.grad(total, wanted, allow_unused=True)) if wanted else []
        with torch.no_grad():
            for place in reversed(last):
                g = found.pop()  # each is let go of as soon as its layer is entered
                if g is not None:
                    take(place, g)
            if reached or any(g is None for g in found):
                raise Unsupported(_UNSEEN)
            for copy, g in zip(copied, found, strict=True):
                entries.enter_by_scan(copy.parameter, g, calls[copy.parameter] == 1)

    def _reached(self, total: Tensor) -> tuple[dict[int, Use], set[int], list[Copied]]:
        """The uses that `total` depends on, by their place on the tape; the places of those that depend on no other use, so
        that the backward pass ends there; and the copies that it depends on. Empties the tape."""
        wanted = {id(p) for p in self.parameters} | {id(copy.copies) for copy in self.copied}
        count, above = _walk(total, wanted, {use.node for use in self.uses})
        reached = {place: use for place, use in enumerate(self.uses) if use.node in above}
        copied = [copy for copy in self.copied if count.pop(id(copy.copies), 0)]
        self.uses.clear()
        self.copied.clear()
        if Counter(id(p) for use in reached.values() for p in use.parameters.values()) != count:
            raise Unsupported(_UNSEEN)
        return reached, {place for place, use in reached.items() if not above[use.node]}, copied


def _on_backward(
    take: Callable[[int, Tensor], None], place: int, output: int, _: object, gradients: tuple[Tensor | None, ...]
) -> None:
    g = gradients[output]
    if g is not None:
        take(place, g)


def _check(use: Use, g: Tensor) -> None:
    if use.a._version != use.version:
        raise Unsupported("a layer's input is changed in place after use; take engine 'loop' or 'vmap'.")
    if any(p.dtype != g.dtype for p in use.parameters.values()):
        raise Unsupported("activations and parameters differ in type; take engine 'loop' or 'vmap'.")


def known_layers(model: nn.Module) -> dict[nn.Module, tuple[Rule, dict[str, nn.Parameter]]]:
    """Every layer that owns trainable parameters, with its rule and these. Raises Unsupported where there is no rule, and for
    parameters that are complex or have a hook, which rules do not know of."""
    found = {}
    for layer in modules_of(model):
        own = {key: p for key, p in layer._parameters.items() if p is not None and p.requires_grad}
        if not own:
            continue
        rule = rule_for(layer)
        if rule is None or any(p.is_complex() or p._backward_hooks for p in own.values()):
            name = next(name for name, module in model.named_modules() if module is layer)
            raise Unsupported(
                f"layer {name or 'model'!r} ({type(layer).__name__}) trains parameters in a way that engine 'fused' "
                "does not know; take engine 'loop' or 'vmap'."
            )
        found[layer] = (rule, own)
    return found


@contextmanager
def recording(model: nn.Module, scans: int) -> Iterator[Tape]:
    """Record the uses of trainable layers in a forward pass over `scans` scans."""
    layers = known_layers(model)
    tape = Tape(list(dict.fromkeys(p for _, own in layers.values() for p in own.values())), [])
    replaced, spread = [], []
    try:
        for layer, (rule, own) in layers.items():
            if rule is SPREAD:
                spread.append((layer, own))
                layer._parameters.update(_spread(tape, own, scans))
                continue
            target = layer if rule.at is None else rule.at(layer)
            if rule.recorded is not None:
                target.forward = partial(_copying, scans, layer, rule.recorded, _copies(tape, layer, own, scans))
            else:
                target.forward = partial(_noted, tape, scans, layer, rule, own, target)
            replaced.append(target)
        yield tape
    finally:
        for layer, own in spread:
            layer._parameters.update(own)
        for target in replaced:
            vars(target).pop("forward", None)


def _spread(tape: Tape, own: dict[str, nn.Parameter], scans: int) -> dict[str, Any]:
    """In a parameter's place, which keeps its own in the model's order."""
    copies = {name: p.detach().expand(scans, *p.shape[1:]).clone().requires_grad_() for name, p in own.items()}
    tape.copied.extend(Copied(own[name], copy) for name, copy in copies.items())
    return copies


def _noted(
    tape: Tape, scans: int, layer: nn.Module, rule: Rule, own: dict[str, nn.Parameter], target: nn.Module,
    *inputs: Tensor, **others: object,
) -> Tensor:  # fmt: skip
    x = _only_input(layer, inputs, others)
    version, output = x._version, (rule.run or type(target).forward)(target, x)
    noted = output if rule.at is None else x
    rows = x.shape[0]
    fits = rows == output.shape[0] and (rows == scans or (rule.parts and rows % scans == 0))
    if noted.grad_fn is None or not fits:
        raise Unsupported(_NOT_SCANS.format(type(layer).__name__))
    tape.uses.append(Use(layer, rule, own, _by_scan(x, scans), version, noted.grad_fn, noted.output_nr))
    return output


def _only_input(layer: nn.Module, inputs: tuple[Tensor, ...], others: dict[str, object]) -> Tensor:
    """Raises Unsupported where a layer is called with more than its input: rules do not know what the rest would do."""
    if len(inputs) != 1 or others:
        raise Unsupported(_NOT_SCANS.format(type(layer).__name__))
    return inputs[0]


def _by_scan(rows: Tensor, scans: int) -> Tensor:
    """(S, ...) as it is; (S parts, ...) -> (S, parts, ...)."""
    return rows if rows.shape[0] == scans else rows.unflatten(0, (scans, -1))


def _copying(
    scans: int, layer: nn.Module, recorded: Callable[..., Tensor], copies: list[Tensor | None],
    *inputs: Tensor, **others: object,
) -> Tensor:  # fmt: skip
    x = _only_input(layer, inputs, others)
    if x.shape[0] != scans:
        raise Unsupported(_NOT_SCANS.format(type(layer).__name__))
    return recorded(layer, x, *copies)


def _copies(tape: Tape, layer: nn.Module, own: dict[str, nn.Parameter], scans: int) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for name, parameter in layer._parameters.items():
        copies = None if parameter is None else torch.cat([parameter.detach()] * scans)
        if copies is not None and name in own:
            tape.copied.append(Copied(own[name], copies.requires_grad_()))
        found.append(copies)
    return found


def _walk(total: Tensor, wanted: set[int], uses: Collection[Node]) -> tuple[Counter[int], dict[Node, bool]]:
    """How often each wanted parameter (by id) enters the graph behind `total`, and every node of it: whether one of `uses`
    lies behind that node."""
    count: Counter[int] = Counter()
    above: dict[Node, bool] = {}
    path: list[tuple[Node, Iterator[tuple[Node | None, int]]]] = []

    def go(node: Node) -> None:
        above[node] = False
        path.append((node, iter(node.next_functions)))

    if total.grad_fn is not None:
        go(total.grad_fn)
    while path:
        node, rest = path[-1]
        for behind, _ in rest:
            variable = getattr(behind, "variable", None)
            if variable is not None:
                count[id(variable)] += id(variable) in wanted
            elif behind is not None and behind not in above:
                go(behind)
                break
            elif behind is not None:
                above[node] |= above[behind] or behind in uses
        else:
            path.pop()
            if path:
                above[path[-1][0]] |= above[node] or node in uses
    return +count, above
