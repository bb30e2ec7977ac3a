"""Made-up records of the demo."""

from gradalign.cli.demo.record import run_record
from gradalign.cli.demo.reviews.record import summary

SETTINGS = {
    "model": "bert-tiny",
    "data": "Rotten Tomatoes snippets",
    "objective": "dot",
    "weight": 0.001,
    "normalize": "direction",
    "label_noise": 0.0,
    "train_size": 100,
    "test_size": 50,
    "k": 8,
    "batch": 4,
    "device": "cpu",
}


def curve(losses, seconds, accuracies, dot):
    alignment = {"dot": dot, "cosine": dot / 10, "grad_norm": 1.0, "noise_scale": 2.0}
    return {"losses": losses, "seconds": seconds, "accuracies": accuracies, "alignment": alignment}


def seed(number, gain):
    """Two steps of both arms, one further step of AdamW; gradalign's accuracy is `gain` above AdamW's 0.6."""
    return {
        "seed": number,
        "steps": 2,
        "further_adamw_steps": 1,
        "cost_factor": 1.25,
        "data": {"train": 100, "test": 50},
        "alignment_before": {"dot": 1.0, "cosine": 0.5, "grad_norm": 1.0, "noise_scale": 2.0},
        "adamw": curve([0.7, 0.5, 0.4], [0.1, 0.3, 0.1], [(1, 0.5), (2, 0.6), (3, 0.65)], dot=2.0),
        "gradalign": curve([0.7, 0.6], [0.2, 0.4], [(1, 0.5), (2, 0.6 + gain)], dot=3.0),
    }


def record(*gains):
    """A run with one seed per gain in accuracy."""
    seeds = [seed(i, gain) for i, gain in enumerate(gains)]
    memory = {"adamw": 2**20, "gradalign": 3 * 2**20}
    results = {"backend": "reference", "peak_memory_bytes": memory, "seeds": seeds, "summary": summary(seeds)}
    return run_record(SETTINGS, results, 12.34)
