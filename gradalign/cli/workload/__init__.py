"""What `demo`, `tune` and the benchmarks train: film reviews, and small pretrained models."""
