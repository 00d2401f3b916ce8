"""Bundles: what is written is what is read, what is damaged is refused, and nothing is lost on the way."""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import write_bundle

from napari_lrmil.errors import BundleError, DeviceError, EncoderError, LRMILError
from napari_lrmil.model import bundle as bundle_module
from napari_lrmil.model.bundle import BundleInfo, load_bundle, load_info, resolve_bundle, save_bundle
from napari_lrmil.model.card import DEMONSTRATION_NOTE
from napari_lrmil.model.device import available_devices, resolve_device
from napari_lrmil.model.encoder import Encoder, EncoderSpec
from napari_lrmil.model.mil import HEADS, ABMILSpec, build_mil
from napari_lrmil.model.trust import ConformalInfo, OODInfo, TileGaussian, Trust, TrustInfo


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit(bundle: Path, change: dict[str, Any]) -> None:
    path = bundle / "bundle.json"
    raw = json.loads(path.read_text())
    for key, value in change.items():
        *sections, name = key.split(".")
        place = raw
        for section in sections:
            place = place[section]
        place[name] = value
    path.write_text(json.dumps(raw))


def test_round_trip_but_for_the_stated_rounding(tmp_path: Path) -> None:
    torch.manual_seed(4)
    spec = EncoderSpec(options={"embed_dim": 24, "depth": 2, "heads": 2, "image_px": 32})
    info = load_info(write_bundle(tmp_path / "old", spec, tile_px=32))
    encoder, mil = Encoder(spec), build_mil(info.mil)
    written = save_bundle(tmp_path / "new", info=info, encoder=encoder, mil=mil)
    loaded = load_bundle(tmp_path / "new")
    assert loaded.info == written == load_info(tmp_path / "new")
    assert not loaded.encoder.training
    assert not loaded.mil.training
    for before, after in ((encoder, loaded.encoder), (mil, loaded.mil)):
        state = after.state_dict()
        for name, value in before.state_dict().items():
            assert state[name].dtype == value.dtype
            if value.is_floating_point():
                error = (state[name] - value).abs()
                assert bool((error <= torch.maximum(value.abs() * 5e-4, torch.tensor(3e-8))).all()), name
            else:
                assert torch.equal(state[name], value), name


def test_saving_what_was_loaded_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    loaded = load_bundle(bundle)
    save_bundle(tmp_path / "again", info=loaded.info, encoder=loaded.encoder, mil=loaded.mil)
    for name in ("model.safetensors", "bundle.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes()


def test_loaded_twice_predicts_the_same(bundle: Path) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        one, other = (load_bundle(bundle) for _ in range(2))
        first, second = (model.mil(model.encoder(pixels).embedding) for model in (one, other))
    assert torch.equal(first.bag_logits, second.bag_logits)


def test_a_bundle_is_three_files_without_pickle(bundle: Path) -> None:
    assert sorted(path.name for path in bundle.iterdir()) == ["README.md", "bundle.json", "model.safetensors"]
    for path in bundle.iterdir():
        data = path.read_bytes()
        assert not data.startswith((b"\x80", b"PK"))
        with pytest.raises(Exception):  # noqa: B017, PT011  # whatever pickletools says of what is no pickle
            list(pickletools.genops(data[:4096]))


def test_weights_are_half_and_metadata_is_readable(bundle: Path) -> None:
    tensors = load_file(bundle / "model.safetensors")
    assert {value.dtype for value in tensors.values()} == {torch.float16}
    assert {name.split(".")[0] for name in tensors} == {"encoder", "mil"}
    raw = json.loads((bundle / "bundle.json").read_text())
    assert raw["format"] == "lrmil-bundle"
    assert raw["format_version"] == 1
    tiles = {"tile_px": 32, "mpp": 2.0, "min_tissue": 0.25, "apply_icc": False}
    assert (raw["tiles"], raw["token_px"]) == (tiles, 8)
    assert raw["encoder"]["mean"] == [0.485, 0.456, 0.406]


def test_damaged_weights_are_refused(bundle: Path) -> None:
    weights = bundle / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"model\.safetensors is damaged: its hash"):
        load_bundle(bundle)


@pytest.mark.parametrize(("name", "message"), [
    ("model.safetensors", r"has no model\.safetensors"),
    ("bundle.json", r"is not a model bundle: it has no bundle\.json"),
])  # fmt: skip
def test_a_missing_file_is_named(bundle: Path, name: str, message: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_a_missing_card_does_not_matter(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    load_bundle(bundle)


def test_a_newer_version_says_how_to_update(bundle: Path) -> None:
    edit(bundle, {"format_version": 7, "unheard_of": 1})
    with pytest.raises(
        BundleError, match=r"'Tiny' has format version 7; this program reads up to 3\. Update"
    ):
        load_info(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"colour": 1}, r"not valid: colour: Extra inputs"),
        ({"mil.hiden": 1}, r"not valid: mil\.hiden: Extra"),
        ({"class_names": ["a", "b", "c"]}, r"3 class names for 2 classes"),
        ({"class_names": ["a", "a"]}, r"class names repeat"),
        (
            {"class_names": ["a", "unlike training"]},
            r"a class is called 'unlike training', which is what the",
        ),
        (
            {"class_names": ["Unsure", "a"]},
            r"a class is called 'Unsure', which is what the program itself says",
        ),
        *(
            (
                {"class_names": ["a", taken]},
                rf"a class is called '{taken}', which .* calls a channel of the heatmap",
            )
            for taken in ("attention", "Attention", "attention for a", "ATTENTION for x", "attention for")
        ),
        ({"temperature": 0}, r"temperature: Input should be greater than 0"),
        ({"tiles.mpp": -1}, r"tiles\.mpp"),
        ({"format_version": 0}, r"format_version"),
        ({"format": "other"}, r"is not the description of a model bundle"),
        ({"token_px": 16}, r"tokens of 16 px stated, the encoder's are 8 px"),
        ({"mil.hidden_dim": 64}, r"don't fit the model"),
        ({"encoder.options.depth": 2}, r"don't fit the model"),
        (
            {"encoder.options.depth": 10**12},
            r"encoder\.options: .*depth is 1000000000000; an encoder's is at most 256",
        ),
        ({"encoder.options.embed_dim": 10**12}, r"embed_dim is 1000000000000"),
        ({"encoder.options.embed_dim": -(10**12)}, r"embed_dim is -1000000000000"),
        ({"encoder.options.mlp_ratio": float("nan")}, r"mlp_ratio|options"),
        ({"encoder.std": [0.2, 0.0, 0.2]}, r"encoder\.std\.1: Input should be greater than 0"),
        ({"encoder.std": [0.2, float("nan"), 0.2]}, r"encoder\.std\.1"),
        ({"encoder.mean": [0.2, float("inf"), 0.2]}, r"encoder\.mean\.1: Input should be a finite number"),
        ({"temperature": float("inf")}, r"temperature: Input should be a finite number"),
        ({"tiles.mpp": float("nan")}, r"tiles\.mpp"),
        ({"tiles.tile_px": 10**12}, r"tiles\.tile_px: Input should be less than or equal to 8192"),
        ({"mil.hidden_dim": 10**12}, r"mil\.hidden_dim"),
        ({"mil.embed_dim": 10**12}, r"mil\.embed_dim"),
        ({"mil.n_classes": 10**12}, r"mil\.n_classes"),
    ],
)
def test_wrong_descriptions_are_refused(bundle: Path, change: dict[str, Any], message: str) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_what_the_encoder_cannot_do_is_refused(bundle: Path) -> None:
    edit(bundle, {"tiles.tile_px": 33})
    with pytest.raises(EncoderError, match="33 px isn't a whole number"):
        load_bundle(bundle)
    edit(bundle, {"tiles.tile_px": 32, "encoder.options.checkpoint_path": "/tmp/evil.pth"})
    with pytest.raises(EncoderError, match="weights from elsewhere"):
        load_bundle(bundle)


@pytest.mark.parametrize("option", ["embed_dim", "depth", "heads", "image_px"])
def test_options_of_zero_are_refused(bundle: Path, option: str) -> None:
    edit(bundle, {f"encoder.options.{option}": 0})
    with pytest.raises(LRMILError):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.architecture": "\ud800"}, r"can't be read as JSON .*surrogates"),
        ({"class_names": ["benign", "\x1b[1A\x1b[2Kbenign"]}, r"class_names\.1: .*without control characters"),
        ({"name": "one\ntwo"}, r"name: .*one line"),
        ({"name": "x" * 201}, r"name: .*at most 200 characters"),
        ({"mil.embed_dim": 32}, r"aggregator takes 32 dimensions, the encoder gives 24"),
        ({"encoder.options.embed_dim": 16_384, "mil.embed_dim": 16_384}, r"don't fit the model"),
        ({"encoder.options": {}, "encoder.architecture": "vit_giant_patch14_dinov2", "token_px": 14, "tiles.tile_px": 28,
          "mil.embed_dim": 1536}, r"don't fit the model"),
        ({"encoder.options.num_heads": -1}, r"num_heads is -1; an encoder's is not below 0"),
        ({"teacher_mpp": 1e-320}, r"teacher_mpp: .*greater than or equal to 0\.001"),
        ({"encoder.options.img_size": "9" * 1000}, r"img_size is longer than 200 characters"),
    ],
)  # fmt: skip
def test_descriptions_of_strangers_are_refused(bundle: Path, change: dict[str, Any], message: str) -> None:
    edit(bundle, change)
    with pytest.raises((BundleError, EncoderError), match=message) as caught:
        load_bundle(bundle)
    assert len(str(caught.value)) < 1000


def test_a_tile_of_too_many_tokens_is_refused(bundle: Path) -> None:
    edit(bundle, {"tiles.tile_px": 8192})
    with pytest.raises(EncoderError, match=r"8192 px has 1024 x 1024 tokens of 8 px; more than 128"):
        load_bundle(bundle)


def test_an_encoder_of_terabytes_takes_no_memory_before_it_is_refused(bundle: Path) -> None:
    options = {"patch_size": 8, "img_size": 32, "embed_dim": 16_384, "depth": 30, "num_heads": 2}
    edit(bundle, {"encoder.options": options, "mil.embed_dim": 16_384})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BundleError, match="don't fit"):
        load_bundle(bundle)
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
    )  # KB on Linux, bytes on macOS


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without pipes that have a name")
@pytest.mark.parametrize("name", ["bundle.json", "model.safetensors"])
@pytest.mark.parametrize("what", ["pipe", "device", "terabyte", "folder"])
def test_what_is_no_file_is_refused_at_once(bundle: Path, name: str, what: str) -> None:
    path = bundle / name
    path.unlink()
    if what == "pipe":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/zero")
    elif what == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(10**12)
    with pytest.raises(BundleError, match=r"not a file|bytes|directory"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.int64, r"numbers of another kind than the model's: mil\..* is int64"),
        (torch.complex64, "complex64"),
    ],
)
def test_weights_of_another_kind_are_refused(bundle: Path, dtype: torch.dtype, message: str) -> None:
    path = bundle / "model.safetensors"
    tensors = load_file(path)
    tensors["mil.classifier.weight"] = tensors["mil.classifier.weight"].to(dtype)
    save_file(tensors, path)
    edit(bundle, {"weights_sha256": sha256_of(path)})
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_weights_beyond_single_precision_are_refused(bundle: Path) -> None:
    path = bundle / "model.safetensors"
    tensors = load_file(path)
    tensors["mil.classifier.bias"] = tensors["mil.classifier.bias"].double() + 1e300
    save_file(tensors, path)
    edit(bundle, {"weights_sha256": sha256_of(path)})
    with pytest.raises(BundleError, match=r"aren't finite: mil\.classifier\.bias"):
        load_bundle(bundle)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["encoder.", "mil."])
def test_weights_that_are_not_finite_are_refused(bundle: Path, part: str, value: float) -> None:
    path = bundle / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if name.startswith(part))
    tensors[name].view(-1)[0] = value
    save_file(tensors, path)
    edit(bundle, {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    with pytest.raises(BundleError, match=rf"bundle 'Tiny' has weights that aren't finite: {name}"):
        load_bundle(bundle)


@pytest.mark.parametrize("text", ["{", "[]", '"x"', "\udce9", "[" * 100_000, '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_object_is_refused(bundle: Path, text: str) -> None:
    (bundle / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(BundleError):
        load_info(bundle)


def test_the_hash_of_a_bundle_is_of_all_that_it_says(bundle: Path, tmp_path: Path) -> None:
    info = load_info(bundle)
    moved = shutil.copytree(bundle, tmp_path / "elsewhere")
    assert load_info(moved).sha256 == info.sha256
    edit(moved, {"temperature": 2.5})
    assert load_info(moved).weights_sha256 == info.weights_sha256
    assert load_info(moved).sha256 != info.sha256


def test_weights_that_are_no_tensors_are_refused_even_if_the_hash_fits(bundle: Path) -> None:
    (bundle / "model.safetensors").write_bytes(b"\x80\x04K\x01.")  # the pickle of 1
    edit(bundle, {"weights_sha256": sha256_of(bundle / "model.safetensors")})
    with pytest.raises(BundleError, match="can't be read"):
        load_bundle(bundle)


def test_a_tensor_too_many_is_refused(bundle: Path) -> None:
    tensors = load_file(bundle / "model.safetensors")
    save_file(tensors | {"mil.extra": torch.zeros(1)}, bundle / "model.safetensors")
    edit(bundle, {"weights_sha256": sha256_of(bundle / "model.safetensors")})
    with pytest.raises(BundleError, match="don't fit"):
        load_bundle(bundle)


def test_the_card_is_what_a_hub_shows(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    head, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert "license: bsd-3-clause" in head
    assert "library_name: napari-lrmil" in head
    assert f"> **{DEMONSTRATION_NOTE}**" in body
    assert body.startswith("\n# Tiny\n")
    for fact in ("benign, lesion", "32 px at 2 µm/px", "25% tissue", "0.5 µm/px", "test_auc | 0.5"):
        assert fact in body


def test_a_real_student_is_not_called_a_demonstration(bundle: Path, tmp_path: Path) -> None:
    model = load_bundle(bundle)
    info = model.info.model_copy(update={"demonstration": False})
    save_bundle(tmp_path / "real", info=info, encoder=model.encoder, mil=model.mil)
    assert DEMONSTRATION_NOTE not in (tmp_path / "real" / "README.md").read_text()


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def resave(bundle: Path, **changes: object) -> BundleInfo:
    model = load_bundle(bundle)
    return save_bundle(
        bundle, info=model.info.model_copy(update=changes), encoder=model.encoder, mil=model.mil
    )


def test_an_older_bundle_is_replaced_and_nothing_stays_behind(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("old")
    resave(bundle, name="Newer")
    assert load_info(bundle).name == "Newer"
    assert not (bundle / "notes.txt").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("failing_call", [1, 2])
def test_a_failing_write_leaves_the_older_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, failing_call: int
) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    calls = 0
    replace = os.replace

    def failing(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == failing_call:
            raise OSError("disk full")
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="disk full"):
            resave(bundle, name="Newer")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_a_folder_of_something_else_is_left_alone(bundle: Path, tmp_path: Path) -> None:
    model = load_bundle(bundle)
    thesis = tmp_path / "thesis"
    thesis.mkdir()
    (thesis / "chapter1.tex").write_text("years of work")
    with pytest.raises(BundleError, match="is not a model bundle; it is left as it is"):
        save_bundle(thesis, info=model.info, encoder=model.encoder, mil=model.mil)
    assert (thesis / "chapter1.tex").read_text() == "years of work"


def test_weights_beyond_half_precision_are_refused(bundle: Path, tmp_path: Path) -> None:
    model = load_bundle(bundle)
    with torch.no_grad():
        model.mil.get_parameter("classifier.bias")[0] = 1e6
    with pytest.raises(BundleError, match=r"aren't finite in float16: mil\.classifier\.bias"):
        save_bundle(tmp_path / "new", info=model.info, encoder=model.encoder, mil=model.mil)
    assert not (tmp_path / "new").exists()


def test_names_of_bundles(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_bundle("bundle") == Path("bundle")
    assert resolve_bundle(bundle / "bundle.json") == bundle
    with pytest.raises(BundleError, match="no bundle at nowhere"):
        resolve_bundle("nowhere")
    # The word means the packaged one, also beside the folder that `make demo` fills ...
    (tmp_path / "demo").mkdir()
    packaged = resolve_bundle("demo")
    assert packaged == Path(bundle_module.__file__).parents[1] / "demo" / "bundle"
    # ... but a bundle of that name wins.
    shutil.copytree(bundle, tmp_path / "demo", dirs_exist_ok=True)
    assert resolve_bundle("demo") == Path("demo")


def test_the_demo_bundle_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if not (resolve_bundle("demo") / "bundle.json").exists():
        pytest.skip("the demo bundle is not in the package yet")
    model = load_bundle("demo")
    assert model.info.demonstration
    assert DEMONSTRATION_NOTE in (resolve_bundle("demo") / "README.md").read_text()
    assert sum(path.stat().st_size for path in resolve_bundle("demo").iterdir()) < 12e6


def test_devices() -> None:
    assert available_devices()[-1] == "cpu"
    assert resolve_device("cpu") == torch.device("cpu")
    assert str(resolve_device("auto")) == available_devices()[0]
    with pytest.raises(DeviceError, match=r"no device 'cuda:99' here; there is: auto, .*cpu"):
        resolve_device("cuda:99")


def test_every_error_can_be_shown_as_a_message() -> None:
    assert all(issubclass(kind, LRMILError) for kind in (BundleError, DeviceError, EncoderError))


# --- trust -----------------------------------------------------------------------------------------------------------


def made_up_trust(*, quantile: float | None = 0.25) -> Trust:
    """For embeddings of 24 dimensions."""
    torch.manual_seed(9)
    axes = torch.linalg.qr(torch.randn(24, 5).double()).Q.T.contiguous()
    return Trust(
        TrustInfo(
            conformal=ConformalInfo(coverage=0.9, n_calibration=30 if quantile else 3, quantile=quantile),
            ood=OODInfo(
                rank=5, threshold=1.75, false_alarm_rate=0.05, n_calibration=30, n_training_tiles=12_000
            ),
        ),
        TileGaussian(torch.randn(24).double(), axes, torch.linspace(1e5, 1e-5, 6).double()),
    )


@pytest.fixture
def trusted(bundle: Path) -> Path:
    """A bundle with a trust part, in place of the one without."""
    model = load_bundle(bundle)
    save_bundle(bundle, info=model.info, encoder=model.encoder, mil=model.mil, trust=made_up_trust())
    return bundle


def test_a_bundle_without_trust_stays_as_older_programs_read_it(bundle: Path) -> None:
    raw = json.loads((bundle / "bundle.json").read_text())
    assert raw["format_version"] == 1
    assert "trust" not in raw
    assert load_bundle(bundle).trust is None
    assert "states no coverage" in (bundle / "README.md").read_text()


def test_trust_round_trip(trusted: Path, tmp_path: Path) -> None:
    loaded, trust = load_bundle(trusted), made_up_trust()
    assert loaded.info.format_version == 2
    assert loaded.trust is not None
    assert loaded.info.trust == loaded.trust.info == trust.info
    for name in ("mean", "axes", "variances"):
        # Variances span more than float16 does.
        torch.testing.assert_close(
            getattr(loaded.trust.tiles, name), getattr(trust.tiles, name), rtol=1e-6, atol=0
        )
    save_bundle(
        tmp_path / "again", info=loaded.info, encoder=loaded.encoder, mil=loaded.mil, trust=loaded.trust
    )
    for name in ("model.safetensors", "bundle.json", "README.md"):
        assert (tmp_path / "again" / name).read_bytes() == (trusted / name).read_bytes()


def test_a_head_with_a_projection_says_a_version_that_older_programs_refuse(
    bundle: Path, tmp_path: Path
) -> None:
    assert "projection" not in json.loads((bundle / "bundle.json").read_text())["mil"]
    model = load_bundle(bundle)
    assert model.info.mil.projection == ()
    spec = model.info.mil.model_copy(update={"projection": (7, 5)})
    info = model.info.model_copy(update={"mil": spec})
    head = build_mil(spec)
    for trust, name in ((None, "plain"), (made_up_trust(), "trusted")):
        save_bundle(tmp_path / name, info=info, encoder=model.encoder, mil=head, trust=trust)
        raw = json.loads((tmp_path / name / "bundle.json").read_text())
        assert raw["format_version"] == 3
        assert raw["mil"]["projection"] == [7, 5]
        assert ("trust" in raw) is (trust is not None)
        loaded = load_bundle(tmp_path / name)
        bag = torch.randn(6, spec.embed_dim)
        torch.testing.assert_close(
            loaded.mil(bag).bag_logits, head.eval()(bag).bag_logits, rtol=1e-2, atol=1e-2
        )
    edit(tmp_path / "plain", {"format_version": 2})
    with pytest.raises(BundleError, match=r"'mil\.projection' in format version 2; it came with 3"):
        load_bundle(tmp_path / "plain")


@pytest.mark.parametrize("name", ["mean", "max"])
def test_a_bundle_of_another_head_says_version_3_and_gives_that_head_back(
    bundle: Path, tmp_path: Path, name: str
) -> None:
    model = load_bundle(bundle)
    spec = HEADS[name](embed_dim=24, n_classes=2)
    info, head = model.info.model_copy(update={"mil": spec}), build_mil(spec).eval()
    save_bundle(tmp_path / "new", info=info, encoder=model.encoder, mil=head)
    raw = json.loads((tmp_path / "new" / "bundle.json").read_text())
    assert raw["format_version"] == 3
    assert raw["mil"] == {"name": name, "embed_dim": 24, "n_classes": 2, "dropout": 0.0}
    loaded = load_bundle(tmp_path / "new")
    assert type(loaded.mil) is type(head)
    assert loaded.info.mil == spec
    assert loaded.info.mpps == (loaded.info.tiles.mpp,)
    bag = torch.randn(6, 24)
    torch.testing.assert_close(loaded.mil(bag).bag_logits, head(bag).bag_logits, rtol=1e-2, atol=1e-2)
    assert f"aggregator | {name}, 24-d |" in (tmp_path / "new" / "README.md").read_text()
    edit(tmp_path / "new", {"format_version": 2})
    with pytest.raises(BundleError, match=rf"'mil\.name {name}' in format version 2; it came with 3"):
        load_bundle(tmp_path / "new")


@pytest.mark.parametrize(("change", "message"), [
    ({"mil.name": "mode"}, r"not valid: mil: Input tag 'mode' .* does not match any of the expected tags: .*'mean'"),
    ({"mil.name": "mean"}, r"not valid: mil\.hidden_dim: Extra"),
    ({"mil": {"name": "max", "embed_dim": 24, "n_classes": 2}, "format_version": 3}, r"don't fit the model"),
    ({"mil": "mean"}, r"not valid: mil: Input should be a valid dictionary"),
])  # fmt: skip
def test_heads_that_are_none_or_of_other_weights_are_refused(
    bundle: Path, change: dict[str, Any], message: str
) -> None:
    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def test_bundles_of_all_formats_are_read_and_written_as_they_are(bundle: Path, tmp_path: Path) -> None:
    """Their JSON is the same afterwards, and their weights are byte for byte."""
    plain = load_bundle(bundle)
    two = tmp_path / "two"
    save_bundle(two, info=plain.info, encoder=plain.encoder, mil=plain.mil, trust=made_up_trust())
    demo = Path(bundle_module.__file__).parents[1] / "demo" / "bundle"
    for folder, version in ((bundle, 1), (two, 2), (demo, 3)):
        raw = json.loads((folder / "bundle.json").read_text())
        assert raw["format_version"] == version
        model = load_bundle(folder)
        assert isinstance(model.info.mil, ABMILSpec)
        assert model.info.mil.name == "abmil"
        new = tmp_path / str(version)
        save_bundle(new, info=model.info, encoder=model.encoder, mil=model.mil, trust=model.trust)
        assert json.loads((new / "bundle.json").read_text()) == raw
        assert (new / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
        edit(new, {"mil": {name: value for name, value in raw["mil"].items() if name != "name"}})
        assert load_info(new).mil == model.info.mil  # ABMIL was the only head: the name says nothing


def test_trust_is_not_lost_unasked(trusted: Path) -> None:
    with pytest.raises(BundleError, match="trust part of 'Newer' would be lost"):
        resave(trusted, name="Newer")
    assert load_info(trusted).trust is not None


@pytest.mark.parametrize(("change", "message"), [
    ({"format_version": 1}, r"'trust' in format version 1; it came with 2"),
    ({"trust": None}, r"tensors of which the JSON says nothing"),
    ({"trust.ood.rank": 4}, r"axes of shape \(5, 24\), 4 are stated"),
    ({"trust.conformal.coverage": 1}, r"trust\.conformal\.coverage"),
    ({"trust.ood.method": "knn"}, r"trust\.ood\.method"),
    ({"trust.colour": 1}, r"trust\.colour: Extra"),
    ({"trust.ood.threshold": float("inf")}, r"trust\.ood\.threshold: Input should be a finite number"),
])  # fmt: skip
def test_wrong_trust_is_refused(trusted: Path, change: dict[str, Any], message: str) -> None:
    edit(trusted, change)
    with pytest.raises(BundleError, match=message):
        load_bundle(trusted)


@pytest.mark.parametrize(("change", "message"), [
    ({"trust.mean": torch.zeros(23)}, "don't belong together"),
    ({"trust.mean": torch.zeros(30), "trust.axes": torch.zeros(5, 30)}, "30 dimensions, the embeddings have 24"),
])  # fmt: skip
def test_trust_tensors_that_do_not_fit_are_refused(
    trusted: Path, change: dict[str, torch.Tensor], message: str
) -> None:
    save_file(load_file(trusted / "model.safetensors") | change, trusted / "model.safetensors")
    edit(trusted, {"weights_sha256": sha256_of(trusted / "model.safetensors")})
    with pytest.raises(BundleError, match=message):
        load_bundle(trusted)


def test_the_card_says_how_far_to_trust_it(trusted: Path, tmp_path: Path) -> None:
    card = " ".join((trusted / "README.md").read_text().split())
    for fact in (
        "every class of probability 0.75 or more",
        "at least 90% of the time",
        "12,000 training tiles",
        "farther than 1.75",
        "at most 5% of slides like those of calibration (30 slides)",
        "minus the probability of the slide without that tile",
    ):
        assert fact in card
    model = load_bundle(trusted)
    save_bundle(
        tmp_path / "few",
        info=model.info,
        encoder=model.encoder,
        mil=model.mil,
        trust=made_up_trust(quantile=None),
    )
    card = " ".join((tmp_path / "few" / "README.md").read_text().split())
    assert (
        "With 3 slides to calibrate on, 90% can't be promised for fewer than all classes: it takes 9." in card
    )
    assert "every slide is reported as unsure" in card
