"""Reproducible archives: tar files, charts, and images that Docker saved."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, cast

KEPT = ("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Healthcheck", "Shell")
"""Fields of an image's configuration that say how to run it. The others describe the builder, such as container ids."""
TIMES = ("mtime", "atime", "ctime")
TYPE = "application/vnd.oci.image"
Json = dict[str, Any]


def pack(out: IO[bytes], files: Iterable[tuple[str, bytes]], epoch: int) -> None:
    """Write a tar archive of `files` (contents by name) with the modification time `epoch`."""
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), epoch
            tar.addfile(member, io.BytesIO(content))


@contextmanager
def compressed(path: Path) -> Iterator[IO[bytes]]:
    """Open a gzip file for writing, without a name or a time in its header."""
    with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as out:
        yield cast("IO[bytes]", out)


def repack_chart(path: Path, epoch: int) -> None:
    """Rewrite an archive of `helm package` without the current time."""
    with tarfile.open(path) as tar:
        files = [(member.name, content.read()) for member in tar if (content := tar.extractfile(member))]
    with compressed(path) as out:
        pack(out, files, epoch)


def write_image(saved: Path, out: Path, name: str, epoch: int, scratch: Path) -> str:
    """Write the image in `saved`, an archive of `docker save`, as an OCI archive that `docker load` reads, too.

    Times later than `epoch` become `epoch`, and layers are compressed, so the same content has the same digest.

    Args:
        saved: What `docker save IMAGE` wrote, by any version of the engine.
        out: The archive to write.
        name: Repository and tag, for instance `fedround:0.1.0`.
        epoch: Seconds since 1970.
        scratch: An empty directory, with room for the layers twice.

    Returns:
        The digest of the image's manifest, which is the image's digest in a registry.
    """
    blobs = _Blobs(scratch)
    with tarfile.open(saved) as tar:
        (manifest,) = json.loads(_content(tar, "manifest.json"))
        config = _config(json.loads(_content(tar, manifest["Config"])), epoch)
        layers = []
        for layer in manifest["Layers"]:
            diff, descriptor = _layer(tar, layer, epoch, blobs)
            config["rootfs"]["diff_ids"].append(diff)
            layers.append(descriptor)
    described = blobs.add_json(config, f"{TYPE}.config.v1+json")
    top = {"schemaVersion": 2, "mediaType": f"{TYPE}.manifest.v1+json", "config": described, "layers": layers}
    entry = blobs.add_json(top, f"{TYPE}.manifest.v1+json")
    entry["platform"] = {key: config[key] for key in ("architecture", "os", "variant") if key in config}
    repository, _, tag = name.rpartition(":")
    entry["annotations"] = {
        "io.containerd.image.name": f"docker.io/library/{repository}:{tag}",
        "org.opencontainers.image.ref.name": tag,
    }
    blobs.write("oci-layout", {"imageLayoutVersion": "1.0.0"})
    blobs.write("index.json", {"schemaVersion": 2, "mediaType": f"{TYPE}.index.v1+json", "manifests": [entry]})
    paths = {"Config": _path(described), "Layers": [_path(layer) for layer in layers]}
    blobs.write("manifest.json", [{**paths, "RepoTags": [name]}])
    blobs.save(out, epoch)
    return str(entry["digest"])


class _Blobs:
    """The files of an OCI archive, in a directory until the archive is complete."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "blobs" / "sha256").mkdir(parents=True)

    def add(self, file: Path, kind: str) -> Json:
        """Move the file to its place; return its descriptor."""
        found = {"mediaType": kind, "digest": digest(file), "size": file.stat().st_size}
        file.rename(self._directory / _path(found))
        return found

    def add_json(self, data: object, kind: str) -> Json:
        self.write("blob", data)
        return self.add(self._directory / "blob", kind)

    def write(self, name: str, data: object) -> None:
        (self._directory / name).write_text(json.dumps(data, sort_keys=True, separators=(",", ":")))

    @contextmanager
    def layer(self) -> Iterator[tuple[Path, IO[bytes]]]:
        """Return the path of a file for a compressed layer, and a writer for its content."""
        path = self._directory / "layer"
        with compressed(path) as out:
            yield path, out

    def save(self, out: Path, epoch: int) -> None:
        with tarfile.open(out, "w") as tar:
            for path in sorted(path for path in self._directory.rglob("*") if path.is_file()):
                member = tarfile.TarInfo(str(path.relative_to(self._directory)))
                member.size, member.mtime = path.stat().st_size, epoch
                with path.open("rb") as content:
                    tar.addfile(member, content)


def _layer(tar: tarfile.TarFile, name: str, epoch: int, blobs: _Blobs) -> tuple[str, Json]:
    """Copy a layer; return the digest of its content and its descriptor."""
    hashed = hashlib.sha256()
    with blobs.layer() as (path, out):
        tee = _Tee(out, hashed)
        if _newest(tar, name) > epoch:
            with _opened(tar, name) as source, tarfile.open(fileobj=tee, mode="w|", format=tarfile.PAX_FORMAT) as target:
                for member in source:
                    member.mtime = min(int(member.mtime), epoch)
                    member.pax_headers = {key: value for key, value in member.pax_headers.items() if key not in TIMES}
                    target.addfile(member, source.extractfile(member) if member.isreg() else None)
        else:  # a layer of the base image stays the one that registries have
            with _raw(tar, name) as source_bytes:
                shutil.copyfileobj(source_bytes, tee)
    return f"sha256:{hashed.hexdigest()}", blobs.add(path, f"{TYPE}.layer.v1.tar+gzip")


class _Tee(io.RawIOBase):
    """A writer that hashes its output."""

    def __init__(self, out: IO[bytes], hashed: Any) -> None:
        self._out, self._hashed = out, hashed

    def write(self, data: Any) -> int:
        self._hashed.update(data)
        return self._out.write(data)


def _newest(tar: tarfile.TarFile, name: str) -> float:
    with _opened(tar, name) as layer:
        return max((member.mtime for member in layer), default=0)


@contextmanager
def _raw(tar: tarfile.TarFile, name: str) -> Iterator[IO[bytes]]:
    """Open a layer's tar archive, which engines save compressed or uncompressed."""
    found = tar.extractfile(name)
    assert found is not None, f"{name} is no file"
    magic = found.read(2)
    found.seek(0)
    with gzip.open(found) if magic == b"\x1f\x8b" else found as content:
        yield cast("IO[bytes]", content)


@contextmanager
def _opened(tar: tarfile.TarFile, name: str) -> Iterator[tarfile.TarFile]:
    with _raw(tar, name) as content, tarfile.open(fileobj=content, mode="r|") as layer:
        yield layer


def _config(found: Json, epoch: int) -> Json:
    """Return an image's configuration without details of the build and without layers."""
    latest = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    history = [
        {"created": min(step.get("created", latest), latest)}
        | {key: step[key] for key in ("created_by", "comment", "empty_layer") if key in step}
        for step in found.get("history", [])
    ]
    platform = {key: found[key] for key in ("architecture", "os", "variant") if found.get(key)}
    config = {key: found["config"][key] for key in KEPT if found["config"].get(key)}
    return {**platform, "created": latest, "config": config, "history": history, "rootfs": {"type": "layers", "diff_ids": []}}


def _content(tar: tarfile.TarFile, name: str) -> bytes:
    with _raw(tar, name) as content:
        return content.read()


def _path(descriptor: Json) -> str:
    return f"blobs/{descriptor['digest'].replace(':', '/')}"


def digest(file: Path) -> str:
    """Return the SHA-256 digest of a file, as images name it."""
    with file.open("rb") as content:
        return f"sha256:{hashlib.file_digest(content, 'sha256').hexdigest()}"
