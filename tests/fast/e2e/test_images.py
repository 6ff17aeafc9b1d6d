"""The images' Dockerfiles stay within what both ways of building understand, and archives are right."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest

from e2e.cluster.shell import ClusterError
from e2e.images import archive, build, builder, catalog
from e2e.images.dockerfile import Copy, DockerfileError, Run, parse


@pytest.mark.parametrize("name", catalog.NAMES)
def test_every_image_runs_without_root_and_without_a_shell_before_the_program(name: str) -> None:
    stages = catalog.recipe(name).stages
    config = stages[-1].image_config()
    assert config["User"] == "65532:65532"
    assert config["Entrypoint"]
    for stage in stages:
        commands = [step.command for step in stage.steps if isinstance(step, Run)]
        assert all(command.startswith("set -eu;") for command in commands), "a failure must end the build"


@pytest.mark.parametrize("name", catalog.NAMES)
def test_the_reference_names_the_recipe(name: str) -> None:
    recipe = catalog.recipe(name)
    repository, _, tag = recipe.reference.partition(":")
    assert repository == f"poolkeeper/{name}"
    assert tag[0] == "r"
    assert len(tag) == 13
    assert catalog.recipe(name).reference == recipe.reference


def test_an_unknown_image_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ClusterError, match=r"no image 'pgbouncr'; the images are operator, pgbouncer"):
        catalog.recipe("pgbouncr")


def test_pgbouncer_is_built_with_the_edits_and_ships_alone() -> None:
    stages = catalog.recipe("pgbouncer").stages
    assert any(isinstance(s, Run) and "edit.py" in s.command for s in stages[0].steps)
    assert stages[-1].suite is None
    assert stages[-1].steps == (Copy(("/out",), "/", "build"),)


def test_a_docker_engine_is_given_the_same_file_and_reference() -> None:
    recipe = catalog.recipe("postgres")
    make, save = build.docker_argv(recipe, Path("/a.tar"))
    assert make == [
        *["docker", "build", "--file", "e2e/images/postgres/Dockerfile", "--tag", recipe.reference, "."],
    ]
    assert save == ["docker", "save", "--output", "/a.tar", recipe.reference]


def test_a_build_with_sanitizers_is_the_same_dockerfile_with_another_argument() -> None:
    plain, sanitized = catalog.recipe("pgbouncer"), catalog.recipe(catalog.SANITIZED)
    assert sanitized.reference.startswith("poolkeeper/pgbouncer-sanitized:r")
    values = [
        {pair for step in one.stages[0].steps if isinstance(step, Run) for pair in step.env}
        for one in (plain, sanitized)
    ]
    assert values == [{"SANITIZE="}, {"SANITIZE=address,undefined"}]
    [make, _] = build.docker_argv(sanitized, Path("/a.tar"))
    assert make[2:5] == ["--build-arg=SANITIZE=address,undefined", "--file", "e2e/images/pgbouncer/Dockerfile"]
    assert not any("--build-arg" in word for word in build.docker_argv(plain, Path("/a.tar"))[0])


def test_an_argument_without_a_default_is_refused() -> None:
    with pytest.raises(DockerfileError, match="'NAME' has no default"):
        parse("FROM scratch\nARG NAME\n")


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one image that copies a directory."""
    (tmp_path / "e2e/images/operator").mkdir(parents=True)
    (tmp_path / "e2e/images/operator/Dockerfile").write_text("FROM scratch\nCOPY app /app\n")
    (tmp_path / "app/__pycache__").mkdir(parents=True)
    (tmp_path / "app/main.py").write_text("one\n")
    monkeypatch.setattr(catalog, "ROOT", tmp_path)
    return tmp_path


def test_the_tag_changes_with_what_is_copied_and_with_the_dockerfile(context: Path) -> None:
    seen = {catalog.recipe("operator").reference}
    (context / "app/main.py").write_text("two\n")
    seen.add(catalog.recipe("operator").reference)
    (context / "app/main.py").chmod(0o755)
    seen.add(catalog.recipe("operator").reference)
    (context / "app/more.py").write_text("")
    seen.add(catalog.recipe("operator").reference)
    (context / "e2e/images/operator/Dockerfile").write_text("FROM scratch\nCOPY app /srv\n")
    seen.add(catalog.recipe("operator").reference)
    assert len(seen) == 5


def test_the_tag_stays_when_only_tools_leave_their_files(context: Path) -> None:
    before = catalog.recipe("operator").reference
    (context / "app/__pycache__/main.pyc").write_text("compiled")
    (context / "unrelated.txt").write_text("")
    assert catalog.recipe("operator").reference == before


def test_a_missing_source_is_named(context: Path) -> None:
    (context / "e2e/images/operator/Dockerfile").write_text("FROM scratch\nCOPY nowhere /app\n")
    with pytest.raises(ClusterError, match=r"nowhere is missing"):
        catalog.recipe("operator")


def test_copy_places_files_and_directories_as_docker_does(context: Path) -> None:
    main = str(context / "app/main.py")
    assert builder._destinations(Copy(("app",), "/srv", None)) == [("/srv/main.py", main)]
    assert builder._destinations(Copy(("app/main.py",), "/srv/", None)) == [("/srv/main.py", main)]
    assert builder._destinations(Copy(("app/main.py",), "/srv/renamed", None)) == [("/srv/renamed", main)]
    both = builder._destinations(Copy(("app/main.py", "app"), "/srv/", None))
    assert both == [("/srv/main.py", main), ("/srv/main.py", main)]


def test_a_dockerfile_is_read_with_stages_and_continued_lines() -> None:
    first, second, last = parse(
        "# a comment\nFROM debian:trixie-slim AS base\nENV A=1 B='two words'\nRUN one; \\\n"
        "# inside\n  two\nFROM base AS more\nENV A=3\nRUN three\n\nFROM scratch\nCOPY --from=more /x /y/\n"
        'WORKDIR /w\nUSER 5\nCMD ["a", "b"]\nEXPOSE 80\nSTOPSIGNAL SIGINT\nLABEL k=v l=w\n'
    )
    assert first.suite == "trixie"
    assert first.steps == (Run("one; two", ("A=1", "B=two words"), "/"),)
    assert (second.parent, second.suite) == ("base", None)
    assert second.steps == (Run("three", ("B=two words", "A=3"), "/"),)
    assert last.steps == (Copy(("/x",), "/y/", "more"),)
    assert last.image_config() == {
        "User": "5",
        "Cmd": ["a", "b"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGINT",
        "Labels": {"k": "v", "l": "w"},
        "WorkingDir": "/w",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("RUN x", "line 1: RUN comes before any FROM"),
        ("FROM alpine:3", "line 1: FROM 'alpine:3' is neither"),
        ("FROM scratch\nADD a b", "line 2: ADD is not supported"),
        ("FROM scratch\n\nHEALTHCHECK NONE", "line 3: HEALTHCHECK is not supported"),
        ("FROM scratch\nRUN --mount=type=cache x", "line 2: RUN takes a plain shell command"),
        ("FROM scratch\nUSER 1\nRUN x", "line 3: RUN after USER"),
        ("FROM scratch\nCOPY --chmod=755 a /b", "line 2: COPY --chmod=755"),
        ("FROM scratch\nCOPY --from=nobody a /b", "line 2: COPY --from=nobody"),
        ("FROM scratch\nCOPY *.py /b/", "line 2: COPY takes plain names"),
        ("FROM scratch\nCMD run it", "line 2: CMD takes the JSON form"),
        ("FROM scratch\nENV A", "line 2: ENV 'A' is not NAME=VALUE"),
        ("FROM scratch\nRUN a \\", "line 2: the last instruction"),
        ("# nothing", "there is no FROM"),
    ],
)
def test_what_the_chroot_build_does_not_know_is_refused_by_line(text: str, message: str) -> None:
    with pytest.raises(DockerfileError) as caught:
        parse(text)
    assert message in str(caught.value)


def test_a_layer_holds_the_files_and_its_digest_is_that_of_the_tar(tmp_path: Path) -> None:
    files = tmp_path / "fs"
    (files / "usr/bin").mkdir(parents=True)
    (files / "usr/bin/tool").write_text("#!/bin/sh\n")
    (files / "usr/bin/tool").chmod(0o755)
    (files / "bin").symlink_to("usr/bin")
    os.link(files / "usr/bin/tool", files / "usr/bin/twin")
    layer = archive.pack_layer(files, tmp_path / "layer.tar")
    assert layer.digest == hashlib.sha256(layer.tar.read_bytes()).hexdigest()
    with tarfile.open(layer.tar) as tar:
        entries = {entry.name: entry for entry in tar}
    assert list(entries) == ["bin", "usr", "usr/bin", "usr/bin/tool", "usr/bin/twin"]
    assert entries["bin"].linkname == "usr/bin"
    assert entries["usr/bin/tool"].mode == 0o755
    assert entries["usr/bin/twin"].islnk()


def test_what_a_step_deleted_becomes_a_whiteout(tmp_path: Path) -> None:
    (tmp_path / "fs/etc").mkdir(parents=True)
    for name in ("fs/top", "fs/etc/motd"):  # overlayfs marks a deleted name by this device
        os.mknod(tmp_path / name, stat.S_IFCHR, os.makedev(0, 0))
    layer = archive.pack_layer(tmp_path / "fs", tmp_path / "layer.tar")
    with tarfile.open(layer.tar) as tar:
        assert tar.getnames() == [".wh.top", "etc", "etc/.wh.motd"]


def test_packing_twice_gives_the_same_layer(tmp_path: Path) -> None:
    (tmp_path / "fs/b").mkdir(parents=True)
    (tmp_path / "fs/a").write_text("a")
    digests = {archive.pack_layer(tmp_path / "fs", tmp_path / f"{n}.tar").digest for n in range(2)}
    assert len(digests) == 1


def test_an_archive_names_its_image_layers_and_configuration(tmp_path: Path) -> None:
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs/file").write_text("x")
    layer = archive.pack_layer(tmp_path / "fs", tmp_path / "layer.tar")
    path = tmp_path / "image.tar"
    archive.write_archive(path, "poolkeeper/x:r1", [layer], {"User": "5"})
    with tarfile.open(path) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(tar.extractfile(manifest["Config"]))  # type: ignore[arg-type]
        stored = tar.extractfile(manifest["Layers"][0])
        assert stored is not None
        assert hashlib.sha256(stored.read()).hexdigest() == layer.digest
    assert manifest["RepoTags"] == ["poolkeeper/x:r1"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{layer.digest}"]
    assert config["config"] == {"User": "5"}
    assert (config["os"], config["architecture"]) == ("linux", archive._architecture())


def test_a_program_image_is_that_program(tmp_path: Path) -> None:
    program = tmp_path / "tool"
    program.write_bytes(b"\x7fELF")
    path = tmp_path / "image.tar"
    archive.write_program_image(path, "poolkeeper/tool:1", program, "5:5")
    with tarfile.open(path) as tar:
        (manifest,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        with tarfile.open(fileobj=tar.extractfile(manifest["Layers"][0])) as layer:
            (entry,) = layer.getmembers()
    assert (entry.name, entry.mode, entry.size) == ("tool", 0o755, 4)
