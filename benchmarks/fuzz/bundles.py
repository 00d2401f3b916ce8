"""python -m benchmarks.fuzz.bundles: model bundles and encoders' weight files from strangers, broken in every way.

A bundle is loaded and classifies a small slide, whose result is written as all that the program writes; a weight file is
loaded into an encoder. Nothing in them may run.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.fuzz.attack import (
    JSON_TOKENS,
    Target,
    WrongValue,
    broken,
    flipped,
    main,
    spoil_file,
    with_odd_value,
)
from benchmarks.fuzz.small_model import SPEC, classified, write_small_bundle, write_small_slide
from napari_lrmil.cache import ResultCache, result_key, summarise
from napari_lrmil.errors import EncoderError
from napari_lrmil.export.result import read_prediction, write_prediction
from napari_lrmil.export.tables import FolderRow, write_folder_table
from napari_lrmil.model.bundle import CARD_NAME, WEIGHTS_NAME, load_bundle, load_info
from napari_lrmil.model.card import render_card
from napari_lrmil.model.encoder import Encoder, load_weights
from napari_lrmil.model.naming import BUNDLE_FILE

_SLIDE = "slide.png"
_ODD_OPTIONS = ("embed_dim", "depth", "num_heads", "patch_size", "img_size", "mlp_ratio", "init_values", "reg_tokens",
                "checkpoint_path", "pretrained", "weight_init", "global_pool", "class_token", "x")  # fmt: skip
_OPTION_VALUES = (0, -1, 1, 3, 256, 16_384, 10**12, 1e300, True, False, "", "x", "/etc/passwd", 0.5)
_DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
    "I64",
    "I32",
    "I16",
    "I8",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "C64",
    "U16",
    "X",
)


def targets() -> Iterable[Target]:
    """Return what is attacked here."""
    return (
        Target("bundle: description", _make_bundle, _spoil_json, _use_bundle),
        Target("bundle: weights", _make_bundle, _spoil_weights, _use_bundle),
        Target("bundle: files", _make_bundle, _spoil_files, _use_bundle),
        Target("weight file: safetensors", _make_safetensors, _spoil_safetensors, _use_weights, EncoderError),
        Target("weight file: PyTorch", _make_torch, _spoil_torch, _use_weights, EncoderError),
        Target("weight file: pickles that run code", _make_torch, _spoil_pickle, _use_weights, EncoderError),
    )


# ---- bundles


def _make_bundle(folder: Path) -> None:
    write_small_bundle(folder / "bundle")
    write_small_slide(folder / _SLIDE)


def _use_bundle(folder: Path) -> None:
    bundle, out = folder / "bundle", folder / "out"
    info = load_info(bundle)
    render_card(json.loads(info.model_dump_json()))
    model = load_bundle(bundle)
    prediction = classified(folder / _SLIDE, model)
    values = prediction.class_probabilities
    if (
        not np.isfinite(values).all()
        or abs(values.sum() - 1) > 1e-6
        or prediction.called not in info.class_names
    ):
        raise WrongValue(f"probabilities {values.tolist()}")
    if not np.isfinite(prediction.ood_score or 0.0) or not np.isfinite(prediction.ood_threshold or 0.0):
        raise WrongValue(f"distance {prediction.ood_score}, limit {prediction.ood_threshold}")
    write_prediction(prediction, out)
    again = read_prediction(out / f"{prediction.slide_name}.json")
    if (again.answer, again.called) != (prediction.answer, prediction.called):
        raise WrongValue(f"{prediction.answer} is read back as {again.answer}")
    write_folder_table(out / "predictions.csv", [FolderRow("slide", summarise(prediction))])
    cache = ResultCache(folder / "cache")
    key = result_key(info, mpp_xy=prediction.mpp_xy)
    cache.put(prediction, key)
    if cache.get(prediction.slide_fingerprint, prediction.bundle_sha256, key) is None:
        raise WrongValue("the cache doesn't know it again")


def _spoil_json(folder: Path, rng: Random) -> str:
    path = folder / "bundle" / BUNDLE_FILE
    data = path.read_bytes()
    fault = rng.randrange(6)
    if fault == 0:
        path.write_bytes(broken(data, JSON_TOKENS, rng))
        return "bytes of the description"
    document = json.loads(data)
    what = []
    if fault == 1:
        name, value = rng.choice(_ODD_OPTIONS), rng.choice(_OPTION_VALUES)
        document["encoder"]["options"][name] = value
        what.append(f"option {name} = {value}")
    elif fault == 2:
        document["encoder"]["architecture"] = rng.choice(
            ("convstem_vit", "resnet50", "vit_giant_patch14_dinov2", "../x", "hf-hub:a/b", "local-dir:/tmp", "\ud800", "",
             "vit_tiny_patch16_224.augreg_in21k", "hf_hub:x/y")
        )  # fmt: skip
        what.append(f"architecture {document['encoder']['architecture']!r}")
        if rng.random() < 0.5:
            document["encoder"]["options"] = {}
    for _ in range(rng.randint(1, 2) if fault > 2 else 0):
        document, said = with_odd_value(document, rng)
        what.append(said)
        if not isinstance(document, dict):
            break
    path.write_text(json.dumps(document), encoding="utf-8")
    return ", ".join(what)


def _spoil_weights(folder: Path, rng: Random) -> str:
    path = folder / "bundle" / WEIGHTS_NAME
    what = _other_tensors(path, rng)
    if rng.random() < 0.9:
        _tell_hash(folder / "bundle")
    return what


def _tell_hash(bundle: Path) -> None:
    document = json.loads((bundle / BUNDLE_FILE).read_bytes())
    document["weights_sha256"] = hashlib.sha256((bundle / WEIGHTS_NAME).read_bytes()).hexdigest()
    (bundle / BUNDLE_FILE).write_text(json.dumps(document), encoding="utf-8")


def _other_tensors(path: Path, rng: Random) -> str:
    """Break a safetensors file."""
    data = path.read_bytes()
    n_header = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + n_header]), data[8 + n_header :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    fault = rng.randrange(12)
    if fault == 0:
        path.write_bytes(broken(data, JSON_TOKENS, rng))
        return "bytes of the weights"
    if fault == 1:
        length = rng.choice((0, 1, n_header - 1, n_header + 1, 10**8, 2**40, 2**63, 2**64 - 1))
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        return f"header of {length}"
    if fault == 2:
        path.write_bytes(flipped(data, rng))
        return "a bit of the weights"
    what = f"{name}: fault {fault}"
    entry = header[name]
    if fault == 3:
        entry["dtype"] = rng.choice(_DTYPES)
        what = f"{name} is {entry['dtype']}"
    elif fault == 4:
        entry["shape"] = rng.choice(
            ([0], [10**12], [2**32, 2**32], [-1], [1] * 1000, [], entry["shape"][::-1], ["x"])
        )
        what = f"{name} of shape {str(entry['shape'])[:40]}"
    elif fault == 5:
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = rng.choice(
            ([0, 0], [begin, 2**62], [end, begin], [begin + 2, end + 2], [-1, 5], [0, len(body)])
        )
    elif fault == 6:
        header["__metadata__"] = rng.choice(({"x": "y"}, {"x": 1}, [], "x", {"\ud800": ""}))
        what = "metadata"
    elif fault == 7:
        del header[name]
        what = f"without {name}"
    elif fault == 8:
        header[rng.choice(("mil.x", "encoder.blocks.9.x", "x", "", "../x", "trust.x"))] = dict(entry)
        what = "a tensor more"
    elif fault == 9:  # values
        tensors = _tensors(header, body)
        value = rng.choice((float("nan"), float("inf"), -float("inf"), 65504.0, -65504.0, 0.0, 6e-8))
        flat = tensors[name].view(-1)
        if rng.random() < 0.5:
            flat[rng.randrange(len(flat))] = value
        else:
            flat[:] = value
        save_file(tensors, path)
        return f"{name} holds {value}"
    elif fault == 10:  # kinds
        tensors = _tensors(header, body)
        dtype = rng.choice((torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int8, torch.uint8, torch.bool,
                            torch.float8_e4m3fn, torch.complex64))  # fmt: skip
        chosen = names if rng.random() < 0.3 else [name]
        tensors |= {each: tensors[each].to(dtype) for each in chosen}
        if dtype is torch.float64 and rng.random() < 0.5:
            tensors[name] = tensors[name] * 1e300
        save_file(tensors, path)
        return f"{name} as {dtype}"
    else:  # shapes
        tensors = _tensors(header, body)
        old = tensors[name]
        others = (old.reshape(1, *old.shape), old[:0], torch.cat([old, old]), old.reshape(-1), old.sum())
        tensors[name] = rng.choice(others).contiguous()
        save_file(tensors, path)
        return f"{name} of shape {tuple(tensors[name].shape)}"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return what


def _tensors(header: dict[str, dict[str, list[int]]], body: bytes) -> dict[str, torch.Tensor]:
    kinds = {"F16": torch.float16, "F32": torch.float32}
    tensors = {}
    for name, entry in header.items():
        if name != "__metadata__":
            raw = bytearray(body[slice(*entry["data_offsets"])])
            tensors[name] = torch.frombuffer(raw, dtype=kinds[str(entry["dtype"])]).reshape(entry["shape"])
    return tensors


def _spoil_files(folder: Path, rng: Random) -> str:
    bundle = folder / "bundle"
    fault = rng.randrange(8)
    if fault == 0:
        extra = rng.choice(
            ("pytorch_model.bin", "__init__.py", "modeling.py", "evil.pkl", "config.json", "sitecustomize.py")
        )
        (bundle / extra).write_bytes(pickle.dumps(_Runs("print")))
        return f"{extra} beside it"
    if fault == 1:
        shutil.rmtree(bundle)
        outside = folder.with_name("outside")
        bundle.symlink_to(
            rng.choice((outside, outside / "secret.txt", Path("bundle"), Path("/dev/zero"), Path("nowhere")))
        )
        return "the folder is a link"
    if fault == 2:
        moved = folder.with_name("moved")
        shutil.rmtree(moved, ignore_errors=True)
        shutil.move(bundle, moved)
        bundle.mkdir()
        for name in (BUNDLE_FILE, WEIGHTS_NAME, CARD_NAME):
            (bundle / name).symlink_to(moved / name)
        return "all files are links out of the folder"
    name = rng.choice((BUNDLE_FILE, WEIGHTS_NAME, BUNDLE_FILE, WEIGHTS_NAME, CARD_NAME))
    return spoil_file(bundle / name, rng)


# ---- weight files


def _make_safetensors(folder: Path) -> None:
    torch.manual_seed(0)
    save_file(Encoder(SPEC).vit.state_dict(), folder / "weights.safetensors")


def _make_torch(folder: Path) -> None:
    torch.manual_seed(0)
    torch.save(Encoder(SPEC).vit.state_dict(), folder / "weights.pth")


def _use_weights(folder: Path) -> None:
    del _RAN[:]
    encoder = Encoder(SPEC)
    try:
        load_weights(encoder, next(folder.glob("weights.*"), folder / "weights.pth"))
    finally:
        if _RAN:
            raise WrongValue(f"code of the file ran: {_RAN}")
    for name, value in encoder.vit.state_dict().items():
        if not bool(torch.isfinite(value).all()):
            raise WrongValue(f"{name} isn't finite")


def _spoil_safetensors(folder: Path, rng: Random) -> str:
    path = folder / "weights.safetensors"
    return spoil_file(path, rng) if rng.random() < 0.1 else _other_tensors(path, rng)


def _spoil_torch(folder: Path, rng: Random) -> str:
    path = folder / "weights.pth"
    fault = rng.randrange(8)
    if fault == 0:
        return spoil_file(path, rng)
    if fault == 1:
        path.write_bytes(broken(path.read_bytes(), (b"PK\x03\x04", b"\x80\x02", b"\0" * 8, b"\xff" * 8), rng))
        return "bytes of the archive"
    if fault in (2, 3):
        _rewritten(path, lambda data: broken(data, _PICKLE_TOKENS, rng), zipfile.ZIP_STORED)
        return "bytes of the pickle"
    if fault == 4:
        _rewritten(
            path, lambda data: data + b"\0" * 2 * 10**9 if rng.random() < 0.02 else data, zipfile.ZIP_DEFLATED
        )
        return "packed"
    state = torch.load(path, weights_only=True)
    odd = dict(state)
    name = rng.choice(list(state))
    choice = rng.randrange(14)
    value = state[name]
    if choice == 0:
        odd["teacher"] = odd  # a circle
    elif choice == 1:
        odd = {"state_dict": {"model": {"teacher": state}}}
    elif choice == 2:
        odd[name] = torch.zeros(1).expand(10**5, 10**5)
    elif choice == 3:
        odd[name] = torch.zeros(1).expand(value.shape)
    elif choice == 4:
        odd[name] = torch.sparse_coo_tensor(
            torch.zeros(value.ndim, 1, dtype=torch.long), torch.ones(1), value.shape
        )
    elif choice == 5:
        odd[name] = value.to(
            rng.choice((torch.complex64, torch.int64, torch.bool, torch.float8_e4m3fn, torch.float64))
        )
    elif choice == 6:
        odd[name] = torch.full_like(value, rng.choice((float("nan"), float("inf"))))
    elif choice == 7:
        odd = rng.choice(([], None, 1, "x", {1: 2}, {}, {"a": {"b": 1}}, state["cls_token"]))  # type: ignore[arg-type]
    elif choice == 8:
        odd = {
            f"{rng.choice(('module.', 'backbone.', '', 'student.'))}{key}": each
            for key, each in state.items()
        } | {"teacher.cls_token": state["cls_token"]}
    elif choice == 9:
        odd["pos_embed"] = rng.choice(
            (torch.zeros(1, 10, 24), torch.zeros(1, 2, 24), torch.zeros(0, 17, 24), torch.zeros(1, 1).expand(1, 10**9, 24),
             torch.zeros(2, 17, 24), torch.zeros(1, 17, 24, dtype=torch.int64), torch.zeros(1, 17, 24, dtype=torch.complex64))
        )  # fmt: skip
    elif choice == 10:
        for part in ("query", "key", "value"):
            odd[f"encoder.layer.0.attention.attention.{part}.weight"] = rng.choice(
                (torch.zeros(24, 24), torch.zeros(3), torch.zeros(1).expand(10**5, 10**5), torch.zeros(24, 5))
            )
    elif choice == 11:
        odd["cls_token"] = rng.choice((torch.zeros(()), torch.zeros(1, 1, 5), torch.zeros(1, 1, 24, 2)))
        odd["pos_embed"] = torch.zeros(1, 17, 24)
    elif choice == 12:
        odd[name] = torch.quantize_per_tensor(value.float().flatten(), 0.1, 0, torch.qint8)
    else:
        odd[name] = torch.nn.Parameter(value)
    torch.save(odd, path, _use_new_zipfile_serialization=rng.random() < 0.7)
    return f"{name}: content {choice}"


_PICKLE_TOKENS = (
    b"cos\nsystem\n(S'touch x'\ntR.", b"cbuiltins\neval\n(S'1'\ntR.", b"ctorch\nTensor\n(I1000000000000\ntR.", b"\x80\x04",
    b"I99999999999999999999\n", b"K\xff", b"\x8a\x08" + b"\xff" * 8, b"(", b"t", b"R", b".", b"0", b"q\x00", b"h\x00", b"]",
    b"}", b"a", b"s", b"u", b"cbuiltins\nbytearray\n(I9999999999\ntR", b"ctorch\nLongStorage\n",
)  # fmt: skip


def _rewritten(path: Path, changed: Callable[[bytes], bytes], compression: int) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, changed(data) if name.endswith("data.pkl") else data)


_RAN: list[str] = []


def ran(text: str = "") -> list[str]:
    """Note that code of a file has run."""
    _RAN.append(text)
    return _RAN


class _Runs:
    """What a pickle runs when it is loaded."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        import os
        import subprocess
        import webbrowser

        runs: dict[str, tuple[Callable[..., object], tuple[object, ...]]] = {
            "print": (print, ("ran",)),
            "system": (os.system, ("touch ran",)),
            "popen": (subprocess.Popen, (["touch", "ran"],)),
            "eval": (eval, ("__import__('benchmarks.fuzz.bundles').fuzz.bundles.ran('eval')",)),
            "exec": (exec, ("import benchmarks.fuzz.bundles as b; b.ran('exec')",)),
            "own": (ran, ("own",)),
            "remove": (os.remove, ("../outside/secret.txt",)),
            "rmtree": (shutil.rmtree, ("../outside",)),
            "open": (open, ("../outside/new", "w")),
            "browser": (webbrowser.open, ("http://localhost:1/",)),
            "import": (__import__, ("antigravity",)),
            "load": (torch.load, ("../outside/secret.txt",)),
        }
        return runs[self.how]


_HOWS = (
    "print",
    "system",
    "popen",
    "eval",
    "exec",
    "own",
    "remove",
    "rmtree",
    "open",
    "browser",
    "import",
    "load",
)


def _spoil_pickle(folder: Path, rng: Random) -> str:
    path = folder / "weights.pth"
    how, place = rng.choice(_HOWS), rng.randrange(5)
    evil = _Runs(how)
    state = torch.load(path, weights_only=True)
    content = (evil, {**state, "x": evil}, {"teacher": evil, **state}, [evil], {**state, "epoch": (evil, 1)})[
        place
    ]
    if rng.random() < 0.3:
        path.write_bytes(pickle.dumps(content if place in (0, 3) else evil, protocol=rng.randrange(6)))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.6)
    if rng.random() < 0.4:
        path.rename(folder / f"weights.{rng.choice(('safetensors', 'bin', 'pt', 'ckpt', 'pkl', 'npz'))}")
    return f"{how} at {place}"


if __name__ == "__main__":
    main(__doc__, targets)
