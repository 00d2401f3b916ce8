"""Weights as they are published: other libraries' names, the hub's cache, and what is said where they are missing."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RemoteEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from torch.nn import functional as F

from napari_lrmil.errors import EncoderError
from napari_lrmil.model.encoder import (
    PRESETS,
    Encoder,
    EncoderSpec,
    load_weights,
    weights_file,
)

DIM, HEADS, DEPTH = 24, 2, 3
TINY = {"embed_dim": DIM, "depth": DEPTH, "num_heads": HEADS}


def tiny(preset: str, grid: int = 4) -> EncoderSpec:
    spec = PRESETS[preset].spec
    options = {**spec.options, **TINY, "img_size": grid * PRESETS[preset].token_px}
    return spec.model_copy(update={"options": options})


def randomised(spec: EncoderSpec, seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    encoder = Encoder(spec).eval()
    with torch.no_grad():
        for parameter in encoder.vit.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    return encoder


def pixels_of(edge_px: int) -> Tensor:
    return torch.randn(2, 3, edge_px, edge_px, generator=torch.Generator().manual_seed(1))


def contiguous(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone().contiguous() for name, value in state.items()}


def assert_loaded(encoder: Encoder, expected: Mapping[str, Tensor]) -> None:
    state = encoder.vit.state_dict()
    assert set(state) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0, msg=name)


# --- the library transformers ---------------------------------------------------------------------------------------


def hf_dinov2(*, registers: int, swiglu: bool, token_px: int, grid: int) -> dict[str, Tensor]:
    """Random tensors under the names, and of the shapes, that transformers' Dinov2Model saves."""
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> Tensor:
        return 0.2 * torch.randn(*shape, generator=generator)

    hidden = 64
    state = {
        "embeddings.cls_token": random(1, 1, DIM),
        "embeddings.mask_token": random(1, DIM),
        "embeddings.position_embeddings": random(1, 1 + grid * grid, DIM),
        "embeddings.patch_embeddings.projection.weight": random(DIM, 3, token_px, token_px),
        "embeddings.patch_embeddings.projection.bias": random(DIM),
        "layernorm.weight": random(DIM),
        "layernorm.bias": random(DIM),
    }
    if registers:
        state["embeddings.register_tokens"] = random(1, registers, DIM)
    for layer in range(DEPTH):
        at = f"encoder.layer.{layer}"
        for norm in ("norm1", "norm2"):
            state |= {f"{at}.{norm}.weight": random(DIM), f"{at}.{norm}.bias": random(DIM)}
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            state[f"{at}.attention.{part}.weight"] = random(DIM, DIM)
            state[f"{at}.attention.{part}.bias"] = random(DIM)
        state |= {f"{at}.layer_scale1.lambda1": random(DIM), f"{at}.layer_scale2.lambda1": random(DIM)}
        names = ("weights_in", "weights_out") if swiglu else ("fc1", "fc2")
        state |= {f"{at}.mlp.{names[0]}.weight": random(2 * hidden, DIM)}
        state |= {f"{at}.mlp.{names[0]}.bias": random(2 * hidden)}
        state |= {f"{at}.mlp.{names[1]}.weight": random(DIM, hidden if swiglu else 2 * hidden)}
        state |= {f"{at}.mlp.{names[1]}.bias": random(DIM)}
    return state


def hf_forward(state: Mapping[str, Tensor], pixels: Tensor) -> Tensor:
    """What transformers' Dinov2Model makes of pixels, from its documented layers: (B, 1 + registers + g * g, D)."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)

    def heads(x: Tensor) -> Tensor:
        return x.reshape(len(x), -1, HEADS, DIM // HEADS).transpose(1, 2)

    projection = "embeddings.patch_embeddings.projection"
    kernel = state[f"{projection}.weight"]
    tokens = F.conv2d(pixels, kernel, state[f"{projection}.bias"], stride=kernel.shape[-1]).flatten(2).mT
    batch = len(pixels)
    x = torch.cat([state["embeddings.cls_token"].expand(batch, -1, -1), tokens], dim=1)
    x = x + state["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in state:
        registers = state["embeddings.register_tokens"].expand(batch, -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
    for layer in range(DEPTH):
        at = f"encoder.layer.{layer}"
        y = norm(x, f"{at}.norm1")
        query, key, value = (
            heads(linear(y, f"{at}.attention.attention.{part}")) for part in ("query", "key", "value")
        )
        attention = (query @ key.mT / math.sqrt(DIM // HEADS)).softmax(-1)
        y = (attention @ value).transpose(1, 2).reshape(batch, -1, DIM)
        x = x + linear(y, f"{at}.attention.output.dense") * state[f"{at}.layer_scale1.lambda1"]
        y = norm(x, f"{at}.norm2")
        if f"{at}.mlp.weights_in.weight" in state:
            gate, y = linear(y, f"{at}.mlp.weights_in").chunk(2, dim=-1)
            y = linear(F.silu(gate) * y, f"{at}.mlp.weights_out")
        else:
            y = linear(F.gelu(linear(y, f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
        x = x + y * state[f"{at}.layer_scale2.lambda1"]
    return norm(x, "layernorm")


@pytest.mark.parametrize("prefix", ["", "dinov2."])
@pytest.mark.parametrize(
    ("preset", "registers", "swiglu"),
    [("phikon-v2", 0, False), ("dinov2-vits14-reg", 4, False), ("dinov2-vitg14-reg", 4, True)],
)
def test_a_dinov2_of_transformers_says_the_same_in_timm(
    tmp_path: Path, preset: str, registers: int, swiglu: bool, prefix: str
) -> None:
    token_px = PRESETS[preset].token_px
    state = hf_dinov2(registers=registers, swiglu=swiglu, token_px=token_px, grid=4)
    file = {prefix + name: value for name, value in state.items()}
    if prefix:  # of Dinov2ForImageClassification
        file |= {"classifier.weight": torch.zeros(2, 2 * DIM), "classifier.bias": torch.zeros(2)}
    save_file(contiguous(file), tmp_path / "model.safetensors")
    spec = tiny(preset)
    encoder = Encoder(
        spec.model_copy(update={"options": {**spec.options, "mlp_ratio": 128 / DIM + 1e-6}})
    ).eval()
    load_weights(encoder, tmp_path / "model.safetensors")
    pixels = pixels_of(4 * token_px)
    with torch.no_grad():
        expected = hf_forward(state, pixels)
        torch.testing.assert_close(encoder(pixels).embedding, expected[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(encoder.vit.forward_features(pixels), expected, rtol=1e-4, atol=1e-5)


# --- other wrappings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "others"),
    [
        ("", {"head.weight": torch.zeros(2, DIM)}),
        ("module.", {}),
        ("backbone.", {"dino_head.mlp.0.weight": torch.zeros(2), "ibot_head.mlp.0.weight": torch.zeros(2)}),
        ("visual.trunk.", {"visual.attn_pool_contrast.query": torch.zeros(2), "text.cls_emb": torch.zeros(2)}),
        ("module.visual.trunk.", {"module.logit_scale": torch.zeros(())}),
        ("teacher.backbone.", {"teacher.dino_head.last": torch.zeros(2), "student.backbone.cls_token": torch.ones(1)}),
    ],
)  # fmt: skip
def test_prefixes_are_taken_off_and_other_towers_left_out(
    tmp_path: Path, prefix: str, others: dict[str, Tensor]
) -> None:
    source, target = randomised(tiny("conch")), randomised(tiny("conch"), 1)
    expected = contiguous(source.vit.state_dict())
    save_file({prefix + name: value for name, value in expected.items()} | others, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert_loaded(target, expected)


def test_two_models_in_one_file_are_not_guessed_between(tmp_path: Path) -> None:
    state = contiguous(randomised(tiny("uni")).vit.state_dict())
    file = {
        f"{prefix}.{name}": value.clone() for prefix in ("left", "right") for name, value in state.items()
    }
    save_file(file, tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match=r"several models: left\., right\."):
        load_weights(randomised(tiny("uni")), tmp_path / "w.safetensors")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_checkpoint_of_the_dinov2_repository(tmp_path: Path, wrapped: bool) -> None:
    """Blocks in chunks, its names of SwiGLU and registers, and a position of the class token's own."""
    source, target = randomised(tiny("dinov2-vitg14-reg")), randomised(tiny("dinov2-vitg14-reg"), 1)
    expected = contiguous(source.vit.state_dict())
    file = {}
    for name, value in expected.items():
        name = name.replace(".mlp.fc1.", ".mlp.w12.").replace(".mlp.fc2.", ".mlp.w3.")
        file[name.replace("blocks.", "blocks.0.").replace("reg_token", "register_tokens")] = value
    at_class = torch.randn(1, 1, DIM)
    file["cls_token"] = expected["cls_token"] - at_class
    file["pos_embed"] = torch.cat([at_class, expected["pos_embed"]], dim=1)
    file["mask_token"] = torch.zeros(1, DIM)
    path = tmp_path / "teacher_checkpoint.pth"
    student = {f"backbone.{name}": torch.zeros_like(value) for name, value in file.items()}
    teacher = {f"backbone.{name}": value for name, value in file.items()}
    torch.save({"teacher": teacher, "student": student, "iteration": 3} if wrapped else file, path)
    load_weights(target, path)
    loaded = target.vit.state_dict()
    torch.testing.assert_close(loaded.pop("cls_token"), expected.pop("cls_token"))
    for name, value in expected.items():
        torch.testing.assert_close(loaded[name], value, rtol=0, atol=0)


@pytest.mark.parametrize(("preset", "n_prefix"), [("uni", 1), ("virchow2", 5), ("h-optimus-0", 0)])
def test_positions_of_another_pretraining_size_are_resampled(
    tmp_path: Path, preset: str, n_prefix: int
) -> None:
    source, target = randomised(tiny(preset, grid=6)), randomised(tiny(preset, grid=4), 1)
    expected = contiguous(source.vit.state_dict())
    save_file(expected, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert expected["pos_embed"].shape[1] == n_prefix + 36
    expected["pos_embed"] = resample_abs_pos_embed(expected["pos_embed"], [4, 4], num_prefix_tokens=n_prefix)
    assert_loaded(target, expected)


def test_what_does_not_belong_is_named(tmp_path: Path) -> None:
    state = contiguous(randomised(tiny("uni")).vit.state_dict())
    save_file({**state, "blocks.0.extra": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(
        EncoderError, match=r"1 tensors of other name or shape \(blocks\.0\.extra\), 0 missing"
    ):
        load_weights(randomised(tiny("uni")), tmp_path / "w.safetensors")
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(EncoderError, match=r"w\.safetensors doesn't fit 'vit_giant_patch14_224'"):
        load_weights(randomised(tiny("uni2-h")), tmp_path / "w.safetensors")


class Malicious:
    """Unpickling it would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pytorch_file_cannot_run_code(tmp_path: Path) -> None:
    state = contiguous(randomised(tiny("uni")).vit.state_dict())
    torch.save({**state, "extra": Malicious(tmp_path / "owned")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="not a PyTorch file of tensors alone"):
        load_weights(randomised(tiny("uni")), tmp_path / "pytorch_model.bin")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04 cut"])
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_an_encoder_error(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(EncoderError, match=f"{name} is not a"):
        load_weights(randomised(tiny("uni")), tmp_path / name)


def _state() -> dict[str, Tensor]:
    return contiguous(randomised(tiny("uni")).vit.state_dict())


def _repeated(state: dict[str, Tensor]) -> dict[str, object]:
    return {**state, "pos_embed": torch.zeros(1, 1, 1).expand(1, 10**9 + 1, DIM)}


def _circle(state: dict[str, Tensor]) -> dict[str, object]:
    wrapped: dict[str, object] = {**state}
    wrapped["teacher"] = wrapped
    return wrapped


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # torch's, of sparse tensors
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (_circle, "holds itself"),
        (_repeated, "pos_embed is no plain array"),
        (lambda state: {**state, "norm.weight": state["norm.weight"].to_sparse()}, "norm.weight is no plain array"),
        (lambda state: {**state, "norm.weight": state["norm.weight"] * math.nan}, "aren't finite: norm.weight"),
        (lambda state: {**state, **{f"encoder.layer.0.attention.attention.{part}.weight": torch.zeros(size, 3)
                                    for part, size in (("query", 1), ("key", 2))},
                        "encoder.layer.0.attention.attention.value.weight": torch.zeros(2, 5)}, "don't belong together"),
    ],
    ids=["circle", "repeated", "sparse", "nan", "shapes"],
)  # fmt: skip
def test_state_dicts_of_strangers_are_refused(
    tmp_path: Path, changed: Callable[[dict[str, Tensor]], Mapping[str, object]], message: str
) -> None:
    torch.save(changed(_state()), tmp_path / "weights.pth")
    with pytest.raises(EncoderError, match=message):
        load_weights(Encoder(tiny("uni")), tmp_path / "weights.pth")


def test_a_packed_pytorch_file_is_refused(tmp_path: Path) -> None:
    torch.save(_state(), tmp_path / "weights.pth")
    with zipfile.ZipFile(tmp_path / "weights.pth") as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    with pytest.raises(EncoderError, match="not a PyTorch file of tensors alone"):
        load_weights(Encoder(tiny("uni")), tmp_path / "packed.pth")


def test_a_pytorch_file_of_something_else(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "w.pt")
    with pytest.raises(EncoderError, match="holds no state dict"):
        load_weights(randomised(tiny("uni")), tmp_path / "w.pt")


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, without network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


def in_cache(cache: Path, hub_id: str, file: str, revision: str = "main") -> Path:
    """Where the hub's client keeps a fetched file."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / revision).write_text(commit)
    path = folder / "snapshots" / commit / file
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize(
    ("source", "file", "revision"),
    [
        ("hf-hub:lab/vit", "model.safetensors", "main"),
        ("hf-hub:lab/vit", "pytorch_model.bin", "main"),
        ("hf_hub:lab/vit/sub/own.safetensors", "sub/own.safetensors", "main"),
        ("hf-hub:lab/vit@v2", "model.safetensors", "v2"),
        ("hf-hub:lab/vit@v2/own.pth", "own.pth", "v2"),
    ],
)
def test_a_fetched_file_is_found_without_network(
    hub_cache: Path, source: str, file: str, revision: str
) -> None:
    expected = contiguous(randomised(tiny("uni")).vit.state_dict())
    path = in_cache(hub_cache, "lab/vit", file, revision)
    if path.suffix == ".safetensors":
        save_file(expected, path)
    else:
        torch.save(expected, path)
    assert weights_file(source).samefile(path)
    target = randomised(tiny("uni"), 1)
    load_weights(target, source)
    assert_loaded(target, expected)


def test_safetensors_are_preferred(hub_cache: Path) -> None:
    for file in ("pytorch_model.bin", "model.safetensors"):
        in_cache(hub_cache, "lab/vit", file).write_bytes(b"x")
    assert weights_file("hf-hub:lab/vit").name == "model.safetensors"


@pytest.mark.parametrize("name", ["uni", "gpfm", "phikon-v2"])
def test_a_presets_file_is_found_by_repository(hub_cache: Path, name: str) -> None:
    preset = PRESETS[name]
    path = in_cache(hub_cache, preset.hub_id, preset.file)
    path.write_bytes(b"x")
    assert weights_file(preset.source).samefile(path)
    assert weights_file(f"hf-hub:{preset.hub_id}").samefile(path)


@pytest.mark.parametrize("name", PRESETS)
def test_missing_weights_say_what_to_fetch_and_where_to_put_it(hub_cache: Path, name: str) -> None:
    preset = PRESETS[name]
    with pytest.raises(EncoderError) as caught:
        weights_file(preset.source)
    text = str(caught.value)
    place = hub_cache.parent / "weights" / preset.hub_id.split("/")[1] / preset.file
    assert f"the weights of {name} ({preset.file} of {preset.hub_id}) are not on this computer" in text
    assert "HF_HUB_OFFLINE forbids fetching them" in text
    assert (f"Request access at https://huggingface.co/{preset.hub_id} first." in text) == preset.gated
    assert f"Fetch {preset.file} from https://huggingface.co/{preset.hub_id}/tree/main" in text
    assert f"put it at {place}, and set encoder.weights to this path" in text


def test_what_the_message_says_cures_it(hub_cache: Path) -> None:
    """Put the file where the message says, set encoder.weights as it says, and it loads."""
    target, expected = randomised(tiny("uni")), contiguous(randomised(tiny("uni"), 1).vit.state_dict())
    with pytest.raises(EncoderError) as caught:
        load_weights(target, PRESETS["uni"].source)
    place = Path(str(caught.value).split('--encoder.weights "')[1].split('"')[0])
    place.parent.mkdir(parents=True)
    torch.save(expected, place)
    load_weights(target, place)
    assert_loaded(target, expected)


def test_a_local_path_of_a_preset_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "uni.bin"
    with pytest.raises(EncoderError) as caught:
        load_weights(randomised(tiny("uni")), path, preset="uni")
    assert f"no encoder weights at {path}. Request access at https://huggingface.co/MahmoodLab/UNI" in str(
        caught.value
    )
    with pytest.raises(EncoderError, match=r"no preset 'uno'"):
        load_weights(randomised(tiny("uni")), path, preset="uno")
    with pytest.raises(
        EncoderError, match=r"no encoder weights at .*uni\.bin\. Put the timm encoder's state dict"
    ):
        weights_file(path)


def hub_error(kind: type[Exception]) -> Exception:
    return kind("said by the hub", response=SimpleNamespace(headers={}, request=None))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            hub_error(GatedRepoError),
            r"access was not granted, or you are not logged in .*Request access at https",
        ),
        (hub_error(RepositoryNotFoundError), r"knows no such repository, or it is private"),
        (hub_error(RemoteEntryNotFoundError), r"has no such file or revision"),
        (hub_error(huggingface_hub.errors.HfHubHTTPError), r"the hub refused"),
        (TimeoutError("slow"), r"the hub can't be reached"),
        (ConnectionResetError("cut"), r"the hub can't be reached"),
        (OSError("No space left on device"), r"fetching them failed \(No space left on device\)"),
        (huggingface_hub.errors.HfHubHTTPError.__mro__[1]("cut while fetching"), r"the hub can't be reached"),
    ],
)
def test_what_the_hub_refuses_is_told(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(EncoderError, match=message) as caught:
        weights_file("hf-hub:lab/vit/model.safetensors")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(("kind", "tries"), [(GatedRepoError, 1), (RemoteEntryNotFoundError, 2)])
def test_only_a_missing_file_makes_it_try_the_next(
    monkeypatch: pytest.MonkeyPatch, kind: type[Exception], tries: int
) -> None:
    asked = []

    def refuse(hub_id: str, file: str, **kwargs: object) -> str:
        asked.append(file)
        raise hub_error(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(EncoderError, match=r"weights \(model\.safetensors of lab/vit\)"):
        weights_file("hf-hub:lab/vit")
    assert asked == ["model.safetensors", "pytorch_model.bin"][:tries]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf-hub:vit", r"names no repository; it should be hf-hub:OWNER/NAME"),
        ("hf-hub:", r"names no repository"),
        ("hf-hub:lab/vit/model.pkl", r"neither a safetensors nor a PyTorch file"),
        ("hf-hub:lab/v..t", r"that is no valid name of a repository"),
    ],
)
def test_a_wrong_hub_id_is_told(hub_cache: Path, source: str, message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        weights_file(source)


@pytest.mark.slow
def test_the_hubs_own_variables_are_respected(tmp_path: Path) -> None:
    """In a new process, as a user sets them: HF_HOME with one fetched file, HF_HUB_OFFLINE=1."""
    in_cache(tmp_path / "hub", "lab/vit", "model.safetensors").write_bytes(b"x")
    code = (
        "from napari_lrmil.errors import EncoderError\n"
        "from napari_lrmil.model.encoder import weights_file\n"
        "print(weights_file('hf-hub:lab/vit'))\n"
        "try:\n    weights_file('hf-hub:MahmoodLab/UNI2-h')\n"
        "except EncoderError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, message = done.stdout.strip().splitlines()
    assert Path(found).is_relative_to(tmp_path / "hub" / "models--lab--vit")
    assert "Request access at https://huggingface.co/MahmoodLab/UNI2-h first." in message
    assert "HF_HUB_OFFLINE forbids fetching them" in message
