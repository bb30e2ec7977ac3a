"""Build, test, measure and sanitize on a machine with a GPU, and report it, in less than 9 minutes.

`make gpu [OUT=DIR]` or `python -m benchmarks.gpu.report [--out gpu-report] [--minutes 9] [--skip STAGE ...]`. Uses the Python
that runs it, with the torch that is there; installs and downloads nothing. Everything is written to the one folder `--out`:
report.json, report.md and report.png (where there is matplotlib), anew after every stage; a log of each stage; the suite's rows
and table in suite/. To pack it as one file: `tar -czf gpu-report.tar.gz -C DIR .`. Exit status: 0 everything passed, 1 a stage
failed or found no time, 2 bad arguments, 3 no GPU (after building and collecting the tests).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import io
import json
import platform
import re
import shutil
import sys
import time
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import ROOT, json_lines
from benchmarks.gpu import device_tests
from benchmarks.gpu.process import PACKAGE, execute, make_package
from benchmarks.gpu.schedule import NO_TIME, SANITIZERS, SHARES, WITHOUT_GPU, Run, Work
from benchmarks.gpu.summary import draw, markdown, targets

STAGES = tuple(WITHOUT_GPU | SHARES)
# Of the benchmark's time: what each half measures for, and what the ops may take with their compiles, which nothing has cached.
MEASURING, OPS = 0.15, 0.6
NO_DEVICE = 3
SUITE_WORKLOAD = "mlp-1e8"  # of the suite `gpu`: the largest that needs no texts and takes a minute
# Seconds of the suite's time in which no row is begun: the last one may take the 30 of the runner's `GRACE`, a table the rest.
LAST_ROW = 45.0
LEAST_OF_SUITE = 10.0


def build(seconds: float) -> tuple[bool, str]:
    """Both binaries, for the GPUs here, or for all default architectures where there is none."""
    code = (
        "import torch; from gradalign.extension import cuda, ensure, library; "
        "present = [torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())]; "
        "print(ensure(library.cpu_here())); print(ensure(cuda.cuda(cuda.architectures(present))))"
    )
    status, text = execute([sys.executable, "-c", code], seconds)
    return status == 0, text


def sanitizer(tool: str) -> Work:
    """compute-sanitizer over a small program that runs every kernel."""

    def work(seconds: float) -> tuple[bool, str]:
        found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if found is None:
            return False, "compute-sanitizer is missing; it comes with the CUDA toolkit"
        # Failing API calls are torch's own probes; ours are checked, and raise.
        options = ["--tool", tool, "--error-exitcode", "9"]
        options += ["--report-api-errors", "no"] if tool == "memcheck" else []
        command = [found, *options, sys.executable, "-m", "benchmarks.gpu.driver"]
        status, text = execute(command, seconds, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        errors = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): (\d+)", text)
        clean = status == 0 and "ops ran" in text and all(n == "0" for n in errors)
        return clean, text

    return work


def benchmark(out: Path, quick: bool) -> Work:
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


def suite(out: Path) -> Work:
    """Whole steps of gradalign and its alternatives: what of the suite `gpu` needs no texts, into suite/."""

    def work(seconds: float) -> tuple[bool, str]:
        folder = out / "suite"
        command = [sys.executable, "-m", "benchmarks", "--suite", "gpu", "--only", SUITE_WORKLOAD, "--fresh"]
        minutes = max(seconds - LAST_ROW, LEAST_OF_SUITE) / 60
        command += ["--no-figures", "--out", str(folder), "--minutes", str(minutes)]
        status, text = execute(command, seconds)
        rows = suite_rows(out)
        cut = "" if status == 0 and "time is up" not in text else ", not all rows"
        passed = status == 0 and bool(rows) and all(row["status"] == "ok" for row in rows)
        return passed, f"{text}\n{len(rows)} rows measured{cut}"

    return work


def suite_rows(out: Path) -> list[dict[str, Any]]:
    """The rows that the suite has written, each as soon as it was measured; without a last line that was cut short."""
    return json_lines.read(out / "suite" / "gpu.jsonl")


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
    """report.json, report.md and, with matplotlib, report.png, of the stages so far; what goes wrong is said in them."""
    found: dict[str, Any] = {"environment": versions, "stages": [asdict(s) for s in run.stages]}
    found |= {"rows": [], "targets": [], "suite": []}
    picture = False
    try:
        measured = run.out / "measured.json"
        rows = json.loads(measured.read_text()) if measured.is_file() else []
        goals = [asdict(target) for target in targets(rows)]
        found |= {"rows": rows, "targets": goals, "suite": suite_rows(run.out)}
        picture = draw(rows, run.out / "report.png")
        text = markdown(found, picture)
    except Exception as error:  # rows that cannot be shown are no reason to lose the rest
        traceback.print_exc()
        found["problem"] = f"{type(error).__name__}: {error}"
        text = markdown({**found, "rows": [], "targets": [], "suite": []}, False)
    (run.out / "report.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    (run.out / "report.md").write_text(text, encoding="utf-8")


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
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # what a stage says is no reason to stop
    out: Path = chosen.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for earlier in ("measured.json", "suite/gpu.jsonl", "report.png"):
        (out / earlier).unlink(missing_ok=True)
    end = time.monotonic() + 60 * chosen.minutes - 20
    make_package(PACKAGE)
    versions, devices = environment(), device_count()
    run = Run(out, end - time.monotonic(), tuple(chosen.skip), SHARES if devices else WITHOUT_GPU)
    works: dict[str, Work] = {
        "build": build,
        "collect": device_tests.collect,
        "tests": device_tests.run,
        "benchmark": benchmark(out, chosen.quick),
        "suite": suite(out),
        **{tool: sanitizer(tool) for tool in SANITIZERS},
    }
    for name in run.shares:
        run.stage(name, works[name])
        report(run, versions)
    print(f"report in {out}")
    failed = any(stage.status == "failed" for stage in run.stages)
    if devices == 0:
        print("no GPU that torch can use: nothing was tested, sanitized or measured", file=sys.stderr)
        return 1 if failed else NO_DEVICE
    return 1 if failed or any(stage.summary == NO_TIME for stage in run.stages) else 0


if __name__ == "__main__":
    sys.exit(main())
