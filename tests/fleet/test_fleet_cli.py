from __future__ import annotations

import pytest

import ffm


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--agents", "0"], "0 is not between 1 and 64"),
        (["--agents", "65"], "65 is not between 1 and 64"),
        (["--agents", "many"], "invalid number value: 'many'"),
        (["--versions", "0"], "0 is not between 1 and 1000"),
        (["--seed", "-1"], "-1 is not between 0 and"),
        (["--port", "65536"], "65536 is not between 0 and 65535"),
        (["--adapter", "full"], "invalid choice: 'full'"),
        (["--alpha", "x"], "x is not a finite number above 0"),
        (["--alpha", "nan"], "nan is not a finite number above 0"),
        (["--alpha", "inf"], "inf is not a finite number above 0"),
        (["--alpha", "0"], "0 is not a finite number above 0"),
    ],
)
def test_an_argument_out_of_range_is_named_with_what_is_allowed(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        ffm.main(["demo", *arguments])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert arguments[0] in error
