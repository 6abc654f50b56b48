"""A page in the browser to draw and edit on: `python -m runtime.web --bundle DIR`. It needs the extra `web`."""
