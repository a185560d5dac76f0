-- What the first released schema looked like, with one call.
CREATE TABLE calls (
    occurred_at INTEGER NOT NULL,
    call_id TEXT NOT NULL UNIQUE,
    user_id TEXT,
    plan TEXT,
    tenant_id TEXT,
    route TEXT,
    release TEXT,
    session_id TEXT,
    tags_extra TEXT,
    attribution TEXT NOT NULL,
    provider TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    requested_model TEXT,
    model TEXT,
    host TEXT,
    streamed INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    error TEXT,
    http_status INTEGER,
    attempts INTEGER NOT NULL,
    duration INTEGER,
    ttft INTEGER,
    response_id TEXT,
    service_tier TEXT,
    batch INTEGER NOT NULL,
    input INTEGER CHECK (input BETWEEN 0 AND 1000000000000), cache_read INTEGER CHECK (cache_read BETWEEN 0 AND 1000000000000), cache_write INTEGER CHECK (cache_write BETWEEN 0 AND 1000000000000), cache_write_5m INTEGER CHECK (cache_write_5m BETWEEN 0 AND 1000000000000), cache_write_1h INTEGER CHECK (cache_write_1h BETWEEN 0 AND 1000000000000), output INTEGER CHECK (output BETWEEN 0 AND 1000000000000), reasoning INTEGER CHECK (reasoning BETWEEN 0 AND 1000000000000), audio_in INTEGER CHECK (audio_in BETWEEN 0 AND 1000000000000), audio_out INTEGER CHECK (audio_out BETWEEN 0 AND 1000000000000), images INTEGER CHECK (images BETWEEN 0 AND 1000000000000), seconds INTEGER CHECK (seconds BETWEEN 0 AND 1000000000000), characters INTEGER CHECK (characters BETWEEN 0 AND 1000000000000), estimated_input INTEGER CHECK (estimated_input BETWEEN 0 AND 1000000000000), estimated_output INTEGER CHECK (estimated_output BETWEEN 0 AND 1000000000000),
    tools TEXT,
    components TEXT,
    tool_calls TEXT,
    raw_usage TEXT,
    cost_femto INTEGER CHECK (cost_femto >= 0),
    cost_status TEXT NOT NULL,
    cost_reasons TEXT,
    price_id INTEGER REFERENCES prices,
    PRIMARY KEY (occurred_at, call_id),
    CHECK ((cost_femto IS NULL) = (cost_status = 'unpriced'))
) STRICT, WITHOUT ROWID;
CREATE TABLE prices (price_id INTEGER PRIMARY KEY, price TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE extra_keys (key TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;
CREATE TABLE segments (name TEXT PRIMARY KEY, offset INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO calls (occurred_at, call_id, user_id, attribution, provider, endpoint, model, streamed, outcome, attempts, batch, input, output, cost_femto, cost_status) VALUES (1793534400000000, 'c1', 'u_1', 'tag', 'openai', 'chat', 'm', 0, 'ok', 1, 0, 10, 7, 1000, 'priced');
PRAGMA application_id = 1448036679;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
