"""RetinaNet and Faster R-CNN as YAML-defined Ultralytics models, built from torchvision's detection parts."""
