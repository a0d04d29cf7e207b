"""Muon against its definition: singular vectors kept, singular values brought near one."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sfumato.training.muon import QUINTIC, Muon, is_hidden_convolution, orthogonalise
from sfumato.training.optimizer import Adam


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3), nn.Conv2d(32, 16, 1), nn.Conv2d(16, 3, 3)
    )


def push(net: nn.Module, seed: int) -> None:
    for index, p in enumerate(net.parameters()):
        p.grad = random(*p.shape, seed=100 * seed + index).to(p)


SHAPES = [(16, 144), (144, 16), (32, 32), (16, 48), (32, 288)]


def iterated(matrix: torch.Tensor) -> torch.Tensor:
    """The quintic as it is defined, on singular values, five times."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        a, b, c = QUINTIC
        values = a * values + b * values**3 + c * values**5
    return left @ torch.diag(values) @ right


@pytest.mark.parametrize(("rows", "columns"), [(16, 144), (144, 16), (32, 32)])
def test_singular_vectors_stay_and_values_come_near_one(rows: int, columns: int) -> None:
    matrices = random(2, rows, columns)
    (made,) = orthogonalise([matrices], 5)
    torch.testing.assert_close(made, torch.stack([iterated(m) for m in matrices]))
    if rows != columns:  # a square one has singular values too small for five iterations
        values = torch.linalg.svdvals(made)
        assert 0.6 < float(values.min()) <= float(values.max()) < 1.3


def test_the_size_of_a_gradient_does_not_matter_to_a_matrix() -> None:
    matrices = random(1, 16, 144)
    torch.testing.assert_close(orthogonalise([matrices], 5), orthogonalise([1e-4 * matrices], 5))


def test_matrices_of_all_shapes_are_treated_as_each_by_itself() -> None:
    stacks = [random(n, *shape, seed=n) for n, shape in enumerate(SHAPES, 1)]
    for made, alone in zip(orthogonalise(stacks, 5), stacks, strict=True):
        for one, matrix in zip(made, alone, strict=True):
            torch.testing.assert_close(one, iterated(matrix))


def test_float32_is_enough_for_matrices_of_nearly_dependent_rows() -> None:
    left, right = (torch.linalg.qr(random(80, 80, seed=s))[0] for s in (1, 2))
    for digits in (2, 4, 8):
        matrix = left @ torch.diag(10 ** torch.linspace(0, -digits, 80).double()) @ right
        (made,) = orthogonalise([matrix.float()[None]], 5)
        # The iterations themselves leave singular values 0.3 from 1.
        assert torch.linalg.matrix_norm(made[0].double() - iterated(matrix), 2) < 3e-3


def test_only_convolutions_between_features_are_matrices() -> None:
    net = network()
    hidden = [name for name, p in net.named_parameters() if is_hidden_convolution(p)]
    assert hidden == ["1.weight", "2.weight"]


def test_others_move_as_adam_moves_them_and_matrices_along_their_momentum() -> None:
    ours = network()
    theirs = copy.deepcopy(ours)
    rule = Muon(matrix_rate=4.0, momentum=0.9, betas=(0.9, 0.99))
    muon, adam = rule.over(ours), Adam(betas=(0.9, 0.99)).over(theirs)
    weight = ours[2].weight  # 16 x 32: columns more than rows
    momentum = torch.zeros_like(weight)
    for step in range(1, 4):
        for net, optimizer in ((ours, muon), (theirs, adam)):
            push(net, step)
            optimizer.param_groups[0]["lr"] = 0.01
        gradient = weight.grad
        assert gradient is not None
        momentum = 0.9 * momentum + 0.1 * gradient
        ahead = (0.1 * gradient + 0.9 * momentum).reshape(1, 16, 32)
        expected = weight.detach() - 0.04 * orthogonalise([ahead], 5)[0].reshape(weight.shape)
        muon.step()
        adam.step()
        torch.testing.assert_close(weight.detach(), expected)
    for index, name in ((0, "weight"), (0, "bias"), (1, "bias"), (3, "weight")):
        mine, other = getattr(ours[index], name), getattr(theirs[index], name)
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(ours[1].weight, theirs[1].weight, atol=1e-3)


def test_a_tall_matrix_moves_further_by_the_root_of_its_proportions() -> None:
    torch.manual_seed(0)
    net = nn.Conv2d(16, 64, 1, bias=False)
    before = net.weight.detach().clone()
    optimizer = Muon(matrix_rate=1.0).over(net)
    optimizer.param_groups[0]["lr"] = 1.0
    push(net, 1)
    optimizer.step()
    moved = torch.linalg.svdvals((net.weight.detach() - before).reshape(64, 16))
    assert 2 * 0.6 < float(moved.min()) <= float(moved.max()) < 2 * 1.3


def test_it_goes_on_from_its_state_to_the_bit() -> None:
    whole, parted = network(), network()
    one, two = Muon().over(whole), Muon().over(parted)
    for step in range(4):
        if step == 2:
            saved = copy.deepcopy(two.state_dict())
            two = Muon().over(parted)
            two.load_state_dict(saved)
        for net, optimizer in ((whole, one), (parted, two)):
            push(net, step)
            optimizer.param_groups[0]["lr"] = 0.01
            optimizer.step()
    for a, b in zip(whole.parameters(), parted.parameters(), strict=True):
        assert torch.equal(a, b)
