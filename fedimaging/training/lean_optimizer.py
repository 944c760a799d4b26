"""Use PyTorch's optimizers without loading its compiler.

Some methods of every optimizer are wrapped for torch.compile's sake; the first call of one imports the whole compiler
(seconds, in each worker process) to learn that there is nothing to compile. Nothing here compiles an optimizer, so the
plain methods inside the wrappers are called; the numbers are the same.
"""

import inspect

import torch
from torch.optim import Optimizer

_MARK = "__dynamo_disable"  # where torch._compile keeps the uncompiled form of a function once it has made it


def without_compiler() -> None:
    """Make optimizers lean from here on, in this process. Calling it again changes nothing."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        plain = getattr(getattr(Optimizer, name), "__wrapped__", None)
        if plain is not None and not hasattr(plain, _MARK):
            setattr(plain, _MARK, plain)


def step(optimizer: Optimizer) -> None:
    """`optimizer.step()`, without the hooks and profiler ranges around it."""
    with torch.no_grad():
        inspect.unwrap(type(optimizer).step)(optimizer)
