"""Families of tokenizers: where each keeps its codebook, how a file tells, and the space in which codes are compared.

Nothing in a checkpoint says by itself whether the quantizer normalises. What decides it here, in this order: the
user's word, a configuration beside or inside the file, the family, which the names of the other tensors give away.
Where none of them speaks, the space stays open and `Found.question` asks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from codeprior.errors import InputError
from codeprior.weights import Checkpoint, Scope

# How codes are found, and the space that follows from it.
UNIT, RAW, PROJECTED = "normalised", "raw", "projected"
L2 = "nearest, both of unit length"
NEAREST = "nearest"
RESIDUAL = "nearest to the residual"
DOT = "largest dot product"
CONV = "argmax of a 1x1 conv"

# Keys: patterns of the codebook's name, behind any prefix.
BOOK = r"quantize\.embedding\.weight"
BOOKS = r"quantizes?(\.\d+)?\.embedding\.weight"
SECOND = r"quantize\.embedding_second(\.weight)?"
GUMBEL = r"quantize\.embed\.weight"
AVERAGED = r"model_ema\.quantizeembeddingweight"
AIM = rf"(vqvae|vq_vae)\.{BOOK}"
JANUS = rf"(gen_vision_model|model\.vqmodel)\.{BOOK}"
HF = rf"model\.vqmodel\.{BOOK}"

# Patterns that tell a family by the other names of its files.
BLOCKS = r"decoder\.conv_blocks\."
DOWN = r"encoder\.down\.0\.block\.0\."
DOWN_HF = rf"model\.vqmodel\.{DOWN}"
DOWN_DIFFUSERS = r"encoder\.down_blocks\.0\.resnets\."
UP_MASKGIT = r"decoder\.up\.\d+\.upsample_conv\."
QFORMER = r"s2to1encoder\."
TRANSFORM = r"quantize\.codebook_transform\."
PROJ = r"quantize\.embedding_proj\."
PHI = r"quantizes?(\.\d+)?\.quant_resi\."
UNIFIED = r"(gen_vision_model|model\.vision_model|generation_head)\."
TIME = r"encoder\.time_(conv|res_stack)\."


@dataclass(frozen=True)
class Family:
    """One row of the table.

    `key` is the pattern of the codebook's name; `tells` are patterns that all occur among the names of a file of this
    family; `width` is that of its code vectors where it is always the same. Rows of a family with a `projection` go
    through that linear layer before they are compared.
    """

    name: str
    wrapper: str
    key: str
    tells: tuple[str, ...]
    width: int | None
    encode: str
    space: str
    projection: str = ""

    def keys(self, names: list[str]) -> list[str]:
        """Names that may be this family's codebook."""
        return [name for name in names if re.fullmatch(rf"(?:.*\.)?{self.key}", name)]

    def is_told_by(self, names: str) -> bool:
        """Whether the file is of this family, going by its names, one a line."""
        return all(re.search(rf"(?:^|\.){tell}", names, re.MULTILINE) for tell in self.tells)

    def resembles(self, other: Family) -> bool:
        """Whether a file of the other family may be called one of this: told alike, or compared alike."""
        return self.tells == other.tells or (self.space, self.projection) == (other.space, other.projection)


# A file is of the first row that fits: rows with more to tell them by stand before those they resemble.
# fmt: off
FAMILIES = tuple(Family(*row) for row in (
    # name              wrapper       key       told by             width encode    space      projection
    ("iar2",            "model",      BOOK,     (SECOND,),           None, L2,       UNIT),
    ("iar2-detail",     "model",      SECOND,   (SECOND,),           None, RESIDUAL, RAW),
    ("gigatok-simvq",   "model",      BOOK,     (TRANSFORM,),        None, L2,       UNIT,      "codebook_transform"),
    ("gigatok",         "model",      BOOK,     (QFORMER,),          8,    L2,       UNIT),
    ("aim",             "bare",       AIM,      (r"mamba\.", BLOCKS), 8,   L2,       UNIT),
    ("janus",           "bare",       JANUS,    (UNIFIED,),          8,    L2,       UNIT),
    ("llamagen",        "model",      BOOK,     (BLOCKS,),           8,    L2,       UNIT),
    ("iar",             "model",      BOOK,     (BLOCKS,),           8,    L2,       UNIT),
    ("var",             "bare",       BOOK,     (PHI, DOWN),         None, RESIDUAL, RAW),
    ("xqgan",           "model",      BOOKS,    (PHI,),              None, L2,       UNIT),
    ("titok",           "bare",       BOOK,     ("latent_tokens",),  12,   L2,       UNIT),
    ("titok-vq8k",      "bare",       BOOK,     ("latent_tokens",),  64,   NEAREST,  RAW),
    ("simvq",           "state_dict", BOOK,     (PROJ,),             None, NEAREST,  PROJECTED, "embedding_proj"),
    ("simvq-library",   "own", "frozen_codebook", (r"code_transform\.",), None, NEAREST, PROJECTED, "code_transform"),
    ("vector-quantize", "own", r"_codebook\.embed", (r"_codebook\.cluster_size",), None, NEAREST, RAW),
    ("emu3",            "bare",       BOOK,     (TIME,),             None, NEAREST,  RAW),
    ("chameleon",       "bare",       HF,       (DOWN_HF,),          None, NEAREST,  RAW),
    ("diffusers",       "bare",       BOOK,     (DOWN_DIFFUSERS,),   None, NEAREST,  RAW),
    ("maskgit",         "bare",       BOOK,     (UP_MASKGIT,),       None, NEAREST,  RAW),
    ("ibq",             "state_dict", rf"({AVERAGED}|{BOOK})", (AVERAGED,), None, DOT, RAW),
    ("taming-gumbel",   "state_dict", GUMBEL,   (r"quantize\.proj\.",), None, CONV,  RAW),
    ("taming-ema",      "state_dict", BOOK, (r"quantize\.embedding\.embed_avg",), None, NEAREST, RAW),
    ("taming",          "state_dict", BOOK,     (DOWN,),             None, NEAREST,  RAW),
    ("ibq",             "state_dict", BOOK,     (DOWN,),             None, DOT,      RAW),
    ("chameleon",       "state_dict", BOOK,     (DOWN,),             None, NEAREST,  RAW),
))
NOTES = {
    "iar2":            "the semantic book, first of two; name one with --key",
    "iar2-detail":     "the detail book, second of two; it quantises what the first leaves",
    "gigatok-simvq":   "its codebook goes through a linear layer before it is normalised",
    "gigatok":         "1-D tokenizers; the 2-D ones have LlamaGen's names",
    "aim":             "LlamaGen's quantizer inside AiM",
    "janus":           "LlamaGen's quantizer inside Janus and Janus-Pro, the authors' files or Hugging Face's",
    "llamagen":        "VQ-16 and VQ-8, c2i and t2i",
    "iar":             "LlamaGen's file with the codes in another order",
    "var":             "one book at ten scales, each on what the coarser ones leave",
    "xqgan":           "with using_znorm, its default; product quantization has one book a product",
    "titok":           "L32, B64, S128; pixel_quantize belongs to the decoder and is never taken",
    "titok-vq8k":      "BL64, BL128, SL256 and TA-TiTok VQ",
    "simvq":           "the authors' code: a frozen book behind a learned linear layer",
    "simvq-library":   "SimVQ of vector-quantize-pytorch",
    "vector-quantize": "VectorQuantize of vector-quantize-pytorch; with cosine similarity its rows are of unit length",
    "emu3":            "Emu3-VisionTokenizer, alone or inside Emu3",
    "chameleon":       "Chameleon and Anole: vqgan.ckpt (in taming's layout) or inside the model",
    "diffusers":       "VQModel: amused, Kandinsky's movq",
    "maskgit":         "MaskGIT-VQGAN as RAR and TiTok use it",
    "ibq":             "encodes by dot product and decodes by raw rows; distances are between these",
    "taming-gumbel":   "codes decode to raw rows, whatever finds them",
    "taming-ema":      "keeps counts, quantize.embedding.cluster_size: give the file as --usage too",
    "taming":          "codes never used lie in a ball at the origin: leave them out with --usage",
}
# fmt: on
LFQ = (
    "a lookup-free tokenizer (Open-MAGVIT2, LFQ) stores no codebook: code i is the vector of its own bits, -1 or +1; "
    "distances between such codes are whole numbers with ties everywhere, so clusters would be arbitrary"
)
COUNTS = ("cluster_size", "ema_vocab_hit_SV")
FEW = 32  # tensors of a file that may be somebody's export of a codebook alone, unless it has one of these rooms:
NO_EXPORTS = {"encoder", "decoder", "tok_embeddings", "token_to_cluster"}
L2_SETTINGS = ("codebook_l2_norm", "use_l2_norm", "l2_normalize", "using_znorm", "use_cosine_sim")


@dataclass(frozen=True)
class Found:
    """A codebook in a checkpoint; `normalize` is None where nothing tells it, and then `question` asks."""

    vectors: np.ndarray
    key: str
    wrapper: str = ""
    family: str | None = None
    normalize: bool | None = False
    projected: bool = False
    note: str = ""
    question: str = ""


def find_codebook(checkpoint: Checkpoint, family: str | None = None, key: str | None = None) -> Found:
    """Find a checkpoint's codebook and the space that its quantizer uses.

    Parameters
    ----------
    checkpoint : Checkpoint
        Its names and shapes are looked at; of its numbers only the codebook's (and its projection's) are read.
    family : str, optional
        Where the file does not tell its family; it must not contradict what the file tells.
    key : str, optional
        Where it holds several codebooks, the name of one, with `[i]` for one of several heads.

    Raises
    ------
    InputError
        If there is no codebook, there are several, or family or key do not fit the file.
    """
    scope = _choose_scope(checkpoint, key)
    rows = _choose_rows(checkpoint, scope, family, key)
    name = _find_name(checkpoint, scope, rows) if key is None else _named(checkpoint, scope, _headless(key))
    head = "" if key is None else key.removeprefix(_headless(key))
    used = _averaged(scope, name) if key is None else name
    vectors = _matrix(scope.read(used), used, head)
    row = next((row for row in rows if row.keys([name])), rows[0] if family and key else None)
    if row is None and key is None and not any(row.keys([name]) for row in FAMILIES):
        return Found(vectors, used, scope.wrapper)  # the file's only matrix: somebody's export, taken as it is
    if row is not None and row.projection:
        vectors = _project(scope, name, row, vectors)
    normalize, note = _normalizes(checkpoint, row)
    return Found(
        vectors,
        used + head,
        scope.wrapper,
        family=row.name if row else None,
        normalize=normalize,
        projected=row is not None and bool(row.projection),
        note=note,
        question=_question(checkpoint, name, vectors) if normalize is None else "",
    )


def find_counts(checkpoint: Checkpoint, key: str = "") -> np.ndarray:
    """Find how often a checkpoint's tokenizer has used each code: numbers of shape (V,), or (heads, V) if not `key[i]`.

    Raises
    ------
    InputError
        If the checkpoint keeps no counts, or those of several codebooks and none near `key`.
    """
    for scope in checkpoint.scopes:
        names = [name for name in scope.tensors if name.rpartition(".")[2] in COUNTS]
        if names:
            nearest = [name for name in names if key.startswith(name.rpartition(".")[0] + ".")] or names
            if len(nearest) > 1:
                raise InputError(f"{checkpoint.source} keeps counts of several codebooks: {', '.join(names[:8])}")
            counts = scope.read(nearest[0])
            if nearest[0].endswith("ema_vocab_hit_SV"):
                return counts.sum(axis=0)
            head = key.removeprefix(_headless(key))
            return counts[_head_index(head, len(counts), nearest[0])] if head and counts.ndim == 2 else counts
    raise InputError(f"{checkpoint.source} keeps no counts of its codes ({', '.join(COUNTS)})")


def _choose_scope(checkpoint: Checkpoint, key: str | None) -> Scope:
    """The first wrapper with what is sought: the key, or a codebook of any family."""
    for scope in checkpoint.scopes:
        names = list(scope.tensors)
        if any(_is_named(name, key) for name in names) if key else any(row.keys(names) for row in FAMILIES):
            return scope
    return checkpoint.scopes[0]


def _choose_rows(checkpoint: Checkpoint, scope: Scope, family: str | None, key: str | None) -> list[Family]:
    """Rows of the family that the file tells, or of the one given, if the file does not contradict; [] if unknown."""
    names = list(scope.tensors)
    lines = "\n".join(names)
    told = [row for row in FAMILIES if row.is_told_by(lines) and row.keys(names)]
    likely = [row for row in told if row.width is None or row.width in _widths(scope, row.keys(names))]
    if family is None:
        return [row for row in likely if row.tells == likely[0].tells]
    if family == "lfq":
        raise InputError(LFQ)
    given = [row for row in FAMILIES if row.name == family]
    if not given:
        raise InputError(f"no family {family!r}; known: {', '.join(dict.fromkeys(row.name for row in FAMILIES))}")
    looks = f"; by its names this is {(likely or told)[0].name}" if told else ""
    if key is None and not any(row.keys(names) for row in given):
        wanted = re.sub(r"\\(.)", r"\1", given[0].key)
        raise InputError(f"{checkpoint.source} is not {family}: it holds no {wanted}{looks}")
    fitting = [row for row in given if row in likely and row.resembles(likely[0])] if likely else given
    if not fitting or (told and not any(row in told for row in given)):
        raise InputError(f"{checkpoint.source} is not {family}{looks}; leave --family away, or give another")
    return fitting


def _find_name(checkpoint: Checkpoint, scope: Scope, rows: list[Family]) -> str:
    """The one codebook of the rows, or of any row; else the one matrix of a file that holds little else."""
    names = list(scope.tensors)
    found = list(dict.fromkeys(name for row in rows or FAMILIES for name in row.keys(names)))
    found = [name for name in found if len(found) == 1 or _averaged_name(name) not in found]
    told = any(row.is_told_by("\n".join(names)) for row in FAMILIES)
    if not found and len(names) <= FEW and not told and not _rooms(scope) & NO_EXPORTS:
        matrices = [name for name in names if len(scope.tensors[name].shape) == 2]
        found = matrices if len(matrices) == 1 else []
    if not found:
        raise InputError(_nothing(checkpoint, scope))
    if len(found) > 1:
        listed = ", ".join(_describe(scope, name) for name in found[:8])
        raise InputError(f"{checkpoint.source} holds several codebooks: {listed}; choose one with --key")
    return found[0]


def _named(checkpoint: Checkpoint, scope: Scope, key: str) -> str:
    found = [name for name in scope.tensors if _is_named(name, key)]
    if key in found:
        return key
    if len(found) > 1:
        raise InputError(f"{checkpoint.source} has several tensors {key}: {', '.join(found[:8])}; give the whole name")
    if not found:
        raise InputError(f"{checkpoint.source} has no tensor {key}; it holds {_matrices(scope)}")
    return found[0]


def _rooms(scope: Scope) -> set[str]:
    return {name.partition(".")[0] for name in scope.tensors}


def _nothing(checkpoint: Checkpoint, scope: Scope) -> str:
    said = f"{checkpoint.source} holds no codebook"
    if _rooms(scope) >= {"encoder", "decoder"}:
        return f"{said}; {LFQ}. If it has one under another name, give --key: it holds {_matrices(scope)}"
    if "tok_embeddings" in _rooms(scope):
        return f"{said}: it is a transformer; its tokenizer's file has the codebook"
    return f"{said} that is known by its name; it holds {_matrices(scope)}: give --key"


def _question(checkpoint: Checkpoint, name: str, vectors: np.ndarray) -> str:
    rows = [row for row in FAMILIES if row.keys([name])] or list(FAMILIES)
    width = vectors.shape[1]
    alike = ", ".join(dict.fromkeys(row.name for row in rows if row.width == width))
    hint = f"; of these, {alike} have rows of {width} numbers" if alike else ""
    by_space = [
        ", ".join(dict.fromkeys(row.name for row in rows if row.space == space and not row.projection))
        for space in (UNIT, RAW)
    ]
    return (
        f"{checkpoint.source} does not tell how its codes ({name}, {len(vectors)} x {width}) are compared. "
        f"Give --family: {by_space[0]} (rows are l2-normalised, only directions count) or {by_space[1]} (raw rows, "
        f"lengths count too){hint}; or say it yourself, --normalize or --no-normalize"
    )


def _normalizes(checkpoint: Checkpoint, row: Family | None) -> tuple[bool | None, str]:
    """Whether rows are normalised, and what to say of it: the configuration if all of it agrees, else the family."""
    usual = None if row is None else row.space == UNIT
    note = NOTES[row.name] if row else ""
    said = {value for value in checkpoint.settings(*L2_SETTINGS) if isinstance(value, bool)}
    if len(said) != 1 or (row and row.name == "iar2-detail"):  # the setting is for IAR2's first book alone
        return usual, note
    told = said.pop()
    if usual in (None, told):
        return told, note
    return told, f"its configuration says that rows are {'' if told else 'not '}normalised, unlike others of its family"


def _project(scope: Scope, name: str, row: Family, vectors: np.ndarray) -> np.ndarray:
    """Rows as the quantizer compares them: through its linear layer, in float64."""
    quantizer = re.sub(r"(embedding\.weight|frozen_codebook)$", "", name)
    layer = quantizer + row.projection
    if f"{layer}.weight" not in scope.tensors:
        raise InputError(f"{layer} is more than a linear layer; save the projected rows as .npy and extract from that")
    rows = vectors.astype(np.float64) @ scope.read(_averaged(scope, f"{layer}.weight")).astype(np.float64).T
    if f"{layer}.bias" in scope.tensors:
        rows += scope.read(_averaged(scope, f"{layer}.bias"))
    return rows.astype(np.float32)


def _averaged_name(name: str) -> str:
    """The moving average of a parameter, as Lightning's LitEma names it: without dots."""
    return "model_ema." + name.replace(".", "")


def _averaged(scope: Scope, name: str) -> str:
    """A tensor's moving average if the file has one: what its authors decode with."""
    return _averaged_name(name) if _averaged_name(name) in scope.tensors else name


def _matrix(tensor: np.ndarray, name: str, head: str) -> np.ndarray:
    """A (V, E) matrix; (1, V, E) is one too, and of (heads, V, E) the head must be named."""
    if tensor.ndim == 3 and (head or len(tensor) == 1):
        return tensor[_head_index(head or "[0]", len(tensor), name)]
    if tensor.ndim == 3:
        raise InputError(f"{name} has {len(tensor)} heads, each a codebook; choose one, as in --key '{name}[0]'")
    if tensor.ndim != 2 or head:
        raise InputError(f"{name}{head} is no codebook: the tensor's shape is {tensor.shape}")
    return tensor


def _head_index(head: str, n_heads: int, name: str) -> int:
    index = int(head.strip("[]"))
    if index >= n_heads:
        raise InputError(f"{name} has {n_heads} heads, [0] to [{n_heads - 1}]; got {head}")
    return index


def _headless(key: str) -> str:
    return re.sub(r"\[\d+\]$", "", key)


def _is_named(name: str, key: str) -> bool:
    return f".{name}".endswith(f".{_headless(key)}")


def _widths(scope: Scope, names: list[str]) -> set[int]:
    return {scope.tensors[name].shape[-1] for name in names if scope.tensors[name].shape}


def _matrices(scope: Scope) -> str:
    """Tensors that could be codebooks, by their names if these tell; shards are not opened to say so."""
    likely = [name for name in scope.tensors if re.search(r"embed|codebook|quant|weight$", name)] or list(scope.tensors)
    if not isinstance(scope.tensors, dict):
        return ", ".join(likely[:6])
    matrices = [name for name in likely if len(scope.tensors[name].shape) in (2, 3)]
    return ", ".join(_describe(scope, name) for name in matrices[:6]) or "no matrices"


def _describe(scope: Scope, name: str) -> str:
    return f"{name} ({' x '.join(map(str, scope.tensors[name].shape))})"
