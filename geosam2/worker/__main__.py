"""`python -I -m geosam2.worker`: the same as `geosam2 worker`."""

from geosam2.commands.worker import command

command(prog_name="geosam2 worker")
