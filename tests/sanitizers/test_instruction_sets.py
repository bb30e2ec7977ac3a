"""`make sanitize` on a processor that lacks an instruction set."""

from __future__ import annotations

import pytest
from support import sanitizer

from gradalign.extension import library


@pytest.fixture
def driver(tmp_path):
    """Builds a stand-in for the driver, whose processor has what is given."""

    def build(*sets):
        path = tmp_path / "driver"
        lines = [f'[ "$GRADALIGN_CPU_ISA" = {isa} ] && echo "{isa}: no complaint" && exit 0' for isa in sets]
        refusal = "echo 'what():  GRADALIGN_CPU_ISA: expected avx2 or portable, set before; got x' >&2; exit 134"
        path.write_text("\n".join(["#!/bin/sh", *lines, refusal, ""]))
        path.chmod(0o755)
        return str(tmp_path)

    return build


def test_without_avx512_the_other_sets_run(driver):
    folder = driver("portable", "avx2")
    assert sanitizer.run_driver(folder, list(library.INSTRUCTION_SETS), named=False) == (
        "portable: no complaint\navx2: no complaint\navx512: left out, this processor does not have it\n"
    )


def test_a_set_that_is_asked_for_by_name_is_not_left_out(driver):
    with pytest.raises(RuntimeError, match="GRADALIGN_CPU_ISA: expected avx2 or portable"):
        sanitizer.run_driver(driver("portable"), ["avx512"], named=True)


def test_a_complaint_is_not_taken_for_a_missing_set(tmp_path):
    path = tmp_path / "driver"
    path.write_text("#!/bin/sh\necho 'ERROR: AddressSanitizer: heap-buffer-overflow'; exit 1\n")
    path.chmod(0o755)
    with pytest.raises(RuntimeError, match="heap-buffer-overflow"):
        sanitizer.run_driver(str(tmp_path), ["portable"], named=False)
