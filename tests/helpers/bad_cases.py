"""What users get wrong, and what fuzzing found besides: the command, its arguments, and words that must be said."""

from tests.helpers.bad_input import SPOILT, Case, coco_folder, data_file, every, image_list, text_file, voc_folder


def _cases(command, files, *rows):
    return [Case(command, given, said, files) for given, said in rows]


# ---- settings

OWN = _cases(
    "train",
    None,
    ("ex_low=-0.1", "ex_low=-0.1 must be a number of at least 0"),
    ("im_high=much", "im_high=much must be a number of at least 0"),
    ("ex_high=1e400", "ex_high=inf must be a number of at least 0"),
    ("amplifier_epochs=0", "amplifier_epochs=0 must be a number of at least 1"),
    ("amplifier_epochs=1.5", "amplifier_epochs=1.5 must be a whole number"),
    ("balance_interval=0", "balance_interval=0"),
    ("distill_warmup=-1", "distill_warmup=-1"),
    ("disw=perhaps", "disw=perhaps is neither True nor False"),
    ("adapter=sometimes", "adapter=sometimes is not one of auto, always, never"),
    ("wavelet=sym44", "unknown wavelet 'sym44'; did you mean sym4"),
    ("wavelet=morl", "unknown wavelet 'morl'; did you mean"),  # a continuous one
    ("wavelet_padding=symetric", "unknown wavelet_padding 'symetric'; did you mean symmetric"),
    ("lr_steps=3,2", "lr_steps=(3, 2) must be whole epochs from 1 in ascending order"),
    ("lr_gamma=0", "lr_gamma=0 must be a number above 0"),
    ("frozen_stages=9", "frozen_stages=9 is neither auto nor a whole number from 0 to 5"),
    ("backbone_weights=nowhere.pth", "backbone_weights=nowhere.pth is neither imagenet"),
    ("ex_hihg=1", "unknown setting 'ex_hihg'; did you mean ex_high"),
    ("student_run={{'a':1}}", "unknown setting 'student_run'"),
    ("distill_model={teacher} teacher={teacher}", "give one of them"),
    ("distill_model=nowhere.pt", "distill_model=nowhere.pt: there is no such file"),
    ("trust=perhaps", "trust=perhaps is neither True nor False"),
    ("teacher={small}", "is no .pt checkpoint"),
    ("inherit=1", "inherit=1 is neither True nor False"),
    ("inherit=True", "inherit=True starts a student from its teacher's weights; say teacher=best.pt"),
    ("inherit=True teacher={teacher} model={teacher}", "best.pt brings weights of its own"),
    ("inherit=True teacher={teacher} pretrained={teacher}", "best.pt brings weights of its own"),
    ("teacher={teacher} amplifier={tmp}", "does not exist; use amplifier=auto"),
)
ULTRALYTICS = _cases(
    "train",
    None,
    ("epoch=3", "unknown setting 'epoch'; did you mean epochs"),
    ("epochs", "'epochs' is not of the form key=value; try epochs=100"),
    ("epochs=", "'epochs=' is not of the form key=value"),
    ("imgsz=[96", "cannot read the arguments"),
    ("epochs=0", "epochs=0"),
    ("epochs=True", "epochs=True must be a number"),
    ("nbs=0", "nbs=0"),
    ("imgsz=0", "imgsz=0 must be a whole number of pixels"),
    ("imgsz=[96,'a']", "imgsz=[96, 'a'] must be a whole number of pixels"),
    ("imgsz=[]", "imgsz=[] must be a whole number of pixels"),
    ("batch=1.5", "batch=1.5 must be a whole number of images"),
    ("box=-1", "box=-1 must be a number of at least 0"),
    ("dfl=1e400", "dfl=inf must be a finite number"),
    ("lr0=-1", "lr0=-1"),
    ("time=-1", "time=-1 must be a number of at least 0"),
    ("seed=4294967296", "seed=4294967296 must be less than 2**32"),
    ("freeze=head", "freeze=head is no layer's number or name, such as freeze=0,2"),
    ("freeze=99", "froze the entire model"),
    ("freeze=0.conv.weight", "freeze=['0.conv.weight']: the model has no layer 0.conv.weight; there are 0 to"),
    ("classes=ship", "classes=ship must be a number from 0 on"),
    ("classes=99", "classes=99: the data have 5 classes"),
    ("cache=perhaps", "cache=perhaps is neither True, False, ram nor disk"),
    ("amp=bf16", "bfloat16 autocast requires CUDA"),
    ("quantize=8", "quantize=8: training for quantization is not supported"),
    ("device=abc", "device=abc"),
    ("optimizer=nope", "nope"),
    ("fraction=0", "fraction=0"),
    ("scale=2", "scale=2"),
    ("name=/", "name=/ must be a short name of a folder"),
    ("name=" + "x" * 300, "must be a short name of a folder"),
    ("name=\udcff", "holds what no text does"),
    ("save_dir=1", "save_dir=1 must be a path, such as ./1"),
    ("project=/dev/null", "/dev/null"),
    ("resume=1", "resume=1 is no file"),
)
FILES_OF_SETTINGS = [
    Case("train", "cfg={tmp}/mine.yaml", said, text_file(text), f"cfg= {text!r}")
    for text, said in (
        ("box: .nan\n", "box=nan must be a finite number"),
        ("warmup_epochs: .inf\n", "warmup_epochs=inf must be a finite number"),
        ("lr_steps: &a [*a]\n", "must be whole epochs"),
        ("classes: &a [*a]\n", "must not be a list of lists"),
        ("1: 2\n", "unknown setting '1'"),
        ("save_dir: {a: 1}\n", "save_dir={'a': 1} must be a path"),
        ("amplifier: {a: 1}\n", "amplifier={'a': 1} must be a path"),
        ("save_dir: [a\n", "mine.yaml"),
        ("trust: true\n", "which no file can"),
        ("- a\n- b\n", "mine.yaml"),
    )
]

# ---- models and data sets

MODELS = _cases(
    "train",
    None,
    ("model=1", "model=1 must be a path"),
    ("model=nowhere", "is neither a checkpoint, a .pt file, nor a model's description"),
    ("model=nowhere.yaml", "'nowhere.yaml' does not exist"),
    ("model={scenes}", "has no layers under 'backbone:'"),
    ("model=yolo11n-pose.yaml", "is made for the task 'pose'"),
    ("model=" + "x" * 300 + ".pt", "there is no such file"),
    ("data=1", "data=1 must be a path"),
    ("data=nowhere.yaml", "'nowhere.yaml' does not exist"),
    ("data={small}", "small.yaml"),
    ("data={teacher}", "best.pt"),
)
TEXTS = (
    ("train: [images\nval: b: c\n", "mine.yaml"),
    ("", "mine.yaml"),
    ("- a\n- b\n", "mine.yaml"),
    ("a: \tb\n\tc: d\n", "mine.yaml"),
    ("train: *a\n", "mine.yaml"),
    ("train: images/train\nnames: [a, b]\n", "val"),
    ("train: images/train\nval: images/val\n", "names"),
    ("train: nowhere\nval: nowhere\nnames: [a, b]\n", "nowhere"),
    ("train: &a [images/train, *a]\nval: b\nnames: [a]\n", "is no path, nor a list of paths"),
    ('path: "a\\0"\ntrain: a\nval: b\nnames: [a]\n', "holds what no text does"),
)
CHANGES = (
    ({"nc": 1}, "must match"),
    ({"nc": "three"}, "must be an integer"),
    ({"nc": 0, "names": None}, "at least one class name is required"),
    ({"nc": 10_000_000, "names": None}, "has 10000000 classes; at most 100000"),
    ({"names": []}, "must give every class from 0 on a name"),
    ({"names": {1: "a", 2: "b"}}, "must give every class from 0 on a name"),
    ({"names": {-1: "a", 0: "b"}}, "must give every class from 0 on a name"),
    ({"names": {"a": "b"}}, "must give every class from 0 on a name"),
    ({"names": "ship"}, "must give every class from 0 on a name"),
    ({"names": [["a"], ["b"]]}, "class 0 has no name"),
    ({"names": ["a", ""]}, "class 1 has no name"),
    ({"path": 5}, "'path' must be"),
    ({"path": "x" * 300}, "File name too long"),
    ({"channels": 0}, "'channels: 0' must be a whole number of at least 1"),
    ({"channels": [3]}, "'channels: [3]' must be a whole number of at least 1"),
)
DATA = [Case("train", "data={tmp}/mine.yaml", said, text_file(text), f"data= {text!r}") for text, said in TEXTS]
DATA += [
    Case(command, "data={tmp}/mine.yaml", said, data_file(**changes), f"data= {str(changes)}")
    for command in ("train", "val")
    for changes, said in CHANGES
]
DATA += [
    Case("train", "data={tmp}/mine.yaml", "no split 'train'; it has val", data_file(train=""), "data= empty train")
]

CONTENT = [
    Case(command, "data={tmp}/mine.yaml", "images", every(folder, spoil), name)
    for command in ("train", "val")
    for name, (folder, spoil) in SPOILT.items()
]
CONTENT += [
    Case(command, "data={tmp}/mine.yaml", "one without a folder", image_list("a.jpg\n"), "a list of bare names")
    for command in ("train", "val")
]

# ---- the other commands

VAL = [
    *_cases(
        "val",
        None,
        ("model=nowhere.pt", "nowhere.pt: there is no such file"),
        ("model=nowhere.onnx", "'nowhere.onnx' does not exist"),
        ("model={teacher},nowhere.onnx", "'nowhere.onnx' does not exist"),
        ("model={teacher},{scenes}", "is no model"),  # said before the first is measured
        ("model=*.zip", "'*.zip' does not exist"),
        ("model=,,", "no model given"),
        ("teacher={scenes}", "is no model"),
        ("baseline=nowhere", "'nowhere' does not exist"),
        ("data=nowhere.yaml", "'nowhere.yaml' does not exist"),
        ("split=nowhere", "has no split 'nowhere'; it has train, val"),
        ("split=names", "has no split 'names'"),
        ("imgs=96", "did you mean imgsz"),
        ("imgsz=0", "imgsz=0 must be a whole number of pixels"),
        ("imgsz=[96,96,96]", "must be a whole number of pixels"),
        ("imgsz=[96,'a']", "must be a whole number of pixels"),
        ("batch=0", "batch=0 must be a whole number of images"),
        ("batch=True", "batch=True must be a number"),
        ("classes=99", "classes=99: the data have 5 classes"),
        ("classes=ship", "classes=ship must be a number from 0 on"),
        ("conf=2", "conf=2"),
        ("max_det=0", "max_det=0"),
        ("rounds=2", "rounds=2 must be a whole number of at least 3"),
        ("draws=nan", "draws=nan must be a whole number"),
        ("examples=51", "examples=51"),
        ("latency=perhaps", "latency=perhaps is neither True nor False"),
        ("save_dir={scenes}", "cannot write the report"),
        ("save_dir=1", "save_dir=1 must be a path, such as ./1"),
    ),
    *_cases(
        "explain",
        None,
        ("explain=nowhere.jpg", "nowhere.jpg"),
        ("explain={scenes}", "data.yaml"),
        ("explain=5", "explain=5 must be a path"),
        ("data={scenes}", "explain= does not know the setting 'data'"),
        ("imgsz=0", "imgsz=0 must be a whole number of pixels"),
        ("imgsz=[96,'a']", "must be a whole number of pixels"),
        ("level=3", "level=3 is no stride that both models have"),
        ("level=[]", "level= is no stride that both models have"),
        ("wavelet=nope", "unknown wavelet 'nope'"),
        ("teacher=nowhere.pt", "there is no such file"),
    ),
    *_cases(
        "curves",
        None,
        ("curves=nowhere", "there is no run 'nowhere'"),
        ("curves=,,", "no run given"),
        ("curves={tmp}", "holds no results.csv"),
        ("curves={tmp} data={scenes}", "goes with save_dir=, project=, name= alone"),
    ),
    Case("curves", "curves={tmp}", "has no column 'epoch'", text_file("a\n1\n", "results.csv"), "another table"),
    Case("curves", "curves={tmp}", "is damaged", text_file("epoch\nx\n1\n", "results.csv"), "a broken table"),
    Case("val", "model={tmp}/x.torchscript", "x.torchscript' cannot be loaded", text_file("x", "x.torchscript")),
    Case("val", "model={tmp}/x.onnx", "x.onnx", text_file("x", "x.onnx")),
    Case("val", "model={tmp}/x_openvino_model", "", lambda tmp, scenes: (tmp / "x_openvino_model").mkdir()),
]
EXPORT = [
    *_cases(
        "export",
        None,
        ("model=nowhere.pt", "nowhere.pt: there is no such file"),
        ("model={scenes}", "only a trained checkpoint, a .pt file, can be exported"),
        ("model=" + "x" * 300, "File name too long"),
        ("format=nope", "unknown format nope"),
        ("format=onxn", "did you mean onnx"),
        ("imgsz=0", "imgsz=0 must be a whole number of pixels"),
        ("imgsz=[96,'a']", "must be a whole number of pixels"),
        ("batch=0", "batch=0"),
        ("opset=abc", "opset=abc"),
        ("quantize=3", "quantize=3"),
        ("dynamic=perhaps", "dynamic=perhaps"),
        ("max_det=0", "max_det=0"),
        ("check=perhaps", "check=perhaps: must be True or False"),
        ("images=nowhere", "nowhere"),
        ("images=5", "images=5 must be a path, such as ./5"),
        ("save=found.txt", "must be True, False or the path of a picture"),
        ("imgs=96", "did you mean imgsz"),
    ),
    Case("export", "images={tmp}/x.jpg", "no readable image of 3 channels", text_file("x", "x.jpg")),
]
CONVERT = "voc {tmp}/src {tmp}/out workers=1 "
DATASETS = [
    *_cases(
        "datasets",
        None,
        ("cooc {tmp}", "unknown format 'cooc'; it is one of coco"),
        ("dior", "dior needs a source"),
        ("dota {tmp}/nowhere", "nowhere"),
        ("dota " + "x" * 300, "File name too long"),
        ("coco {tmp} a b", "takes SOURCE and DEST"),
        ("voc {tmp} --boxes rotated", "'--boxes' is not of the form key=value"),
        ("merge {scenes} {tmp}/out", "either model=best.pt or predictions=predictions.json"),
        ("merge {scenes} model={teacher} {tmp}/out", "scenes"),
        ("merge {scenes} model={teacher} batch=1.5", "batch=1.5 is not understood"),
        ("tococo nowhere.yaml", "'nowhere.yaml' does not exist"),
        ("tococo {scenes} {tmp}/x.json split=nowhere", "has no split 'nowhere'"),
        ("tococo {scenes} {tmp}/x.json split=[1]", "has no split '[1]'"),
        ("tococo {scenes} {tmp}", "is a folder; give the JSON file to write"),
    ),
    *_cases(
        "datasets",
        voc_folder,
        (CONVERT + "size=512", "size= is for tiles; add tiles=True"),
        (CONVERT + "tiles=True size=0", "size"),
        (CONVERT + "tiles=True size=1e400", "size=inf is not understood"),
        (CONVERT + "tiles=True overlap=nan", "overlap=nan is not understood"),
        (CONVERT + "tiles=True scales=nan", "scales"),
        (CONVERT + "tiles=True keep=2", "keep"),
        (CONVERT + "tiles=True format=gif", "format=gif is none of png, jpg"),
        (CONVERT + "boxes=round", "boxes=round is none of horizontal, rotated"),
        (CONVERT + "nmaes=a", "did you mean names"),
        (CONVERT + "names=ship,ship", "one is there twice"),
        (CONVERT + "origin=2", "origin= 0 or 1"),
        ("voc {tmp}/src {tmp}/src workers=1", "src"),
        ("voc {tmp}/src {tmp}/src/images/0.jpg workers=1", "0.jpg"),
    ),
    *(
        Case("datasets", "coco {tmp}/src {tmp}/out workers=1", said, coco_folder(text), f"coco {text!r}")
        for text, said in (
            ("", "instances_train.json"),
            ("[]", ""),
            ("{", "instances_train.json"),
            ('{"images": [1], "annotations": [], "categories": []}', "instances_train.json"),
            ('{"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [], "categories": []}', "categories"),
            (
                '{"images": [{"id": 1, "file_name": "0.jpg", "width": 64, "height": 48}], "annotations": [], '
                '"categories": [{"id": 1, "name": "\\ud800"}]}',
                "give it one that can be printed",
            ),
        )
    ),
]
CASES = [*OWN, *ULTRALYTICS, *FILES_OF_SETTINGS, *MODELS, *DATA, *CONTENT, *VAL, *EXPORT, *DATASETS]
