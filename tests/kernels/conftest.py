"""The interpreter and the offline compiles each need a process of their own: `test_suites.py` starts them."""

import os

collect_ignore = [
    *(["interpreted"] if os.environ.get("TRITON_INTERPRET") != "1" else []),
    *(["compiled"] if os.environ.get("GRADALIGN_COMPILE_GATES") != "1" else []),
]
