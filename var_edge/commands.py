"""The table of commands, and the group that runs one of them."""

from __future__ import annotations

from importlib import import_module

import click

from runtime.cli import Group, fail
from runtime.optional import advice
from runtime.version import __version__

# Name of the command: its module, whose `main` it is, and what the list of commands says. A command is imported when
# it is run, so that `var-edge --help` and shell completion are quick and need no optional package.
COMMANDS = {
    "export": ("export.__main__", "Export a VAR checkpoint to a bundle."),
    "calibrate": ("calibration.__main__", "Calibrate an FP32 bundle and write it in INT8."),
    "engine": ("export.engine.__main__", "Build the TensorRT engines of a bundle."),
    "generate": ("runtime.generate", "Draw one image for each label."),
    "edit": ("runtime.edit", "Draw a part of an image anew and keep the rest."),
    "web": ("runtime.web.__main__", "Serve a page in the browser to draw and edit images on."),
    "sample-set": ("runtime.sample_set", "Draw the images that FID and IS are computed from."),
    "triton": ("runtime.triton", "Write a model repository for Triton Inference Server."),
    "client": ("runtime.client", "Draw or edit images on a Triton Inference Server."),
    "verify": ("export.verify.__main__", "Compare bundles and engines with the PyTorch model."),
    "fidelity": ("export.fidelity", "Compare the logits of one bundle with those of another."),
    "bench": ("runtime.bench.__main__", "Measure the time, memory and energy of drawing."),
    "roofline": ("export.roofline", "Compute what bounds the speed of models on GPUs."),
    "fits": ("export.fits", "Compute which models fit a device, and recommend one."),
    "gpu-check": ("export.gpu_check", "Build, verify and measure engines on this machine's GPU."),
    "ablation": ("calibration.ablation", "Measure what each technique of calibration gains."),
}


def command_name(text: str) -> str:
    """Return the name of the command that `text` means: its name, or its module as in `python -m runtime.generate`."""
    modules = {module.removesuffix(".__main__"): name for name, (module, _) in COMMANDS.items()}
    return text if text in COMMANDS else modules.get(text, text)


class Commands(Group):
    """Imports a command when it is run, not when it is listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        name = command_name(cmd_name)
        if name not in COMMANDS:
            return None
        try:
            command: click.Command = import_module(COMMANDS[name][0]).main
        except ModuleNotFoundError as error:
            fail(advice(error))
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[click.shell_completion.CompletionItem]:
        names = [name for name in COMMANDS if name.startswith(incomplete)]
        items = [click.shell_completion.CompletionItem(name, help=COMMANDS[name][1]) for name in names]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group(cls=Commands, invoke_without_command=True)
@click.version_option(__version__, prog_name="var-edge")
@click.pass_context
def group(context: click.Context) -> None:
    """Take a VAR checkpoint from PyTorch to images on edge devices.

    Each command has its own --help. "python -m var_edge COMMAND" does the same as "var-edge COMMAND".

    To complete commands and options in the shell, add one of these lines to its start-up file:

    \b
      bash: eval "$(_VAR_EDGE_COMPLETE=bash_source var-edge)"
      zsh:  eval "$(_VAR_EDGE_COMPLETE=zsh_source var-edge)"
      fish: _VAR_EDGE_COMPLETE=fish_source var-edge | source
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
