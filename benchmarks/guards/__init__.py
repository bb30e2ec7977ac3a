"""Tests that fail when a step does more than it used to: `make bench-guards`."""
