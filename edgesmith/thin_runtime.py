"""What a server is made of where nothing else of edgesmith is: our own files, and the libraries that they need."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from edgesmith.errors import MissingExtraError

__all__ = ["normal_name", "runtime_files", "runtime_libraries"]

_EVERY = ("numpy", "pydantic", "safetensors", "httptools", "uvloop", "orjson", "prometheus-client")
_OF_KIND = {
    "onnx": ("onnxruntime", "tokenizers"),
    "gguf": ("llama-cpp-python", "jinja2"),
    "genai": ("onnxruntime-genai", "onnxruntime", "tokenizers", "jinja2"),
}
# What these libraries require for work that a server never asks them for: converting models, asking a hub.
_UNUSED = {
    "tokenizers": frozenset({"huggingface-hub"}),
    "onnxruntime": frozenset({"coloredlogs", "flatbuffers", "packaging", "protobuf", "sympy"}),
}


def runtime_files() -> dict[str, Path]:
    """Every file of the thin runtime: all of `serve`, and of `edgesmith` what that imports.

    Returns:
        Path inside the bundle → file here.
    """
    roots = {name: _package_folder(name) for name in ("serve", "edgesmith")}
    found = {
        f"serve/{path.relative_to(roots['serve']).as_posix()}": path
        for path in sorted(roots["serve"].rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    waiting = [path for name, path in found.items() if name.endswith(".py")]
    while waiting:
        for module in _imported(waiting.pop()):
            for path in _module_files(module, roots["edgesmith"].parent):
                name = path.relative_to(roots["edgesmith"].parent).as_posix()
                if name not in found:
                    found[name] = path
                    waiting.append(path)
    tasks = roots["edgesmith"] / "tasks"
    found |= {f"edgesmith/tasks/{path.name}": path for path in tasks.iterdir() if path.suffix == ".txt"}
    return dict(sorted(found.items()))


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None  # they are installed together with this module
    assert spec.origin is not None
    return Path(spec.origin).parent


def _imported(path: Path) -> Iterable[str]:
    """Modules of `edgesmith` that a source file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "edgesmith")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "edgesmith":
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _module_files(module: str, root: Path) -> Iterable[Path]:
    """The file of a module, and those of the packages that it is in; none where the name is no module."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        base = root.joinpath(*parts[:count])
        for path in (base / "__init__.py", base.with_suffix(".py")):
            if path.is_file():
                yield path


def runtime_libraries(
    kinds: Iterable[str], *, with_images: bool = False, platform: str | None = None
) -> tuple[str, ...]:
    """The libraries that serve artifacts of these kinds, at the versions that are installed here.

    Args:
        kinds: Of the artifacts.
        with_images: Whether pictures are decoded.
        platform: Where it runs, as pip names it; this machine's if left out.

    Returns:
        `name==version`, sorted, complete with what they need in turn.

    Raises:
        MissingExtraError: One is not installed, so that its version is not known.
    """
    waiting = [*_EVERY, *(name for kind in kinds for name in _OF_KIND[kind]), *(("pillow",) if with_images else ())]
    found: dict[str, str] = {}
    while waiting:
        name = normal_name(waiting.pop())
        if name in found:
            continue
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError as error:
            if name == "uvloop":  # not made for Windows; asyncio's own loop serves there
                continue
            raise MissingExtraError(
                f"the library `{name}` is not installed, so its version cannot be locked",
                mend="Install what serves these artifacts: pip install 'edgesmith[serve,gguf,genai]', as needed.",
            ) from error
        waiting.extend(set(_requirements(name, platform)) - _UNUSED.get(name, frozenset()))
    return tuple(f"{name}=={version}" for name, version in sorted(found.items()))


def _requirements(name: str, platform: str | None) -> Iterable[str]:
    """What a distribution requires, without its extras, where the bundle is to run."""
    where = {"extra": ""} | _environment(platform)
    for line in metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(where):
            yield normal_name(requirement.name)


def _environment(platform: str | None) -> dict[str, str]:
    """What a platform's tag says of the machine, as markers ask for it; nothing where the tag is not known."""
    for start, system in (("manylinux", "linux"), ("musllinux", "linux"), ("macosx", "darwin"), ("win", "win32")):
        if platform is not None and platform.startswith(start):
            machine = re.search(r"(x86_64|aarch64|arm64|armv7l|amd64)$", platform)
            return {"sys_platform": system} | ({"platform_machine": machine[1]} if machine else {})
    return {}


def normal_name(name: str) -> str:
    """A distribution's name as registries compare it.

    >>> normal_name("Llama_cpp.python")
    'llama-cpp-python'
    """
    return re.sub(r"[-_.]+", "-", name).lower()
