"""Single checks of an installation: each looks at one thing, never raises, and says what to do."""
from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ..utilities import paths
from ..utilities.files import atomic_path

OK, WARNING, BROKEN = "ok", "warning", "broken"
MEMORY_GB, SHARED_GB, DISK_GB = 6.0, 1.0, 2.0    # a CT of the trunk takes about 3 GB; a loader's batches; a few results
HASHES = "SHA256SUMS"
PACKAGE = "spineclue_v2"


@dataclass(frozen=True)
class Check:
    """What was looked at, `status` (ok, warning, broken), what was found, and what to do where it is not ok."""

    name: str
    status: str
    found: str
    what_to_do: str = ""

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def run_check(name: str, look: Callable[[], Iterator[Check]]) -> list[Check]:
    """The checks that `look` yields; whatever it raises is a finding, too."""
    found: list[Check] = []
    try:
        found += look()
    except Exception as error:
        found.append(Check(name, BROKEN, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "Install the package anew."))
    return found


def check_versions() -> Iterator[Check]:
    """Python, the package, and every package that it requires."""
    from packaging.requirements import Requirement

    yield Check("python", OK, f"{platform.python_version()} on {platform.platform(terse=True)}, {platform.machine()}")
    try:
        own = metadata.version(PACKAGE)
        required = [Requirement(text) for text in metadata.requires(PACKAGE) or ()]
    except metadata.PackageNotFoundError:
        yield Check("package", WARNING, "runs from a folder; it is not installed", "Install it: pip install PATH_OF_THE_PROJECT")
        return
    yield Check("package", OK, f"{PACKAGE} {own}")
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            yield Check(requirement.name, BROKEN, "missing", f"pip install '{requirement}'")
            continue
        fits = requirement.specifier.contains(version.split("+")[0], prereleases=True)
        yield Check(requirement.name, OK if fits else WARNING, version, "" if fits else f"pip install '{requirement}'")


def check_threads() -> Iterator[Check]:
    """Threads against the cores that this process may use; a container's limit is not seen by libraries."""
    import torch

    cores, threads = usable_cores(), torch.get_num_threads()
    said = f"{threads} of torch on {cores:g} usable core{'s' * (cores != 1)}"
    if threads > 1.5 * cores:
        yield Check("threads", WARNING, said, f"Set OMP_NUM_THREADS={max(1, int(cores))}: more threads than cores slow each other down.")
    else:
        yield Check("threads", OK, said)


def usable_cores() -> float:
    """Cores of this process by its affinity and by the control group's limit (Linux)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores


def check_memory() -> Iterator[Check]:
    """Free main memory, and the shared memory that training workers hand batches through."""
    free = free_memory_gb()
    if free is None:
        yield Check("memory", OK, "not known on this system")
    elif free < MEMORY_GB:
        yield Check("memory", WARNING, f"{free:.1f} GB free", f"Large scans may need {MEMORY_GB:g} GB: close other programs, or give the "
                    "container more.")
    else:
        yield Check("memory", OK, f"{free:.1f} GB free")
    if not Path("/dev/shm").is_dir():
        if platform.system() == "Linux":
            yield Check("shared memory", WARNING, "/dev/shm is missing", "Training makes batches in one process; in a container give "
                        "--shm-size 8g.")
        return
    shared = shutil.disk_usage("/dev/shm").free / 1e9
    short = shared < SHARED_GB
    yield Check("shared memory", WARNING if short else OK, f"{shared:.2f} GB free in /dev/shm", "Training falls back to making batches in "
                "one process when it is full; in a container give --shm-size 8g or --ipc=host." if short else "")


def free_memory_gb() -> float | None:
    """Memory that can still be had, by the system and by the control group's limit; None where neither is known."""
    known = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        known.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 1e6)
    except (OSError, StopIteration, ValueError):
        pass
    try:
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii"))
        used = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        known.append((limit - used) / 1e9)
    except (OSError, ValueError):  # no limit reads "max"
        pass
    return min(known, default=None)


def check_folders(output: str | None = None) -> Iterator[Check]:
    """Whether the program can write where it has to."""
    temporary = tempfile.gettempdir()
    yield _writable("temporary files", Path(temporary), BROKEN, "Set TMPDIR to a folder that is writable and has space.")
    if output is not None:
        yield _writable("output", Path(output), BROKEN, "Give another output folder.")
    for what, folder in (("raw data", paths.raw_folder()), ("preprocessed data", paths.preprocessed_folder()),
                         ("results", paths.results_folder())):
        yield _writable(what, folder, WARNING, "Training cannot write there: set SPINECLUE_HOME to another folder.")


def _writable(what: str, folder: Path, otherwise: str, what_to_do: str) -> Check:
    """Writes a byte where the folder is there, else into the nearest folder above that is."""
    place = folder.absolute()
    while not place.is_dir() and place != place.parent:
        place = place.parent
    try:
        with atomic_path(place / ".spineclue_doctor") as file:
            file.write_bytes(b"x")
        (place / ".spineclue_doctor").unlink()
        free = shutil.disk_usage(place).free / 1e9
    except Exception as error:
        return Check(what, otherwise, f"{folder} cannot be written ({error})", what_to_do)
    if free < DISK_GB:
        return Check(what, WARNING, f"{folder}, {free:.1f} GB free", "Make room, or give another folder.")
    return Check(what, OK, f"{folder}, {free:.0f} GB free")


def check_weights() -> Iterator[Check]:
    """The shipped weights against the hashes that were shipped with them."""
    folder = paths.weights_folder()
    own = Path(__file__).parents[1] / "weights"
    if folder.absolute() != own:
        count = len(list(folder.glob("*.pth")))
        yield Check("weights", OK if count else BROKEN, f"{count} files of your own in {folder} (SPINECLUE_WEIGHTS)",
                    "" if count else "Unset SPINECLUE_WEIGHTS, or let it name a folder with localize.pth and the others.")
        return
    wanted = [line.split() for line in (own / HASHES).read_text(encoding="ascii").splitlines()]
    wrong = [name for digest, name in wanted if not (own / name).is_file()
             or hashlib.sha256((own / name).read_bytes()).hexdigest() != digest]
    if wrong:
        yield Check("weights", BROKEN, f"missing or changed: {', '.join(wrong)}", "Install the package anew.")
    else:
        yield Check("weights", OK, f"{len(wanted)} files with the right sha256")


def check_gpu() -> Iterator[Check]:
    """What torch would compute on, and whether it does."""
    import torch

    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(0), torch.cuda.mem_get_info(0)
        try:
            worked = float((torch.ones(64, 64, device="cuda") @ torch.ones(64, 64, device="cuda")).sum()) == 64.0 ** 3
        except RuntimeError as error:
            yield Check("gpu", BROKEN, f"{name}: {str(error).splitlines()[0][:200]}",
                        "Install a torch that was built for this GPU and driver, or use -device cpu.")
            return
        yield Check("gpu", OK if worked else BROKEN, f"{name}, {memory[0] / 1e9:.1f} of {memory[1] / 1e9:.1f} GB free, CUDA "
                    f"{torch.version.cuda}", "" if worked else "It computes wrongly: use -device cpu, and have it looked at.")
    elif torch.backends.mps.is_available():
        yield Check("gpu", OK, "Apple GPU (mps)")
    elif shutil.which("nvidia-smi"):
        build = torch.version.cuda or "none"
        yield Check("gpu", WARNING, f"there is an NVIDIA driver, but torch sees no GPU (its CUDA: {build})",
                    "Install a CUDA build of torch that fits the driver, and in a container give --gpus all.")
    else:
        yield Check("gpu", OK, "none; everything runs on the CPU")


def check_opencv() -> Iterator[Check]:
    """OpenCV's own system libraries, which slim systems lack."""
    try:
        import cv2
    except ImportError as error:
        yield Check("opencv", BROKEN, str(error), "Debian and Ubuntu: apt-get install libgl1 libglib2.0-0")
        return
    yield Check("opencv", OK, str(cv2.__version__))


def check_pictures() -> Iterator[Check]:
    """Whether a picture can be drawn at all."""
    from ..utilities.pictures import draw_or_say

    def draw() -> None:
        import io

        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure: Any = Figure(figsize=(1, 1))
        FigureCanvasAgg(figure)
        figure.text(0.5, 0.5, "L3")
        figure.savefig(io.BytesIO(), format="png")

    trouble = draw_or_say(draw, "A test picture")
    yield Check("pictures", WARNING if trouble else OK, trouble or "can be drawn", "Results come without pictures; install matplotlib anew."
                if trouble else "")
