"""Optimizers work as ever, and PyTorch's compiler stays unloaded."""

import subprocess
import sys

import torch

from fedimaging.training.lean_optimizer import step

_SCRIPT = """
import sys
import torch
from fedimaging.training.lean_optimizer import step, without_compiler
without_compiler()
without_compiler()
w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
optimizer = torch.optim.SGD([w], lr=0.5, momentum=0.9, foreach=True)
for _ in range(2):
    optimizer.zero_grad()
    (w * w).sum().backward()
    step(optimizer)
again = torch.optim.SGD([w], lr=0.1)
again.load_state_dict(optimizer.state_dict())
assert again.param_groups[0]["lr"] == 0.5
# w: 1 -> 1 - .5*2 = 0; momentum .9*2 + 0 = 1.8 -> -0.9; twice that for the second
assert torch.allclose(w.detach(), torch.tensor([-0.9, -1.8])), w
assert "torch._dynamo" not in sys.modules
"""


def test_a_lean_step_is_pytorchs_step_bit_for_bit() -> None:
    for make in (
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01, foreach=True),
        lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01, foreach=True),
    ):
        ours, theirs = ([torch.nn.Parameter(torch.arange(1.0, 6.0))] for _ in range(2))
        optimizers = make(ours), make(theirs)
        for _ in range(3):
            for parameters in (ours, theirs):
                parameters[0].grad = parameters[0].detach().cos()
            step(optimizers[0])
            optimizers[1].step()
        assert torch.equal(ours[0], theirs[0])
        assert not torch.equal(ours[0].detach(), torch.arange(1.0, 6.0))


def test_steps_and_state_without_the_compiler() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
