"""IAR's rearrangement of a codebook, in and out: codes renumbered so that each cluster is a run, all of one length.

A rearrangement is a permutation: ``new_codes = mapping[old_codes]``, ``new_vectors[mapping] = old_vectors``. Priors do
without one, `token_to_cluster` maps; this is for those who have IAR's files, or want them. A mapping of one's own is
`clustering.balanced.balanced_order`; `convert` renumbers tokenizers and transformers by one.

IAR: arXiv:2501.00880, Sec. 3.2; github.com/sjtuplayer/IAR.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from codeprior.artifact import write_atomically
from codeprior.errors import InputError
from codeprior.pickles import StoredTensor, read_pickled


def read_mapping(path: Path) -> np.ndarray:
    """Read the new id of each old id: int64 (V,), from IAR's `.pt` (which is a view of a larger storage) or a `.npy`.

    Raises
    ------
    InputError
        If the file is absent, unreadable, or not a permutation of the codes.
    """
    if not path.is_file():
        raise InputError(f"no mapping at {path}: there is no such file")
    mapping = _read_array(path)
    if mapping.dtype.kind not in "iu" or mapping.ndim != 1 or not (np.sort(mapping) == np.arange(len(mapping))).all():
        raise InputError(
            f"{path} must hold one permutation of codes, a vector of each of 0 to V - 1 once; got {mapping.dtype} "
            f"{mapping.shape}"
        )
    return mapping.astype(np.int64)


def write_mapping(path: Path, mapping: np.ndarray) -> None:
    """Write a mapping as IAR's trainer loads it: a `.pt` that holds one int64 tensor."""
    import torch

    with write_atomically(path) as temporary:
        torch.save(torch.from_numpy(np.ascontiguousarray(mapping, dtype=np.int64)), temporary)


def clusters_of(mapping: np.ndarray, n_clusters: int) -> np.ndarray:
    """Cluster of each old code, int64 (V,): clusters are runs of V / n_clusters new codes.

    Raises
    ------
    InputError
        If the codes do not divide into that many clusters.
    """
    if n_clusters < 1 or len(mapping) % n_clusters:
        raise InputError(f"a rearranged codebook has clusters of one size: {len(mapping)} codes make no {n_clusters}")
    return mapping // (len(mapping) // n_clusters)


def _read_array(path: Path) -> np.ndarray:
    if path.suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)
        except Exception as error:  # NumPy has an error type of its own for each damage
            raise InputError(f"cannot read a mapping from {path}: {error}; is it a complete .npy file?") from error
    tensor = read_pickled(path)
    if not isinstance(tensor, StoredTensor):
        raise InputError(f"{path} holds something else than one tensor, which IAR's mapping files hold")
    return tensor.read()
