"""A local page to look at runs and play with their models: what ``oneshotgan serve`` opens.

The server never imports PyTorch: it reads run directories, and one other process draws.

library.py     the runs below a folder, and the guard against every other path
trainings.py   trainings as processes of their own: found, started, stopped, gone on with
uploads.py     a photo or clip taken in, whole or not at all; inspect.py looks at it, in another process
artist.py      the process that draws, as the server sees it; worker.py is that process
favourites.py  chosen samples as a ZIP with a manifest
guard.py       Host, Origin and token of every request, and the headers of every answer
app.py         addresses -> pages, JSON and images
server.py      `serve`
"""
