"""``didi convert`` refuses wrong arguments."""

import pytest

from didi.apps.convert import run_convert
from didi.errors import UsageError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["llama", "x"], "takes mdlm, duo, sdtt, sedd, didi, gpt2, esm2, dplm, antiberty or export first; got 'llama'"),
        (["mdlm"], "takes a file, a folder or a Hub repository next"),
        (["export", "--out", "x"], "takes a bundle next"),
        (["mdlm", "nowhere", "--out", "x"], "a checkpoint is a file, a folder or a Hub repository owner/name"),
        (["mdlm", "../a/b", "--out", "x"], "a checkpoint is a file, a folder or a Hub repository owner/name"),
        (["mdlm", ".", "--out", "x"], "holds one file of weights"),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        run_convert(words)
    assert "\n" not in str(caught.value)
