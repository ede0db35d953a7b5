"""Disks that are full or gone: a run ends with one line, and the same command goes on to the same bits."""

import shlex
import subprocess
import time

import pytest

pytestmark = pytest.mark.slow

# A disk of a given size in a mount namespace of its own, which any user of Linux may make; then it gets more room.
DISK = """
mount -t tmpfs -o size={size}k tmpfs {disk}
{train} 2> {out}/first; echo $? > {out}/first_code
mount -o remount,size=64m {disk}
{train} 2> {out}/second; echo $? > {out}/second_code
cp -a {disk}/run {out}/run
"""
NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


@pytest.fixture(scope="session")
def _namespace():
    """Skips where there are no namespaces."""
    try:
        subprocess.run([*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be mounted here: {error}")


# From what does not hold the config to what is full near the end: checkpoints take 132 kB each, up to four at a time.
@pytest.mark.usefixtures("_namespace")
@pytest.mark.parametrize("size", [8, 60, 150, 250, 350, 420, 450])
def test_full_disk(training_command, start, check, complaints, tmp_path, size):
    disk = tmp_path / "disk"
    disk.mkdir()
    train = shlex.join(training_command(disk / "run"))
    process = start([*NAMESPACE, "sh", "-c", DISK.format(size=size, disk=disk, out=tmp_path, train=train)])
    _, err = process.communicate()
    codes = [(tmp_path / name).read_text().strip() for name in ("first_code", "second_code")]
    first, second = (complaints((tmp_path / name).read_text()) for name in ("first", "second"))
    assert codes == ["2", "0"], (first, second, err)
    assert len(first) == 1, first
    assert first[0].startswith("error: cannot write ")
    check(tmp_path / "run")


def test_directory_that_is_away_for_a_while(training_command, start, check, complaints, tmp_path):
    """As a file system that is not mounted any more."""
    workdir, away = tmp_path / "run", tmp_path / "away"
    process = start(training_command(workdir))
    while process.poll() is None and not (workdir / "checkpoints" / "60").exists():
        time.sleep(0.01)
    workdir.rename(away)
    _, err = process.communicate()
    assert process.returncode == 2, err
    assert len(complaints(err)) == 1, err
    assert complaints(err)[0].startswith("error: cannot write ")
    assert not workdir.exists()  # nothing was written where it had been
    away.rename(workdir)
    process = start(training_command(workdir))
    _, err = process.communicate()
    assert process.returncode == 0, err
    check(workdir)
