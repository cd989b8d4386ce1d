"""The ONNX export routes each image by itself, as eager does, indices included."""

from pathlib import Path

import pytest
import torch
from ultralytics.nn.modules.block import C3k2

from mod_vision.eval.onnx_check import check_onnx, session_with_routes
from mod_vision.routing import routed_layers, set_capacity
from mod_vision.yolo.export import export_onnx, input_tensors
from mod_vision.yolo.images import load_model
from mod_vision.yolo.twins import MoDC3k2

SIZE = 96
MODELS = ["yolo26n-mod", "yolo26n-mod-seg", "yolo26n-mod-conv", "yolo11n-mod", "yolo12n-mod"]


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
    return export_onnx(calibrated(f"{request.param}.yaml", photos[:8], path), SIZE)


def test_outputs_and_indices_equal_eager(exported, photos):
    onnx, model = exported
    check = check_onnx(onnx, model, input_tensors(photos[:6], SIZE))
    assert check.same_indices == 1.0
    assert check.distinct_routes
    assert check.max_error < 1e-3
    assert check.passed


def test_the_check_notices_other_routes(exported, photos):
    """A check that cannot fail proves nothing."""
    onnx, model = exported
    _, layer = next(routed_layers(model))
    layer.router.proj.weight.data.neg_()
    try:
        check = check_onnx(onnx, model, input_tensors(photos[:2], SIZE))
    finally:
        layer.router.proj.weight.data.neg_()
    assert check.same_indices < 1.0
    assert not check.passed


def test_an_export_without_routing_is_refused(photos, tmp_path):
    yolo = load_model("yolo26n-mod.yaml")
    names = [name for name, _ in routed_layers(yolo.model)]
    set_capacity(yolo, 1.0)
    yolo.save(tmp_path / "dense.pt")
    onnx, _ = export_onnx(tmp_path / "dense.pt", SIZE)
    with pytest.raises(ValueError, match=r"no TopK node for the routed layer model\.6"):
        session_with_routes(onnx, names)


@pytest.mark.parametrize("size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("border", ["pad", "halo"])
@pytest.mark.parametrize("options", [{"scope": "inner"}, {"scope": "block"}])
def test_tiles_that_reach_beyond_the_map(size, border, options, tmp_path):
    """ONNX rounds and pools differently at borders, unless the graph avoids it."""
    onnxruntime = pytest.importorskip("onnxruntime")
    twin = MoDC3k2.from_dense(C3k2(4, 6, 1), 0.5, "norm", "layer 2", tile=8, border=border, **options).eval()
    x = torch.randn(2, 4, *size)
    torch.onnx.export(twin, (x,), tmp_path / "twin.onnx", dynamo=False)
    session = onnxruntime.InferenceSession(tmp_path / "twin.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(out), twin(x).detach(), rtol=1e-4, atol=1e-5)
