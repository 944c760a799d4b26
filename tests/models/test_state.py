import numpy as np
import pytest
import torch
from torch import nn

from fedimaging.errors import RunError
from fedimaging.models.state import (
    head_parameter_names,
    load_trainable,
    model_fingerprint,
    norm_parameter_names,
    trainable_state,
)


def network() -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[0].bias.requires_grad_(False)
    model.register_buffer("counter", torch.zeros(1))
    return model


def test_only_trainable_tensors_leave_as_copies() -> None:
    model = network()
    state = trainable_state(model)
    assert list(state) == ["0.weight", "1.weight", "1.bias", "2.weight", "2.bias"]
    assert all(v.dtype == np.float32 for v in state.values())
    state["0.weight"][:] = 7
    assert not (model[0].weight == 7).any()


def test_load_copies_in_place() -> None:
    model = network()
    weight = model[2].weight
    load_trainable(model, {k: np.full_like(v, 2.0) for k, v in trainable_state(model).items()})
    assert model[2].weight is weight
    assert weight.tolist() == [[2.0, 2.0, 2.0]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda s: s.pop("2.bias"), "missing 2.bias; not in the model: none"),
        (lambda s: s.update(extra=np.zeros(1, np.float32)), "missing none; not in the model: extra"),
        (lambda s: s.update({f"x{i}": s["2.bias"] for i in range(5)}), "x0, x1, x2 and 2 more"),
        (lambda s: s.update({"2.bias": np.zeros(2, np.float32)}), r"2\.bias is float32 \(2,\), must be float32 \(1,\)"),
        (lambda s: s.update({"2.bias": np.zeros(1)}), r"2\.bias is float64"),
        (lambda s: s.update({"2.bias": np.full(1, np.nan, np.float32)}), "NaN or infinite"),
    ],
)
def test_load_is_all_or_nothing(change: object, says: str) -> None:
    model = network()
    before = trainable_state(model)
    arrays = {k: v + np.float32(1) for k, v in before.items()}
    change(arrays)  # type: ignore[operator]
    with pytest.raises(RunError, match=says):
        load_trainable(model, arrays)
    assert all(np.array_equal(v, before[k]) for k, v in trainable_state(model).items())


def test_fingerprint_follows_the_structure_not_the_values() -> None:
    one, other = network(), network()
    assert model_fingerprint(one) == model_fingerprint(other)
    other[0].bias.requires_grad_(True)
    assert model_fingerprint(one) != model_fingerprint(other)
    assert model_fingerprint(nn.Linear(2, 3)) != model_fingerprint(nn.Linear(3, 2))


def test_names_of_norms_and_head() -> None:
    assert norm_parameter_names(network()) == ("1.weight", "1.bias")
    assert head_parameter_names(network()) == ("2.weight", "2.bias")
