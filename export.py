"""Export a checkpoint, and compare the exported model with it on its data set's images.

python export.py model=runs/.../best.pt format=onnx
python export.py model=runs/.../best.pt format=onnx dynamic=True nms=True

Takes every export argument of Ultralytics, and images=, check=, save= and trust=.
"""

import sys

from ds2d2_yolo import cli

if __name__ == "__main__":
    sys.exit(cli.export(sys.argv[1:]))
