"""Files of a Debian package: installed ones first, else what apt fetches. apt and dpkg are replaced by scripts."""

import pytest

from taskedge.demo.assets.debian import Package, files_of
from taskedge.demo.fetch import FetchError

APT = """#!/bin/sh
test "$1 $2 $3" = "download -qq tiny-data" || { echo "E: called with $*" >&2; exit 1; }
echo data > tiny-data_1_all.deb
"""
DPKG = """#!/bin/sh
test "$1" = -x && mkdir -p "$3/usr/share/tiny" && cp "$2" "$3/usr/share/tiny/file"
"""
TINY = Package("tiny-data", 5_000_000, "/usr/share/tiny")


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Writes the two programs; nothing else but the shell's own is on the path."""
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    (tmp_path / "bin").mkdir()

    def write(**scripts):
        for name, text in scripts.items():
            program = tmp_path / "bin" / name.replace("_", "-")
            program.write_text(text)
            program.chmod(0o755)

    return write


def test_a_package_is_fetched_and_unpacked_for_the_length_of_the_block(programs, tmp_path):
    programs(apt_get=APT, dpkg_deb=DPKG)
    said = []
    with files_of(TINY, said.append) as folder:
        assert (folder / "file").read_text() == "data\n"
        assert folder.is_relative_to(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    assert said == ["fetching the Debian package tiny-data (5 MB, once)"]


def test_an_installed_package_is_used_where_it_lies(programs, tmp_path):
    programs(apt_get="#!/bin/sh\nexit 1", dpkg_deb="#!/bin/sh\nexit 1")
    with files_of(Package("tiny-data", 1, str(tmp_path)), pytest.fail) as folder:
        assert folder == tmp_path


@pytest.mark.parametrize(
    ("apt", "dpkg", "reason"),
    [
        ("#!/bin/sh\necho 'W: unsandboxed' >&2; echo 'E: Unable to locate package' >&2; exit 100", DPKG, "E: Unable"),
        ("#!/bin/sh\nexit 3", DPKG, "apt-get ended with code 3"),
        ("#!/bin/sh\nexit 0", DPKG, "apt-get left 0 archives"),
        (APT, "#!/bin/sh\necho 'not a debian archive' >&2; exit 2", "not a debian archive"),
        (APT, "#!/bin/sh\nmkdir unpacked", "has no /usr/share/tiny"),
    ],
)
def test_what_fails_becomes_advice(programs, tmp_path, apt, dpkg, reason):
    programs(apt_get=apt, dpkg_deb=dpkg)
    with pytest.raises(FetchError, match=rf"{reason}.*sudo apt-get install tiny-data"), files_of(TINY, print):
        pass
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_system_without_apt_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TASKEDGE_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match=r"cannot run apt-get.*copy its folder to /usr/share/tiny"):
        files_of(TINY, print).__enter__()
