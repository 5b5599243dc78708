"""Groups of commands, which take common options before the command too and suggest a command for a typo."""

from __future__ import annotations

from typing import Any, Final

import click

_PASSED_ON = f"{__name__}.passed_on"
_COMMON: Final = (
    (("--config",), "FILE", "Configuration file of the command."),
    (("--json",), None, "Print JSON."),
    (("-q", "--quiet"), None, "Print only warnings and errors."),
    (("-v", "--verbose"), None, "Print more."),
    (("--debug",), None, "Print or log every operation."),
)
"""The options of commands that can be given before the command: their names, metavar and meaning."""


class CommandGroup(click.Group):
    """A group that passes on options before the command, as if they were the first ones after it.

    So an option that the command does not have is an error of the command, and of an option that is given
    twice, the one behind the command counts.
    """

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
        return name, command, [*ctx.meta.pop(_PASSED_ON, ()), *rest]

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
