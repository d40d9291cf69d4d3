//! Every metric with its type, labels and meaning. The reference page and the `HELP` lines are made of it.

/// The types of Prometheus that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    /// The names of its labels, in the order in which they are written.
    pub labels: &'static [&'static str],
    /// One sentence, without backslashes and newlines, so that it needs no escape.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(pub(super) static $constant: Metric = Metric { name: $name, kind: Kind::$kind, labels: &[$($label),*], help: $help };)*
        /// All metrics, in the order of the exposition.
        pub static METRICS: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    HTTP_REQUESTS = Counter "gatewright_http_requests_total" ["route", "method", "class"]
        "Requests that are over, by the class of the status that was sent; class none: no response was sent";
    HTTP_DURATION = Histogram "gatewright_http_request_duration_seconds" ["route"]
        "Time from the first byte of a request to the last of its response";
    HTTP_REQUEST_BYTES = Counter "gatewright_http_request_body_bytes_total" ["route"]
        "Bytes of request bodies received from clients";
    HTTP_RESPONSE_BYTES = Counter "gatewright_http_response_body_bytes_total" ["route"]
        "Bytes of response bodies sent to clients";
    HTTP_REJECTIONS = Counter "gatewright_http_rejections_total" ["route", "code"]
        "Answers that the gateway made instead of the upstream, by their stable code";
    HTTP_IN_FLIGHT = Gauge "gatewright_http_requests_in_flight" ["route"]
        "Requests that are under way now";
    AUTH = Counter "gatewright_auth_total" ["route", "filter", "outcome"]
        "Decisions about who may pass, by the filter that made them and how they ended";
    KEY_FETCHES = Counter "gatewright_jwt_key_fetches_total" ["issuer", "result"]
        "Attempts to fetch the keys of an issuer";
    KEY_AGE = Gauge "gatewright_jwt_key_age_seconds" ["issuer"]
        "Time since the keys of an issuer were last known to be right; absent before the first time";
    SOURCE_UP = Gauge "gatewright_consumer_source_up" []
        "1 if the Redis of [consumer_source] answers, 0 if it is away and only known keys go on";
    SOURCE_OUTAGES = Counter "gatewright_consumer_source_outages_total" []
        "Times that the Redis of [consumer_source] ceased to be reachable";
    SOURCE_ASKED = Counter "gatewright_consumer_source_asked_total" []
        "Look-ups of keys, consumers and withdrawn tokens that Redis was asked for";
    SOURCE_INVALIDATED = Counter "gatewright_consumer_source_invalidated_total" []
        "Changes that Redis told of";
    SOURCE_UNAVAILABLE = Counter "gatewright_consumer_source_unavailable_total" []
        "Look-ups that could not be answered, so that the request was refused";
    SOURCE_ENTRIES = Gauge "gatewright_consumer_source_entries" []
        "Keys, consumers and withdrawn tokens that are remembered, unknown ones included";
    UPSTREAM_REQUESTS = Counter "gatewright_upstream_requests_total" ["upstream", "class"]
        "Attempts at endpoints, retries included, by the class of the status that came back; class none: no response came";
    UPSTREAM_RESPONSE_TIME = Histogram "gatewright_upstream_response_time_seconds" ["upstream"]
        "Time from the start of an attempt to the header of its response";
    UPSTREAM_CONNECT_TIME = Histogram "gatewright_upstream_connect_duration_seconds" ["upstream"]
        "Time to open a connection to an endpoint, TLS handshake included";
    UPSTREAM_CONNECTS = Counter "gatewright_upstream_connects_total" ["upstream", "kind"]
        "Connections used for attempts: opened for it (new) or taken from the pool (reused)";
    UPSTREAM_CONNECT_FAILURES = Counter "gatewright_upstream_connect_failures_total" ["upstream"]
        "Connections to endpoints that could not be opened";
    UPSTREAM_RETRIES = Counter "gatewright_upstream_retries_total" ["upstream"]
        "Attempts after the first one of a request";
    UPSTREAM_MALFORMED = Counter "gatewright_upstream_malformed_answers_total" ["upstream", "reason"]
        "Answers over HTTP/1 that were not valid or not unambiguous, and so refused; excess_bytes also counts idle connections on which something came";
    MIRROR_REQUESTS = Counter "gatewright_mirror_requests_total" ["route", "result"]
        "Copies of requests for the mirror of the route: answered, failed, or not sent because the queue was full (busy) or the body too large or incomplete (body)";
    ENDPOINT_HEALTHY = Gauge "gatewright_endpoint_healthy" ["upstream", "endpoint"]
        "1 if the endpoint may be chosen, 0 if it is out of rotation";
    ENDPOINT_IN_FLIGHT = Gauge "gatewright_endpoint_requests_in_flight" ["upstream", "endpoint"]
        "Requests that the endpoint is working on now";
    ENDPOINT_DRAINED = Gauge "gatewright_endpoint_drained" ["upstream", "endpoint"]
        "1 while an operator has taken the endpoint out of use, else 0";
    ENDPOINT_REQUESTS = Counter "gatewright_endpoint_requests_total" ["upstream", "endpoint"]
        "Attempts at the endpoint";
    ENDPOINT_CONNECT_FAILURES = Counter "gatewright_endpoint_connect_failures_total" ["upstream", "endpoint"]
        "Connections to the endpoint that could not be opened";
    ENDPOINT_CHECKS = Counter "gatewright_endpoint_health_checks_total" ["upstream", "endpoint", "result"]
        "Health checks of the endpoint by result, success or failure";
    ENDPOINT_LAST_CHECK = Gauge "gatewright_endpoint_last_health_check_timestamp_seconds" ["upstream", "endpoint"]
        "When the last health check of the endpoint ended, in Unix time";
    DISCOVERY_ENDPOINTS = Gauge "gatewright_discovery_endpoints" ["upstream"]
        "Endpoints of the upstream that were discovered and are in use";
    DISCOVERY_UNUSED = Gauge "gatewright_discovery_unused" ["upstream"]
        "Addresses of the last answer that are not used: outside of the allowed networks, impossible, or too many";
    DISCOVERY_AGE = Gauge "gatewright_discovery_age_seconds" ["upstream"]
        "Time since the last good answer; absent before the first";
    DISCOVERY_FAILURES = Counter "gatewright_discovery_failures_total" ["upstream", "reason"]
        "Questions without a good answer: timeout, unreachable, denied, invalid, or empty";
    RETRIES_REFUSED = Counter "gatewright_upstream_retries_refused_total" ["upstream"]
        "Retries that were not made because the budget had no room for them";
    HEDGES = Counter "gatewright_upstream_hedges_total" ["upstream", "event"]
        "Second requests that were sent because the first took long, and those of them that won";
    BREAKER_STATE = Gauge "gatewright_breaker_state" ["kind", "name"]
        "0 if the breaker of the upstream, endpoint or route is closed, 1 if it is half open, 2 if it is open";
    BREAKER_CHANGES = Counter "gatewright_breaker_changes_total" ["kind", "name", "state"]
        "How often the breaker came to be closed, open or half_open";
    BREAKER_REFUSED = Counter "gatewright_breaker_refused_total" ["kind", "name"]
        "Attempts that the breaker refused";
    ENDPOINT_EJECTED = Gauge "gatewright_endpoint_ejected" ["upstream", "endpoint"]
        "1 if the endpoint is ejected because its requests fail, 0 if not";
    ENDPOINT_EJECTIONS = Counter "gatewright_endpoint_ejections_total" ["upstream", "endpoint", "reason"]
        "How often the endpoint was ejected: for consecutive_errors, its error_rate or its latency";
    OVERLOAD_LIMIT = Gauge "gatewright_upstream_concurrency_limit" ["upstream"]
        "How many requests the upstream may work on at once, as its latency has it";
    OVERLOAD_IN_FLIGHT = Gauge "gatewright_upstream_concurrency" ["upstream"]
        "Requests that count against the limit now";
    OVERLOAD_SHED = Counter "gatewright_upstream_shed_total" ["upstream"]
        "Requests refused because the upstream has more to do than it can";
    LIMIT_DECISIONS = Counter "gatewright_limit_decisions_total" ["route", "limit", "decision"]
        "Decisions of limits: allowed, refused, or shadowed, which is what would have been refused";
    LIMIT_WAITING = Gauge "gatewright_limit_waiting" ["route"]
        "Requests that wait in the queue of a concurrency filter now";
    LIMIT_FORGOTTEN = Counter "gatewright_limit_local_forgotten_total" []
        "Keys that had to be forgotten before they were idle because the memory of the local store is full";
    LIMIT_CROWDED = Counter "gatewright_limit_local_shared_total" []
        "Decisions for keys that shared a bucket because the memory of the local store is full of keys that are being limited";
    LIMIT_MEMORY = Gauge "gatewright_limit_local_bytes" []
        "The bound of the memory of the local store";
    SHIELD_REFUSED = Counter "gatewright_limit_global_refused_total" []
        "Requests refused by the global limit";
    LISTENER_SHIELD_REFUSED = Counter "gatewright_listener_requests_refused_total" ["listener"]
        "Requests that the max_requests of their listener refused";
    REDIS_UP = Gauge "gatewright_redis_up" []
        "1 if Redis answers, 0 if it is away and limits do what on_error says";
    REDIS_CHANGES = Counter "gatewright_redis_state_changes_total" ["state"]
        "Times that Redis came to be reachable (up) and ceased to be (down)";
    REDIS_DECISIONS = Counter "gatewright_redis_decisions_total" []
        "Decisions about limits that Redis made";
    REDIS_LEASED = Counter "gatewright_redis_leased_total" []
        "Decisions made by leases, without a round trip to Redis";
    REDIS_GATEWAYS = Gauge "gatewright_redis_gateways" []
        "Gateways that share Redis, this one included, as last known: while Redis is away each admits its share";
    REDIS_HELD = Gauge "gatewright_redis_lease_uses" []
        "Uses that this gateway holds on leases and has not spent";
    REDIS_PIPELINES = Counter "gatewright_redis_pipelines_total" []
        "Round trips to Redis that carried decisions, each with one or more";
    REDIS_FALLBACKS = Counter "gatewright_redis_fallbacks_total" []
        "Decisions made as on_error says because Redis was away or did not answer in time";
    REDIS_ERRORS = Counter "gatewright_redis_errors_total" []
        "Errors that Redis answered with, and connections that broke";
    REDIS_LOST = Counter "gatewright_redis_lost_total" ["what"]
        "What Redis was to be told afterwards and has not confirmed: charges of keys, which it may then let have more (charge), and uses of refused requests, which may stay counted (return)";
    CACHE_REQUESTS = Counter "gatewright_cache_requests_total" ["route", "result"]
        "Requests to a route with a cache, by what it did: hit, stale, revalidated, miss, collapsed (waited for the fetch of another) or bypass";
    CACHE_BYPASS = Counter "gatewright_cache_bypass_total" ["route", "reason"]
        "Requests that went past the cache of their route, by the reason";
    CACHE_REFUSED = Counter "gatewright_cache_not_stored_total" ["route", "reason"]
        "Answers that were not stored, by the reason";
    CACHE_STORED = Counter "gatewright_cache_stored_total" ["route"]
        "Answers that were taken in to be stored";
    CACHE_BYTES = Counter "gatewright_cache_served_bytes_total" ["route"]
        "Bytes of bodies that were answered from the cache";
    CACHE_DIRECT = Counter "gatewright_cache_direct_hits_total" ["route"]
        "Hits that were answered before a session was made for them: none on routes with filters, a split or compression";
    CACHE_REFRESHES = Counter "gatewright_cache_refreshes_total" ["route"]
        "Fetches in the background of answers that were stale or about to be";
    CACHE_WAITING = Gauge "gatewright_cache_waiting" ["route"]
        "Requests that wait for the fetch of another now";
    CACHE_INVALIDATIONS = Counter "gatewright_cache_invalidations_total" ["route"]
        "Stored answers that unsafe requests to the route have made invalid";
    CACHE_MEMORY = Gauge "gatewright_cache_memory_bytes" ["state"]
        "Memory of the cache: its bound (capacity), what is stored, what is coming in (filling), and what is stored no more but still being sent (leaving)";
    CACHE_ENTRIES = Gauge "gatewright_cache_entries" []
        "Stored answers";
    CACHE_EVICTED = Counter "gatewright_cache_evicted_total" ["reason"]
        "Stored answers that went to make room (room), and new ones that were not worth what they would have pushed out (admission)";
    CACHE_REDIS = Counter "gatewright_cache_redis_total" ["result"]
        "What came of the cache's use of Redis: hit and miss of look-ups, failure (away or too slow), stored, dropped (no room for it), corrupt";
    CACHE_TIER_TIME = Histogram "gatewright_cache_tier_lookup_duration_seconds" ["tier"]
        "Time that look-ups took, of hits and misses together: redis all that were answered, memory one of 16";
    CONNECTIONS_ACCEPTED = Counter "gatewright_listener_connections_accepted_total" ["listener"]
        "Connections that the listener has accepted";
    CONNECTIONS_ACTIVE = Gauge "gatewright_listener_connections_active" ["listener"]
        "Connections of the listener that are open now";
    CONNECTIONS_REFUSED = Counter "gatewright_listener_connections_refused_total" ["listener", "reason"]
        "Connections that were closed before their first request: max_connections (of the listener), max_connections_in_all, max_connections_per_address, max_handshakes, handshake_timeout, handshake_failed, proxy_header (none came, or a wrong one), and accept_failed (the kernel had none to give, as without descriptors)";
    MALFORMED = Counter "gatewright_listener_malformed_requests_total" ["listener", "reason"]
        "Requests that were not valid or not unambiguous HTTP, by what was wrong: the words are under [listeners.NAME]";
    CONNECTIONS_CUT = Counter "gatewright_listener_connections_cut_total" ["listener", "reason"]
        "Connections that were ended in the middle of something because the client was too slow or spoke out of turn: slow_body, slow_reader, idle_tunnel, early_upgrade_bytes, malformed_chunk, and upgrade_unanswered, which is the upstream's";
    CONNECTIONS_CLOSED = Counter "gatewright_listener_connections_closed_total" ["listener", "reason"]
        "Connections that the gateway closed between two requests: idle for too long, after their last_request, silent from the start, or because it was leaving";
    CERTIFICATE_EXPIRY = Gauge "gatewright_tls_certificate_expiry_timestamp_seconds" ["listener", "certificate"]
        "When the certificate of the listener expires, in Unix time, by the path of its file; the days left are this less time(), over 86400";
    RELOADS = Counter "gatewright_config_reloads_total" ["result"]
        "Reloads by result, success or failure";
    UPGRADES_FAILED = Counter "gatewright_upgrades_failed_total" []
        "Upgrades of the binary that failed, so that this process serves on";
    LAST_RELOAD_OK = Gauge "gatewright_config_last_reload_successful" []
        "1 if the last attempt to load the config succeeded, 0 if it failed and an older one is in force";
    LAST_RELOAD_AT = Gauge "gatewright_config_last_reload_success_timestamp_seconds" []
        "When the config in force was loaded, in Unix time";
    CONFIG_INFO = Gauge "gatewright_config_info" ["hash"]
        "Always 1; the label tells the hash of the config in force";
    BUILD_INFO = Gauge "gatewright_build_info" ["version"]
        "Always 1; the label tells the version of the gateway";
    LOG_RECORDS = Counter "gatewright_log_records_total" ["log"]
        "Lines written, by log";
    LOG_DROPPED = Counter "gatewright_log_records_dropped_total" ["log"]
        "Lines lost because the queue was full or the output failed";
    LOG_BYTES = Counter "gatewright_log_written_bytes_total" ["log"]
        "Bytes written, by log";
    LOG_ERRORS = Counter "gatewright_log_write_errors_total" ["log"]
        "Attempts to write or reopen a log that failed";
    LOG_SUPPRESSED = Counter "gatewright_log_records_suppressed_total" []
        "Lines of the gateway's own log that its rate limit left out";
    PROCESS_CPU = Counter "process_cpu_seconds_total" []
        "User and system time of the process";
    PROCESS_RESIDENT = Gauge "process_resident_memory_bytes" []
        "Resident memory of the process";
    PROCESS_VIRTUAL = Gauge "process_virtual_memory_bytes" []
        "Virtual memory of the process";
    PROCESS_OPEN_FDS = Gauge "process_open_fds" []
        "Open file descriptors of the process";
    PROCESS_MAX_FDS = Gauge "process_max_fds" []
        "The soft limit of open file descriptors";
    PROCESS_THREADS = Gauge "process_threads" []
        "Threads of the process";
    PROCESS_START = Gauge "process_start_time_seconds" []
        "When the process started, in Unix time";
}
