"""Whose site file is obeyed, and in what."""

import os
import stat
from pathlib import Path

import pytest
from command_line import Bench

from lewel_bench.harness.cli import main
from lewel_bench.harness.plan import site
from lewel_bench.slurm.profile import Profile, Resources

ME, OTHER, ROOT = 1000, 1001, 0
FILE = "lewel-bench.toml"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration folder, apart from the working directory."""
    monkeypatch.delenv("LEWEL_BENCH_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    (tmp_path / "clone" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "clone" / "deep")
    return tmp_path / "config"


ENGINE = '[engines]\nmmseg = "./evil.sh"\n'
PROFILE = "[clusters.x]\n{}\n[clusters.x.defaults]\n{}\n"
RUN = [
    (ENGINE, "[engines] mmseg"),
    ('[machine.engines]\ndetectron2 = "./evil.sh"\n', "[engines] detectron2"),
    (PROFILE.format('python = "./evil.sh"', ""), "python of [clusters.x]"),
    (PROFILE.format('container = "./evil.sh"\npython = "python3"', ""), "container of"),
    (PROFILE.format('scratch = "$(./evil.sh)"', ""), "scratch of"),
    (PROFILE.format("", 'setup = ["./evil.sh"]'), "setup of"),
    (PROFILE.format("", "") + '[clusters.x.kinds.light]\nsetup = ["./evil.sh"]\n', "setup of"),
    (PROFILE.format("", 'submitit.comment = "x"'), "submitit of"),
    (PROFILE.format("", 'partition = "gpu\\n./evil.sh"'), "partition of"),
]


@pytest.mark.parametrize(("content", "named"), RUN, ids=[named for _, named in RUN])
def test_programs_and_shell_lines_only_from_the_users_own_file(
    content: str, named: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_file = tmp_path / "clone" / FILE
    site_file.write_text(content)
    with pytest.raises(ValueError) as refused:
        site.load()
    for words in (
        str(site_file),
        named,
        str(home / FILE),
        f"export LEWEL_BENCH_CONFIG={site_file}",
    ):
        assert words in str(refused.value)
    monkeypatch.setenv("LEWEL_BENCH_CONFIG", str(site_file))
    assert site.load().path == site_file
    monkeypatch.delenv("LEWEL_BENCH_CONFIG")
    site_file.rename(home / FILE)
    assert site.load().path == home / FILE


def test_what_runs_nothing_is_taken_from_any_folder_above(home: Path, tmp_path: Path) -> None:
    (home / FILE).write_text(ENGINE)
    (tmp_path / "clone" / FILE).write_text(
        'runs = "r"\n[data]\nvoc = "v"\n[suites.mine]\nlike = "shapes"\ndata = "d"\n'
        + PROFILE.format("max_queued = 9", 'partition = "gpu"\ntimeout_min = 9')
    )
    loaded = site.load()
    assert loaded.path == tmp_path / "clone" / FILE and not loaded.pythons
    assert loaded.resolve(loaded.runs) == tmp_path / "clone" / "r"
    assert loaded.clusters["x"]["max_queued"] == 9


@pytest.mark.parametrize("value", ["", "config", "."])
def test_a_configuration_folder_that_is_not_absolute_is_none(
    value: str, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cloned repository may have such a folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", value)
    Path("config").mkdir()
    Path("config", FILE).write_text(ENGINE)
    assert site.own_file() == tmp_path / ".config" / FILE and site.load().path is None


def test_a_closed_folder_above_holds_no_site_file(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(path: str | Path, **_: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patched:  # root may look into every folder
        patched.setattr(os, "stat", closed)
        assert site.find() is None


def test_every_text_of_a_profile_is_known_to_be_safe_or_not() -> None:
    """A new field that a shell reads belongs into site.SHELL_FIELDS; another is added here."""
    quoted = {"name", "kinds", "source", "partition", "account", "qos", "constraint"}
    texts = {
        field
        for model in (Profile, Resources)
        for field, info in model.model_fields.items()
        if info.annotation not in (int, float, bool)
    }
    numbers = {"tasks_per_node", "mem_gb"}
    assert texts - numbers == quoted | site.SHELL_FIELDS


@pytest.mark.parametrize(
    ("owner", "mode", "user", "sudo", "refused"),
    [
        (ME, 0o644, ME, "", None),
        (ROOT, 0o644, ME, "", None),
        (OTHER, 0o644, ME, "", "belongs to user 1001"),
        (ME, 0o644, ROOT, "", "belongs to"),
        (ME, 0o644, ROOT, "1000", None),  # who called sudo
        (OTHER, 0o644, ROOT, "1000", "belongs to"),
        (OTHER, 0o644, ME, "1001", "belongs to"),  # root alone believes SUDO_UID
        (ME, 0o646, ME, "", "chmod go-w"),
        (ME, 0o664, ME, "", "chmod go-w"),
        (ROOT, 0o664, ME, "", None),  # the group root of root alone, as umask 002 leaves it
    ],
)
def test_a_file_of_another_user_or_that_others_can_write_is_refused(
    owner: int, mode: int, user: int, sudo: str, refused: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(os, "geteuid", lambda: user)
    monkeypatch.setenv("SUDO_UID", sudo)
    monkeypatch.setattr(site, "_user", lambda uid: f"user {uid}")
    monkeypatch.setattr(site, "_is_private", lambda gid, uid: gid == uid == ROOT)
    # a user's group is the one shared by all
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, owner and 100, 0, 0, 0, 0))
    message = site._unsafe(status, Path("/x/lewel-bench.toml"))
    assert (message is None) == (refused is None) and (refused or "") in (message or "")


def test_a_group_is_private_by_its_name_and_members(monkeypatch: pytest.MonkeyPatch) -> None:
    import grp
    import pwd

    def user(uid: int) -> pwd.struct_passwd:
        return pwd.struct_passwd(("ann", "x", uid, 7, "", "/", "/"))

    monkeypatch.setattr(pwd, "getpwuid", user)
    for name, members, private in (
        ("ann", [], True),
        ("ann", ["ann"], True),
        ("ann", ["ann", "bob"], False),
        ("lab", [], False),
    ):
        group = grp.struct_group((name, "x", 7, members))
        monkeypatch.setattr(grp, "getgrgid", lambda gid, group=group: group)
        assert site._is_private(7, 1) is private


def test_doctor_runs_no_program_of_a_cloned_repository(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "evil.sh"
    script.write_text(f"#!/bin/sh\ntouch {tmp_path}/executed\n")
    script.chmod(0o755)
    (tmp_path / FILE).write_text(ENGINE)
    done = bench("doctor")
    assert done.returncode == 2 and not (tmp_path / "executed").exists()
    (line,) = done.stderr.splitlines()
    assert str(tmp_path / FILE) in line and "[engines] mmseg" in line


def test_a_file_that_everybody_can_write(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tmp_path / "clone" / FILE, home / FILE):
        path.write_text("runs = 'r'\n")
        path.chmod(0o666)
        assert main(["status"]) == 2
        assert capsys.readouterr().err == (
            f"lewel-bench: others can write the site file {path}: chmod go-w {path}\n"
        )
        path.unlink()


@pytest.mark.parametrize(
    "content",
    [
        b"x = " + b"[" * 50_000,
        b"x = " + b"{a = " * 5_000 + b"1" + b"}" * 5_000,
        b".".join([b"a"] * 5_000) + b" = 1",
        b"runs = " + b"9" * 5_000,
        b"runs = '" + b"x" * 2**21 + b"'",
        b"\xff",
    ],
    ids=["arrays", "tables", "dotted", "digits", "large", "bytes"],
)
def test_hostile_toml_is_one_line(
    content: bytes, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / FILE).write_bytes(content)
    assert main(["status"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(home / FILE) in error and len(error) < 500
