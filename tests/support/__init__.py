"""What several tests share: models and cases, what is to be expected of them, and how a result is compared with it."""
