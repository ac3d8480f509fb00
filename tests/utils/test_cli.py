"""How command lines end."""

import pytest

from vmp.utils.cli import run_cli


def test_what_a_user_got_wrong_is_one_line():
    def main():
        raise ValueError("the value, the rule, the way out")

    with pytest.raises(SystemExit) as caught:
        run_cli(main)
    assert caught.value.code == "error: the value, the rule, the way out"


def test_our_own_errors_keep_their_traceback():
    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_cli(main)


def test_success_returns():
    run_cli(lambda: None)
