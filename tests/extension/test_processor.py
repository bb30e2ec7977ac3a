"""Which instruction sets are compiled for at first use."""

from __future__ import annotations

import platform
import re

import pytest

from gradalign.backends import native
from gradalign.extension import library, processor

AVX2 = "fpu sse2 avx avx2 fma f16c"
AVX512 = f"{AVX2} avx512f avx512dq avx512bw avx512vl"


def compiled(binary):
    return [unit.object for unit in binary.units if unit.source == "cpu/kernels.cpp"]


@pytest.fixture
def x86(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")


@pytest.mark.parametrize(
    ("flags", "sets"),
    [
        ("fpu sse2", ("portable",)),
        ("fpu avx avx2", ("portable",)),
        ("fpu avx avx2 fma", ("portable",)),  # a virtual machine that hides f16c
        (AVX512.replace("f16c ", ""), ("portable",)),
        (AVX512.replace("fma ", ""), ("portable",)),
        (AVX2, ("avx2", "portable")),
        (f"{AVX2} avx512f", ("avx2", "portable")),
        (AVX512, ("avx512", "avx2", "portable")),
    ],
)
def test_sets_of_a_processor(x86, tmp_path, flags, sets):
    file = tmp_path / "cpuinfo"
    file.write_text(f"processor\t: 0\nmodel name\t: any\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert processor.instruction_sets(str(file)) == sets


def switches(isa):
    """What the compiler may use for a set: its switches but for the width that it should prefer."""
    given = library.INSTRUCTION_SETS[isa].split()
    return {switch.removeprefix("-m") for switch in given if not switch.startswith("-mprefer-")}


def test_everything_that_kernels_are_compiled_with_is_asked_of_the_processor():
    assert set(library.INSTRUCTION_SETS) == set(processor.FLAGS)
    for isa, flags in processor.FLAGS.items():
        assert switches(isa) <= set(flags), isa


def test_the_kernels_ask_for_the_same_when_they_are_loaded():
    text = (library.sources() / "cpu" / "choose.h").read_text()
    asked = {"portable": set()}
    for isa, body in re.findall(r"inline bool has_(avx\w+)\(\) {(.*?)\n}", text, re.DOTALL):
        asked[isa] = set(re.findall(r'__builtin_cpu_supports\("(\w+)"\)', body)) | set(
            re.findall(r"has_(f16c)\(", body)
        )
        asked[isa] |= asked["avx2"] if "has_avx2()" in body else set()
    assert asked == {isa: set(flags) for isa, flags in processor.FLAGS.items()}
    for isa in ("avx512", "avx2"):
        assert f'if (has_{isa}() && chosen("{isa}", &kernels_{isa})) return kernels_{isa};' in text


def test_a_system_that_does_not_say_has_all_compiled(x86, tmp_path, monkeypatch):
    assert processor.instruction_sets(str(tmp_path / "none")) is None
    (tmp_path / "other").write_text("cpu : any\n")
    assert processor.instruction_sets(str(tmp_path / "other")) is None
    monkeypatch.setattr(processor, "instruction_sets", lambda: None)
    assert compiled(library.cpu_here()) == compiled(library.cpu())
    assert len(compiled(library.cpu())) == len(library.INSTRUCTION_SETS)


def test_other_architectures_have_one_set(monkeypatch):
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor.instruction_sets() == ("portable",)
    assert compiled(library.cpu_here()) == compiled(library.cpu()) == ["kernels_portable.o"]


@pytest.mark.parametrize(
    ("named", "isa"), [(None, "avx512"), ("", "avx512"), ("avx2", "avx2"), ("portable", "portable"), ("sse9", "avx512")]
)
def test_first_use_compiles_the_set_that_will_run(x86, monkeypatch, named, isa):
    monkeypatch.setattr(processor, "instruction_sets", lambda: tuple(processor.FLAGS))
    monkeypatch.delenv("GRADALIGN_CPU_ISA", raising=False)
    if named is not None:
        monkeypatch.setenv("GRADALIGN_CPU_ISA", named)
    assert compiled(library.cpu_here()) == [f"kernels_{isa}.o"]


def test_machines_with_other_sets_share_a_cache(x86):
    assert len({library.cpu([isa]).key("g++ 12") for isa in library.INSTRUCTION_SETS}) == 3


def test_what_runs_here_is_what_was_compiled():
    if native.why_unavailable() is not None:
        pytest.skip("no C++ compiler")
    assert f"kernels_{native.cpu_isa()}.o" in compiled(library.cpu_here())
