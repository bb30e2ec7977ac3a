"""Wrong labels: 40% of 1,000 images of MNIST or Fashion-MNIST, 30% of 1,000 film reviews."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.nn.functional import avg_pool2d

from benchmarks.quality import archives
from benchmarks.quality.sampling import (
    Samples,
    accuracies,
    classification_loss,
    flip,
    generator,
    mlp,
    seeded,
    without_overlap,
)
from benchmarks.quality.task import Problem, Task
from gradalign.cli.workload import assets
from gradalign.cli.workload.data import rotten_tomatoes
from gradalign.cli.workload.features import features

MICRO_BATCHES = 4
REVIEWS = 5000  # snippets that any seed can draw


class Sizes(NamedTuple):
    """Samples of each set."""

    train: int = 1000
    source_validation: int = 500
    validation: int = 1000
    test: int = 2000


def problem(
    pool: Samples, documents: list[str], seed: int, fraction: float, hidden: int, num_classes: int, sizes: Sizes
) -> Problem:
    """Labels of the training set and of `source_validation` are wrong in a fraction; a perceptron on the full batch.

    Args:
        pool: what is drawn from, with the right labels.
        documents: no document is in two sets.
        seed: of the problem.
        fraction: that is wrong.
        hidden: width of the hidden layer.
        num_classes: of the labels.
        sizes: of the sets.
    """
    rows = without_overlap(documents, (*sizes[1:], sizes.train), generator(seed, 2))
    source_validation, validation, test, train = (pool.rows(index) for index in rows)
    center, scale = train.inputs.mean(0), train.inputs.std()  # one scale for all: a pixel that is always black stays so

    def ready(samples: Samples) -> Samples:
        return Samples((samples.inputs - center) / scale, samples.targets)

    def noisy(samples: Samples, place: int) -> Samples:
        return ready(samples)._replace(targets=flip(samples.targets, fraction, num_classes, generator(seed, 3, place)))

    training = noisy(train, 0)
    batches = [training.rows(index) for index in torch.arange(sizes.train).chunk(MICRO_BATCHES)]
    with seeded(seed):
        model = mlp(pool.inputs.shape[1], hidden, num_classes)
    return Problem(
        model=model,
        loss_fn=classification_loss,
        micro_batches=lambda step: batches,
        sources=None,
        evaluate=accuracies(
            {"validation": ready(validation), "source_validation": noisy(source_validation, 1), "test": ready(test)}
        ),
    )


def image_problem(images: archives.Images, seed: int, fraction: float, sizes: Sizes) -> Problem:
    """Ten classes of images at 14 x 14 pixels."""
    # A seed needs few of the 70,000 images of Fashion-MNIST.
    index = torch.randperm(len(images.labels), generator=generator(seed, 1))[: sum(sizes)]
    pixels = avg_pool2d(images.pixels[index].float() / 255, 2).flatten(1)
    each = [str(i) for i in range(len(index))]
    return problem(Samples(pixels, images.labels[index]), each, seed, fraction, 64, 10, sizes)


def noise_mnist(seed: int, mixed: bool) -> Problem:
    """40% of MNIST."""
    return image_problem(archives.mnist_5k(), seed, 0.4, Sizes())


def noise_fashion(seed: int, mixed: bool) -> Problem:
    """40% of Fashion-MNIST."""
    return image_problem(archives.fashion_mnist(), seed, 0.4, Sizes())


@lru_cache(maxsize=1)
def reviews() -> tuple[Samples, list[str]]:
    """Features of snippets, whether each is fresh or rotten, and the film of each."""
    snippets = rotten_tomatoes(assets.locate("rotten-tomatoes")).snippets
    order = torch.randperm(len(snippets), generator=generator(0))[:REVIEWS].tolist()
    chosen = [snippets[i] for i in order]
    labels = torch.tensor([s.label for s in chosen])
    written = [s.text for s in chosen]
    return Samples(features(written).of(written), labels), [s.group for s in chosen]


def noise_reviews(seed: int, mixed: bool) -> Problem:
    """30% of Rotten Tomatoes, no film in two sets."""
    return problem(*reviews(), seed, 0.3, 64, 2, Sizes())


def task(name: str, title: str, problem: Callable[[int, bool], Problem], every: int) -> Task:
    """A task of 12 evaluations, every so many steps."""
    return Task(
        name=name,
        title=title,
        problem=problem,
        has_sources=False,
        optimizer="adamw",
        lrs=(1e-4, 2e-3),
        steps=12 * every,
        evaluate_every=every,
        ramp=12 * every // 5,
    )


TASKS = (
    task(
        "noise-mnist",
        "MNIST, 1,000 digits, 40% wrong labels; perceptron, full batch in 4 micro-batches, AdamW",
        noise_mnist,
        10,
    ),
    task(
        "noise-fashion",
        "Fashion-MNIST, 1,000 images, 40% wrong labels; perceptron, full batch in 4 micro-batches, AdamW",
        noise_fashion,
        10,
    ),
    task(
        "noise-reviews",
        "Rotten Tomatoes, 1,000 snippets, 30% wrong labels; perceptron on frozen MiniLM, full batch in 4, AdamW",
        noise_reviews,
        5,
    ),
)
