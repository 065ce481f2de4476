"""Work trees: one flow at a time in each, and checkouts of a flow's own that leave the user's alone."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from flows import graph
from pipelines.files import sha256_bytes, write_json
from pipelines.stage import StageError

LOCAL = Path(".quantmill")
IDENTITY = {
    f"GIT_{role}_{key}": value
    for role in ("AUTHOR", "COMMITTER")
    for key, value in (("NAME", "Quantmill"), ("EMAIL", "quantmill@localhost"))
}


class Busy(StageError):
    """Another flow works in the tree."""


@contextmanager
def alone(tree: Path, who: str, wait: float) -> Iterator[None]:
    """Keep other flows out of a work tree. Raises Busy, which says who is there, after `wait` seconds."""
    lock = tree.parent / f"{tree.name}.lock" if tree.parent.name == "trees" else tree / LOCAL / "flow.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    holder = lock.with_suffix(".json")
    try:
        held = FileLock(lock, timeout=wait)
        held.acquire()
    except Timeout:
        raise Busy(
            f"{tree}: this work tree is busy: {_said(holder)}; "
            "wait for it (--wait SECONDS), or build in another (--tree NAME)"
        ) from None
    try:
        write_json(holder, {"pid": os.getpid(), "run": who})
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


@contextmanager
def place(root: Path, name: str, overrides: Sequence[str], fetch: bool, who: str, wait: float) -> Iterator[Path]:
    """Yield the work tree that a flow may use: `root` itself, or a checkout of its own.

    A `name` gives a checkout that is kept for the next run, at the commit of `root`, or with `fetch` at what the
    branch is upstream. `overrides` (`prune.ratio=0.5`) give one that has the uncommitted changes of `root` too, and
    that is removed when the block ends well. Raises StageError.
    """
    if not name and not overrides:
        with alone(root, who, wait):
            yield root
        return
    kept = bool(name)
    name = name or f"set-{sha256_bytes(json.dumps(sorted(overrides)).encode())[:12]}"
    tree = root / LOCAL / "trees" / name
    with alone(tree, who, wait):
        check_out(root, tree, _upstream(root) if fetch else "HEAD")
        if overrides:
            _carry(root, tree)
            override(tree, overrides)
        with graph.repository(tree) as repo:  # what is built already need not be built again
            repo.checkout(force=True, allow_missing=True)
        yield tree
        if not kept:
            git(root, "worktree", "remove", "--force", str(tree))


def check_out(root: Path, tree: Path, revision: str) -> None:
    """Make `tree` a git work tree of `root` at a revision, with the DVC cache, remotes and secrets of `root`.

    What an earlier run left there stays: outputs, checkpoints, `dvc.lock`, and `.dvc` files that it updated, unless
    the revision brings others. Raises StageError.
    """
    commit = git(root, "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    if (tree / ".git").exists():
        moved = git(tree, "diff", "--name-only", "HEAD", commit).splitlines()
        edited = git(tree, "diff", "--name-only", "HEAD").splitlines()
        stays = [p for p in edited if p == graph.LOCK or (p.endswith(".dvc") and p not in moved)]
        kept = {tree / p: (tree / p).read_bytes() for p in stays if (tree / p).is_file()}
        git(tree, "checkout", "--quiet", "--force", "--detach", commit)
        for path, data in kept.items():
            path.write_bytes(data)
    else:
        shutil.rmtree(tree, ignore_errors=True)  # what a killed flow left of it
        git(root, "worktree", "prune")
        git(root, "worktree", "add", "--quiet", "--detach", str(tree), commit)
    with graph.repository(root) as repo:
        settings = repo.config.load_one("local")
        remotes = {**repo.config.load_one("repo").get("remote", {}), **settings.get("remote", {})}
        cache = repo.cache.local_cache_dir
    with graph.repository(tree) as repo, repo.config.edit("local") as local:
        local.update(settings)
        local["remote"] = remotes  # relative paths in the file would lead elsewhere from there
        local.setdefault("cache", {})["dir"] = cache


def have(root: Path, commit: str) -> None:
    """Make sure that a clone has a commit; fetch when it has not. Raises StageError."""
    try:
        git(root, "cat-file", "-e", f"{commit}^{{commit}}")
    except StageError:
        git(root, "fetch", "--quiet", "--all")
        try:
            git(root, "cat-file", "-e", f"{commit}^{{commit}}")
        except StageError:
            raise StageError(f"{root}: commit {commit} is not there, nor where it fetches from; push it") from None


def environment(root: Path, tree: Path) -> dict[str, str]:
    """Return what stages of a checkout find in their environment: the local state (MLflow, locks) is that of `root`."""
    if tree == root or "QUANTMILL_HOME" in os.environ:
        return {}
    return {"QUANTMILL_HOME": str(root / LOCAL)}


def override(tree: Path, overrides: Sequence[str]) -> None:
    """Change `params.yaml` of a checkout, as `dvc exp run --set-param` does. Raises StageError."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    try:
        apply_overrides(str(tree / "params.yaml"), list(overrides))
    except DvcException as error:
        cause = " ".join(str(error.__cause__ or error).split())
        raise StageError(f"--set {' '.join(overrides)}: {cause}; write KEY=VALUE, such as prune.ratio=0.5") from None


def save(tree: Path, stages: Sequence[str]) -> str:
    """Keep some stages of a checkout as a DVC experiment of its commit, and return its name. Raises StageError."""
    words = [sys.executable, "-m", "dvc", "exp", "save", "--force", *stages]
    done = subprocess.run(words, cwd=tree, capture_output=True, text=True, env={**IDENTITY, **os.environ}, check=False)
    found = re.search(r"saved as: (\S+)", done.stdout)
    if not found:
        raise StageError(f"{tree}: dvc exp save: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
    return found[1]


def git(tree: Path, *words: str) -> str:
    """Run git in a work tree and return what it prints. Raises StageError."""
    done = subprocess.run(
        ["git", *words], cwd=tree, capture_output=True, text=True, env={**IDENTITY, **os.environ}, check=False
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no reason given"]
        raise StageError(f"{tree}: git {words[0]}: {lines[-1]}")
    return done.stdout.strip()


def _upstream(root: Path) -> str:
    """Fetch, and return what the branch of `root` follows; its own commit when it follows nothing."""
    try:
        git(root, "rev-parse", "--abbrev-ref", "@{upstream}")
    except StageError:
        return "HEAD"
    git(root, "fetch", "--quiet")
    return "@{upstream}"


def _carry(root: Path, tree: Path) -> None:
    """Put the uncommitted changes of tracked files of `root` into a checkout of its commit."""
    if changes := git(root, "stash", "create"):
        git(tree, "restore", f"--source={changes}", "--worktree", "--", ".")


def _said(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"flow run '{found['run']}' (process {found['pid']}) works in it"
    except (OSError, ValueError, KeyError):
        return "another flow works in it"
