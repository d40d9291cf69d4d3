-- Spreads the requests over all routes: /service-00001/items, /service-00002/items, ... up to the count in ROUTES.
-- A step that shares no factor with the count visits every route and leaves no two neighbours in the caches.
local routes = tonumber(os.getenv("ROUTES") or "10")
local at = 0

function request()
  at = (at + 7919) % routes
  return wrk.format("GET", string.format("/service-%05d/items", at + 1))
end
