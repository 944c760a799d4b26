"""What happened inside a model in one forward pass: each use of a layer that trains, and a proof that none is missing."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from fedimaging.privacy.clipping.batch import Unsupported
from fedimaging.privacy.clipping.layers import Rule, rule_for


@dataclass(frozen=True)
class Use:
    """One call of a layer: its input, and the place in the graph where the gradient of its output arrives.

    The place is noted when the call returns, so a later in-place change of the output does not move it.
    """

    layer: nn.Module
    rule: Rule
    a: Tensor
    version: int
    edge: GradientEdge

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The layer's own parameters that train."""
        return ((n, p) for n, p in self.layer.named_parameters(recurse=False) if p.requires_grad)


@dataclass
class Tape:
    """The uses of one forward pass, in order."""

    uses: list[Use] = field(default_factory=list)

    def gradients(self, total: Tensor) -> list[tuple[Use, Tensor]]:
        """The gradient at each use's output. Raises Unsupported where a parameter's use was not seen as such."""
        edges = [use.edge for use in self.uses]
        found = torch.autograd.grad(total, edges, allow_unused=True)
        reached = [(use, g) for use, g in zip(self.uses, found, strict=True) if g is not None]
        seen = Counter(id(p) for use, _ in reached for _, p in use.parameters())
        if seen != _uses_in_graph(total, {id(p) for use in self.uses for _, p in use.parameters()}):
            raise Unsupported("a trainable parameter is used outside its own layer; take engine 'loop' or 'vmap'.")
        for use, g in reached:
            if use.a._version != use.version:
                raise Unsupported("a layer's input is changed in place after use; take engine 'loop' or 'vmap'.")
            if g.is_floating_point() and g.dtype != next(iter(use.parameters()))[1].dtype:
                raise Unsupported("activations and parameters differ in type; take engine 'loop' or 'vmap'.")
        return reached


def known_layers(model: nn.Module) -> dict[nn.Module, Rule]:
    """Every layer that owns a trainable parameter, with its rule. Raises Unsupported for a layer without one."""
    found = {}
    for name, layer in model.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        rule = rule_for(layer) if own else None
        if own and rule is None:
            raise Unsupported(
                f"layer {name or 'model'!r} ({type(layer).__name__}) trains parameters in a way that engine 'fused' "
                "does not know; take engine 'loop' or 'vmap'."
            )
        if rule is not None:
            found[layer] = rule
    return found


@contextmanager
def recording(model: nn.Module, scans: int) -> Iterator[Tape]:
    """Record the uses of trainable layers in a forward pass over `scans` scans."""
    tape = Tape()

    def note(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        a = inputs[0]
        if not output.requires_grad or len(a) != scans or len(output) != scans:
            raise Unsupported(
                f"a {type(layer).__name__} is used without gradient, or on rows that are not scans; take engine "
                "'loop' or 'vmap'."
            )
        tape.uses.append(Use(layer, layers[layer], a.detach(), a._version, get_gradient_edge(output)))

    layers = known_layers(model)
    handles = [layer.register_forward_hook(note) for layer in layers]
    try:
        yield tape
    finally:
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

