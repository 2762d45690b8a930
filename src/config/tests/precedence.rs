use std::{net::SocketAddr, time::Duration};

use super::{Given, ROUTED};
use crate::config::{
    Auth, KeySource, LogFormat, PeerSecurity, Profile, UpstreamAuth, settings::Key,
};

#[test]
fn a_flag_wins_over_the_variable_the_variable_over_the_file_the_file_over_the_default() {
    let file = format!("lease_ttl = \"20s\"\n{ROUTED}");
    let ttl = |given: &Given| given.config().timing.lease_ttl.as_secs();
    assert_eq!(ttl(&Given::upstream()), 15);
    let given = Given::default().file(&file);
    assert_eq!(ttl(&given), 20);
    let given = given.env("RINGSPAN_LEASE_TTL", "30s");
    assert_eq!(ttl(&given), 30);
    assert_eq!(ttl(&given.flag(Key::LeaseTtl, "40s")), 40);
}

#[test]
fn an_empty_variable_counts_as_not_set() {
    let config = Given::upstream().env("RINGSPAN_LEASE_TTL", "").config();
    assert_eq!(config.timing.lease_ttl, Duration::from_secs(15));
}

#[test]
fn the_file_may_be_named_by_a_variable() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ROUTED).unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(Given::default().env("RINGSPAN_CONFIG", path).config().routes.len(), 2);
}

#[test]
fn the_defaults_are_those_of_the_contract() {
    let config = Given::upstream().config();
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    assert_eq!(config.node.listen, address("127.0.0.1:8080"));
    assert_eq!(config.node.peer_listen, address("127.0.0.1:50051"));
    assert_eq!(config.node.admin_listen, address("127.0.0.1:9090"));
    assert_eq!(config.timing.heartbeat_interval, Duration::from_secs(3));
    assert_eq!(config.timing.lease_margin, Duration::from_secs(3));
    assert_eq!(config.timing.drain_timeout, Duration::from_mins(1));
    assert_eq!(config.limits.max_message_bytes, 16 << 20);
    assert_eq!(config.limits.replay_bytes, 1 << 20);
    assert_eq!(config.store.url, "sqlite://ringspan.db");
    assert_eq!(config.telemetry.log_format, LogFormat::Text);
    assert!(matches!(config.auth, Auth::Passthrough));
    assert!(matches!(config.peer, PeerSecurity::Plaintext));
    assert!(config.node.advertise.is_none() && !config.node.supersede);
    assert!(config.warnings.is_empty());
}

#[test]
fn the_margin_of_a_short_lease_is_at_least_a_quarter_of_a_second() {
    let config = Given::upstream()
        .flag(Key::LeaseTtl, "700ms")
        .flag(Key::HeartbeatInterval, "150ms")
        .config();
    assert_eq!(config.timing.lease_margin, Duration::from_millis(250));
}

#[test]
fn the_embedded_database_lies_in_the_users_state_directory() {
    let url = |given: Given| given.config().store.url;
    let home = Given::upstream().env("HOME", "/home/a");
    assert_eq!(url(home), "sqlite:///home/a/.local/state/ringspan/ringspan.db");
    let state = Given::upstream().env("HOME", "/home/a").env("XDG_STATE_HOME", "/state");
    assert_eq!(url(state), "sqlite:///state/ringspan/ringspan.db");
    let relative = Given::upstream().env("XDG_STATE_HOME", "state");
    assert_eq!(url(relative), "sqlite://ringspan.db");
}

#[test]
fn a_pod_is_named_and_advertised_by_its_stable_name() {
    let config = Given::upstream()
        .env("POD_NAME", "ringspan-2")
        .env("POD_NAMESPACE", "prod")
        .env("POD_UID", "0c7e")
        .env("RINGSPAN_HEADLESS_SERVICE", "ringspan-peers")
        .env("RINGSPAN_PEER_LISTEN", "0.0.0.0:50052")
        .env("RINGSPAN_PEER_TOKEN", "0123456789abcdef")
        .env("RINGSPAN_DATABASE_URL", "postgres://db/ringspan")
        .config();
    assert_eq!(config.node.id, "ringspan-2");
    let advertise = config.node.advertise.as_deref();
    assert_eq!(advertise, Some("ringspan-2.ringspan-peers.prod.svc.cluster.local:50052"));
    assert!(config.node.supersede);
    assert!(config.warnings.is_empty());
}

#[test]
fn standard_variables_are_honoured_below_our_own() {
    let given = Given::upstream()
        .env("RUST_LOG", "debug")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");
    let telemetry = given.config().telemetry;
    assert_eq!(telemetry.log_filter, "debug");
    assert_eq!(telemetry.otlp.traces.unwrap().endpoint, "http://collector:4317");
    let telemetry = given.env("RINGSPAN_LOG_FILTER", "warn").config().telemetry;
    assert_eq!(telemetry.log_filter, "warn");
}

#[test]
fn the_shortcut_makes_a_responses_route_and_its_alias() {
    let config = Given::default().flag(Key::Upstream, "https://host").config();
    let paths: Vec<&str> = config.routes.iter().map(|route| route.path.as_str()).collect();
    assert_eq!(paths, ["/v1/responses", "/backend-api/codex/responses"]);
    for route in &config.routes {
        assert_eq!(route.profile, Profile::Responses);
        assert_eq!(route.upstream.endpoints[0].url, "wss://host/v1/responses");
    }
}

#[test]
fn a_route_at_the_alias_replaces_the_implied_one() {
    let config = Given::default()
        .file(&format!(
            "{ROUTED}[[route]]\npath = \"/backend-api/codex/responses\"\nprofile = \"responses\"\n\
             upstream = \"up\"\ndetach_ttl = \"7s\"\n"
        ))
        .config();
    assert_eq!(config.routes.len(), 2);
    assert_eq!(config.routes[1].detach_ttl, Duration::from_secs(7));
}

#[test]
fn sources_of_a_session_key_keep_their_order() {
    let config = Given::default()
        .file(
            "[[upstream]]\nname = \"up\"\nurl = \"ws://h/\"\n[[route]]\npath = \"/r/{room}\"\n\
             profile = \"opaque\"\nupstream = \"up\"\n\
             session_key = [\"path:room\", \"header:X-Session\", \"query:s\", \"cookie:sid\"]\n",
        )
        .config();
    let expected = [
        KeySource::Path("room".into()),
        KeySource::Header(http::HeaderName::from_static("x-session")),
        KeySource::Query("s".into()),
        KeySource::Cookie("sid".into()),
    ];
    assert_eq!(config.routes[0].session_key, expected);
}

#[test]
fn the_operators_credential_is_read_at_load() {
    let file = ROUTED.replace("[[route]]", "auth = { bearer_env = \"UP_KEY\" }\n[[route]]");
    let config = Given::default().file(&file).env("UP_KEY", "sk-hidden").config();
    match &config.routes[0].upstream.endpoints[0].auth {
        UpstreamAuth::Bearer(secret) => assert_eq!(secret.expose(), "sk-hidden"),
        UpstreamAuth::Passthrough => panic!("the upstream's auth was not read"),
    }
}

#[test]
fn keys_are_known_by_their_digest_and_may_be_rotated_under_one_name() {
    let key = |digit: &str| {
        format!("[[auth.key]]\nname = \"alice\"\nsha256 = \"{}\"\n", digit.repeat(64))
    };
    let file = format!("{ROUTED}[auth]\nmode = \"api_key\"\n{}{}", key("a"), key("B"));
    match Given::default().file(&file).config().auth {
        Auth::ApiKey(keys) => {
            let digests: Vec<_> = keys.fixed.iter().map(|key| key.sha256).collect();
            assert_eq!(digests, [[0xaa; 32], [0xbb; 32]]);
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_shared_token_may_stand_in_a_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
    let config = Given::upstream().flag(Key::PeerTokenFile, file.path().to_str().unwrap()).config();
    match config.peer {
        PeerSecurity::Tokens(tokens) => assert_eq!(tokens[0].expose(), "0123456789abcdef"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_hardly_works_as_intended_is_warned_of() {
    let file = ROUTED
        .replace(":9000/v1/responses\"\n", ":9000/x\"\nauth = { bearer_env = \"K\" }\n")
        + "[[upstream]]\nname = \"idle\"\nurl = \"ws://h/\"\n";
    let config = Given::default()
        .file(&file)
        .env("K", "key")
        .flag(Key::Listen, "0.0.0.0:8080")
        .flag(Key::Advertise, "node-0:50051")
        .flag(Key::PeerAllowPlaintext, "true")
        .config();
    let warnings = config.warnings.join("\n");
    for mention in ["idle", "SQLite", "operator's credential"] {
        assert!(warnings.contains(mention), "{mention:?} is not in: {warnings}");
    }
}
