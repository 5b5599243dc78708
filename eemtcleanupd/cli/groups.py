"""Groups of commands, which take common options before the command too and suggest a command for a typo."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from typing import Any, Final

import click

_LEAST_OF_CLICK: Final = 50
_LEAST: Final = 20
_WIDE: Final = 70
_SENTENCE: Final = 500
_PASSED_ON = f"{__name__}.passed_on"
_COMMON: Final = (
    (("--config",), "FILE", "Configuration file of the command."),
    (("--json",), None, "Print JSON."),
    (("-q", "--quiet"), None, "Print only warnings and errors."),
    (("-v", "--verbose"), None, "Print more."),
    (("--debug",), None, "Print or log every operation."),
)
"""The options of commands that can be given before the command: their names, metavar and meaning."""


class _HelpFormatter(click.HelpFormatter):
    """Formats ``--help`` for narrow terminals too.

    click needs 50 columns, and more to show options in two columns.
    """

    def __init__(
        self, indent_increment: int = 2, width: int | None = None, max_width: int | None = None
    ) -> None:
        super().__init__(indent_increment, width, max_width)
        if width is None and self.width <= _LEAST_OF_CLICK:
            self.width = max(shutil.get_terminal_size().columns - 2, _LEAST)

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        """Write a list of names and meanings; on a narrow terminal, a long name has a line of its own."""
        if self.width < _LEAST_OF_CLICK:
            col_max = 4
        elif self.width < _WIDE:
            col_max = self.width // 4
        super().write_dl(rows, col_max, col_spacing)


class _Context(click.Context):
    formatter_class = _HelpFormatter


class CommandGroup(click.Group):
    """A group that passes on options before the command, as if they were the first ones after it.

    An unsupported option is therefore an error of the command.  If an option is given twice, the one after
    the command wins.
    """

    context_class = _Context

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for names, metavar, text in _COMMON:
            self.params.append(
                click.Option(
                    names,
                    metavar=metavar,
                    is_flag=metavar is None or None,  # False would make the value optional
                    type=None if metavar is None else click.Path(),
                    help=text,
                    hidden=type(self) is CommandGroup,
                    expose_value=False,
                    callback=_pass_on,
                )
            )

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; its arguments begin with the options that were given before it."""
        if not ctx.resilient_parsing and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(self._unknown(ctx, args[0]), ctx)
        name, command, rest = super().resolve_command(ctx, args)
        if command is not None:
            command.context_class = _Context
        return name, command, [*ctx.meta.pop(_PASSED_ON, ()), *rest]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands with their complete first sentence."""
        commands = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(_SENTENCE)) for name, command in commands if command]
            )

    def _unknown(self, ctx: click.Context, name: str) -> str:
        from difflib import get_close_matches

        known = self.list_commands(ctx)
        groups = ((group, self.get_command(ctx, group)) for group in known)
        # `restore` is meant as `trash restore`, though `reset` looks more like it.
        matches = [
            f"{group} {name}"
            for group, inner in groups
            if isinstance(inner, click.Group) and name in inner.list_commands(ctx)
        ] or get_close_matches(name, known)
        start = f"No such command {name!r}."
        return f"{start} Did you mean {' or '.join(matches)}?" if matches else start


def _pass_on(context: click.Context, option: click.Parameter, value: Any) -> None:
    if value is not None and value is not False:
        name = option.opts[-1]
        passed_on = context.meta.setdefault(_PASSED_ON, [])
        passed_on.append(name if value is True else f"{name}={value}")
