"""Makes PyPI's torch importable without a GPU and without NVIDIA's packages (some 3 GB).

    python without_cuda.py SITE-PACKAGES

PyPI has torch for CUDA only. Its libraries are linked against NVIDIA's, which the dynamic linker
wants to see although nothing calls them here. This writes libraries of these names, with the
symbols that are asked for, beside torch's. Each symbol is a function that returns 100, CUDA's "no
device". Needs gcc and binutils.
"""

import pathlib
import re
import subprocess
import sys
import tempfile

NVIDIA = re.compile(r"lib(cu(?!rl)\w*|nv\w*|nccl)\.so")  # the names of libraries
NVIDIA_CALL = re.compile(r"(cu|nccl|nv)[A-Za-z]*[A-Z_]\w*|nccl\w*")  # symbols without a version


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def wanted(library: pathlib.Path) -> tuple[set[str], dict[str, str], set[tuple[str, str]]]:
    """What a library asks of others: files, the file of each symbol version, and symbols."""
    files = {
        m[1] for m in re.finditer(r"\(NEEDED\).*\[(.+)\]", output("readelf", "-dW", str(library)))
    }
    owner, file = {}, ""
    for line in output("readelf", "-VW", str(library)).splitlines():
        if m := re.search(r"File: (\S+)", line):
            file = m[1]
        elif m := re.search(r"Name: (\S+)\s+Flags", line):
            owner[m[1]] = file
    symbols = set()
    for line in output("nm", "-D", "--undefined-only", str(library)).splitlines():
        name, _, version = line.split()[-1].partition("@")
        symbols.add((name, version.lstrip("@")))
    return files, owner, symbols


def write(path: pathlib.Path, symbols: set[tuple[str, str]]) -> None:
    """A shared library that defines each symbol under its version."""
    versions: dict[str, list[str]] = {}
    for name, version in sorted(symbols):
        versions.setdefault(version, []).append(name)
    with tempfile.TemporaryDirectory() as scratch:
        source, script = pathlib.Path(scratch, "stub.c"), pathlib.Path(scratch, "stub.map")
        calls = sorted({name for name, _ in symbols})
        source.write_text(
            "\n".join(f"long {c}(void) {{ return 100; }}" for c in calls) + "\nint none;\n"
        )
        named = {v: n for v, n in versions.items() if v}
        script.write_text(
            "".join(f"{v} {{ global: {'; '.join(n)}; }};\n" for v, n in named.items())
        )
        new = path.with_suffix(".new")
        flags = [f"-Wl,--version-script={script}"] if named else []
        flags += ["-shared", "-fPIC", "-w", "-fno-builtin", f"-Wl,-soname,{path.name}"]
        subprocess.run(["gcc", *flags, "-o", str(new), str(source)], check=True)
        new.replace(path)  # never into a file that another environment shares


def main(site: pathlib.Path) -> None:
    folder = site / "torch" / "lib"
    stubs: dict[str, set[tuple[str, str]]] = {}
    loose = set()
    for library in sorted(folder.glob("*.so*")):
        if NVIDIA.match(library.name):
            continue  # an earlier run's
        files, owner, symbols = wanted(library)
        for file in filter(NVIDIA.match, files):
            stubs.setdefault(file, set())
        for name, version in symbols:
            if version and owner.get(version, "") in stubs:
                stubs[owner[version]].add((name, version))
            elif not version and NVIDIA_CALL.fullmatch(name):
                loose.add((name, ""))
    if not stubs:
        return  # a torch without CUDA, as for macOS
    stubs[min(stubs)] |= loose  # the linker takes them from anywhere
    for file, symbols in stubs.items():
        write(folder / file, symbols)
    print(f"without_cuda: {len(stubs)} libraries with {sum(map(len, stubs.values()))} symbols")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
