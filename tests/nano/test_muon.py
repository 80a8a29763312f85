import pytest
import torch

from sparkles.nano.muon import BatchedMuon, orthogonalize


def random_matrices(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(3, 16, 16), (3, 8, 32), (3, 32, 8)])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, ...]) -> None:
    matrices = random_matrices(*shape)
    result = orthogonalize(matrices)
    values = torch.linalg.svdvals(result)
    assert 0.5 < values.min() <= values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    assert torch.nn.functional.cosine_similarity(result.flatten(), (u @ vh).flatten(), dim=0) > 0.95


def test_matrices_do_not_influence_each_other_nor_does_their_scale() -> None:
    matrices = random_matrices(4, 6, 10)
    together = orthogonalize(matrices)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(orthogonalize(100 * matrices), together)
    torch.testing.assert_close(orthogonalize(matrices.mT), together.mT)


def test_a_matrix_of_zeros_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


@pytest.mark.parametrize("shape", [(16, 16), (64, 16), (16, 64)])
def test_an_update_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    parameter = torch.nn.Parameter(torch.zeros(shape))
    parameter.grad = random_matrices(*shape) * 1e-3
    BatchedMuon([parameter], lr=0.1).step()
    rms = parameter.detach().pow(2).mean().sqrt().item() / 0.1
    assert rms == pytest.approx(0.2, rel=0.3)  # Moonlight: AdamW's lies between 0.2 and 0.4


def test_weight_decay_is_apart_from_the_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    parameter.grad = torch.zeros(4, 4)
    BatchedMuon([parameter], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.detach(), torch.full((4, 4), 0.95))


def test_a_parameter_without_gradient_is_left_alone() -> None:
    used, unused = (torch.nn.Parameter(random_matrices(4, 4)) for _ in range(2))
    used.grad = torch.ones(4, 4)
    before = unused.detach().clone()
    BatchedMuon([used, unused], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(unused.detach(), before)


def test_it_minimises_and_returns_the_loss_of_its_closure() -> None:
    target = random_matrices(8, 8)
    parameter = torch.nn.Parameter(torch.zeros(8, 8))
    optimizer = BatchedMuon([parameter], lr=0.2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (parameter - target).pow(2).mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(100)]
    assert losses[-1] < 0.1 * losses[0]


def test_momentum_is_part_of_the_state() -> None:
    def run(optimizer: BatchedMuon, parameter: torch.nn.Parameter, gradients: torch.Tensor) -> None:
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()

    gradients = random_matrices(4, 6, 6)
    unbroken = torch.nn.Parameter(torch.zeros(6, 6))
    run(BatchedMuon([unbroken], lr=0.1), unbroken, gradients)
    first = torch.nn.Parameter(torch.zeros(6, 6))
    optimizer = BatchedMuon([first], lr=0.1)
    run(optimizer, first, gradients[:2])
    second = torch.nn.Parameter(first.detach().clone())
    resumed = BatchedMuon([second], lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    run(resumed, second, gradients[2:])
    assert torch.equal(second, unbroken)
