"""Every byte of packs and token files is read and checked once, as one does after a copy or before a long training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemo_openmath.core.errors import UserError
from nemo_openmath.core.nearby import nearby
from nemo_openmath.data.packs.plan import PLAN, PackPlan
from nemo_openmath.data.tokens.token_file import MANIFEST, TokenFolder


def verify(folder: str | Path) -> Iterator[str]:
    """Yield a line for each thing of a folder that is whole: packs with the token files they name, or token files.

    Raises DamagedFile naming the first file that is not whole, UserError where there is nothing to check.
    """
    folder = Path(folder)
    if (folder / PLAN).is_file():
        plan = PackPlan(folder)  # checks its own sections
        yield f"{folder}: {plan.num_packs:,} packs of {len(plan.entries):,} samples are whole"
        folders = plan.samples.folders
    else:
        places = [folder, *sorted(folder.glob("tokens-*"))]
        folders = [TokenFolder(place, verify_bytes=0) for place in places if (place / MANIFEST).is_file()]
        if not folders:
            near = nearby(folder, lambda place: (place / PLAN).is_file() or (place / "tokens-0" / MANIFEST).is_file())
            remedy = f"give a folder of sft.pack or sft.tokenize{near}"
            raise UserError("neither packs nor token files", file=folder, remedy=remedy)
    for tokens in folders:
        tokens.verify()
        yield f"{tokens.folder}: {len(tokens):,} samples, {tokens.num_tokens:,} tokens are whole"
