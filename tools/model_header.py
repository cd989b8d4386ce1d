"""Write parameters and executed GFLOPs into the headers of cfg/models/*.yaml, for every scale."""

import re
import sys
from pathlib import Path

from mod_vision.eval.cost.flops import executed_gflops
from mod_vision.resources import resource_dir
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.model.windows import head_of


def summary(file: Path, scale: str) -> str:
    """Return parameters and executed GFLOPs of one scale, fused, counted without computing anything."""
    name = re.sub(r"^(yolo\d+)", rf"\g<1>{scale}", file.name) if scale else file.name
    model = load_model(file.with_name(name) if file.with_name(name).exists() else name).model
    parameters = sum(p.numel() for p in model.parameters())
    head = model.model[-1]
    stride = head.stride.clone()
    model = model.eval().fuse(verbose=False).to("meta")
    head.stride = stride  # its values are read, so it stays real
    sizes = (640,) if head_of(model) is None else (640, 1280)
    routed = [executed_gflops(model, imgsz) for imgsz in sizes]
    set_capacity(model, 1.0)
    dense = [executed_gflops(model, imgsz) for imgsz in sizes]
    if len(sizes) == 1:
        return f"{parameters:,} parameters, {routed[0]:.1f} GFLOPs at its capacity, {dense[0]:.1f} dense"
    figures = [f"{r:.1f} at {imgsz} px, {d:.1f} dense" for imgsz, r, d in zip(sizes, routed, dense, strict=True)]
    return f"{parameters:,} parameters, GFLOPs at its capacity {'; '.join(figures)}"


def main() -> None:
    """Rewrite the comment behind each scale, or the second line of a model without scales."""
    for file in sorted((resource_dir("cfg") / "models").glob("*.yaml")):
        text = file.read_text()
        if "\nscales:" not in text:
            figures = summary(file, "")
            print(f"{file.name:<28}   {figures}", flush=True)
            text = re.sub(r"^# .*parameters.*$", f"# {figures}", text, count=1, flags=re.MULTILINE)
        for scale in "nsmlx" if "\nscales:" in text else "":
            figures = summary(file, scale)
            print(f"{file.name:<28}{scale}  {figures}", flush=True)
            text = re.sub(rf"^(  {scale}: \[[^\]]*\]).*$", rf"\1 # {figures}", text, flags=re.MULTILINE)
        file.write_text(text)


if __name__ == "__main__":
    if any(word in ("-h", "--help") for word in sys.argv[1:]):
        print(f"{__doc__}\nusage: python tools/model_header.py")
    else:
        main()
