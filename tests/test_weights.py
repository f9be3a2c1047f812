"""Published weights give the published network's outputs, what does not fit is refused, and mode=eval measures them.

timm is the independent implementation here: both networks get the same weights, and the official names are checked by
timm's own conversion.
"""

import argparse
import copy
import functools
import http.server
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.mambaout import checkpoint_filter_fn
from timm.models.vision_transformer import VisionTransformer
from torchvision import transforms

from hypotheses import backbones, data, record, tasks
from hypotheses.backbones import weights
from hypotheses.config import compose
from hypotheses.errors import UserError
from hypotheses.run import evaluate, run
from hypotheses.tasks import images

SIZES = [(224, 224), (192, 256)]
VARIANTS = [
    "mambaout_femto",
    "mambaout_tiny",
    *(pytest.param(f"mambaout_{size}", marks=pytest.mark.slow) for size in ("kobe", "small", "base")),
]
DEIT = {"embed_dim": 192, "depth": 12, "num_heads": 3, "global_pool": "avg", "class_token": False}
PLAIN = [{"name": "plain", "family": "mambaout", "depths": [1, 1], "dims": [8, 16], "init": "published"}, 10, 0]


@torch.no_grad()
def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that give every layer a say and logits of the order of a half, unlike the near-zero ones of an initialisation."""
    generator = torch.Generator().manual_seed(0)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name:
            p.copy_(0.1 * noise + (1 if name.endswith("weight") else 0))
        elif p.ndim > 1 and name != "pos_embed":
            p.copy_(noise * p[0].numel() ** -0.5 * (0.5 if name == "head.fc.weight" else 1))
        else:
            p.copy_(0.2 * noise)
    return model.eval()


@functools.cache
def theirs(variant: str) -> torch.nn.Module:
    return randomise(timm.create_model(variant))


def ours(variant: str, num_classes: int = 1000) -> backbones.Classifier:
    """Of another seed than anything it is compared with."""
    return backbones.build_classifier(compose([f"backbone={variant}"])["backbone"], num_classes, seed=5).eval()


def official(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """timm's names as the official code has them."""
    names = {
        r"stem\.(.*)": r"downsample_layers.0.\1",
        r"stages\.(\d)\.downsample\.(.*)": r"downsample_layers.\1.\2",
        r"stages\.(\d)\.blocks\.(.*)": r"stages.\1.\2",
        r"head\.norm\.(.*)": r"norm.\1",
        r"head\.pre_logits\.fc\.(.*)": r"head.fc1.\1",
        r"head\.pre_logits\.norm\.(.*)": r"head.norm.\1",
        r"head\.fc\.(.*)": r"head.fc2.\1",
    }
    made = {}
    for name, tensor in state.items():
        (new,) = (re.sub(f"^{a}$", b, name) for a, b in names.items() if re.fullmatch(a, name))
        made[new] = tensor
    return made


def difference(a: torch.nn.Module, b: torch.nn.Module, size: tuple[int, int], num: int = 2) -> float:
    """Largest difference of two networks' logits, which are checked to be no trifles."""
    image = torch.randn(num, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        x, y = a(image), b(image)
    assert x.std() > 0.3 and (x[0] - x[1]).abs().max() > 0.05
    return (x - y).abs().max().item()


# ---- the same outputs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_mambaout_gives_timms_outputs_from_both_formats(variant, tmp_path):
    reference = theirs(variant)
    state = reference.state_dict()
    renamed = official(state)
    back = checkpoint_filter_fn(dict(renamed), None)
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    torch.save(state, tmp_path / "timm.pth")
    torch.save(renamed, tmp_path / "official.pth")
    for name in ("timm", "official"):
        model = ours(variant)
        assert difference(reference, model, SIZES[0]) > 0.1  # before
        weights.load(model, str(tmp_path / f"{name}.pth"))
        for size in SIZES:
            assert difference(reference, model, size) < 1e-5


def test_what_is_left_of_a_difference_is_rounding():
    reference, model = theirs("mambaout_femto"), ours("mambaout_femto")
    model.load_state_dict(weights.fit(reference.state_dict(), model, "timm"))
    image = torch.randn(1, 3, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        a, b = copy.deepcopy(reference).double()(image), model.double()(image)
    assert (a - b).abs().max() < 1e-13


@pytest.mark.parametrize("grid", [224, 288])
def test_vit_gives_timms_outputs(grid, tmp_path):
    """At another size than that of the weights timm and we interpolate the positions alike."""
    reference = randomise(VisionTransformer(**DEIT, dynamic_img_size=True))
    save_file(reference.state_dict(), tmp_path / "deit.safetensors")
    model = ours("vit_tiny")
    weights.load(model, str(tmp_path / "deit.safetensors"))
    assert difference(reference, model, (grid, grid)) < 1e-5
    assert difference(reference, model, (grid, 160)) < 1e-5


def test_a_backbone_is_loaded_without_its_head(tmp_path):
    """From a whole file, and from timm's features-only naming, which has no head."""
    features = timm.create_model("mambaout_femto", features_only=True)
    assert "stages_0.blocks.0.norm.weight" in features.state_dict()
    randomise(features)
    image = torch.randn(1, 3, 96, 64)
    with torch.inference_mode():
        expected = [m.permute(0, 3, 1, 2) for m in features(image)]
    renamed = {re.sub(r"^stages_", "stages.", k): v for k, v in features.state_dict().items()}
    head = {k: v for k, v in theirs("mambaout_femto").state_dict().items() if k.startswith("head.")}
    for state in (features.state_dict(), renamed | head, official(renamed | head)):
        torch.save(state, tmp_path / "x.pt")
        backbone = ours("mambaout_femto").backbone.eval()
        weights.load(backbone, str(tmp_path / "x.pt"), backbone_only=True)
        with torch.inference_mode():
            maps = backbone(image)
        for a, b in zip(expected, maps, strict=True):  # of no normalised size, unlike the logits
            assert (a - b).abs().max() < 1e-5 * a.abs().max()
    torch.save(features.state_dict(), tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"missing head\.norm\.weight"):
        weights.load(ours("mambaout_femto"), str(tmp_path / "x.pt"))
    model = ours("vit_tiny").backbone
    torch.save(VisionTransformer(**DEIT, num_classes=7).state_dict(), tmp_path / "x.pt")
    weights.load(model, str(tmp_path / "x.pt"), backbone_only=True)


@pytest.mark.parametrize("form", ["pt", "bin", "safetensors", "legacy", "model", "state_dict", "training"])
def test_every_kind_of_file_is_read(form, tmp_path):
    model = backbones.build_classifier(*PLAIN)
    state = randomise(model).state_dict()
    file = tmp_path / f"x.{form}"
    match form:
        case "safetensors":
            save_file(state, file)
        case "legacy":
            torch.save(state, file, _use_new_zipfile_serialization=False)
        case "model" | "state_dict":
            torch.save({"epoch": 3, form: state}, file)
        case "training":  # as timm's train.py leaves it
            torch.save({"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": state, "metric": 0.5}, file)
        case _:
            torch.save(state, file)
    fresh = backbones.build_classifier(*PLAIN)
    assert weights.load(fresh, str(file)) == weights.sha256(file)
    assert all(torch.equal(fresh.state_dict()[k], v) for k, v in state.items())


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_a_file_of_an_address_is_downloaded_once(tmp_path, monkeypatch):
    served = tmp_path / "served"
    served.mkdir()
    torch.save(backbones.build_classifier(*PLAIN).state_dict(), served / "w.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/w.pth"
        weights.load(backbones.build_classifier(*PLAIN), f"{address}?download")
        weights.load(backbones.build_classifier(*PLAIN), address)
        with pytest.raises(UserError, match=r"cannot download .*none\.pth \(HTTP Error 404.*then weights=PATH"):
            weights.locate(address.replace("w.pth", "none.pth"))
        server.shutdown()
    weights.load(backbones.build_classifier(*PLAIN), address)  # from the cache
    with pytest.raises(UserError, match=r"cannot download .*refused.*get it by other means, then weights=PATH"):
        weights.locate(f"{address}.other")
    assert len(list((tmp_path / "cache").rglob("*_w.pth"))) == 2


def test_a_hub_id_is_downloaded_or_says_what_to_download(tmp_path, monkeypatch):
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError, RepositoryNotFoundError

    asked = []

    def download(repository: str, name: str, local_files_only: bool = False) -> str:
        if local_files_only:
            raise LocalEntryNotFoundError("not in the cache")
        asked.append((repository, name))
        return str(tmp_path / name)

    def only(there: str | None, error: type[Exception]):
        def metadata(url: str) -> None:
            if there is None or not url.endswith(there):
                raise error.__new__(error)

        return metadata

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    for name in weights.HUB_FILES:
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", only(name, RemoteEntryNotFoundError))
        assert weights.locate("hf-hub:timm/mambaout_tiny.in1k") == tmp_path / name
        assert asked.pop() == ("timm/mambaout_tiny.in1k", name) and not asked
    for error, said in (
        (RemoteEntryNotFoundError, "there is no model.safetensors or pytorch_model.bin"),
        (RepositoryNotFoundError, "no such repository"),
        (TimeoutError, "TimeoutError"),
    ):
        monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", only(None, error))
        with pytest.raises(
            UserError, match=rf"cannot get timm/x from the hub \({said}\): download https://huggingface"
        ):
            weights.locate("timm/x")


def test_offline_the_file_to_download_is_named(one_line_error, paths, tmp_path):
    said = one_line_error(
        "hypotheses.run", *paths, "backbone=mambaout_tiny", "mode=eval", "weights=timm/mambaout_tiny.in1k",
        HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path),
    )  # fmt: skip
    assert "cannot get timm/mambaout_tiny.in1k from the hub" in said
    assert said.endswith(
        "download https://huggingface.co/timm/mambaout_tiny.in1k/resolve/main/model.safetensors, then weights=PATH\n"
    )


def test_a_source_that_is_nothing_is_said(tmp_path):
    with pytest.raises(UserError, match=r"no such file; give a file, an https:// address or a hub id"):
        weights.locate(str(tmp_path / "none.pth"))
    with pytest.raises(UserError, match="no such file"):
        weights.locate("outputs/none.pt")  # by its ending no hub id
    with pytest.raises(UserError, match="is a folder: name the file in it"):
        weights.locate(str(tmp_path))


# ---- refusals --------------------------------------------------------------------------------------------------------


class Malicious:
    """Runs a command when it is unpickled."""

    def __init__(self, touched: Path):
        self.touched = touched

    def __reduce__(self):
        return os.system, (f"touch {self.touched}",)


def refused(file: Path, model: torch.nn.Module | None = None, **kwargs) -> str:
    """The one line that loading a file must end in, the model being left as it was."""
    model = model or backbones.build_classifier(*PLAIN)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        weights.load(model, str(file), **kwargs)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert "\n" not in str(error.value) and file.name in str(error.value)
    return str(error.value)


def test_a_pickle_that_wants_to_run_code_is_refused_and_nothing_runs(tmp_path):
    touched, file = tmp_path / "touched", tmp_path / "x.pth"
    state = backbones.build_classifier(*PLAIN).state_dict()
    torch.save(state | {"head.fc2.bias": Malicious(touched)}, file)
    assert "is refused: reading it would run code (posix.system)" in refused(file)
    torch.save({"state_dict": state, "args": Malicious(touched)}, file)
    assert "is refused: reading it would run code" in refused(file)
    file.write_bytes(pickle.dumps(Malicious(touched), protocol=2))
    assert "is refused: reading it would run code" in refused(file)
    for protocol in (3, 4, 5):  # of which torch's reader knows little, and says less
        file.write_bytes(pickle.dumps(Malicious(touched), protocol=protocol))
        refused(file)
        torch.save(Malicious(touched), file, pickle_protocol=protocol)
        refused(file)
    torch.save(backbones.build_classifier(*PLAIN), file)  # a whole module, not its weights
    assert "hypotheses.backbones.Classifier" in refused(file)
    assert not touched.exists()
    os.system(f"touch {touched}")  # that it would have been seen
    assert touched.exists()


def test_a_file_that_is_not_whole_or_no_weights_is_refused(tmp_path):
    state = backbones.build_classifier(*PLAIN).state_dict()
    torch.save(state, tmp_path / "zip")
    torch.save(state, tmp_path / "legacy", _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "safetensors")
    file = tmp_path / "x.pth"
    for name in ("zip", "legacy", "safetensors"):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 1, 12, 100, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            assert "is not a whole file of weights: delete it and get it again" in refused(file), (name, length)
    for text in ("<html>Not found</html>", "{}", "version https://git-lfs.github.com/spec/v1\n"):
        file.write_text(text)
        assert "is not a whole file of weights" in refused(file)
    for held in ([torch.zeros(1)], torch.zeros(3), {"epoch": 3}, {"model": {"a": 1}}):
        torch.save(held, file)
        assert "holds no dict of tensors" in refused(file)
    for held in ({}, {"layer1.conv.weight": torch.zeros(1)}):
        torch.save(held, file)
        assert "holds weights of no known network" in refused(file)


def test_what_does_not_fit_is_listed(tmp_path):
    file = tmp_path / "x.pth"
    whole = official_like(backbones.build_classifier(*PLAIN))
    bias, conv = whole["stages.0.0.fc1.bias"], whole["stages.0.0.conv.weight"]
    cases = [
        ({k: v for k, v in whole.items() if k != "stages.1.0.fc2.bias"}, "missing backbone.stages.1.0.fc2.bias"),
        (whole | {"stages.1.7.fc2.bias": bias}, "unexpected stages.1.7.fc2.bias"),
        (whole | {"head.norm2.weight": bias}, "unexpected head.norm2.weight"),  # our name, of no meaning there
        (whole | {"stages.0.0.conv.weight": conv[..., 1:]}, "stages.0.0.conv.weight is (8, 1, 7, 6), not (8, 1, 7, 7)"),
        (whole | {"stages.0.0.fc1.bias": bias + torch.nan}, "stages.0.0.fc1.bias holds values that are not finite"),
        (whole | {"stages.0.0.fc1.bias": bias + torch.inf}, "stages.0.0.fc1.bias holds values that are not finite"),
        (whole | {"stages.0.0.fc1.bias": bias.long()}, "stages.0.0.fc1.bias holds torch.int64"),
        (whole | {"stages.0.0.fc1.bias": bias.to_sparse()}, "no plain floating-point numbers"),
    ]
    for state, said in cases:
        torch.save(state, file)
        assert refused(file).endswith(f"does not fit this network: {said}") or said in refused(file)
        assert refused(file).count(";") == 0  # nothing else
    torch.save({k: v for k, v in whole.items() if "stages" not in k}, file)
    assert re.search(r"(missing [\w.]+; ){9}missing [\w.]+; and \d+ more$", refused(file))
    torch.save(whole, file)
    weights.load(backbones.build_classifier(*PLAIN), str(file))


def official_like(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Our own network's weights under the official names."""
    names = {"backbone.": "", "head.norm2.": "head.norm.", "head.norm.": "norm."}
    state = {}
    for name, tensor in model.state_dict().items():
        start = next((s for s in names if name.startswith(s)), "")
        state[names.get(start, "") + name.removeprefix(start)] = tensor
    return state


def test_other_networks_weights_are_refused(tmp_path):
    file = tmp_path / "x.pth"
    torch.save(official(theirs("mambaout_femto").state_dict()), file)
    assert "missing backbone.stages.0" not in refused(file, ours("mambaout_tiny"))  # the same names, other widths
    assert "downsample_layers.0.conv1.weight is (24, 3, 3, 3), not (48, 3, 3, 3)" in refused(
        file, ours("mambaout_tiny")
    )
    assert "missing backbone.stages.2.9.norm.weight" in refused(file, ours("mambaout_kobe"))
    assert "missing backbone.stages.0.0.ssm." in refused(file, ours("mambaout_femto_ssm"))
    assert "unexpected stages.0.0.conv.weight" in refused(file, ours("mambaout_femto_identity"))
    assert "missing backbone.pos_embed" in refused(file, ours("vit_tiny"))
    torch.save(timm.create_model("test_mambaout").state_dict(), file)  # of the kind of timm's _rw variants
    plain = {"name": "x", "family": "mambaout", "depths": [1, 1, 3, 1], "dims": [16, 32, 48, 64], "init": "published"}
    said = refused(file, backbones.build_classifier(plain, 1000, 0))
    assert (
        "missing backbone.downsample_layers.0.norm1.weight" in said and "unexpected stages.0.blocks.0.ls.gamma" in said
    )
    assert "more" in said


def test_another_number_of_classes_is_one_sentence(tmp_path):
    file = tmp_path / "x.pth"
    torch.save(theirs("mambaout_femto").state_dict(), file)
    said = refused(file, ours("mambaout_femto", num_classes=10))
    assert said.endswith(
        "does not fit this network: the file has 1000 classes, the recipe 10: evaluate it at the scale of its training "
        "(scale=paper for the 1000 of ImageNet)"
    )
    torch.save(VisionTransformer(**DEIT).state_dict(), file)
    assert "the file has 1000 classes, the recipe 100:" in refused(file, ours("vit_tiny", num_classes=100))


def test_a_vit_with_a_class_token_is_refused(tmp_path):
    file = tmp_path / "x.pth"
    whole = VisionTransformer(**DEIT | {"class_token": True, "global_pool": "token"}).state_dict()
    without = {k: v for k, v in whole.items() if k != "cls_token"}
    for state in (whole, {"model": whole}, without):
        torch.save(state, file)
        assert "is a ViT with a class token; ours reads out the mean over the patches" in refused(
            file, ours("vit_tiny")
        )
        assert "class token" in refused(file, ours("vit_tiny").backbone, backbone_only=True)
    torch.save(VisionTransformer(**DEIT, img_size=384).state_dict(), file)
    assert "pos_embed is (1, 576, 192), not (1, 192, 14, 14)" in refused(file, ours("vit_tiny"))
    torch.save(VisionTransformer(**DEIT, fc_norm=False).state_dict(), file)  # normalises before the mean
    said = refused(file, ours("vit_tiny"))
    assert "missing head.norm.weight" in said and "unexpected norm.weight" in said


# ---- mode=eval -------------------------------------------------------------------------------------------------------


def the_result(tmp_path: Path) -> tuple[Path, dict]:
    (file,) = (tmp_path / "results").rglob("*.json")
    return file.relative_to(tmp_path / "results"), json.loads(file.read_text())


@pytest.fixture
def val_folder(tmp_path) -> Path:
    """ImageNet's val/ in small and without train/: three JPEGs of odd sizes in each of two classes."""
    rng = np.random.default_rng(0)
    for c in range(2):
        folder = tmp_path / "imagenet" / "val" / f"n0{c}"
        folder.mkdir(parents=True)
        for i in range(3):
            pixels = np.clip(rng.normal(80 + 90 * c, 30, (*rng.integers(70, 120, 2), 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.JPEG")
    return tmp_path / "imagenet"


@pytest.mark.slow
def test_a_thousand_classes_from_the_command_line(paths, tmp_path, command):
    """The published weights' command; every class holds the same image, so the shares are known."""
    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    for c in range(1000):
        image = tmp_path / "imagenet" / "val" / f"n{c:08d}" / "x.JPEG"
        image.parent.mkdir(parents=True)
        if c:
            os.link(tmp_path / "imagenet/val/n00000000/x.JPEG", image)
        else:
            Image.fromarray(picture).save(image)
    file = tmp_path / "femto.pth"
    torch.save(official(theirs("mambaout_femto").state_dict()), file)
    words = ["task=imagenet", "backbone=mambaout_femto", "mode=eval", f"weights={file}", f"paths.imagenet={tmp_path / 'imagenet'}"]  # fmt: skip
    more = [*paths, "recipe.image_size=32", "recipe.precision=32-true", "hardware=cpu", "hardware.workers=0"]
    done = command("hypotheses.run", *words, *more)
    assert done.returncode == 0, done.stderr
    address, result = the_result(tmp_path)
    assert done.stdout.count("\n") == 1 and done.stdout.endswith(f"{address}\n")
    assert "top-1 0.10 %, top-5 0.50 %, 1000 images of 32 pixels, " in done.stdout
    assert "16/16" in done.stderr and "Warning" not in done.stderr
    digest = weights.sha256(file)
    assert address.as_posix() == f"evaluations/paper/imagenet/mambaout_femto/{digest[:12]}_32.json"
    assert result["metrics"]["top1_percent"] == pytest.approx(0.1) and result["metrics"]["val_images"] == 1000
    assert (result["weights"], result["weights_sha256"]) == (str(file), digest)
    assert result["cost"]["params"] == sum(p.numel() for p in theirs("mambaout_femto").parameters())
    assert result["config"]["recipe"]["image_size"] == 32 and result["config"]["scale"]["name"] == "paper"
    assert {"commit", "code", "packages", "device", "command"} <= result["provenance"].keys()
    assert len(result["data_fingerprint"]) == 64
    again = command("hypotheses.run", *words, *more)
    assert "nothing to do (" in again.stdout and again.stdout.endswith(f"{address})\n") and again.stderr == ""
    assert the_result(tmp_path)[1] == result


@pytest.mark.parametrize("size", [32, 64])
def test_accuracy_is_that_of_timm_at_the_asked_size(size, val_folder, paths, tmp_path):
    """Resize of the shorter side, centre crop of everything, bicubic; the labels in the order of the folders."""
    reference = randomise(timm.create_model("mambaout_femto", num_classes=2))
    torch.save(reference.state_dict(), tmp_path / "x.pth")
    config = compose(
        [*paths, "mode=eval", "backbone=mambaout_femto", f"weights={tmp_path / 'x.pth'}", f"paths.imagenet={val_folder}",
         "recipe.num_classes=2", f"recipe.image_size={size}", "recipe.precision=32-true", "hardware=cpu", "hardware.workers=0"]
    )  # fmt: skip
    prepared = transforms.Compose(
        [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(size),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    wanted = [prepared(Image.open(f)) for f in sorted(val_folder.rglob("*.JPEG"))]
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    with torch.inference_mode():
        logits = reference(torch.stack(wanted))
    metrics = evaluate(config)["metrics"]
    seen = images.dataset(tasks.Run(config, data.prepare(config), tmp_path), "val")
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    for i, image in enumerate(wanted):
        torch.testing.assert_close((seen[0, i][0] / 255 - mean) / std, image, atol=1e-6, rtol=0)
    assert metrics["top1_percent"] == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item())
    assert metrics["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5)
    assert (metrics["val_images"], the_result(tmp_path)[0].stem[-3:]) == (6, f"_{size}")


def test_training_still_needs_its_images(val_folder, paths, tmp_path):
    with pytest.raises(UserError, match=r"no images at .*/train: expected .*/train/<class>/\*\.JPEG and .*/val/"):
        data.prepare(compose([*paths, "scale=paper", "recipe.num_classes=2", f"paths.imagenet={val_folder}"]))
    shutil.rmtree(val_folder / "val")
    with pytest.raises(UserError, match=r"no images at .*/val: expected .*/imagenet/val/<class>/\*\.JPEG; say where"):
        data.prepare(
            compose([*paths, "mode=eval", "weights=x", "recipe.num_classes=2", f"paths.imagenet={val_folder}"])
        )


@pytest.mark.parametrize("backbone", ["mambaout_atto", "mambaout_atto_ssm", "vit_atto"])
def test_a_runs_own_weights_give_its_recorded_metrics(backbone, paths, tmp_path, capsys):
    words = [*paths, "scale=smoke", "hardware=cpu", f"backbone={backbone}", "recipe.data.val_images=40"]
    config = compose(words)
    recorded = run(config)
    file = tmp_path / "outputs" / recorded["address"] / "weights.pt"
    others = {f: f.read_bytes() for f in (tmp_path / "outputs").rglob("*") if f.is_file()}
    asked = compose([*words, "mode=eval", f"weights={file}"])
    result = evaluate(asked)
    assert result["metrics"] == recorded["metrics"] and result["cost"] == recorded["cost"]
    assert result["data_fingerprint"] == recorded["data_fingerprint"]
    assert {f: f.read_bytes() for f in (tmp_path / "outputs").rglob("*") if f.is_file()} == others
    assert [f.name for f in (tmp_path / "results/records").rglob("*.json")] == ["seed_0.json"]  # the run's own
    assert record.find(config, recorded["data_fingerprint"]) == json.loads(json.dumps(recorded))
    assert list((tmp_path / "results/evaluations").rglob("*.json"))
    with pytest.raises(UserError, match=r"are of seed 0, .*: add seed=0"):
        evaluate(compose([*words, "mode=eval", f"weights={file}", "seed=1"]))
    if backbone == "vit_atto":  # its causal arm has the same shapes
        with pytest.raises(UserError, match=rf"are of a run of another backbone: add backbone={backbone}"):
            evaluate(compose([*words, "mode=eval", f"weights={file}", f"backbone={backbone}_causal"]))
    capsys.readouterr()
    assert evaluate(asked)["metrics"] == result["metrics"]
    assert "nothing to do" in capsys.readouterr().out
    evaluate(compose([*words, "mode=eval", f"weights={file}", "recipe.data.val_images=8"]))  # other images: again
    assert "nothing to do" not in capsys.readouterr().out


def test_the_mode_is_no_part_of_a_runs_identity():
    train = compose(["scale=smoke"])
    assert train["mode"] == {"name": "train"} and train["weights"] is None
    other = compose(["scale=smoke", "mode=eval", "weights=x.pth"])
    assert record.identity(train, "data") == record.identity(other, "data")


def test_the_scale_of_an_evaluation_is_paper_unless_another_is_named():
    for words, scale in (([], "paper"), (["scale=demo"], "demo"), (["scale=pilot"], "pilot")):
        for ordered in ([*words, "mode=eval"], ["mode=eval", *words]):
            config = compose([*ordered, "weights=timm/mambaout_tiny.in1k"])
            assert (config["scale"]["name"], config["recipe"]["name"]) == (scale, f"imagenet_{scale}")
    assert compose(["mode=train"])["scale"]["name"] == "demo"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["mode=eval"], "mode=eval needs weights to evaluate: add weights=SOURCE"),
        (["weights=x.pth"], "weights=x.pth: training starts from its seed; add mode=eval to evaluate them"),
        (["mode=test"], "no mode 'test'. Choose from: eval, train"),
        (["mode=eval", "weights=3"], "weights=3: give a file"),
        (["mode=eval", "weights=x.pth"], "weights=x.pth: no such file; give a file, an https:// address or a hub id"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_mistake_is_one_line_that_names_the_fix(words, said, paths, one_line_error):
    assert said in one_line_error("hypotheses.run", *paths, *words)


@pytest.mark.slow
def test_two_processes_evaluate_as_one(paths, tmp_path, command):
    config = compose([*paths, "scale=smoke", "hardware=cpu"])
    recorded = run(config)
    file = tmp_path / "outputs" / recorded["address"] / "weights.pt"
    done = command(
        "hypotheses.run", *paths, "scale=smoke", "mode=eval", f"weights={file}", "hardware=ddp",
        "hardware.accelerator=cpu", "hardware.devices=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1") == 1
    (found,) = (tmp_path / "results/evaluations").rglob("*.json")
    metrics = json.loads(found.read_text())["metrics"]
    assert metrics["top1_percent"] == recorded["metrics"]["top1_percent"] and metrics["val_images"] == 8
