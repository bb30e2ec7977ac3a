from __future__ import annotations

import pytest

pytest.register_assert_rewrite("support.op_cases", "support.step_cases")
