"""Models that are folders: their fingerprint, and what the files beside the weights say.

A folder in the form of Hugging Face holds the weights (`*.safetensors`), `config.json`, `tokenizer.json` and
`tokenizer_config.json`. Whoever made them is nobody in particular: sizes are bounded, and what is not as expected is
`ModelCorrupt` in one line.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from infernet.engines import models
from infernet.engines.models import ModelCorrupt, ModelMissing
from infernet.host.files import reason_of
from protocol.constants import MODEL_NAME_CHARACTERS_MAX
from protocol.structs import prepare

T = TypeVar("T")

CONFIG: Final = "config.json"
TOKENIZER: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
GENERATION_CONFIG: Final = "generation_config.json"
ADDED_TOKENS: Final = "added_tokens.json"
TEMPLATE: Final = "chat_template.jinja"
_WEIGHTS: Final = "*.safetensors"
_NEEDED: Final = (CONFIG, TOKENIZER, TOKENIZER_CONFIG)
# Everything else in a folder (a readme, a licence, pictures) has no part in what is answered.
_WITH_A_PART: Final = (
    *(*_NEEDED, GENERATION_CONFIG, ADDED_TOKENS, TEMPLATE),
    *("chat_template.json", "special_tokens_map.json", "quantization_config.json"),
)
_WEIGHT_FILES_MAX: Final = 1000
# The largest vocabularies take 35 MB as JSON.
_FILE_BYTES_MAX: Final = 128 * 1024 * 1024
_LAYERS_MAX: Final = 10_000


def folder_of(models_dir: Path, model: str) -> Path:
    """The folder that a path, or a name in the model store, means. Raises ModelMissing."""
    path = Path(model).expanduser() if "/" in model else models_dir / model
    if not path.is_dir():
        raise ModelMissing(
            f"there is no model folder {path}: ExLlama serves a folder with {CONFIG} and *.safetensors, "
            "which --model names"
        )
    return path.resolve()


def name_of(folder: Path) -> str:
    """What the model in a folder is called."""
    return folder.name[:MODEL_NAME_CHARACTERS_MAX].lower()


def weights_of(folder: Path) -> list[Path]:
    """The files of the weights, in the order of their names. Raises ModelMissing."""
    files = sorted(folder.glob(_WEIGHTS))
    if not files:
        raise ModelMissing(f"the model folder {folder} holds no *.safetensors: fetch the model again, all files of it")
    if len(files) > _WEIGHT_FILES_MAX:
        raise ModelCorrupt(f"the model folder {folder} holds {len(files)} files of weights, which no model does")
    return files


def fingerprint(folder: Path) -> bytes:
    """What is published of a folder as the SHA-256 of its weights; files that did not change are not read again.

    Raises ModelMissing or ModelCorrupt.
    """
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if missing:
        raise ModelMissing(f"the model folder {folder} lacks {', '.join(missing)}: fetch the model again, all of it")
    others = [folder / name for name in _WITH_A_PART if (folder / name).is_file()]
    # SPEC 01: Of a model that is a folder of files, the fingerprint MUST be the SHA-256 of a list of those of its files
    #   that have a part in an answer:
    listed = hashlib.sha256()
    for path in sorted([*weights_of(folder), *others], key=lambda path: path.name.encode("utf-8", "surrogateescape")):
        if not path.name.isprintable() or "\\" in path.name:
            raise ModelCorrupt(f"the model folder {folder} holds a file with a name that no model has: rename it")
        listed.update(f"{models.fingerprint(path).hex()}  {path.name}\n".encode())
    return listed.digest()


class _AddedToken(Struct, frozen=True):
    id: int
    content: str
    special: bool = False


class _DecoderToken(Struct, frozen=True):
    content: str
    special: bool = False


class _TokenizerFile(Struct, frozen=True):
    added_tokens: list[_AddedToken] = []
    post_processor: Any = None


class _NamedTemplate(Struct, frozen=True):
    name: str
    template: str


class _TokenText(Struct, frozen=True):
    content: str


_Token = str | _TokenText | None


class _TokenizerConfig(Struct, frozen=True):
    chat_template: str | list[_NamedTemplate] | None = None
    added_tokens_decoder: dict[str, _DecoderToken] = {}
    add_bos_token: bool | None = None
    bos_token: _Token = None
    eos_token: _Token = None
    pad_token: _Token = None
    unk_token: _Token = None


class _EndTokens(Struct, frozen=True):
    eos_token_id: int | list[int] | None = None


class _Shape(Struct, frozen=True):
    """What of a model's configuration tells how much room its contexts take."""

    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    num_key_value_heads: int | None = None
    hidden_size: int = 0
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    eos_token_id: int | list[int] | None = None
    text_config: Raw = Raw()
    quantization_config: Any = None


class Folder(Struct, frozen=True):
    """What the files beside the weights say.

    `control` are the texts of control tokens with their ids, `ends` the ids that end an answer. `values_per_token` is
    how many numbers a context keeps of each token, 0 where that is not known.
    """

    path: Path
    weights_bytes: int
    template: str | None
    names: dict[str, str]
    control: dict[str, int]
    ends: tuple[int, ...]
    begins_with_bos: bool
    context_tokens_max: int | None
    values_per_token: int
    quantisation: str = ""


def read_folder(path: Path) -> Folder:
    """Read the files beside the weights. Raises ModelMissing or ModelCorrupt."""
    shape = _read(path / CONFIG, _Shape)
    ends = _ids(shape.eos_token_id)
    quantised = shape.quantization_config
    if bytes(shape.text_config):
        # A model that sees pictures, too: what concerns texts is one level down.
        within = _decode(bytes(shape.text_config), path / CONFIG, _Shape)
        ends += _ids(within.eos_token_id)
        shape = within if within.num_hidden_layers else shape
    tokenizer = _read(path / TOKENIZER, _TokenizerFile)
    words = _read(path / TOKENIZER_CONFIG, _TokenizerConfig)
    control = _control_tokens(path, tokenizer, words)
    known = {"bos_token": words.bos_token, "eos_token": words.eos_token}
    known |= {"pad_token": words.pad_token, "unk_token": words.unk_token}
    names = {name: token if isinstance(token, str) else token.content for name, token in known.items() if token}
    ends += _ids(control.get(names.get("eos_token", "")))
    if (path / GENERATION_CONFIG).is_file():
        ends += _ids(_read(path / GENERATION_CONFIG, _EndTokens).eos_token_id)
    return Folder(
        path=path,
        weights_bytes=sum(file.stat().st_size for file in weights_of(path)),
        template=_template(path, words),
        names=names,
        control=control,
        ends=tuple(dict.fromkeys(ends)),
        begins_with_bos=_begins_with_bos(words, tokenizer, names.get("bos_token")),
        context_tokens_max=shape.max_position_embeddings,
        values_per_token=_values_per_token(shape),
        quantisation=_quantisation(quantised),
    )


def _control_tokens(path: Path, tokenizer: _TokenizerFile, words: _TokenizerConfig) -> dict[str, int]:
    control = {token.content: token.id for token in tokenizer.added_tokens if token.special}
    for number, token in words.added_tokens_decoder.items():
        if token.special and number.isascii() and number.isdigit() and len(number) < 10:
            control[token.content] = int(number)
    if (path / ADDED_TOKENS).is_file():
        control |= _read(path / ADDED_TOKENS, dict[str, int])
    return {content: number for content, number in control.items() if content and number >= 0}


def _ids(value: int | list[int] | None) -> list[int]:
    return list(value) if isinstance(value, list) else [] if value is None else [value]


def _template(path: Path, words: _TokenizerConfig) -> str | None:
    if (path / TEMPLATE).is_file():
        return _bytes_of(path / TEMPLATE).decode("utf-8", "replace")
    if isinstance(words.chat_template, list):
        named = {entry.name: entry.template for entry in words.chat_template}
        return named.get("default")
    return words.chat_template


def _begins_with_bos(words: _TokenizerConfig, tokenizer: _TokenizerFile, bos: str | None) -> bool:
    """Whether a text begins with the token that says so: by its own word, or by what is done to each text."""
    if bos is None:
        return False
    if words.add_bos_token is not None:
        return words.add_bos_token
    post = tokenizer.post_processor
    steps = post.get("processors", [post]) if isinstance(post, dict) else []
    for step in steps if isinstance(steps, list) else []:
        match step:
            case {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": str(first)}}, *_]}:
                return first == bos
    return False


def _quantisation(value: Any) -> str:
    """How the weights are quantised, as `exl2 4.0bpw`; "" where the configuration does not say."""
    match value:
        case {"quant_method": str(method), "bits": int(bits) | float(bits)} if not isinstance(bits, bool):
            return f"{method} {bits:.1f}bpw" if isinstance(bits, float) else f"{method} {bits}bpw"
        case {"quant_method": str(method)}:
            return method
    return ""


def _values_per_token(shape: _Shape) -> int:
    heads = shape.num_attention_heads
    groups = shape.num_key_value_heads or heads
    width = shape.head_dim or (shape.hidden_size // heads if heads > 0 else 0)
    if not 0 < shape.num_hidden_layers <= _LAYERS_MAX or groups <= 0 or width <= 0:
        return 0
    return 2 * shape.num_hidden_layers * groups * width


def _read(path: Path, kind: type[T]) -> T:
    return _decode(_bytes_of(path), path, kind)


def _decode(data: bytes, path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise ModelCorrupt(f"{path} is not what it should be: fetch the model again") from None


def _bytes_of(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise ModelMissing(f"{path} is missing: fetch the model again, all files of it")
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = reason_of(error)
        raise ModelMissing(f"{path} cannot be read ({reason}): check its owner and mode") from None
    if len(data) > _FILE_BYTES_MAX:
        raise ModelCorrupt(f"{path} is larger than such a file ever is: fetch the model again")
    return data


prepare(globals())
