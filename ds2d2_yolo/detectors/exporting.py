"""What an export's settings mean for a head that has NMS inside."""

from __future__ import annotations

from types import SimpleNamespace

from ultralytics.engine.model import Model

from ds2d2_yolo.errors import UserError


def fit_head(yolo: Model, args: dict, plan: SimpleNamespace) -> None:
    """Give ``conf``, ``iou``, ``max_det`` and ``agnostic_nms`` to a head, which Ultralytics does for its own alone.

    Args:
        yolo: With a RetinaNet or Faster R-CNN; the file it is exported to will tell the rules of its NMS.
        args: What was asked for; what Ultralytics would not know what to do with is taken out.
        plan: The same with all defaults.

    Raises:
        UserError: Half precision in ONNX, whose conversion these graphs do not survive.
    """
    head = yolo.model.model[-1]
    if plan.quantize == 16 and plan.format == "onnx":
        raise UserError(
            "RetinaNet and Faster R-CNN cannot be written to ONNX in half precision: leave half=True (quantize=16) "
            "out, or say int8=True"
        )
    for name, attribute in (("conf", "score"), ("iou", "nms_iou")):
        if (value := args.pop(name, None)) is not None:
            setattr(head.options, attribute, float(value))
    for name in ("max_det", "agnostic_nms"):
        if name in args:
            setattr(head, name, args[name])
    if args.pop("nms", None) is not None:
        print(f"NMS is part of this detector: scores from {head.options.score:g} on, at IoU {head.options.nms_iou:g}")
    rules = {"score": head.options.score, "nms_iou": head.options.nms_iou}
    yolo.add_callback("on_export_start", lambda exporter: exporter.metadata.update(rules))
