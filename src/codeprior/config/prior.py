"""Settings of the verbs between a codebook and a prior."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from codeprior.config.base import NOT_IDENTITY, MakeConfig, VerbConfig


@dataclass(frozen=True, kw_only=True)
class ExtractConfig(MakeConfig):
    """Extract a prior from a codebook: which codes belong together."""

    codebook: Positional[Path] = field(metadata=NOT_IDENTITY)
    """A tokenizer folder, an array (.npy, .npz), or anybody's checkpoint: .pt, .pth, .ckpt, .bin, .safetensors, a
    Hugging Face folder, or hf:owner/name[/file]. Pickles are read without running them. A tokenizer of your own:
    package.module:function or file.py:function."""
    family: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Family of the checkpoint's tokenizer, where the file does not tell it: llamagen, taming, titok, ..."""
    key: str | None = field(default=None, metadata=NOT_IDENTITY)
    """Name of the codebook, where the checkpoint holds several; [i] at its end picks one of several heads."""
    n_clusters: int | float = 0.5
    """Number of clusters, or a share of the codebook: 0.5 is half."""
    method: str = "dcpe"
    """dcpe (exact average linkage), or a method to compare it with: kmeans, kmeans++, kmeans++-weighted,
    balanced-kmeans, kmeans-instance, centroid, ward, complete."""
    mapping: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """IAR's rearrangement (.pt, or .npy: new id of each old id), in place of --method: clusters are the runs of
    codes / n_clusters new ids."""
    normalize: Annotated[bool | None, arg(metavar="| --no-normalize")] = None
    """Cluster l2-normalised vectors; default: as the tokenizer compares them."""
    usage: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """How often each code is used: a code store, a .npy of counts, or a checkpoint that keeps them (`cluster_size` of
    EMA codebooks, VAR's `ema_vocab_hit_SV`). Codes never used are attached to clusters, not clustered, never picked."""
    max_cluster_size: int | None = None
    """A cluster with more codes than this merges no more (the paper's rule for IAR: V / n_clusters)."""
    strict: bool = False
    """With --max-cluster-size: no cluster may exceed it; fewer merges than asked for may be possible."""
    compare: tuple[str, ...] = field(default=(), metadata=NOT_IDENTITY)
    """Other methods to run at the same number of clusters and to show beside this one; nothing of them is stored."""
    export_labels: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Also write token_to_cluster as .npy."""
    export_linkage: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Also write the tree as .npy, in SciPy's layout."""
    export_mapping: Path | None = field(default=None, metadata=NOT_IDENTITY)
    """Also write IAR's rearrangement as .pt: new id of each old id, clusters one after the other."""
    tree: bool = True
    """Store the complete tree, so that the prior can be cut at any k; --no-tree stops at n_clusters."""


@dataclass(frozen=True, kw_only=True)
class InspectConfig(VerbConfig):
    """Show what an artifact holds: a prior, a codebook, codes, a checkpoint, any folder of ours."""

    paths: Positional[tuple[Path, ...]]
    """One or more artifacts; priors of one codebook are compared with the first."""
    family: str | None = None
    """Family of a checkpoint's tokenizer, where the file does not tell it: llamagen, taming, titok, ..."""
    key: str | None = None
    """Name of the codebook, where a checkpoint holds several; [i] at its end picks one of several heads."""
    normalize: Annotated[bool | None, arg(metavar="| --no-normalize")] = None
    """Look at l2-normalised codes; default: as the tokenizer, or the prior beside it, compares them."""
    code: int | None = None
    """Show the nearest neighbours and the cluster of this code."""
    plot: Path | None = None
    """Folder for pictures of the priors: sizes.png, dendrogram.png, curve.png."""
