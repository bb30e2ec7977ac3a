"""What `demo`, `tune` and the benchmarks train: small pretrained text encoders on film reviews or your own texts."""
