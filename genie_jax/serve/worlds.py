"""Several worlds in one server: the page offers a choice between them.

The first world is at "/", each other one at "/worlds/NAME/", with its own
players, thread and uploads.
"""

import contextlib
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette import (
  applications,
  middleware,
  requests,
  responses,
  routing,
  types,
)

from genie_jax.serve import app as app_lib
from genie_jax.serve import engine as engine_lib
from genie_jax.serve import security


def paths(names: Sequence[str]) -> list[str]:
  """Returns where each world is, from the names of the worlds.

  Characters that have a meaning in addresses become "-"; equal names are
  numbered.
  """
  found, taken = [], set()
  for name in names:
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip(".-") or "world"
    unique, number = plain, 2
    while unique in taken:
      unique, number = f"{plain}-{number}", number + 1
    taken.add(unique)
    found.append(f"/worlds/{unique}/" if found else "/")
  return found


def serve(
  engines: Sequence[engine_lib.Engine],
  *,
  names: Sequence[str] = (),
  **options: Any,
) -> types.ASGIApp:
  """Returns an app that serves worlds.

  Args:
    engines: A warm engine for each world, at least one.
    names: Host names to accept in addition to localhost and IP addresses.
    **options: Others of `app.Server`, the same for all worlds.
  """
  titles = [engine.description.name for engine in engines]
  places = list(zip(titles, paths(titles), strict=True))
  servers = [
    app_lib.Server(engine, worlds=places, names=names, **options)
    for engine in engines
  ]
  if len(servers) == 1:
    return servers[0].app

  @contextlib.asynccontextmanager
  async def lifespan(app: Any) -> AsyncIterator[None]:
    async with contextlib.AsyncExitStack() as stack:
      for server in servers:
        await stack.enter_async_context(server.lifespan(app))
      yield

  async def with_slash(request: requests.Request) -> responses.Response:
    # The page's own addresses are relative to its folder.
    return responses.RedirectResponse(f"{request.url.path}/")

  first, *others = zip(places, servers, strict=True)
  return applications.Starlette(
    routes=[
      *(
        route
        for (_, path), server in others
        for route in (
          routing.Route(path.rstrip("/"), with_slash),
          routing.Mount(path.rstrip("/"), server.app),
        )
      ),
      routing.Mount("/", first[1].app),
    ],
    middleware=[middleware.Middleware(security.Guard, names=names)],
    lifespan=lifespan,
  )
