import pytest
import torch

from benchmarks.quality import sampling
from benchmarks.quality.sampling import Samples


def test_generators_differ_by_every_number_of_their_path():
    paths = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 15), (0, 1, 5), (15,)]
    draws = {path: torch.randint(2**62, (1,), generator=sampling.generator(*path)).item() for path in paths}
    assert len(set(draws.values())) == len(paths)


def test_mini_batches_take_from_each_source_and_repeat_nothing_in_a_step():
    sources = [Samples(torch.arange(10.0) + 100 * i, torch.full((10,), i)) for i in range(3)]
    batches = sampling.mini_batches(sources, 4, seed=0, mixed=False)(5)
    assert [set(b.targets.tolist()) for b in batches] == [{0}, {1}, {2}]
    assert all(len(set(b.inputs.tolist())) == 4 for b in batches)
    drawn = [
        [b.targets[0].item() for b in sampling.mini_batches(sources, 4, 0, False, drawn=2)(step)] for step in range(8)
    ]
    assert {len(set(chosen)) for chosen in drawn} == {2}
    assert {i for chosen in drawn for i in chosen} == {0, 1, 2}


def test_flipped_labels_are_all_wrong_and_as_many_as_said():
    targets = torch.arange(100) % 5
    flipped = sampling.flip(targets, 0.3, 5, torch.Generator().manual_seed(0))
    assert int((flipped != targets).sum()) == 30
    assert set(flipped.tolist()) == set(range(5))
    assert torch.equal(targets, torch.arange(100) % 5)


def test_sets_that_cannot_be_filled_are_refused():
    with pytest.raises(ValueError, match="expected at least 8 rows"):
        sampling.without_overlap([str(i) for i in range(10)], (4, 8), torch.Generator())


def test_accuracy_is_in_evaluation_mode():
    model = torch.nn.Sequential(torch.nn.Dropout(1.0), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(2))
        model[1].bias.zero_()
    samples = Samples(torch.eye(2), torch.tensor([0, 1]))
    assert sampling.accuracies({"test": samples})(model) == {"test": 1.0}
    assert model[0].training
