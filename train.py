"""Train a teacher, a plain student or a student distilled with DS2D2.

python train.py                                                           the demonstration, as `make demo`
python train.py data=my.yaml model=yolo26m.yaml                           a teacher, or a plain baseline
python train.py data=my.yaml model=yolo26n.yaml teacher=best.pt epochs=100 imgsz=640
python train.py resume=runs/.../last.pt                                   go on with an interrupted run

Takes every training argument of Ultralytics and those in cfg/ds2d2.yaml.
"""

import sys

from ds2d2_yolo import cli

if __name__ == "__main__":
    sys.exit(cli.train(sys.argv[1:]))
