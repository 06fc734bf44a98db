"""Validate a checkpoint or an exported model.

python val.py model=runs/.../best.pt data=my.yaml imgsz=640

Takes the validation arguments of Ultralytics and those in cfg/val.yaml.
"""

import sys

from ds2d2_yolo import cli

if __name__ == "__main__":
    sys.exit(cli.val(sys.argv[1:]))
