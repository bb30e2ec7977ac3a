"""Build, test, measure and sanitize on a machine with a GPU, and report it, in less than 9 minutes.

`make gpu` or `python -m benchmarks.gpu.report [--out gpu-report] [--minutes 9] [--skip STAGE ...]`. Uses the Python that runs
it, with the torch that is there; installs and downloads nothing. Writes report.json, report.md and report.png (where there is
matplotlib), and the suite's table to suite/. Exit status: 0 everything passed, 1 a stage failed or found no time, 2 bad
arguments, 3 no GPU (after building and collecting the tests).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu.summary import draw, markdown, targets

SANITIZERS = ("memcheck", "racecheck", "initcheck")
STAGES = ("build", "collect", "tests", "benchmark", "suite", *SANITIZERS)
# Seconds that a stage may take at most. Together they are more than there is, since few take their limit.
LIMITS = {"build": 120, "collect": 60, "tests": 120, "benchmark": 190, "suite": 75, **dict.fromkeys(SANITIZERS, 60)}
# Of the benchmark's time: what each half measures for, and what the ops may take with their compiles, which nothing has cached.
MEASURING, OPS = 0.15, 0.6
NO_DEVICE = 3
NO_TIME = "no time left"
PACKAGE = ROOT / "build" / "gpu"
SUITE_WORKLOAD = "mlp-1e8"  # of the suite `gpu`: the largest that needs no texts and takes a minute


@dataclass
class Stage:
    """How one stage ended."""

    name: str
    status: str  # "passed", "failed", "skipped"
    seconds: float = 0.0
    summary: str = ""
    log: str = ""


@dataclass
class Run:
    """The whole run so far."""

    out: Path
    deadline: float
    skip: tuple[str, ...]
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, work: Callable[[float], tuple[bool, str]], reserve: float = 0.0) -> Stage:
        """Runs one stage within its limit and what is left of the time, less a reserve for later stages."""
        left = min(LIMITS[name], self.deadline - time.monotonic() - reserve)
        if name in self.skip or left < 5:
            done = Stage(name, "skipped", summary="asked for" if name in self.skip else NO_TIME)
        else:
            print(f"{name} ...", flush=True)
            start = time.monotonic()
            passed, text = work(left)
            summary = next((line for line in reversed(text.splitlines()) if line.strip()), "")
            log = self.out / f"{name}.log"
            log.write_text(text)
            done = Stage(name, "passed" if passed else "failed", time.monotonic() - start, summary.strip(), log.name)
        self.stages.append(done)
        print(f"{name}: {done.status} in {done.seconds:.0f} s: {done.summary}", flush=True)
        return done


def make_package(folder: Path) -> None:
    """The package as it would be installed, and the benchmarks beside it, by links.

    In a checkout `kernels/` and `csrc/` are outside of the package. The root itself must not be on the path: other packages
    look for a package named `kernels`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    package = folder / "gradalign"
    package.mkdir(parents=True)
    inside = [path for path in (ROOT / "gradalign").iterdir() if path.name != "__pycache__"]
    for path in (*inside, ROOT / "kernels", ROOT / "csrc"):
        (package / path.name).symlink_to(path)
    (folder / "benchmarks").symlink_to(ROOT / "benchmarks")


def execute(command: list[str], seconds: float, **environment: str) -> tuple[int, str]:
    """Exit status and output; 124 where it ran out of time."""
    path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
    settings = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1", **environment}  # safe: without the root
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=settings,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # a sanitizer's child too: it would go on using the GPU
            output, _ = process.communicate()
            return 124, f"{output}\nstopped after {seconds:.0f} s"
    return process.returncode, output


def build(seconds: float) -> tuple[bool, str]:
    """Both binaries, for the GPUs here, or for all default architectures where there is none."""
    code = (
        "import torch; from gradalign.extension import cuda, ensure, library; "
        "present = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]; "
        "print(ensure(library.cpu_here())); print(ensure(cuda.cuda(cuda.architectures(present))))"
    )
    status, text = execute([sys.executable, "-c", code], seconds)
    return status == 0, text


def gpu_tests() -> list[str]:
    """The files with tests that need a GPU, by their own mark or that of the conftest beside them.

    Others may import what a bare machine lacks.
    """

    def marked(path: Path) -> bool:
        return path.is_file() and "pytest.mark.gpu" in path.read_text()

    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(p.relative_to(ROOT)) for p in files if marked(p) or marked(p.with_name("conftest.py"))]


def collect(seconds: float) -> tuple[bool, str]:
    """Which tests would run."""
    status, text = execute([sys.executable, "-m", "pytest", "-m", "gpu", "--collect-only", "-q", *gpu_tests()], seconds)
    return status == 0, text


def tests(seconds: float) -> tuple[bool, str]:
    """Every test that needs a GPU."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", *gpu_tests()]
    command += ["--continue-on-collection-errors"]
    status, text = execute(command, seconds)
    return status == 0, text


def sanitizer(tool: str) -> Callable[[float], tuple[bool, str]]:
    """compute-sanitizer over a small program that runs every kernel."""

    def work(seconds: float) -> tuple[bool, str]:
        found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if found is None:
            return False, "compute-sanitizer is missing; it comes with the CUDA toolkit"
        # Failing API calls are torch's own probes; ours are checked, and raise.
        options = [
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            *(["--report-api-errors", "no"] if tool == "memcheck" else []),
        ]
        command = [found, *options, sys.executable, "-m", "benchmarks.gpu.driver"]
        status, text = execute(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        errors = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", text)
        clean = status == 0 and "ops ran" in text and all(n == "0" for n in errors)
        return clean, text

    return work


def benchmark(out: Path, quick: bool) -> Callable[[float], tuple[bool, str]]:
    """Ops and optimizer steps beside torch's, into measured.json."""

    def work(seconds: float) -> tuple[bool, str]:
        rows, text, status = [], "", 0
        deadline = time.monotonic() + seconds
        for name in ("ops", "optimizers"):
            path = out / f"{name}.json"
            command = [sys.executable, "-m", f"benchmarks.kernels.{name}", "--device", "cuda", "--json", str(path)]
            command += ["--seconds", str(seconds * MEASURING), *(["--quick"] if quick else [])]
            last = name == "optimizers"
            failed, output = execute(command, max(1.0, deadline - time.monotonic() if last else seconds * OPS))
            text += output
            status = status or failed
            if path.is_file():
                rows += json.loads(path.read_text())["rows"]
                path.unlink()
        (out / "measured.json").write_text(json.dumps(rows))
        return status == 0, text

    return work


def suite(out: Path) -> Callable[[float], tuple[bool, str]]:
    """Whole steps of gradalign and its alternatives: what of the suite `gpu` needs no texts, into suite/."""

    def work(seconds: float) -> tuple[bool, str]:
        folder = out / "suite"
        command = [sys.executable, "-m", "benchmarks", "--suite", "gpu", "--only", SUITE_WORKLOAD, "--fresh"]
        command += ["--no-figures", "--out", str(folder), "--minutes", str(max(seconds - 15, 1) / 60)]
        status, text = execute(command, seconds)
        found = folder / "gpu.json"
        rows = json.loads(found.read_text())["rows"] if status == 0 and found.is_file() else []
        return bool(rows) and all(row["status"] == "ok" for row in rows), text

    return work


def environment() -> dict[str, object]:
    """Versions, without importing torch into this process."""
    versions: dict[str, object] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("torch", "triton", "numpy"):
        spec = importlib.util.find_spec(name)
        try:
            versions[name] = importlib.metadata.version(name) if spec is not None else None
        except importlib.metadata.PackageNotFoundError:  # a build under another name
            versions[name] = "there"
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    status, text = execute([nvcc, "--version"], 20) if nvcc else (1, "")
    versions["nvcc"] = text.strip().splitlines()[-1] if status == 0 else None
    return versions


def device_count() -> int:
    """GPUs that torch can use."""
    status, text = execute([sys.executable, "-c", "import torch; print(torch.cuda.device_count())"], 120)
    return int(text.strip().splitlines()[-1]) if status == 0 else 0


def report(run: Run, versions: dict[str, object]) -> None:
    """report.json, report.md and, with matplotlib, report.png."""
    measured = run.out / "measured.json"
    rows = json.loads(measured.read_text()) if measured.is_file() else []
    found = {"environment": versions, "stages": [asdict(s) for s in run.stages], "rows": rows}
    found["targets"] = [asdict(target) for target in targets(rows)]
    (run.out / "report.json").write_text(json.dumps(found, indent=1))
    picture = draw(rows, run.out / "report.png")
    (run.out / "report.md").write_text(markdown(found, picture))
    print(f"report in {run.out}{'' if picture else '; no report.png: matplotlib is missing or nothing was measured'}")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "gpu-report", help="where the report goes")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all stages together")
    parser.add_argument(
        "--skip", nargs="+", choices=STAGES, default=[], metavar="STAGE", help=f"of {', '.join(STAGES)}"
    )
    parser.add_argument("--quick", action="store_true", help="small benchmarks")
    chosen = parser.parse_args(argv)
    if chosen.minutes <= 0:
        parser.error(f"--minutes: expected more than 0; got {chosen.minutes}")
    return chosen


def main(argv: list[str] | None = None) -> int:
    chosen = arguments(argv)
    if importlib.util.find_spec("torch") is None:
        print(f"{sys.executable} has no torch; run with the Python that has: make gpu PYTHON=...", file=sys.stderr)
        return 2
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "measured.json").unlink(missing_ok=True)
    make_package(PACKAGE)
    run = Run(out, time.monotonic() + 60 * chosen.minutes - 20, tuple(chosen.skip))
    versions = environment()
    run.stage("build", build)
    if device_count() == 0:
        run.stage("collect", collect)
        report(run, versions)
        print("no GPU that torch can use: nothing was tested, sanitized or measured", file=sys.stderr)
        return NO_DEVICE if all(stage.status != "failed" for stage in run.stages) else 1
    run.stage("tests", tests)
    run.stage("benchmark", benchmark(out, chosen.quick))
    run.stage("suite", suite(out), reserve=LIMITS[SANITIZERS[0]])
    for tool in SANITIZERS:
        run.stage(tool, sanitizer(tool))
    report(run, versions)
    return 1 if any(stage.status == "failed" or stage.summary == NO_TIME for stage in run.stages) else 0


if __name__ == "__main__":
    sys.exit(main())
