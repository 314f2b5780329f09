"""CodebookPrior: which codes belong together; the file between the clustering half and the training half.

A prior maps, it never reorders: `token_to_cluster[code]` is the cluster of a code, and the codes of every tokenizer and
every stored image keep their numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from codeprior.artifact import (
    digest_array,
    digest_bytes,
    is_artifact,
    read_manifest,
    short,
    sort_metadata,
    write_atomically,
    write_json,
)
from codeprior.clustering.cut import cut
from codeprior.codebook import Codebook
from codeprior.errors import InputError
from codeprior.hub import Hub, is_on_hub, split_source
from codeprior.sharing import Shared
from codeprior.version import VERSION

FORMAT = "codeprior.prior/1"
FILE, CONFIG = "prior.safetensors", "config.json"  # in a folder
Pick = Literal["uniform", "usage"]


@dataclass(frozen=True, eq=False)
class CodebookPrior(Shared):
    """A partition of a codebook's V codes into clusters, with the tree that it was cut from if there is one.

    Parameters
    ----------
    token_to_cluster : ndarray of shape (V,), int64
        Cluster of each code, 0 to n_clusters - 1; no cluster is empty.
    codebook_digest : str
        Digest of the codebook, by which `verify` refuses another one.
    method : str
        How it was made: "dcpe", "kmeans", ...
    linkage : ndarray of shape (L - reached, 4), float64, optional
        The merges in SciPy's layout, over the L live codes in ascending order (all codes where usage is unknown).
    usage : ndarray of shape (V,), int64, optional
        How often each code occurs. A code that never does is dead: it has a cluster, but is never picked.
    seed : int
        Seed of the method; DCPE has none to need.
    parameters : mapping
        Settings of the method, as JSON values.

    Raises
    ------
    InputError
        If the arrays do not fit together.
    """

    kind: ClassVar[str] = "prior"

    token_to_cluster: np.ndarray
    codebook_digest: str
    method: str
    linkage: np.ndarray | None = None
    usage: np.ndarray | None = None
    seed: int = 0
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = np.asarray(self.token_to_cluster)
        if labels.ndim != 1 or labels.size == 0 or labels.dtype.kind not in "iu":
            raise InputError(f"token_to_cluster must be a vector of integers, got {labels.dtype} {labels.shape}")
        labels = labels.astype(np.int64)
        object.__setattr__(self, "token_to_cluster", labels)
        if labels.min() < 0:
            raise InputError(f"token_to_cluster has a negative entry, first at code {int(np.argmax(labels < 0))}")
        empty = np.flatnonzero(np.bincount(labels) == 0)
        if empty.size:
            raise InputError(f"token_to_cluster leaves {empty.size} clusters empty, first {empty[0]}")
        if self.usage is not None:
            self._check_usage(np.asarray(self.usage))

    def _check_usage(self, usage: np.ndarray) -> None:
        if usage.shape != self.token_to_cluster.shape or usage.dtype.kind not in "iu" or usage.min() < 0:
            raise InputError(f"usage must be {len(self)} counts of 0 or more, got {usage.dtype} {usage.shape}")
        usage = usage.astype(np.int64)
        object.__setattr__(self, "usage", usage)
        unused = np.flatnonzero(np.bincount(self.token_to_cluster, weights=usage) == 0)
        if unused.size:
            raise InputError(f"{unused.size} clusters hold dead codes only, first {unused[0]}; cluster the live codes")

    def __len__(self) -> int:
        return len(self.token_to_cluster)

    @property
    def n_clusters(self) -> int:
        """Number of clusters."""
        return int(self.token_to_cluster.max()) + 1

    @property
    def sizes(self) -> np.ndarray:
        """Codes in each cluster, dead ones included: (n_clusters,) int64."""
        return np.bincount(self.token_to_cluster)

    @property
    def live(self) -> np.ndarray:
        """Whether each code may be picked: (V,) bool; all of them where usage is unknown."""
        return np.ones(len(self), dtype=bool) if self.usage is None else self.usage > 0

    @cached_property
    def digest(self) -> str:
        """Digest of the partition, its usage and its codebook's digest; not of how it was made."""
        usage = b"" if self.usage is None else digest_array(self.usage).encode()
        return digest_bytes(self.codebook_digest.encode(), digest_array(self.token_to_cluster).encode(), usage)

    @cached_property
    def _members(self) -> tuple[np.ndarray, np.ndarray]:
        live = np.flatnonzero(self.live)
        order = np.argsort(self.token_to_cluster[live], kind="stable")
        counts = np.bincount(self.token_to_cluster[live], minlength=self.n_clusters)
        return np.concatenate([[0], np.cumsum(counts)]), live[order]

    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """The codes that may be picked, cluster after cluster, ascending within each.

        Returns
        -------
        offsets : ndarray of shape (n_clusters + 1,), int64
            Cluster c owns `tokens[offsets[c]:offsets[c + 1]]`.
        tokens : ndarray of shape (L,), int64
        """
        return self._members

    def pick_tokens(self, clusters: np.ndarray, generator: np.random.Generator, *, by: Pick = "uniform") -> np.ndarray:
        """Pick a random live token of each cluster (DCPE, Sec. IV-A: the decoding of predicted clusters).

        Parameters
        ----------
        clusters : ndarray of any shape, integer
        generator : numpy.random.Generator
        by : {"uniform", "usage"}
            Every live token alike, or in proportion to its usage.

        Returns
        -------
        tokens : ndarray of the same shape, int64
        """
        return self.pick_tokens_at(clusters, generator.random(np.shape(clusters)), by=by)

    def pick_tokens_at(self, clusters: np.ndarray, uniforms: np.ndarray, *, by: Pick = "uniform") -> np.ndarray:
        """`pick_tokens` with given uniform numbers in [0, 1), one a cluster, instead of a generator."""
        clusters = np.asarray(clusters)
        if clusters.size and (clusters.min() < 0 or clusters.max() >= self.n_clusters):
            raise InputError(f"clusters must lie in 0..{self.n_clusters - 1}, got {clusters.min()}..{clusters.max()}")
        offsets, tokens = self._members
        first, last = offsets[clusters], offsets[clusters + 1]
        if by == "uniform":
            return tokens[first + (uniforms * (last - first)).astype(np.int64)]
        if self.usage is None:
            raise InputError("this prior knows no usage; extract it with --usage to pick tokens by it")
        heads = np.concatenate([[0], np.cumsum(self.usage[tokens])])  # of each member, in units of its usage
        aim = heads[first] + np.floor(uniforms * (heads[last] - heads[first])).astype(np.int64)
        return tokens[np.searchsorted(heads, aim, side="right") - 1]

    def cut(self, n_clusters: int, codebook: Codebook | None = None) -> CodebookPrior:
        """The prior with another number of clusters, from the same tree.

        Parameters
        ----------
        n_clusters : int
            Between the number of clusters that the stored tree ends with and the number of live codes.
        codebook : Codebook, optional
            Needed where there are dead codes, which are attached anew.

        Raises
        ------
        InputError
            If the prior has no tree, the tree does not reach `n_clusters`, or the codebook is needed or another one.
        """
        if self.linkage is None:
            raise InputError(f"a {self.method} prior has no tree to cut; extract it at {n_clusters} clusters instead")
        live = np.flatnonzero(self.live)
        reached = len(live) - len(self.linkage)
        if not reached <= n_clusters <= len(live):
            raise InputError(f"n_clusters must be between {reached} and {len(live)} for this tree, got {n_clusters}")
        labels = cut(self.linkage, len(live), n_clusters)
        if len(live) < len(self):
            labels = self._attach_dead_codes(labels, codebook)
        return replace(self, token_to_cluster=labels, parameters={**self.parameters, "n_clusters": n_clusters})

    def _attach_dead_codes(self, live_labels: np.ndarray, codebook: Codebook | None) -> np.ndarray:
        """Labels of all codes: each dead one joins the cluster of smallest mean distance to its live members."""
        if codebook is None:
            n_dead = int((~self.live).sum())
            raise InputError(f"{n_dead} dead codes must be attached anew: give the codebook too")
        self.verify(codebook.digest, "the codebook given")
        from codeprior.clustering.methods import attach_dead_codes

        space = replace(codebook, normalize=self.parameters.get("normalize", codebook.normalize)).space
        return attach_dead_codes(space, self.live, live_labels)

    def verify(self, codebook_digest: str, what: str) -> None:
        """Refuse to be combined with another codebook's codes, tokenizer or checkpoint.

        Raises
        ------
        InputError
            If the digests differ; names both.
        """
        if codebook_digest != self.codebook_digest:
            raise InputError(
                f"this prior was made from codebook {short(self.codebook_digest)}, {what} belongs to codebook "
                f"{short(codebook_digest)}; run `codeprior extract` on that tokenizer"
            )

    def save(self, path: Path | str) -> None:
        """Write the prior as one safetensors file, atomically."""
        from safetensors.numpy import save_file

        arrays = {"token_to_cluster": self.token_to_cluster, "linkage": self.linkage, "usage": self.usage}
        metadata = {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method,
            "seed": str(self.seed),
            "n_clusters": str(self.n_clusters),
            "codebook_digest": self.codebook_digest,
            "digest": self.digest,
            "parameters": json.dumps(dict(self.parameters)),
        }
        present = {name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}
        with write_atomically(path) as temporary:
            save_file(present, temporary, metadata=metadata)
            sort_metadata(temporary)

    @classmethod
    def load(cls, path: Path | str) -> CodebookPrior:
        """Read a prior: its file, a folder that `save_pretrained` made, or either on the hub (`hf:owner/name[/file]`).

        Raises
        ------
        InputError
            If the file is absent, damaged, changed, or not a prior.
        """
        path = _find(path)
        if not path.is_file():
            raise InputError(f"no prior at {path}: there is no such file")
        from safetensors import safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        except Exception as error:  # safetensors has an error type of its own for each damage
            raise InputError(f"cannot read {path} as a prior: {error}; is the file complete?") from error
        if metadata.get("format") != FORMAT or "token_to_cluster" not in arrays:
            raise InputError(f"{path} is not a prior of codeprior; make one with `codeprior extract`")
        prior = cls(
            token_to_cluster=arrays["token_to_cluster"],
            codebook_digest=metadata["codebook_digest"],
            method=metadata["method"],
            linkage=arrays.get("linkage"),
            usage=arrays.get("usage"),
            seed=int(metadata["seed"]),
            parameters=json.loads(metadata["parameters"]),
        )
        if metadata.get("digest", prior.digest) != prior.digest:
            raise InputError(f"{path} was changed after it was written; make it again with `codeprior extract`")
        return prior

    @classmethod
    def open(cls, source: Path | str) -> CodebookPrior:
        """`load`, by the name that all shared things have."""
        return cls.load(source)

    def write_files(self, folder: Path) -> list[str]:
        """Write the prior, and its facts as JSON for those who look without reading it."""
        self.save(folder / FILE)
        write_json(folder / CONFIG, {"kind": self.kind, **self.facts(), "parameters": dict(self.parameters)})
        return [FILE, CONFIG]

    def facts(self) -> dict[str, Any]:
        """Method and sizes."""
        return {
            "method": self.method,
            "n_codes": len(self),
            "n_clusters": self.n_clusters,
            "codebook_digest": self.codebook_digest,
            "digest": self.digest,
            "seed": self.seed,
        }


def _find(source: Path | str) -> Path:
    """The file of a prior: what the source names, or in the artifact that it names."""
    if is_on_hub(source) and Path(split_source(source)[2]).suffix:
        repository, revision, name = split_source(source)
        hub = Hub(str(source), repository, revision, "")
        path = hub.fetch(name)
        if path is None:
            raise InputError(f"{source} {hub.missing}")
        return path
    if is_on_hub(source) or (Path(source).is_dir() and is_artifact(source)):
        return read_manifest(source, CodebookPrior.kind).path(FILE)
    return Path(source)


def is_prior_file(path: Path) -> bool:
    """Whether the path is a safetensors file with a prior's metadata."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    from safetensors import safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except Exception:
        return False
