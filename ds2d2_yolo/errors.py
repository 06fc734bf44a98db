"""What the user caused and can mend, told apart from what is a bug."""

import errno
import linecache
import re
from pathlib import Path

# Modules of Ultralytics that judge what the user handed in: settings, data sets, checkpoints, devices, formats.
_INPUT_CHECKS = re.compile(
    r"ultralytics\.(cfg|data|engine|nn\.(tasks|autobackend|backends|distill_model)|utils\.(checks|torch_utils|downloads|export))\b"
    r"|ultralytics\.utils$"  # YAML.load
)
_REFUSALS = (AssertionError, NotImplementedError, RuntimeError, SyntaxError, TypeError, ValueError)
_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# Pictograms that stand alone; inside a word they may be part of a file name.
_PICTOGRAMS = re.compile(r"(?<!\S)[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe0f\u200d]+(?=[\s.,:;]|$)")
# Where Ultralytics goes on from the fact to general advice, and what it writes of a file that it read itself.
_ADVICE = re.compile(r"\s(Note dataset download|Verify YAML|Recommended fixes|Load the original|See https?://).*")
_CLASS = re.compile(r" \(\w*Error: [^()]*\)")
_UNNAMED_FILE = re.compile(r' in "<(unicode|byte) string>",')
_DATASET = re.compile(r"Dataset '(?P<name>.*?)' error (?P<reason>.*)")
_MAX_LENGTH = 500
_NO_LABELS, _NO_IMAGES = "No labels found in ", "No valid images found in "  # Ultralytics', of a whole split
_CUDA = re.compile(r"Invalid CUDA 'device=(?P<device>.*?)' requested.*?device_count\(\): (?P<count>\d+)", re.DOTALL)
_VISIBLE = re.compile(r"os\.environ\['(CUDA_VISIBLE_DEVICES)'\]: (?!None)(.*)")
_UNREADABLE = re.compile(r"^(?:FileNotFoundError: )?Image Not Found (?P<path>.+)$", re.MULTILINE)  # also if it is there
# What is wrong with a path that was given, not with the machine
_PATH_ERRORS = {getattr(errno, name) for name in ("ENAMETOOLONG", "ELOOP", "EEXIST", "EROFS")}


class UserError(Exception):
    """A mistake in what the user gave: one clear line that names the thing and the way out."""


class PeerEnded(UserError):
    """Another process of this run has ended, and has said why if it could."""


def explain(error):
    """One line for an error that the user caused, None for a bug.

    Besides `UserError` these count as the user's: files that are missing or closed to the user, a full disk, a GPU
    out of memory, a failed download, a package that an export format needs, YAML errors, and what Ultralytics
    refuses by an explicit `raise` or `assert` where it checks its input.
    """
    cause = error
    while cause is not None:  # Ultralytics wraps what reading a data set raises
        if isinstance(cause, UserError):
            return " ".join(str(cause).split())
        cause = cause.__cause__
    checks = (_explain_os_error, _explain_memory, _explain_missing_package, _explain_yaml, explain_device)
    for known in (*checks, _explain_backend, _explain_image_list, _explain_labels, _explain_refusal):
        if (line := known(error)) is not None:
            return line
    return None


def one_line(text):
    """The first paragraph of `text` on one line, without colours, pictograms and Ultralytics' general advice."""
    kept = []
    for raw in _ANSI.sub("", text).splitlines():
        line = " ".join(_PICTOGRAMS.sub("", raw).split())
        if kept and not line:
            break
        kept += [line] * bool(line)
    line = _ADVICE.sub("", _CLASS.sub("", _UNNAMED_FILE.sub(" at", " ".join(kept))))
    line = re.sub(r" +([.,:;])(?=\s|$)", r"\1", re.sub(r"^(ERROR|WARNING)\W+(?=\w)", "", line))
    if dataset := _DATASET.fullmatch(line):
        name, line = dataset["name"], dataset["reason"]
        line = line if name in line else f"data set '{name}': {line}"
    return line if len(line) <= _MAX_LENGTH else line[: _MAX_LENGTH - 3] + "..."


def _explain_os_error(error):
    full = getattr(error, "errno", None) in {errno.ENOSPC, errno.EDQUOT}
    if full or (isinstance(error, RuntimeError) and "PytorchStreamWriter failed writing" in str(error)):
        where = f" at '{error.filename}'" if getattr(error, "filename", None) else ""
        return f"the disk is full{where}; free some space, then go on with resume=path/to/last.pt"
    if type(error) is ConnectionError:  # Ultralytics' downloads; its subclasses come from pipes and sockets
        return one_line(str(error))
    kinds = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    if isinstance(error, kinds) or getattr(error, "errno", None) in _PATH_ERRORS:
        if error.filename is not None:
            name = str(error.filename)
            name = name if len(name) <= _MAX_LENGTH else f"{name[:100]}..."
            return f"'{name}': {error.strerror or 'cannot be opened'}"
        if error.errno is None:  # raised with a sentence of its own
            if (image := _UNREADABLE.search(str(error))) and Path(image["path"]).exists():
                return f"the image '{image['path']}' cannot be decoded: cut short or damaged; replace or remove it"
            return one_line(str(error))
    return None


def _explain_memory(error):
    if type(error).__name__ == "OutOfMemoryError":  # torch's, named so that torch need not be imported here
        return "the GPU is out of memory; use a smaller batch= or imgsz="
    return None


def _explain_missing_package(error):
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return None
    package = error.name.partition(".")[0]
    if package in {"ds2d2_yolo", "ultralytics", "torch", "torchvision"}:
        return None
    return f"this needs the Python package '{package}', which is not installed"


def _explain_yaml(error):
    from yaml import YAMLError

    return one_line(str(error)) if isinstance(error, YAMLError) else None


def explain_device(error):
    """A GPU that is not there, by what Ultralytics says of it in six lines; None for any other error."""
    if not isinstance(error, ValueError) or not (known := _CUDA.search(text := str(error))):
        return None
    device, count = known["device"], int(known["count"])
    if not re.fullmatch(r"\d+(,\d+)*", device):
        return f"device={device} is no device; say device=cpu, device=0 for a GPU, or device=0,1 for several"
    shown = " (CUDA_VISIBLE_DEVICES={1})".format(*visible.groups()) if (visible := _VISIBLE.search(text)) else ""
    if not count or "is_available(): False" in text:
        seen = f"no GPU is seen here (torch.cuda.is_available() is False){shown}"
        return f"device={device}: {seen}; use device=cpu, or check the driver and the PyTorch build"
    there = (
        "only one GPU is seen here, device=0" if count == 1 else f"only {count} GPUs are seen here, 0 to {count - 1}"
    )
    return f"device={device}: {there}{shown}"


def _explain_backend(error):
    """Whatever a runtime raises while it reads an exported file: the file is broken, or not one of its own."""
    frame = _frame_of(error, "load_model", "ultralytics.nn.backends.")
    return one_line(f"model '{frame.f_locals.get('weight')}' cannot be loaded: {error}") if frame else None


def _explain_image_list(error):
    """Where Ultralytics stumbles over a list of images without folders, as its cache of labels has no place then."""
    unnamed = isinstance(error, ValueError) and "has an empty name" in str(error)
    if not unnamed or not _frame_of(error, "get_labels", "ultralytics.data."):
        return None
    return "the data set's list of images has one without a folder, as in a.jpg; write ./a.jpg or a whole path"


def _explain_labels(error):
    """A split without labels, or without an image that can be used; the files tell more than Ultralytics does."""
    text = str(error)
    if _NO_LABELS not in text and _NO_IMAGES not in text:
        return None
    if (frame := _frame_of(error, "get_labels", "ultralytics.data.dataset")) is None:
        return None
    from ds2d2_yolo.mislabelled import why_none

    messages = frame.f_locals["cache"]["msgs"] if _NO_IMAGES in text else None
    return why_none(frame.f_locals["self"], messages) or None


def _explain_refusal(error):
    """Ultralytics' own verdict on its input, if the last frame is such a check and raises on purpose."""
    if not isinstance(error, (KeyError, *_REFUSALS)) or error.__traceback__ is None:
        return None
    frame = _last_frame(error)
    module = frame.tb_frame.f_globals.get("__name__", "")
    if not _INPUT_CHECKS.match(module):
        return None
    if isinstance(error, KeyError) and frame.tb_frame.f_code.co_name == "parse_model":
        return f"the model's YAML file names a module {error} that is not known"
    statement = linecache.getline(frame.tb_frame.f_code.co_filename, frame.tb_lineno).lstrip()
    if not statement.startswith(("raise ", "assert ")):
        return None
    text = error.args[0] if isinstance(error, KeyError) and error.args else error  # str() would quote it
    line = one_line(str(text)) or None
    if (cause := error.__cause__) is not None and str(error).startswith("Dataset '"):
        # The trainer wraps whatever goes wrong here. What trips over the data set file's content is the user's.
        in_content = _last_frame(cause).tb_frame.f_globals.get("__name__", "").startswith("ultralytics.data.")
        return line if in_content or explain(cause) else None
    return line


def _frame_of(error, function, module):
    """The frame of a function, in a module whose name begins so, that `error` went through; None if there is none."""
    entry = error.__traceback__
    while entry is not None:
        frame = entry.tb_frame
        if frame.f_code.co_name == function and frame.f_globals.get("__name__", "").startswith(module):
            return frame
        entry = entry.tb_next
    return None


def _last_frame(error):
    """The innermost entry of the traceback: where `error` was raised."""
    entry = error.__traceback__
    while entry.tb_next is not None:
        entry = entry.tb_next
    return entry
