use super::{Given, ROUTED};
use crate::config::{
    Continuity,
    settings::{Key, SETTINGS},
    value::Kind,
};

fn route(path: &str, profile: &str, more: &str) -> String {
    format!("[[route]]\npath = \"{path}\"\nprofile = \"{profile}\"\nupstream = \"up\"\n{more}\n")
}

#[test]
fn every_setting_refuses_nonsense_and_names_flag_variable_or_file_key() {
    for setting in SETTINGS {
        // Names, text and paths take nearly anything; an empty flag is wrong for all.
        Given::upstream()
            .flag(setting.key, "")
            .refused_with(&[&format!("--{}: got ", setting.name), "expected "]);
        if matches!(setting.kind, Kind::Text | Kind::Path) {
            continue;
        }
        Given::upstream()
            .env(&setting.env(), "=no=sense")
            .refused_with(&[&format!("{}: got ", setting.env()), "expected "]);
        if let Some(key) = setting.file_key().filter(|key| !key.contains('.')) {
            Given::upstream()
                .file(&format!("{key} = [[]]"))
                .refused_with(&[&format!("{key} in "), "expected "]);
        }
    }
}

#[test]
fn all_faults_are_reported_at_once_one_line_each() {
    let faults = Given::default()
        .flag(Key::Listen, "nowhere")
        .env("RINGSPAN_LEASE_TTL", "15")
        .env("RINGSPAN_WEIGHT", "heavy")
        .file(
            "weight = 0\nlisen = \"x\"\n[[upstream]]\nurl = \"ftp://h\"\ncolour = 1\n\
             [[route]]\npath = \"x\"\nprofile = \"http\"\nupstream = \"none\"\n[auth]\nmode = \"token\"\n",
        )
        .faults();
    for mention in [
        "--listen: got \"nowhere\"",
        "RINGSPAN_LEASE_TTL: got \"15\"",
        "RINGSPAN_WEIGHT: got \"heavy\"",
        "weight in ",
        "did you mean `listen`?",
        "upstream[0].name in ",
        "upstream[0].url in ",
        "upstream[0].colour in ",
        "route[0].path in ",
        "route[0].profile in ",
        "route[0].upstream in ",
        "auth.mode in ",
    ] {
        let lines = faults.lines().filter(|line| line.contains(mention)).count();
        assert_eq!(lines, 1, "{mention:?} in: {faults}");
    }
    assert_eq!(faults.lines().count(), 12, "{faults}");
}

#[test]
fn a_value_that_another_layer_covers_has_to_be_right_too() {
    Given::upstream()
        .flag(Key::LeaseTtl, "15s")
        .env("RINGSPAN_LEASE_TTL", "soon")
        .refused_with(&["RINGSPAN_LEASE_TTL: got \"soon\""]);
}

#[test]
fn a_file_that_is_not_there_or_not_toml_is_a_fault_that_quotes_nothing() {
    Given::upstream()
        .flag(Key::Config, "/nonexistent.toml")
        .refused_with(&["--config: got \"/nonexistent.toml\"", "a readable TOML file"]);
    let given = Given::upstream().file("listen = \"127.0.0.1:1\"\npeer_token = \"hunter2\" oops");
    given.refused_with(&["line 2", "expected TOML"]);
    assert!(!given.faults().contains("hunter2"));
}

#[test]
fn nothing_to_serve_is_a_fault() {
    Given::default().refused_with(&["upstream: missing", "[[route]]"]);
}

#[test]
fn listeners_may_not_share_a_port() {
    for listen in ["127.0.0.1:9090", "0.0.0.0:9090"] {
        Given::upstream().flag(Key::Listen, listen).refused_with(&["admin-listen", "9090"]);
    }
    let free =
        Given::upstream().flag(Key::Listen, "127.0.0.1:0").flag(Key::AdminListen, "127.0.0.1:0");
    assert_eq!(free.config().node.listen.port(), 0);
}

#[test]
fn timing_that_would_lose_a_lease_is_refused() {
    Given::upstream().flag(Key::HeartbeatInterval, "5s").refused_with(&[
        "--heartbeat-interval: got \"5s\"",
        "a third",
        "4s",
    ]);
    Given::upstream()
        .flag(Key::LeaseMargin, "8s")
        .refused_with(&["--lease-margin: got \"8s\"", "at most half of lease-ttl (7s500ms)"]);
    Given::upstream()
        .flag(Key::LeaseMargin, "1s")
        .refused_with(&["--lease-margin: got \"1s\"", "at least an eighth of lease-ttl (1s875ms)"]);
}

#[test]
fn peers_talk_in_plaintext_on_loopback_or_where_it_is_asked_for() {
    let open = || {
        Given::upstream()
            .flag(Key::PeerListen, "0.0.0.0:50051")
            .flag(Key::Advertise, "10.0.0.1:50051")
            .flag(Key::DatabaseUrl, "postgres://db/x")
    };
    open().refused_with(&["--peer-listen", "peer-allow-plaintext"]);
    open().flag(Key::PeerAllowPlaintext, "true").config();
    open().env("RINGSPAN_PEER_TOKEN", "0123456789abcdef").config();
    Given::upstream()
        .flag(Key::Advertise, "10.0.0.1:50051")
        .refused_with(&["--advertise: got \"10.0.0.1:50051\"", "loopback"]);
    Given::upstream()
        .flag(Key::StaticMembers, "a=10.0.0.1:50051")
        .refused_with(&["--static-members", "loopback"]);
}

#[test]
fn a_short_token_is_refused_and_never_shown() {
    let given = Given::upstream().env("RINGSPAN_PEER_TOKEN", "hunter2");
    given.refused_with(&["RINGSPAN_PEER_TOKEN", "not shown", "at least 16 characters"]);
    assert!(!given.faults().contains("hunter2"));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "hunter2\n").unwrap();
    let given = Given::upstream().flag(Key::PeerTokenFile, file.path().to_str().unwrap());
    given.refused_with(&["--peer-token-file", "at least 16 characters"]);
    assert!(!given.faults().contains("hunter2"));
}

#[test]
fn ways_of_peer_security_exclude_each_other() {
    let pem = tempfile::NamedTempFile::new().unwrap();
    let path = pem.path().to_str().unwrap();
    let mtls = || {
        Given::upstream().flag(Key::PeerCert, path).flag(Key::PeerKey, path).flag(Key::PeerCa, path)
    };
    mtls().config();
    mtls().env("RINGSPAN_PEER_TOKEN", "0123456789abcdef").refused_with(&["RINGSPAN_PEER_TOKEN"]);
    let partial = Given::upstream().flag(Key::PeerCert, path).faults();
    assert!(partial.contains("peer-key: missing") && partial.contains("peer-ca: missing"));
    Given::upstream()
        .env("RINGSPAN_PEER_TOKEN", "0123456789abcdef")
        .flag(Key::PeerTokenFile, path)
        .refused_with(&["--peer-token-file", "only one"]);
}

#[test]
fn a_node_that_others_cannot_reach_is_refused() {
    Given::upstream()
        .flag(Key::PeerListen, "0.0.0.0:50051")
        .flag(Key::PeerAllowPlaintext, "true")
        .refused_with(&["advertise: missing", "host:port"]);
    let faults = Given::upstream().env("RINGSPAN_HEADLESS_SERVICE", "peers").faults();
    assert!(faults.contains("POD_NAME: missing") && faults.contains("POD_NAMESPACE: missing"));
}

#[test]
fn a_pooler_is_bypassed_for_postgres_only() {
    Given::upstream()
        .flag(Key::DatabaseDirectUrl, "postgres://db/x")
        .refused_with(&["--database-direct-url", "SQLite"]);
}

#[test]
fn an_upstream_url_with_credentials_or_fragment_is_refused_without_showing_them() {
    for url in ["wss://user:hunter2@h/", "wss://hunter2@h/", "wss://h/#hunter2"] {
        let given = Given::default().flag(Key::Upstream, url);
        given.refused_with(&["--upstream"]);
        assert!(!given.faults().contains("hunter2"), "{url}");
    }
}

#[test]
fn a_missing_credential_names_its_variable() {
    let file = ROUTED.replace("[[route]]", "auth = { bearer_env = \"UP_KEY\" }\n[[route]]");
    Given::default().file(&file).refused_with(&["the variable UP_KEY: missing", "upstream[0]"]);
    let given = Given::default().file(&file).env("UP_KEY", "hunter2\n");
    given.refused_with(&["UP_KEY", "visible ASCII"]);
    assert!(!given.faults().contains("hunter2"));
    let given =
        Given::default().file(&ROUTED.replace("[[route]]", "auth = \"Bearer hunter2\"\n[[route]]"));
    given.refused_with(&["upstream[0].auth", "bearer_env"]);
    assert!(!given.faults().contains("hunter2"));
}

#[test]
fn upstreams_are_found_by_distinct_names() {
    let unknown = ROUTED.replace("upstream = \"up\"", "upstream = \"down\"");
    Given::default().file(&unknown).refused_with(&["got \"down\"", "[[upstream]]: up"]);
    let twice = format!("{ROUTED}[[upstream]]\nname = \"up\"\nurl = \"ws://h/\"\n");
    let faults = Given::default().file(&twice).faults();
    assert_eq!(faults.matches("a name that stands only once").count(), 2, "{faults}");
}

#[test]
fn a_broken_upstream_is_reported_once_and_not_again_by_its_routes() {
    let broken = ROUTED.replace("ws://127.0.0.1:9000/v1/responses", "nonsense");
    Given::default().file(&broken).refused_with(&["upstream[0].url", "got \"nonsense\""]);
    let missing = Given::default().file(&ROUTED.replace("name = \"up\"", "")).faults();
    assert!(missing.contains("upstream[0].name"), "{missing}");
}

#[test]
fn routes_that_collide_are_refused() {
    for (path, profile) in [
        ("/v1/responses", "opaque"),
        ("/v1/responses", "responses"),
        ("/v1/responses/{id}", "opaque"),
        ("/v1/responses/x", "opaque"),
    ] {
        let file = format!("{ROUTED}{}", route(path, profile, ""));
        Given::default().file(&file).refused_with(&["route[1].path", path]);
    }
    Given::default()
        .file(ROUTED)
        .flag(Key::Upstream, "ws://h")
        .refused_with(&["--upstream", "/v1/responses"]);
    for path in ["rooms", "/a/{b", "/a//b", "/{a}/{a}"] {
        let file = format!("{ROUTED}{}", route(path, "opaque", ""));
        Given::default().file(&file).refused_with(&["route[1].path", path]);
    }
}

#[test]
fn a_session_key_has_to_exist_and_must_not_be_a_credential() {
    for (source, mention) in [
        ("path:chat", "room"),
        ("header:Authorization", "credential"),
        ("header:cookie", "credential"),
        ("header:", "header:NAME"),
        ("body:x", "path:NAME"),
        ("room", "path:NAME"),
    ] {
        let more = format!("session_key = [\"{source}\"]");
        let file = format!("{ROUTED}{}", route("/rooms/{room}", "opaque", &more));
        Given::default().file(&file).refused_with(&["route[1].session_key", mention]);
    }
    let file = format!("{ROUTED}{}", route("/rooms/{room}", "opaque", "session_key = \"x\""));
    Given::default().file(&file).refused_with(&["route[1].session_key", "an array"]);
}

#[test]
fn keys_and_mode_belong_together() {
    let key = |digest: &str| format!("[[auth.key]]\nname = \"a\"\nsha256 = \"{digest}\"\n");
    let with = |mode: &str, keys: &str| {
        Given::default().file(&format!("{ROUTED}[auth]\nmode = \"{mode}\"\n{keys}"))
    };
    let sound = key(&"a".repeat(64));
    with("api_key", "").refused_with(&["auth.mode", "at least one [[auth.key]]"]);
    with("none", &sound).refused_with(&["auth.key[0]", "no keys"]);
    with("api_key", &format!("{sound}{sound}")).refused_with(&["auth.key[1].sha256", "once"]);
    let raw = with("api_key", &key("sk-hunter2"));
    raw.refused_with(&["auth.key[0].sha256", "64 hexadecimal digits"]);
    assert!(!raw.faults().contains("hunter2"));
}

#[test]
fn a_token_needs_an_audience_and_one_source_of_keys() {
    let jwt = || Given::upstream().flag(Key::AuthMode, "jwt");
    let url = "https://id/keys";
    jwt().flag(Key::JwtAudience, "a").refused_with(&["jwt-jwks-url", "issuer's keys"]);
    jwt().flag(Key::JwtJwksUrl, url).refused_with(&["jwt-audience", "audience"]);
    let sound = || jwt().flag(Key::JwtAudience, "ring").flag(Key::JwtJwksUrl, url);
    sound().config();
    sound().flag(Key::JwtJwksFile, "keys.json").refused_with(&["--jwt-jwks-file", "only one"]);
    sound().flag(Key::JwtAlgorithms, "RS256,HS256").refused_with(&["--jwt-algorithms", "ES256"]);
    Given::upstream()
        .flag(Key::JwtIssuer, "https://id")
        .refused_with(&["--jwt-issuer", "auth-mode is passthrough"]);
}

#[test]
fn an_origin_is_a_scheme_and_a_host() {
    for good in ["https://a.example", "http://localhost:3000", "https://a,https://b"] {
        assert_eq!(
            Given::upstream().flag(Key::AllowedOrigins, good).config().allowed_origins.join(","),
            good
        );
    }
    for bad in ["a.example", "https://a/", "https://a/path", "https://u@a", "*", "https://a,,"] {
        Given::upstream()
            .flag(Key::AllowedOrigins, bad)
            .refused_with(&["--allowed-origins", "https://app.example"]);
    }
}

#[test]
fn files_that_are_named_have_to_be_there() {
    let file = ROUTED.replace("[[route]]", "ca_file = \"/nonexistent.pem\"\n[[route]]");
    Given::default().file(&file).refused_with(&["upstream[0].ca_file", "/nonexistent.pem"]);
    Given::upstream()
        .flag(Key::PeerTokenFile, "/nonexistent")
        .refused_with(&["--peer-token-file", "readable file"]);
}

/// Two keys: thirty-two times an `h`, and an `i`.
const KEYS: [&str; 2] = [
    "aGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGhoaGg=",
    "aWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWlpaWk=",
];

#[test]
fn a_conversation_goes_to_the_database_only_with_a_key() {
    let database = format!("{ROUTED}continuity = \"database\"\n");
    Given::default().file(&database).refused_with(&[
        "route[0].continuity in ",
        "got \"database\"",
        "history-key",
    ]);
    let config = Given::default().file(&database).env("RINGSPAN_HISTORY_KEY", KEYS[0]).config();
    assert_eq!(config.routes[0].continuity, Continuity::Database);
    assert_eq!(config.routes[1].continuity, Continuity::Database, "the alias is the same route");
    assert_eq!(config.history_keys.expose(), [[b'h'; 32]]);
    // A wrong key is one fault, not two.
    Given::default()
        .file(&database)
        .env("RINGSPAN_HISTORY_KEY", "aGhoaA==")
        .refused_with(&["RINGSPAN_HISTORY_KEY", "32 bytes in base64"]);
}

#[test]
fn keys_of_conversations_are_never_shown_and_may_stand_in_a_file() {
    let both = KEYS.join(",");
    let faults = Given::upstream().flag(Key::HistoryKey, &format!("{both},oops")).faults();
    assert!(!faults.contains("aGho") && !faults.contains("oops"), "{faults}");
    let twice = format!("{},{}", KEYS[0], KEYS[0]);
    Given::upstream().flag(Key::HistoryKey, &twice).refused_with(&["--history-key", "distinct"]);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), KEYS.join("\n") + "\n").unwrap();
    let path = file.path().to_str().unwrap();
    let config = Given::upstream().flag(Key::HistoryKeyFile, path).config();
    assert_eq!(config.history_keys.expose(), [[b'h'; 32], [b'i'; 32]], "the first encrypts");
    Given::upstream()
        .flag(Key::HistoryKeyFile, path)
        .flag(Key::HistoryKey, KEYS[0])
        .refused_with(&["--history-key-file", "only one"]);
    std::fs::write(file.path(), "no key").unwrap();
    Given::upstream().flag(Key::HistoryKeyFile, path).refused_with(&[
        "--history-key-file",
        "a file with",
        "32 bytes",
    ]);
}

#[test]
fn continuity_is_a_matter_of_responses_routes() {
    let opaque = format!("{ROUTED}{}", route("/rooms/{room}", "opaque", "continuity = \"memory\""));
    Given::default().file(&opaque).refused_with(&["route[1].continuity", "opaque"]);
    let odd = format!("{ROUTED}continuity = \"forever\"\n");
    Given::default().file(&odd).refused_with(&["memory, replica, database"]);
    assert_eq!(Given::upstream().config().routes[0].continuity, Continuity::Replica);
    let memory = Given::default().file(&format!("{ROUTED}continuity = \"memory\"\n")).config();
    assert_eq!(memory.routes[0].continuity, Continuity::Memory);
}
