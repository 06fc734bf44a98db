"""The command line: `ds2d2 train|val|export|datasets ...`; train.py, val.py and export.py are the same."""

import os
import select
import sys
import warnings
from contextlib import suppress

from ds2d2_yolo import __version__
from ds2d2_yolo.errors import PeerEnded, UserError, explain
from ds2d2_yolo.importing import load
from ds2d2_yolo.mistakes import check_known, malformed, unknown_command
from ds2d2_yolo.paths import CFG, DATA, find_config

_USAGE = """\
usage: ds2d2 train|val|export key=value ...      (or python train.py, val.py, export.py key=value ...)

  ds2d2 train                                                the demonstration: teacher, student, DS2D2 student
  ds2d2 train data=my.yaml model=yolo26m.yaml                a teacher, or a plain baseline
  ds2d2 train data=my.yaml model=yolo26n.yaml teacher=best.pt epochs=100 imgsz=640
  ds2d2 train resume=runs/.../last.pt                        go on with an interrupted run
  ds2d2 val model=teacher.pt,plain.pt,student.pt data=my.yaml   accuracy, cost and gain side by side, with a report
  ds2d2 val explain=image.jpg model=student.pt teacher=best.pt  what the method sees in an image
  ds2d2 val curves=runs/a,runs/b                             training curves laid over each other
  ds2d2 export model=best.pt format=onnx                     export, and check it against the checkpoint
  ds2d2 datasets dior path/to/download                       DIOR, DOTA, VisDrone, VOC, COCO to YOLO's format
                                                             (or python -m ds2d2_yolo.datasets dior ...)

Ultralytics' arguments are understood, but save_json, save_txt, save_conf and visualize of val (use `yolo val`) and
quantize=8 of train; those added to them are described in
  {folder}: ds2d2.yaml for train, val.yaml for val
and export also takes images= (to check on; default: the data set's own), check=False, save=True (a picture), trust=True
cfg=file.yaml reads arguments from a file, those on the command line go first.
DS2D2_TRACEBACK=1 in the environment shows where an error was raised.
"""
_NO_DEFAULT_FLAGS = ("half", "int8", "end2end", "nms")  # flags that Ultralytics takes bare though it has no default


def main(argv=None):
    """Entry point of the `ds2d2` command.

    Args:
        argv: arguments without the program's name; sys.argv's by default.

    Returns:
        Exit code: 0 done, 2 a mistake of the user, 130 interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    commands = {"train": train, "val": val, "export": export, "datasets": datasets}
    return commands[argv[0]](argv[1:]) if argv and argv[0] in commands else run(_no_command, argv)


def train(argv=None):
    """`ds2d2 train`: train a teacher, a plain student or a DS2D2 student; without arguments the demonstration."""
    return run(_train, argv)


def val(argv=None):
    """`ds2d2 val`: validate a checkpoint or an exported model."""
    return run(_val, argv)


def export(argv=None):
    """`ds2d2 export`: export a checkpoint and compare what came out with it."""
    return run(_export, argv)


def datasets(argv):
    """`ds2d2 datasets`: downloaded data sets into YOLO's format and back, as `python -m ds2d2_yolo.datasets`."""
    return run(load("ds2d2_yolo.converting").main, list(argv))


def run(function, *args):
    """Call `function(*args)` and turn its end into an exit code.

    What the user caused becomes one line on stderr and 2, Ctrl-C a line and 130, a closed pipe 141. A bug keeps its
    traceback. The message and the notes of a `KeyboardInterrupt` are printed: a trainer says there how to resume.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, of numbers in files that are then named
            function(*args)
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt as interrupt:
        said = [str(interrupt) or "interrupted", *getattr(interrupt, "__notes__", ())]
        return _complain("; ".join(said), 130) if _is_heard(interrupt) else 130
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # some other pipe, such as a data loader's
        return 141
    except Exception as error:
        line = explain(error)
        if line is None or os.environ.get("DS2D2_TRACEBACK"):
            raise
        return _complain(f"error: {line}{_how_to_prepare(line)}", 2) if _is_heard(error) else 2


def _is_heard(error):
    """Whether this one of a launcher's processes says it: a mistake of its own, or for all of them the first alive."""
    if not int(os.environ.get("RANK") or 0):
        return True
    together = sys.modules.get("ds2d2_yolo.engine.processes")
    if together is None or together.processes() == 1:
        return False  # not met yet: the first makes the same mistake
    return together.first_alive() or not isinstance(error, PeerEnded | KeyboardInterrupt)


def _how_to_prepare(line):
    """What is missing where a shipped data set file names images that are not there yet."""
    for kind in ("dior", "dota"):
        if str(DATA / f"{kind}.yaml") in line and "not found" in line:
            made = os.path.join(load("ultralytics.utils").DATASETS_DIR, kind.upper(), "data.yaml")
            if os.path.isfile(made) and os.path.isdir(kind.upper()):
                return f"; the folder '{kind.upper()}' here goes before the converted one: give data={made}"
            return f"; make them with: python -m ds2d2_yolo.datasets {kind} path/to/the/downloaded/folder"
    if "Download failure" in line and "VisDrone" in line:
        return "; if you have its files: python -m ds2d2_yolo.datasets visdrone path/to/the/downloaded/folder"
    return ""


def parse(argv, command="train"):
    """Settings from `key=value` arguments, read as Ultralytics reads them.

    A file named by `cfg=` is read in, arguments given beside it go first. Bare names of shipped YAML files become
    their paths. Flags stand for key=True, as in `resume`.

    Args:
        argv: list of strings.
        command: whose they are; val's teacher may be a name in the report instead of a file.

    Returns:
        dict of settings.

    Raises:
        UserError: an argument that is no key=value, or a checkpoint that does not exist.
    """
    try:
        arguments = load("ultralytics.cfg").merge_equals_args(list(argv))
    except (IndexError, SyntaxError) as error:
        raise UserError(f"cannot read the arguments: {error}") from error
    settings = {}
    for argument in arguments:
        argument = argument.removeprefix("--").removesuffix(",")
        key, equals, value = (part.strip() for part in argument.partition("="))
        if not equals and _is_flag(key):
            settings[key] = True
            continue
        if not (key and value):
            raise UserError(malformed(argument))
        key, settings[key] = parse_pair(argument)
    return _resolve(settings, command)


def parse_pair(argument):
    """Key and value of a `key=value` argument; in silence, though Python reads paths such as a/1or2 as odd numbers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return load("ultralytics.cfg").parse_key_value_pair(argument)


def _train(argv):
    settings = _settings("train", argv)
    if settings is None:
        return
    if settings == {} and not (sys.argv[1:] if argv is None else argv):  # nor a file of settings that is empty
        load("ds2d2_yolo.demo").run()
        return
    load("ds2d2_yolo.engine.train").train(settings)


def _val(argv):
    settings = _settings("val", argv)
    if settings is not None:
        _check_model("val", settings)
        load("ds2d2_yolo.val").run(settings)


def _export(argv):
    settings = _settings("export", argv)
    if settings is not None:
        _check_model("export", settings)
        load("ds2d2_yolo.exporting").run(settings)


def _no_command(argv):
    if not argv or argv[0] in {"-h", "--help", "help"}:
        print(_usage())
    elif argv[0] in {"--version", "version"}:
        print(f"ds2d2_yolo {__version__}")
    else:
        raise UserError(unknown_command(argv))


def _settings(command, argv):
    """The settings in `argv`, or None if it asked for help, which is then printed."""
    argv = sys.argv[1:] if argv is None else argv
    if any(argument in {"-h", "--help", "help"} for argument in argv):
        print(_usage())
        return None
    if not argv:
        return {}  # without the seconds that importing Ultralytics takes
    return parse(argv, command)


def _usage():
    return _USAGE.format(folder=CFG)


def _check_model(command, settings):
    """Before the seconds that importing what does the work takes."""
    if not settings.get("model") and not settings.get("curves"):
        if settings and not settings.get("explain"):  # which knows other settings
            check_known(command, settings)  # model= may be there, misspelt
        raise UserError(f"{command} needs a model: ds2d2 {command} model=path/to/best.pt")


def _resolve(settings, command):
    """Read in the file that `cfg=` names, and put paths where shipped YAML files are named."""
    from ultralytics.utils import YAML
    from ultralytics.utils.checks import check_yaml

    if (file := settings.pop("cfg", None)) is not None:
        from ds2d2_yolo.restricted import not_from_a_file

        file = check_yaml(find_config(str(file), "cfg"))
        settings = {**not_from_a_file(YAML.load(file), file, settings), **settings}
        settings.pop("cfg", None)
    for kind in ("data", "model"):
        if kind in settings:
            settings[kind] = find_config(settings[kind], kind)
    files = ["model", "amplifier", "resume", "pretrained", "distill_model"]
    files += ["teacher"] if command != "val" or settings.get("explain") else []
    for key in files:
        value = str(settings.get(key) or "")
        for part in [value] if os.path.isfile(value) else value.split(","):  # val takes several models
            _check_checkpoint(key, part.strip())
    return settings


def _check_checkpoint(key, value):
    """Refuse a missing .pt file here: Ultralytics would ask GitHub for one of that name, for up to two minutes."""
    from ultralytics.utils import SETTINGS
    from ultralytics.utils.checks import check_yolov5u_filename
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES

    if not isinstance(value, str) or not value.endswith(".pt") or "://" in value or set("*?[") & set(value):
        return
    file = check_yolov5u_filename(value, verbose=False)
    known = os.path.basename(file) in GITHUB_ASSETS_NAMES
    if not known and not os.path.isfile(file) and not os.path.isfile(os.path.join(SETTINGS["weights_dir"], file)):
        hint = ""
        if key == "resume":
            from ds2d2_yolo.engine.runs import in_the_first_stage

            hint = in_the_first_stage(value)
        raise UserError(f"{key}={value}: there is no such file{hint}")


def _is_flag(key):
    from ultralytics.utils import DEFAULT_CFG_DICT

    return key in _NO_DEFAULT_FLAGS or isinstance(DEFAULT_CFG_DICT.get(key), bool)


def _complain(line, code):
    """Print `line` on stderr under the program's name, and hand `code` on."""
    try:
        sys.stdout.flush()
        print(f"ds2d2: {line}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        _reader_is_gone()
    return code


def _reader_is_gone():
    """Whether whoever read stdout or stderr has closed it; what is left to write then goes nowhere, in silence."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # a stream without a descriptor
            pipe = select.poll()
            pipe.register(stream.fileno(), 0)  # errors are always reported
            if any(event & select.POLLERR for _, event in pipe.poll(0)):
                gone = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return gone


if __name__ == "__main__":
    sys.exit(main())
