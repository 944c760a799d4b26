import subprocess
import sys
from pathlib import Path

import pytest

from fedimaging.errors import LedgerError
from fedimaging.privacy.ledger import Ledger
from fedimaging.privacy.ledger_verify import Head, main, read_head, write_head


def test_verdict_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite")
    assert main([str(ledger.path)]) == 0
    assert f"in order: 1 events, last {ledger.verify().time}, head {ledger.verify().hash}" in capsys.readouterr().out
    assert main([str(ledger.path), str(tmp_path / "no.head")]) == 1
    assert "NOT IN ORDER: the ledger's head file" in capsys.readouterr().out
    assert main([]) == 2


def test_the_standard_library_is_enough(tmp_path: Path) -> None:
    path = Ledger.create(tmp_path / "ledger.sqlite").path
    code = (
        "import sys; from pathlib import Path; import fedimaging.privacy.ledger as l;"
        f"l.Ledger(Path({str(path)!r})); foreign = {{'numpy', 'scipy', 'torch', 'pydantic', 'dp_accounting'}};"
        "assert not foreign & set(sys.modules), foreign & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_head_is_written_whole_and_read_back(tmp_path: Path) -> None:
    head = Head(3, "a" * 64, "b" * 64)
    write_head(tmp_path / "head", head)
    assert read_head(tmp_path / "head") == head
    assert [path.name for path in tmp_path.iterdir()] == ["head"]
    with pytest.raises(LedgerError, match="cannot be written"):
        write_head(tmp_path / "no folder" / "head", head)
