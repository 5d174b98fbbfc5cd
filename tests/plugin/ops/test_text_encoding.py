"""Text in a process that starts as Triton's do: in the C locale, without Python's own remedies."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.support.paths import ROOT

C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
READ = "print(len(open({path!r}).read()))"
ASK = "from plugin.ops.text_encoding import read_text_as_utf8; read_text_as_utf8()"


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | environment, capture_output=True, text=True
    )


def test_text_is_read_as_utf8_once_asked_for(tmp_path):
    path = tmp_path / "text"
    path.write_text("a “quote”", encoding="utf-8")
    read = READ.format(path=str(path))
    assert "UnicodeDecodeError: 'ascii' codec" in run(read, **C_LOCALE).stderr
    assert run(f"{ASK}\n{read}", **C_LOCALE).stdout == "9\n"


def test_an_encoding_that_the_user_chose_stays():
    shown = "import locale; print(locale.setlocale(locale.LC_CTYPE), locale.getpreferredencoding(False))"
    before, after = (run(script, LC_ALL="C.UTF-8").stdout for script in (shown, f"{ASK}\n{shown}"))
    assert before == after == "C.UTF-8 UTF-8\n"
