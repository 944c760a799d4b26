"""What happened inside a model in one forward pass: each use of a layer that trains, and a proof that none is missing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fedimaging.privacy.clipping.batch import Unsupported
from fedimaging.privacy.clipping.layers import rule_for
from fedimaging.privacy.clipping.rules import Rule


@dataclass(frozen=True)
class Use:
    """One call of a layer: its input, and the place in the graph where the gradient of its output arrives.

    The place is noted when the call returns, so a later in-place change of the output does not move it.
    """

    layer: nn.Module
    rule: Rule
    parameters: dict[str, nn.Parameter]
    a: Tensor
    version: int
    edge: GradientEdge

    @property
    def by_scan(self) -> tuple[Tensor, ...]:
        """Gradients of each scan (S, ...) that the backward pass left here; empty where it has none, or did not come by."""
        return getattr(self.edge.node, "by_scan", ())


@dataclass
class Tape:
    """The uses of one forward pass, in order. `trained`: ids of all parameters that train."""

    trained: set[int]
    uses: list[Use] = field(default_factory=list)

    def gradients(self, total: Tensor) -> list[tuple[Use, Tensor]]:
        """The gradient at each use's output. Raises Unsupported where a parameter's use was not seen as such."""
        edges = [use.edge for use in self.uses]
        found = torch.autograd.grad(total, edges, allow_unused=True)
        reached = [(use, g) for use, g in zip(self.uses, found, strict=True) if g is not None]
        seen = Counter(id(p) for use, _ in reached for p in use.parameters.values())
        if seen != _uses_in_graph(total, self.trained):
            raise Unsupported("a trainable parameter is used outside its own layer; take engine 'loop' or 'vmap'.")
        for use, g in reached:
            if use.a._version != use.version:
                raise Unsupported("a layer's input is changed in place after use; take engine 'loop' or 'vmap'.")
            if any(p.dtype != g.dtype for p in use.parameters.values()):
                raise Unsupported("activations and parameters differ in type; take engine 'loop' or 'vmap'.")
        return reached


def known_layers(model: nn.Module) -> dict[nn.Module, tuple[Rule, dict[str, nn.Parameter]]]:
    """Every layer that owns trainable parameters, with its rule and these. Raises Unsupported where there is no rule."""
    found = {}
    for name, layer in model.named_modules():
        own = {key: p for key, p in layer._parameters.items() if p is not None and p.requires_grad}
        rule = rule_for(layer) if own else None
        if own and rule is None:
            raise Unsupported(
                f"layer {name or 'model'!r} ({type(layer).__name__}) trains parameters in a way that engine 'fused' "
                "does not know; take engine 'loop' or 'vmap'."
            )
        if rule is not None:
            found[layer] = (rule, own)
    return found


@contextmanager
def recording(model: nn.Module, scans: int) -> Iterator[Tape]:
    """Record the uses of trainable layers in a forward pass over `scans` scans."""
    layers = known_layers(model)
    tape = Tape({id(p) for _, own in layers.values() for p in own.values()})

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        a = inputs[0]
        if not output.requires_grad or len(a) != scans or len(output) != scans:
            raise Unsupported(
                f"a {type(layer).__name__} is used without gradient, or on rows that are not scans; take engine "
                "'loop' or 'vmap'."
            )
        rule, own = layers[layer]
        tape.uses.append(Use(layer, rule, own, a.detach(), a._version, get_gradient_edge(output)))

    handles = [layer.register_forward_hook(note) for layer in layers]
    replaced = {layer: rule.recorded for layer, (rule, _) in layers.items() if rule.recorded is not None}
    for layer, recorded in replaced.items():
        layer.forward = partial(recorded, layer)
    try:
        yield tape
    finally:
        for layer in replaced:
            del layer.forward
        for handle in handles:
            handle.remove()


def _uses_in_graph(total: Tensor, wanted: set[int]) -> Counter[int]:
    """How often each wanted parameter enters the graph behind `total`."""
    count: Counter[int] = Counter()
    waiting: list[Node] = [total.grad_fn] if total.grad_fn is not None else []
    seen = set(waiting)
    while waiting:
        for node, _ in waiting.pop().next_functions:
            if node is None:
                continue
            variable = getattr(node, "variable", None)
            if variable is not None:
                count[id(variable)] += id(variable) in wanted
            elif node not in seen:
                seen.add(node)
                waiting.append(node)
    return +count

