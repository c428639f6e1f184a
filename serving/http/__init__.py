"""The lean HTTP front: a small ASGI application that answers ``/v1`` and hands the rest to BentoML."""
