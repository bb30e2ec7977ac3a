"""The command line: `gradalign demo` and `gradalign doctor`."""
