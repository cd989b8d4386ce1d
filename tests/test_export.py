"""The ONNX export routes each image by itself, as eager does, indices included."""

from pathlib import Path

import onnx
import pytest
import torch
import yaml

from mod_vision.cli.main import main
from mod_vision.eval.cost.benchmark import load_models
from mod_vision.resources import find_shipped
from mod_vision.routing import routed_layers
from mod_vision.run_settings import BenchSettings
from mod_vision.yolo.export.check import check_export
from mod_vision.yolo.export.exporter import export_model, input_tensors
from mod_vision.yolo.export.graphs import onnx_session
from mod_vision.yolo.model.capacity import set_capacity
from mod_vision.yolo.model.loading import load_model
from mod_vision.yolo.run.letterbox import check_routes

SIZE = 96
MODELS = ["yolo26n-mod-hybrid", "yolo26n-mod-hybrid-seg", "yolo11n-mod-attention", "yolo12n-mod-attention"]


def calibrated(name: str, photos: list[Path], path: Path) -> Path:
    """Save an untrained model whose features depend on the image: real BatchNorm statistics, a random router."""
    torch.manual_seed(0)
    yolo = load_model(name)
    model = yolo.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the plain average of what follows
            module.reset_running_stats()
    for _, layer in routed_layers(model):
        torch.nn.init.normal_(layer.router.proj.weight)
    with torch.no_grad():
        model(torch.cat(input_tensors(photos, SIZE)))
    yolo.save(path)
    return path


@pytest.fixture(scope="module", params=MODELS)
def exported(request, photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / f"{request.param}.pt"
    return export_model(calibrated(f"{request.param}.yaml", photos[:8], path), "onnx", SIZE)


def test_outputs_and_indices_equal_eager(exported, photos):
    check = check_export(*exported, input_tensors(photos[:6], SIZE))
    assert check.same_indices == 1.0
    assert check.distinct_routes
    assert check.max_error < 1e-3
    assert check.passed


def test_the_check_notices_other_routes(exported, photos):
    """A check that cannot fail proves nothing."""
    _, layer = next(routed_layers(exported.eager))
    layer.router.proj.weight.data.neg_()
    try:
        check = check_export(*exported, input_tensors(photos[:2], SIZE))
    finally:
        layer.router.proj.weight.data.neg_()
    assert check.same_indices < 1.0
    assert not check.passed


def test_an_export_without_routing_is_refused(photos, tmp_path):
    yolo = load_model("yolo26n-mod-hybrid.yaml")
    names = [name for name, _ in routed_layers(yolo.model)]
    set_capacity(yolo, 1.0)
    yolo.save(tmp_path / "dense.pt")
    onnx = export_model(tmp_path / "dense.pt", "onnx", SIZE).path
    with pytest.raises(ValueError, match=r"no TopK node for the routed layer model\.6"):
        onnx_session(onnx, names)


@pytest.fixture(scope="module")
def checkpoint(photos, tmp_path_factory):
    return calibrated("yolo26n-mod-hybrid.yaml", photos[:8], tmp_path_factory.mktemp("formats") / "model.pt")


@pytest.mark.parametrize(
    ("format", "options"), [("onnx", {}), ("openvino", {}), ("torchscript", {}), ("torchscript", {"window": 3})]
)
def test_vits_equal_eager(format, options, photos, tmp_path):
    d = yaml.safe_load(find_shipped("yolo26-mod-vit-t.yaml").read_text())
    d["backbone"][0][3] = [128, "vit_tiny_patch16_224", {"blocks": [[8, 11]], **options}]
    (tmp_path / "vit.yaml").write_text(yaml.safe_dump(d))
    weights = calibrated(tmp_path / "vit.yaml", photos[:4], tmp_path / "vit.pt")
    check = check_export(*export_model(weights, format, SIZE), input_tensors(photos[:4], SIZE))
    assert check.passed
    assert check.same_indices == 1.0
    assert check.distinct_routes


@pytest.mark.parametrize("format", ["openvino", "torchscript"])
def test_other_formats_equal_eager(format, checkpoint, photos):
    check = check_export(*export_model(checkpoint, format, SIZE), input_tensors(photos[:6], SIZE))
    assert check.passed
    assert check.same_indices == 1.0


@pytest.mark.parametrize("size", [(1, 96, 96), (3, 64, 160), (2, 224, 192)])
def test_dynamic_onnx_takes_other_sizes_and_batches(size, dynamic, photos):
    batch, height, width = size
    images = torch.cat(input_tensors(photos[:batch], 256))[:, :, :height, :width].contiguous()
    check = check_export(*dynamic, [images])
    assert check.max_error < 1e-2  # as above
    assert check.same_indices == 1.0


def test_dynamic_openvino_takes_other_sizes_and_batches(checkpoint, photos):
    done = export_model(checkpoint, "openvino", SIZE, dynamic=True)
    assert check_export(*done, [torch.cat(input_tensors(photos[:2], 192))[:, :, :64].contiguous()]).passed


def test_vits_are_not_exported_for_any_size(tmp_path):
    load_model("yolo26-mod-vit-t.yaml").save(tmp_path / "vit.pt")
    with pytest.raises(ValueError, match="leave out dynamic=True"):
        export_model(tmp_path / "vit.pt", "onnx", SIZE, dynamic=True)


@pytest.fixture(scope="module", params=[name for name in MODELS if not name.endswith("-seg")])
def dynamic(request, photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("dynamic") / f"{request.param}.pt"
    return export_model(calibrated(f"{request.param}.yaml", photos[:8], path), "onnx", SIZE, dynamic=True)


def test_graph_is_ready_for_tensorrt(exported):
    """TensorRT wants the number of routed tokens to be a constant, and cannot add in ScatterElements."""
    graph = onnx.load(exported.path).graph
    constants = {tensor.name for tensor in graph.initializer}
    selections = [node for node in graph.node if node.op_type == "TopK"]
    assert selections
    assert all(node.input[1] in constants for node in selections)
    scatters = [node for node in graph.node if node.op_type.startswith("Scatter")]
    assert {node.op_type for node in scatters} == {"ScatterND"}, "whole rows, not an index for each element"
    reductions = [a.s for node in scatters for a in node.attribute if a.name == "reduction"]
    assert set(reductions) <= {b"none"}


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_leaves_the_router_in_float(format, checkpoint, photos, tiny_data):
    done = export_model(checkpoint, format, SIZE, quantize=8, data=str(tiny_data))
    names = _quantised(done.path)
    assert any("blocks" in name for name in names)
    assert not any("router" in name for name in names)
    check = check_export(*done, input_tensors(photos[:6], SIZE))
    assert 0.5 < check.same_indices <= 1.0


def _quantised(path: Path) -> set[str]:
    """Return the names of the nodes that read quantised weights."""
    if path.suffix == ".onnx":
        graph = onnx.load(path).graph
        made = {out for node in graph.node if node.op_type == "DequantizeLinear" for out in node.output}
        return {
            node.name for node in graph.node if made & set(node.input) and node.op_type in ("Conv", "MatMul", "Gemm")
        }
    import openvino

    ops = openvino.Core().read_model(next(path.glob("*.xml"))).get_ops()
    weighted = [op for op in ops if op.get_type_name() in ("Convolution", "MatMul")]
    return {op.get_friendly_name() for op in weighted if "FakeQuantize" in _sources(op)}


def _sources(op) -> set[str]:
    """Return the types of the nodes that an OpenVINO node reads."""
    return {value.get_node().get_type_name() for value in op.input_values()}


def test_export_verb(checkpoint, run_cli, tmp_path):
    done = run_cli(
        "mod-vision", "export", f"model={checkpoint}", "imgsz=96", "capacity=0.25", "images=4", "batch=2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "model.onnx: equals eager on 4 images" in done.stdout
    assert "100.00 % of routed tokens agree" in done.stdout


def test_export_verb_with_any_number_of_images(checkpoint, capsys):
    """A batch larger than the photos is filled; one photo alone tells nothing about whether routes follow it."""
    words = [f"model={checkpoint}", "imgsz=96", "format=torchscript", "data=mod-open.yaml"]
    for extra, said in ((["images=2", "batch=3"], "on 3 images"), (["images=1"], "on 1 images")):
        assert main(["export", *words, *extra]) == 0
        told = capsys.readouterr().out
        assert said in told
    assert "routes follow" not in told


def test_refused_arguments_are_one_line(checkpoint, capsys):
    assert main(["export", f"model={checkpoint}", "format=litert", "dynamic=True"]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "dynamic" in told


def altered(outputs, change):
    return check_export(
        Path("some.format"), lambda _: [change(outputs.clone())], Fixed(outputs), [torch.zeros(1, 3, 8, 8)]
    )


class Fixed(torch.nn.Module):
    """A model that always gives the same."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs
        self.end2end = outputs.shape[1] == 300

    def forward(self, _):
        return self.outputs


RAW = torch.cat((torch.full((1, 4, 50), 640.0), torch.rand(1, 80, 50) * 0.6), dim=1)  # boxes in pixels, scores
ROWS = torch.cat((torch.rand(1, 300, 4) * 640, torch.linspace(0.9, 0.1, 300)[None, :, None], torch.zeros(1, 300, 1)), 2)


@pytest.mark.parametrize(
    ("outputs", "change"),
    [
        (RAW, lambda t: t * torch.cat((torch.ones(4), torch.zeros(80)))[:, None]),
        (ROWS, lambda t: t[:, :1].expand(-1, 300, -1)),
        (ROWS, lambda t: torch.cat((t[:, 1:], t[:, 1:2]), 1)),
    ],
    ids=["scores lost", "one detection 300 times", "best detection missing"],
)
def test_the_check_notices_wrong_outputs(outputs, change):
    assert altered(outputs, lambda t: t).same_as_eager
    assert not altered(outputs, change).same_as_eager


def test_swapped_detections_are_the_same():
    assert altered(ROWS, lambda t: t[:, torch.arange(300) ^ 1]).same_as_eager


def test_the_check_needs_images_and_all_outputs():
    with pytest.raises(ValueError, match="without images"):
        check_export(Path("some.format"), lambda _: [], Fixed(RAW), [])
    with pytest.raises(ValueError, match="gives outputs of shape"):
        altered(RAW, lambda t: t[:, :4])


def test_models_that_need_large_maps_are_probed_at_the_size_that_is_asked_for(tmp_path):
    """Sixteen areas do not fit the 2x2 map that P5 is at 64 pixels."""
    d = yaml.safe_load(find_shipped("yolo12-mod-attention.yaml").read_text())
    rows = [row for row in d["backbone"] if row[2] == "MoDA2C2f"]
    rows[-1][3][2] = 16
    (tmp_path / "yolo12n-areas.yaml").write_text(yaml.safe_dump(d))
    model = load_model(tmp_path / "yolo12n-areas.yaml")
    model.save(tmp_path / "areas.pt")
    with pytest.raises(ValueError, match="a 2x2 map cannot be cut into 16 areas"):
        check_routes(model.model, 64)
    assert export_model(tmp_path / "areas.pt", "torchscript", 128).path.is_file()
    assert len(load_models(str(tmp_path / "areas.pt"), [0.5], [], BenchSettings(128, "cpu"))) == 2


def test_export_refuses_a_yaml():
    with pytest.raises(ValueError, match=r"takes a checkpoint \(\.pt\)"):
        export_model("yolo26n-mod-hybrid.yaml")
