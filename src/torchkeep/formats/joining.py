"""Several files described as one: what an archive holds, or a folder.

The tree of the whole is a `Files`, from each file's name to its tree, so that whatever looks for
state dicts, optimizers and values finds them there, under paths that start with the file's name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torchkeep.contents import Contents, Files, Finding, Global
from torchkeep.errors import DamagedFile, FileProblem, LimitReached


def join_members(
    path: Path,
    nbytes: int,
    container: str,
    members: Mapping[str, Contents],
    *,
    kind: str = "",
    findings: tuple[Finding, ...] = (),
    problem: FileProblem | None = None,
) -> Contents:
    """Return the description of what holds these files.

    Args:
        path: the archive or the folder.
        nbytes: its size on disk; of a folder, that of its files.
        container: its kind: `archive`, `folder`, ...
        members: the files in it by name, in order.
        kind: what it is in a few words.
        findings: about the whole itself.
        problem: why it could not be read to its end.
    """
    names: dict[Global, None] = {}
    joined = list(findings)
    sources: dict[str, str] = {}
    for name, member in members.items():
        names.update(dict.fromkeys(member.globals))
        joined += [finding.within(name) for finding in member.findings]
        sources |= member.sources
    protocols = [m.pickle_protocol for m in members.values() if m.pickle_protocol is not None]
    return Contents(
        path=path,
        nbytes=nbytes,
        container=container,
        root=Files((name, it.root) for name, it in members.items() if _is_whole(it)),
        pickle_protocol=max(protocols, default=None),
        globals=tuple(names),
        sources=sources,
        findings=tuple(joined),
        kind=kind,
        members=tuple(members.values()),
        problem=problem,
    )


def _is_whole(member: Contents) -> bool:
    """Whether a file has a tree, and all of it: what is left of a broken one can't be loaded."""
    return member.root is not None and not isinstance(member.problem, DamagedFile | LimitReached)
