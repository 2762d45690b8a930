//! The one table of scalar settings. Flags, environment variables, the file, its schema
//! and `docs/configuration.md` are all read from it, so none of them can disagree.

use super::value::Kind;

/// Groups of settings: headings of `--help`, of the reference and of a dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Node,
    Database,
    Timing,
    Upstream,
    Limits,
    Conversations,
    Peers,
    Auth,
    Telemetry,
}

impl Section {
    /// All groups, in the order in which they are shown.
    pub const ALL: [Self; 9] = [
        Self::Node,
        Self::Database,
        Self::Timing,
        Self::Upstream,
        Self::Limits,
        Self::Conversations,
        Self::Peers,
        Self::Auth,
        Self::Telemetry,
    ];

    /// Heading.
    #[must_use]
    pub const fn title(self) -> &'static str {
        match self {
            Self::Node => "Node",
            Self::Database => "Database",
            Self::Timing => "Lease, ring and drain",
            Self::Upstream => "Upstream",
            Self::Limits => "Limits",
            Self::Conversations => "Conversations in the database",
            Self::Peers => "Peer security",
            Self::Auth => "Clients",
            Self::Telemetry => "Telemetry",
        }
    }
}

/// Where the TOML file holds a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InFile {
    /// At the top, under the flag's name with underscores.
    Top,
    /// `[auth] mode`.
    AuthMode,
    /// Flag and variable only.
    Never,
}

/// What holds where nothing is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Otherwise {
    /// This text, read as if it had been given.
    Text(&'static str),
    /// Found out at start, as these words describe.
    Computed(&'static str),
    /// Nothing.
    Unset,
}

/// One scalar setting.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    pub key: Key,
    /// Flag without its dashes; the variable and the key of the file follow from it.
    pub name: &'static str,
    pub section: Section,
    pub kind: Kind,
    pub otherwise: Otherwise,
    /// One sentence.
    pub help: &'static str,
}

impl Setting {
    /// `RINGSPAN_LEASE_TTL`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("RINGSPAN_{}", self.name.replace('-', "_").to_ascii_uppercase())
    }

    /// The variable that other programs use for the same; ours wins over it.
    #[must_use]
    pub const fn standard_env(&self) -> Option<&'static str> {
        match self.key {
            Key::LogFilter => Some("RUST_LOG"),
            Key::OtlpEndpoint => Some("OTEL_EXPORTER_OTLP_ENDPOINT"),
            _ => None,
        }
    }

    /// Where the file holds it.
    #[must_use]
    pub const fn in_file(&self) -> InFile {
        match self.key {
            Key::Config | Key::Upstream => InFile::Never,
            Key::AuthMode => InFile::AuthMode,
            _ => InFile::Top,
        }
    }

    /// `lease_ttl` or `auth.mode`; None if the file cannot hold it.
    #[must_use]
    pub fn file_key(&self) -> Option<String> {
        match self.in_file() {
            InFile::Top => Some(self.name.replace('-', "_")),
            InFile::AuthMode => Some("auth.mode".into()),
            InFile::Never => None,
        }
    }
}

macro_rules! settings {
    ($($section:ident { $($key:ident $name:literal $kind:expr, $otherwise:expr, $help:literal;)+ })+) => {
        /// Names of the settings; an index into [`SETTINGS`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Key { $($(#[doc = $help] $key,)+)+ }

        /// Every scalar setting.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            key: Key::$key,
            name: $name,
            section: Section::$section,
            kind: $kind,
            otherwise: $otherwise,
            help: $help,
        },)+)+];
    };
}

impl Key {
    /// The row of this setting.
    #[must_use]
    pub const fn setting(self) -> &'static Setting {
        &SETTINGS[self as usize]
    }
}

const fn duration(min_ms: u64, max_ms: u64) -> Kind {
    Kind::Duration { min_ms, max_ms }
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;
/// Asymmetric ones only: with a shared secret every verifier could also issue.
const JWT_ALGORITHMS: &[&str] =
    &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"];
const KIB: u64 = 1 << 10;
const GIB: u64 = 1 << 30;

use Kind::{
    Address, AuthMode, Choice, Count, DatabaseUrl, Filter, HistoryKeys, HostPort, HttpUrl, Members,
    Name, Origins, Path, PostgresUrl, Secret, Size, Switch, Text, UpstreamUrl, Words,
};
use Otherwise::{Computed, Text as Is, Unset};

settings! {
    Node {
        Config "config" Path, Unset,
            "TOML file of routes, upstreams and principals; it may hold any setting but this one and `--upstream`.";
        Listen "listen" Address, Is("127.0.0.1:8080"), "Address for clients.";
        PeerListen "peer-listen" Address, Is("127.0.0.1:50051"), "Address for other nodes (gRPC).";
        AdminListen "admin-listen" Address, Is("127.0.0.1:9090"),
            "Address for health, metrics, the status page and the API.";
        AdminToken "admin-token" Secret, Unset,
            "Secret that the admin listener asks of whoever has a node drain; prefer the variable or `--admin-token-file`, since flags can be read by other users of the machine. Without one only callers from the node's own machine may.";
        AdminTokenFile "admin-token-file" Path, Unset,
            "File that holds this secret; read at each use, so that it is rotated by writing it.";
        NodeId "node-id" Name, Computed("`POD_NAME`, else the host name"),
            "Stable name of this node, unique in its ring.";
        Advertise "advertise" HostPort,
            Computed("`POD_NAME`.headless-service.`POD_NAMESPACE`.svc.cluster-domain and the peer port if a headless service is named, else the bound peer address"),
            "Peer address of this node as others reach it.";
        HeadlessService "headless-service" Name, Unset,
            "Headless Kubernetes service from which the advertised name is made.";
        ClusterDomain "cluster-domain" Name, Is("cluster.local"),
            "Domain of the Kubernetes cluster, part of the advertised name.";
        Zone "zone" Name, Unset, "Failure zone; heirs in the same zone are preferred.";
        Weight "weight" Count { min: 1, max: 10_000 }, Is("100"),
            "Share of the ring relative to other nodes.";
        Capacity "capacity" Count { min: 1, max: 10_000_000 }, Is("10000"),
            "Sessions that this node is willing to own.";
        Threads "threads" Count { min: 1, max: 1024 }, Computed("one for each processor"),
            "Worker threads.";
        StaticMembers "static-members" Members, Unset,
            "Peer addresses by node id, in the place of those found in the database.";
    }
    Database {
        DatabaseUrl "database-url" DatabaseUrl,
            Computed("`ringspan/ringspan.db` under `XDG_STATE_HOME` or `~/.local/state`, else `./ringspan.db`"),
            "Database of the ring: SQLite for one machine, Postgres for many. Prefer `--database-url-file` or `--database-password-file` for a password.";
        DatabaseUrlFile "database-url-file" Path, Unset,
            "File that holds database-url, in its place; read at start.";
        DatabaseDirectUrl "database-direct-url" PostgresUrl, Computed("the same as database-url"),
            "Address that bypasses a transaction pooler, for LISTEN and advisory locks.";
        DatabaseDirectUrlFile "database-direct-url-file" Path, Unset,
            "File that holds database-direct-url, in its place; read at start.";
        DatabasePasswordFile "database-password-file" Path, Unset,
            "File that holds the password for both addresses, which then name none; read at start.";
        DatabaseMaxConnections "database-max-connections" Count { min: 2, max: 1000 }, Is("10"),
            "Upper bound of pooled connections.";
        DatabaseTimeout "database-timeout" duration(100, MINUTE), Is("5s"),
            "Upper bound of one call to the database.";
        TurnRetention "turn-retention" duration(10 * MINUTE, 7 * 24 * HOUR), Is("1h"),
            "How long the ledger remembers a turn, and with it an idempotency key.";
        MigrateOnStart "migrate-on-start" Switch, Is("false"),
            "Bring the schema up to date before serving.";
    }
    Timing {
        HeartbeatInterval "heartbeat-interval" duration(10, MINUTE), Is("3s"),
            "How often this node renews its lease.";
        LeaseTtl "lease-ttl" duration(100, 10 * MINUTE), Is("15s"),
            "How long a silent node keeps its sessions.";
        LeaseMargin "lease-margin" duration(1, 5 * MINUTE),
            Computed("a fifth of lease-ttl, at least 250ms"),
            "How much earlier than the database a node believes its own lease to be over.";
        RingPoll "ring-poll" duration(10, MINUTE), Is("2s"),
            "How often the ring's version is read, besides hints.";
        DrainDwell "drain-dwell" duration(0, 10 * MINUTE), Is("10s"),
            "How long a draining node still accepts clients, while balancers learn of it.";
        DrainTimeout "drain-timeout" duration(100, 24 * HOUR), Is("60s"),
            "Limit of handing sessions over and letting turns end, after the dwell.";
        DrainCleanup "drain-cleanup" duration(0, 10 * MINUTE), Is("10s"),
            "Time kept at the end for closing what is left.";
        Rebalance "rebalance" Choice(&["gentle", "off"]), Is("gentle"),
            "Whether a node that owns more than its share hands idle sessions to nodes that own less.";
        RebalanceTolerance "rebalance-tolerance" Count { min: 105, max: 1000 }, Is("125"),
            "Percent of its fair share, by weight, above which a node hands sessions over.";
        RebalanceRate "rebalance-rate" Count { min: 1, max: 1000 }, Is("5"),
            "Sessions a second that one node hands over at most.";
        RebalanceIdle "rebalance-idle" duration(100, 24 * HOUR), Is("2m"),
            "How long nothing has happened in a session, and nobody has joined or left, before it is handed over.";
    }
    Upstream {
        Upstream "upstream" UpstreamUrl, Unset,
            "Shortcut: one Responses route at /v1/responses to this URL (a URL without path gets /v1/responses).";
        UpstreamCompression "upstream-compression" Switch, Is("false"),
            "Offer permessage-deflate to upstreams that do not say otherwise in the file.";
        DialTimeout "dial-timeout" duration(10, 5 * MINUTE), Is("10s"),
            "Limit of connecting to an upstream, TLS and upgrade included.";
        BreakerFailures "breaker-failures" Count { min: 1, max: 1000 }, Is("5"),
            "Failed dials, or failed turns of different sessions, in a row after which an endpoint is left alone for a time.";
        BreakerOpen "breaker-open" duration(10, HOUR), Is("1s"),
            "How long it is left alone the first time, less up to a half at random; doubled with each probe that fails.";
        BreakerMaxOpen "breaker-max-open" duration(10, HOUR), Is("10s"),
            "The longest that it is left alone before the next probe.";
        TurnIdleTimeout "turn-idle-timeout" duration(100, 24 * HOUR), Is("300s"),
            "A running turn without any upstream event for so long is over.";
    }
    Limits {
        MaxMessageBytes "max-message-bytes" Size { min: KIB, max: GIB }, Is("16MiB"),
            "Largest message, after reassembly and inflation.";
        LinkWindow "link-window" Size { min: 4 * KIB, max: GIB }, Is("256KiB"),
            "Bytes in flight between a session and one client before back-pressure.";
        ReplayBytes "replay-bytes" Size { min: 0, max: GIB }, Is("1MiB"),
            "Replay log of a session, from which clients resume.";
        ReplayTtl "replay-ttl" duration(1000, 24 * HOUR), Is("2m"),
            "How long the replay log keeps a message.";
        HistoryBytes "history-bytes" Size { min: 0, max: GIB }, Is("16MiB"),
            "Conversation of a session kept for upstreams that store nothing (`store: false`).";
        MaxClients "max-clients" Count { min: 1, max: 10_000_000 }, Is("10000"),
            "Client sockets and HTTP turns on this node.";
        MaxClientsPerSession "max-clients-per-session" Count { min: 1, max: 100_000 }, Is("64"),
            "Clients attached to one session.";
        TurnQueue "turn-queue" Count { min: 1, max: 4096 }, Is("16"),
            "Turns waiting in one lane of a session.";
        SessionsPerPrincipal "sessions-per-principal" Count { min: 1, max: 1_000_000 }, Unset,
            "Sessions that one principal may have on all nodes together.";
        TurnsPerPrincipal "turns-per-principal" Count { min: 1, max: 1_000_000 }, Unset,
            "Turns of one principal that may run at once on all nodes together.";
        TurnRatePerPrincipal "turn-rate-per-principal" Count { min: 1, max: 60_000 }, Unset,
            "Turns that one principal may begin in a minute on all nodes together, a sixth of them at once.";
        UpgradeTimeout "upgrade-timeout" duration(10, 5 * MINUTE), Is("10s"),
            "Limit of a connection's first request head and of an upgrade; a body of an HTTP turn has as long, and a second more for each 16 KiB that came. A message of over 64 KiB has to grow by 16 KiB a second, seen over this time.";
        WriteTimeout "write-timeout" duration(10, HOUR), Is("30s"),
            "A client that takes nothing for so long is dropped.";
    }
    Conversations {
        HistoryKey "history-key" HistoryKeys, Unset,
            "Keys that encrypt what routes with `continuity = \"database\"` keep: 32 bytes in base64, several separated by commas; the first encrypts, all decrypt. Prefer the variable or `--history-key-file`, since flags can be read by other users of the machine.";
        HistoryKeyFile "history-key-file" Path, Unset,
            "File that holds these keys, separated by commas or lines.";
    }
    Peers {
        PeerToken "peer-token" Secret, Unset,
            "Secret shared by all nodes, or two separated by a comma: the first is shown, both are accepted, so that it can be replaced node by node. Prefer the variable or `--peer-token-file`, since flags can be read by other users of the machine.";
        PeerTokenFile "peer-token-file" Path, Unset, "File that holds the shared secret, or two of them on two lines.";
        PeerCert "peer-cert" Path, Unset, "PEM certificate (chain) of this node, for mTLS; it names the host of `advertise` or the node id. Read again when it changes.";
        PeerKey "peer-key" Path, Unset, "PEM private key of this node, for mTLS.";
        PeerCa "peer-ca" Path, Unset, "PEM authority that signs every node's certificate, for mTLS.";
        PeerAllowPlaintext "peer-allow-plaintext" Switch, Is("false"),
            "Let nodes talk without token or TLS beyond loopback; only where the network is trusted.";
    }
    Auth {
        AuthMode "auth-mode" AuthMode, Is("passthrough"),
            "Who may use the client listener: anybody (none), known keys (`api_key`), holders of a signed token (jwt), or whomever the upstream accepts (passthrough).";
        AuthKeysFile "auth-keys-file" Path, Unset,
            "Accepted keys of mode `api_key`, one `NAME SHA256` a line; read again when it changes, and who used a key that is gone is disconnected.";
        JwtJwksUrl "jwt-jwks-url" HttpUrl, Unset,
            "Where the issuer publishes its keys (JWKS), for mode jwt; read at start, every five minutes, and when a token names a new one. Who used a key that is gone is disconnected.";
        JwtJwksFile "jwt-jwks-file" Path, Unset,
            "File of the issuer's keys (JWKS) in the place of a URL; read again when it changes, and who used a key that is gone is disconnected.";
        JwtAlgorithms "jwt-algorithms" Words(JWT_ALGORITHMS), Is("RS256,ES256,EdDSA"),
            "Signature algorithms that are accepted; whatever a token says, no other is used.";
        JwtIssuer "jwt-issuer" Text, Unset, "Issuer (`iss`) that a token must name.";
        JwtAudience "jwt-audience" Text, Unset,
            "Audience (`aud`) that a token must name; needed for mode jwt, so that a token for another service is of no use here.";
        JwtPrincipalClaim "jwt-principal-claim" Name, Is("sub"),
            "Claim that names the principal, beside the issuer.";
        JwtLeeway "jwt-leeway" duration(0, 5 * MINUTE), Is("30s"),
            "Tolerance of clocks when a token's times are judged.";
        AllowedOrigins "allowed-origins" Origins, Unset,
            "Web pages that may connect, by their `Origin`; unset, every page may. Requests without an `Origin` come from no page.";
    }
    Telemetry {
        LogFormat "log-format" Choice(&["text", "json"]), Is("text"), "Form of a log line.";
        LogFilter "log-filter" Filter, Is("info"), "What is logged, as a `tracing` filter.";
        OtlpEndpoint "otlp-endpoint" HttpUrl, Unset,
            "OpenTelemetry collector that is sent traces, metrics and logs; the standard `OTEL_*` variables say the rest (protocol, headers, signals).";
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_found_by_its_key_and_its_default_is_sound() {
        for (index, setting) in SETTINGS.iter().enumerate() {
            assert_eq!(setting.key as usize, index);
            assert_eq!(setting.key.setting().name, setting.name);
            if let Is(text) = setting.otherwise {
                assert!(setting.kind.read(text).is_ok(), "{}", setting.name);
            }
            assert!(setting.help.ends_with('.'), "{}", setting.name);
        }
    }

    #[test]
    fn no_name_stands_twice() {
        let mut names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), SETTINGS.len());
    }
}
