"""Where the shipped settings and data set files lie."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _shipped(name):
    """The folder inside the package of an installed wheel, or at the top of a checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


CFG = _shipped("cfg")
DATA = _shipped("data")

_FOLDERS = {
    "data": (DATA,),
    "cfg": (CFG, CFG / "recipes"),
    "model": (CFG / "models", CFG),
}


def find_config(name, kind):
    """Path of the shipped YAML file called `name`, or `name` as it came.

    Only a bare file name such as `demo.yaml` is looked up, and a file of that name in the working directory goes
    first; anything else is left for Ultralytics to find.

    Args:
        name: what the user wrote; any type, only strings and paths are looked up.
        kind: "data", "cfg" or "model".

    Returns:
        The path as a string if the file is shipped, else `name` itself.
    """
    if not isinstance(name, str | Path):
        return name
    path = Path(name)
    if path.name != str(name) or path.suffix not in {".yaml", ".yml"} or path.exists():
        return name
    return next((str(folder / path) for folder in _FOLDERS[kind] if (folder / path).is_file()), name)


def folder_instead(path):
    """What to say of a folder that was given where a checkpoint is wanted; "" of anything else.

    Whether a folder will do, as an exported model's may, is for the caller to know.
    """
    folder = Path(path)
    if not folder.is_dir():
        return ""
    inside = (folder / name for name in ("weights/best.pt", "best.pt", "weights/last.pt", "last.pt"))
    found = next((file for file in inside if file.is_file()), None)
    return f"'{path}' is a folder; " + (f"did you mean '{found}'?" if found else "give a checkpoint, a .pt file")
