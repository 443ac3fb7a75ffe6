"""Verb that opens a page in the browser."""

from typing import Annotated

import typer


def show(
    net: Annotated[str, typer.Argument(help="A run directory, one of its checkpoints, or a weight file.")],
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the page, on this machine only.")] = 8501,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """Inspect a net in the browser: an image's five guesses, class maps over the image, filters and curves.

    Stop it with Ctrl-C. Requires pip install 'vggrepro[show]'.
    """
    from vggrepro.show.server import require_free, require_streamlit, serve

    require_streamlit()
    require_free(port)
    from vggrepro.show.exhibit import open_exhibit

    open_exhibit(net)  # what is wrong with it is a line here, not on a page
    serve(net, port, browser=browser)
