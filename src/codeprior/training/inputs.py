"""What a run is made from: codes, held-out codes, a prior; opened, and found to belong together."""

from __future__ import annotations

from dataclasses import dataclass

from codeprior.artifact import short
from codeprior.codes import CodeStore
from codeprior.config import TrainConfig
from codeprior.errors import InputError
from codeprior.prior import CodebookPrior


@dataclass(frozen=True)
class Inputs:
    """The inputs of a run."""

    codes: CodeStore
    heldout: CodeStore | None
    prior: CodebookPrior | None

    @classmethod
    def open(cls, config: TrainConfig) -> Inputs:
        """Open what the settings name.

        Raises
        ------
        InputError
            If one of them is not as it should be, or they belong to different codebooks, grids or classes.
        """
        codes = CodeStore.open(config.codes)
        heldout = None if config.heldout_codes is None else CodeStore.open(config.heldout_codes)
        prior = None if config.prior is None else CodebookPrior.load(config.prior)
        if prior is not None:
            prior.verify(codes.codebook_digest, "the code store")
        if heldout is not None:
            _check_heldout(codes, heldout)
        return cls(codes, heldout, prior)

    @property
    def digests(self) -> dict[str, str]:
        """Of each input that there is."""
        named = {"codes": self.codes, "heldout_codes": self.heldout, "prior": self.prior}
        return {name: given.digest for name, given in named.items() if given is not None}


def _check_heldout(codes: CodeStore, heldout: CodeStore) -> None:
    if heldout.codebook_digest != codes.codebook_digest:
        ours, other = short(codes.codebook_digest), short(heldout.codebook_digest)
        raise InputError(
            f"the training codes belong to codebook {ours}, the held-out codes to codebook {other}; "
            "encode both with one tokenizer"
        )
    if heldout.grid != codes.grid:
        raise InputError(f"training codes lie on a grid of {codes.grid}, held-out codes of {heldout.grid}")
    if heldout.class_names != codes.class_names:
        both = (codes.class_names, heldout.class_names)
        ours, other = (f"{len(names)} classes ({', '.join(names[:3])}, ...)" for names in both)
        raise InputError(f"training codes have {ours}, held-out codes {other}; both need the same classes")
