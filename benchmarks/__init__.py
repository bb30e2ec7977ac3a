"""What gradalign costs, beside what one could do instead."""
